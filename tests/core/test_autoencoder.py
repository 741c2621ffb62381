"""The small autoencoder: channels that its decoder can do without, and training that keeps the latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.training.autoencoder import AutoencoderSettings, AutoencoderTask, confine
from anifacediff_core.lab.training.data import Pool, PoolPlan
from anifacediff_core.network.autoencoder import AutoEncoder, fold_upsampling, trim
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.weights.checkpoint import load_autoencoder, load_checkpoint, save_checkpoint
from harness.weights import randomize

LATENTS = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def test_a_confined_decoder_stays_confined_and_trims_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    autoencoder = AutoEncoder()
    confine(autoencoder.decoder, (64, 48, 24, 8))
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (autoencoder.decode(LATENTS) - 0.5).square().mean().backward()
        optimizer.step()
    whole = autoencoder.decode(LATENTS)
    trim(autoencoder.decoder)
    close(autoencoder.decode(LATENTS), whole)
    made = [layer.out_channels for layer in convolutions(autoencoder.decoder)]
    assert made == [64] * 10 + [48] * 10 + [24] * 10 + [8] * 4 + [3]


def test_a_checkpoint_keeps_the_layout_and_is_decoded_with_less(tmp_path: Path) -> None:
    autoencoder = randomize(AutoEncoder(), 3).half().float()
    confine(autoencoder.decoder, (64, 64, 32, 16))
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"vae": autoencoder.state_dict()}, NetworkConfig.tiny(), head="")
    checkpoint = load_checkpoint(path)
    assert checkpoint.shapes("vae") == {n: tuple(w.shape) for n, w in AutoEncoder().state_dict().items()}
    loaded = load_autoencoder(checkpoint)
    close(loaded.decode(LATENTS), autoencoder.decode(LATENTS))
    assert convolutions(loaded.decoder)[-1].in_channels == 16


def test_folded_upsampling_decodes_the_same_pictures() -> None:
    autoencoder = randomize(AutoEncoder(), 4)
    confine(autoencoder.decoder, (64, 48, 24, 8))
    expected = autoencoder.decode(LATENTS)
    trim(autoencoder.decoder)
    fold_upsampling(autoencoder.decoder)
    close(autoencoder.decode(LATENTS), expected)
    assert not [layer for layer in autoencoder.modules() if isinstance(layer, nn.Upsample)]


def test_trimming_takes_nothing_from_a_decoder_that_uses_all() -> None:
    autoencoder = randomize(AutoEncoder(), 1)
    before = {name: weight.clone() for name, weight in autoencoder.decoder.state_dict().items()}
    trim(autoencoder.decoder)
    after = autoencoder.decoder.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_channel_that_only_a_block_adds_or_that_has_only_a_bias_is_kept() -> None:
    autoencoder = randomize(AutoEncoder(), 2)
    first, block = autoencoder.decoder[1], autoencoder.decoder[3].conv
    with torch.no_grad():
        first.weight[5], first.bias[5] = 0, 0  # comes again in the block
        first.weight[6], first.bias[6] = 0, 0.7
        block[0].weight[9], block[0].bias[9] = 0, 0  # inside the block only
        whole = autoencoder.decode(LATENTS)
        trim(autoencoder.decoder)
        close(autoencoder.decode(LATENTS), whole)
    assert first.out_channels == 64 and block[0].out_channels == 63


def test_a_decoder_of_zeros_still_decodes() -> None:
    autoencoder = AutoEncoder()
    for weight in autoencoder.decoder.parameters():
        nn.init.zeros_(weight)
    trim(autoencoder.decoder)
    assert autoencoder.decode(LATENTS).shape == (2, 3, 48, 48)


def test_latents_that_are_not_learned_stay_as_they_are() -> None:
    head = HeadModel.bundled()
    plan = PoolPlan(identities=2, stills=1, size=64, normals=False)
    pool = Pool(Studio(head), head, plan, 1).fill()
    settings = AutoencoderSettings(batch_size=2, crop=32, learn_encoder=False)
    task = AutoencoderTask(AutoEncoder(), pool, pool, settings)
    before = {name: weight.clone() for name, weight in task.autoencoder.encoder.state_dict().items()}
    inputs, targets = task.draw(0.0)
    task.losses(task.module(*inputs), targets)["loss"].backward()
    assert all(weight.grad is None for weight in task.autoencoder.encoder.parameters())
    assert task.autoencoder.decoder[1].weight.grad.abs().sum() > 0
    saved = task.weights()
    assert all(torch.equal(saved[f"vae.encoder.{name}"], weight) for name, weight in before.items())


@pytest.mark.parametrize("widths", [(64, 64, 64), (64, 64, 64, 0), (64, 64, 64, 65)])
def test_impossible_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="numbers from 1 to 64"):
        AutoencoderSettings(widths=widths)
