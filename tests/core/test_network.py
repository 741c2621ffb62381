"""The network against diffusers' own forward passes, and each condition against its definition."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anifacediff_core.errors import InputError
from anifacediff_core.lab.training.graphs import GraphableForward
from anifacediff_core.network.attention import AttentionInputs, transformer_block_names
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import clip_preprocess
from anifacediff_core.network.model import PARTS, AniFaceDiff
from anifacediff_core.network.unet import make_unet, run_unet
from harness.weights import randomize

SOURCES, FRAMES = 2, 3
ROWS = SOURCES * FRAMES


@pytest.fixture(scope="module")
def model() -> AniFaceDiff:
    model = AniFaceDiff(NetworkConfig.tiny(), motion=True).eval()
    randomize(model, 0)
    return model


@pytest.fixture
def batch() -> dict[str, torch.Tensor | int]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "noisy_latents": normal(ROWS, 4, 8, 8),
        "timesteps": torch.randint(0, 1000, (SOURCES,), generator=generator).repeat_interleave(FRAMES),
        "source_latents": normal(SOURCES, 4, 8, 8),
        "image_pixels": normal(SOURCES, 3, 112, 112),
        "normals": torch.rand(ROWS, 3, 64, 64, generator=generator),
        "expression": torch.rand(ROWS, 52, generator=generator),
        "conditional_rows": FRAMES,
        "expression_weight": torch.ones(ROWS, 1, 1),
    }


def forward(model: AniFaceDiff, conditional_rows: int, **inputs: torch.Tensor) -> torch.Tensor:
    return GraphableForward(model, conditional_rows)(**inputs)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_without_conditions_the_unet_is_that_of_diffusers(model: AniFaceDiff, batch: dict) -> None:
    plain = UNet2DConditionModel.from_config(model.unet.config).eval()
    plain.load_state_dict(model.unet.state_dict())
    for size, tokens in ((8, 1), (10, 5)):
        latents, context = torch.randn(ROWS, 4, size, size), torch.randn(ROWS, tokens, 128)
        expected = plain(latents, batch["timesteps"], context).sample
        assert relative_error(run_unet(model.unet, latents, batch["timesteps"], context), expected) < 1e-5
        # the processors serve diffusers' own forward as well
        assert relative_error(model.unet(latents, batch["timesteps"], context).sample, expected) < 1e-5


@torch.no_grad()
def test_with_motion_the_unet_is_that_of_diffusers(model: AniFaceDiff, batch: dict) -> None:
    adapter = MotionAdapter(
        block_out_channels=model.config.block_out_channels,
        motion_layers_per_block=model.config.layers_per_block,
        motion_num_attention_heads=model.config.motion_heads,
        motion_max_seq_length=model.config.motion_max_frames,
    )
    adapter.load_state_dict(model.motion.state_dict())
    plain = UNetMotionModel.from_unet2d(model.unet, adapter).eval()
    plain.set_default_attn_processor()
    latents, context = batch["noisy_latents"], torch.randn(ROWS, 1, 128)
    clips = rearrange(latents, "(s f) c h w -> s c f h w", f=FRAMES)
    expected = plain(clips, batch["timesteps"][::FRAMES], context).sample
    expected = rearrange(expected, "s c f h w -> (s f) c h w")
    actual = run_unet(model.unet, latents, batch["timesteps"], context, motion=model.motion, frames=FRAMES)
    assert relative_error(actual, expected) < 1e-5
    still = run_unet(model.unet, latents, batch["timesteps"], context)
    assert relative_error(still, expected) > 1e-2


@torch.no_grad()
def test_reference_features_are_the_inputs_of_self_attention(model: AniFaceDiff, batch: dict) -> None:
    plain = make_unet(model.config).eval()
    missing = plain.load_state_dict(model.reference.state_dict(), strict=False).missing_keys
    last = transformer_block_names(plain)[-1]
    dead = (last, f"{last.split('.transformer_blocks')[0]}.proj_out", "conv_norm_out", "conv_out")
    assert missing and all(key.startswith(dead) for key in missing)

    expected = {}
    for name in transformer_block_names(plain):
        plain.get_submodule(name).norm1.register_forward_hook(
            lambda module, inputs, output, name=name: expected.__setitem__(name, output)
        )
    image = torch.randn(SOURCES, 1, 128)
    plain(batch["source_latents"], 0, image)
    actual = model.encode_reference(batch["source_latents"], image)
    assert list(actual) == list(expected) == model.block_names and len(actual) == 10
    assert all(relative_error(actual[name], expected[name]) < 1e-5 for name in expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "change", ["source_latents", "image_pixels", "normals", "expression", "expression_weight", "timesteps"]
)
def test_every_input_changes_the_rows_it_belongs_to(model: AniFaceDiff, batch: dict, change: str) -> None:
    before = forward(model, **batch)
    value = batch[change]
    batch[change] = 999 - value if change == "timesteps" else value * 0.5
    after = forward(model, **batch)
    assert relative_error(after[:FRAMES], before[:FRAMES]) > 1e-3
    unconditional_changes = change in ("normals", "timesteps")
    assert (relative_error(after[FRAMES:], before[FRAMES:]) > 1e-3) == unconditional_changes
    if not unconditional_changes:
        assert relative_error(after[FRAMES:], before[FRAMES:]) < 1e-5


@torch.no_grad()
def test_rows_in_one_batch_equal_rows_on_their_own(model: AniFaceDiff, batch: dict) -> None:
    together = forward(model, **batch)
    for source in range(SOURCES):
        rows = slice(source * FRAMES, (source + 1) * FRAMES)
        alone = {
            name: value[source : source + 1] if name in ("source_latents", "image_pixels") else value[rows]
            for name, value in batch.items()
            if name != "conditional_rows"
        }
        alone["conditional_rows"] = FRAMES if source == 0 else 0
        assert relative_error(together[rows], forward(model, **alone)) < 1e-5


@torch.no_grad()
def test_unconditional_rows_see_only_themselves_and_the_pose(model: AniFaceDiff, batch: dict) -> None:
    batch["conditional_rows"] = 0
    expected = run_unet(
        model.unet,
        batch["noisy_latents"],
        batch["timesteps"],
        torch.zeros(ROWS, 1, 128),
        pose=(model.pose_encoder(batch["normals"]),),
        motion=model.motion,
        frames=FRAMES,
    )
    assert relative_error(forward(model, **batch), expected) < 1e-5


@torch.no_grad()
def test_reference_attention_concatenates_keys_and_values(model: AniFaceDiff) -> None:
    """Against diffusers' plain attention with an explicitly concatenated context."""
    name = model.block_names[2]
    attention = model.unet.get_submodule(name).attn1
    hidden, reference = torch.randn(FRAMES, 16, 96), torch.randn(1, 16, 96)
    conditions = AttentionInputs(FRAMES, {name: (attention.to_k(reference), attention.to_v(reference))})
    actual = attention(hidden, conditions=conditions)
    context = torch.cat([hidden, reference.expand(FRAMES, -1, -1)], 1)
    plain = UNet2DConditionModel.from_config(model.unet.config).get_submodule(name).attn1
    plain.load_state_dict(attention.state_dict())
    assert relative_error(actual, plain(hidden, encoder_hidden_states=context)) < 1e-5


def train_step(module: AniFaceDiff, inputs: dict) -> torch.Tensor:
    output = forward(module, **inputs)
    output.float().square().mean().backward()
    return output


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_every_weight(model: AniFaceDiff, batch: dict, checkpointing: bool) -> None:
    model.gradient_checkpointing = checkpointing
    trainable = model.set_trainable(PARTS)
    model.zero_grad()
    train_step(model, batch)
    names = {parameter: name for name, parameter in model.named_parameters()}
    # a bias of keys shifts all logits alike, so softmax hides it: its gradient is rounding noise in any CLIP
    silent = [names[p] for p in trainable if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []
    frozen = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in trainable)
    assert frozen < 0.03 * sum(p.numel() for p in model.parameters())
    model.gradient_checkpointing = False


def test_stage_two_trains_motion_only(model: AniFaceDiff, batch: dict) -> None:
    trainable = model.set_trainable(["motion"])
    model.zero_grad()
    train_step(model, batch)
    assert {id(p) for p in trainable} == {id(p) for p in model.motion.parameters()}
    assert all(p.grad is None for p in model.unet.parameters())
    model.set_trainable(PARTS)


def test_new_motion_modules_and_pose_encoder_start_silent(batch: dict) -> None:
    fresh = AniFaceDiff(NetworkConfig.tiny())
    randomize(fresh.unet, 3)
    still = forward(fresh, **batch)
    fresh.add_motion()
    assert torch.allclose(forward(fresh, **batch), still, atol=1e-5)
    batch["normals"] = torch.rand_like(batch["normals"])
    assert torch.allclose(forward(fresh, **batch), still, atol=1e-5)


def test_forward_and_gradient_in_bfloat16(model: AniFaceDiff, batch: dict) -> None:
    with torch.no_grad():
        expected = forward(model, **batch)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mixed = train_step(model, batch)
    assert relative_error(mixed.float(), expected) < 0.05

    pure = AniFaceDiff(model.config, motion=True)
    pure.load_state_dict(model.state_dict())
    pure = pure.to(torch.bfloat16)
    inputs = {
        name: value.bfloat16() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    output = train_step(pure, inputs)
    assert output.dtype == torch.bfloat16 and relative_error(output.float(), expected) < 0.1
    assert all(torch.isfinite(p.grad).all() for p in pure.parameters() if p.grad is not None)


def test_forward_and_backward_touch_one_device_only(batch: dict) -> None:
    """What CUDA graphs need: no value is read back and nothing comes from the CPU."""
    strangers = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            result = op(*args, **(kwargs or {}))
            tensors = [x for x in tree_leaves((args, kwargs, result)) if torch.is_tensor(x)]
            strangers.extend(str(op) for x in tensors if x.device.type != "meta")
            return result

    with torch.device("meta"):
        model = AniFaceDiff(NetworkConfig.tiny(), motion=True)
    inputs = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
    with Watch():
        train_step(model, inputs)
    assert strangers == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph_equals_eager(model: AniFaceDiff, batch: dict) -> None:
    graphed = AniFaceDiff(model.config, motion=True).cuda()
    graphed.load_state_dict(model.state_dict())
    rows = batch.pop("conditional_rows")
    inputs = [value.cuda() for value in batch.values()]
    eager = GraphableForward(graphed, rows)(*inputs)
    eager.square().mean().backward()
    expected = [p.grad.clone() for p in graphed.parameters() if p.requires_grad]
    graphed.zero_grad()
    module = torch.cuda.make_graphed_callables(
        GraphableForward(graphed, rows), tuple(x.clone() for x in inputs)
    )
    output = module(*inputs)
    output.square().mean().backward()
    assert relative_error(output, eager) < 1e-3
    actual = [p.grad for p in graphed.parameters() if p.requires_grad]
    flat_actual, flat_expected = (torch.cat([x.flatten() for x in grads]) for grads in (actual, expected))
    assert relative_error(flat_actual, flat_expected) < 1e-2


def test_incomplete_clips_are_refused(model: AniFaceDiff, batch: dict) -> None:
    batch["conditional_rows"] = FRAMES - 1
    with pytest.raises(ValueError, match="whole clips"):
        forward(model, **batch)


def test_configuration_round_trip() -> None:
    for config in (NetworkConfig.tiny(), NetworkConfig.full()):
        assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(InputError, match="colour"):
        NetworkConfig.from_json({"colour": 1})
    with pytest.raises(InputError, match="attention_heads"):
        NetworkConfig(attention_heads=(8,))


def test_full_configuration_is_stable_diffusion() -> None:
    """Public facts of SD1.5 and AnimateDiff v2; diffusers keeps one position table a module, not two."""
    with torch.device("meta"):
        model = AniFaceDiff(NetworkConfig.full(), motion=True)
    assert len(model.unet.state_dict()) == 686
    assert sum(p.numel() for p in model.unet.parameters()) == 859_520_964
    assert len(model.block_names) == 16
    assert len(model.motion.state_dict()) == 21 * 27
    assert model.image_encoder.visual_projection.weight.shape == (768, 1024)
    assert model.pose_encoder.conv_out.weight.shape == (320, 256, 3, 3)


def test_clip_preprocess_scales_crops_and_normalizes() -> None:
    images = torch.full((2, 3, 50, 80), 0.4)
    pixels = clip_preprocess(images, 112)
    assert pixels.shape == (2, 3, 112, 112)
    expected = (102 / 255 - 0.48145466) / 0.26862954
    assert torch.allclose(pixels[:, 0], torch.tensor(expected), atol=1e-5)


def test_autoencoder_has_the_layout_of_taesd() -> None:
    autoencoder = AutoEncoder()
    keys = autoencoder.state_dict()
    assert keys["encoder.0.weight"].shape == (64, 3, 3, 3) and keys["decoder.1.weight"].shape == (64, 4, 3, 3)
    assert keys["encoder.14.weight"].shape == (4, 64, 3, 3)
    assert keys["decoder.19.weight"].shape == (3, 64, 3, 3)
    images = torch.rand(2, 3, 32, 48)
    latents = autoencoder.encode(images)
    assert latents.shape == (2, 4, 4, 6) and autoencoder(images).shape == images.shape
