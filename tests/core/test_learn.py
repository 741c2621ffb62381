"""Learning from pictures: a LoRA that draws nearer to them, and its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anifacediff_core.capture.detector import Detection
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.jobs import Reenacting
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling import learn as learning
from anifacediff_core.sampling.learn import EXAMPLES, _inside, learn, lora_header
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.settings import LearningSettings
from anifacediff_core.weights.checkpoint import bundled_checkpoint
from anifacediff_core.weights.lora import Adapter, adapted, layers_of, merge_lora, save_lora
from harness.weights import narrow_config, randomize

QUICK = LearningSettings(steps=3, rank=2, size=64)


@dataclass(frozen=True)
class NeutralFaces:
    """Finds a neutral face in the middle of everything; of dark pictures it finds none."""

    head: HeadModel

    def to(self, device: torch.device) -> NeutralFaces:
        return self

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        return [[Detection(0.9, (0.0, 0.0, 1.0))] if frame.mean() > 0.1 else [] for frame in frames]

    def read(self, frames: Tensor, faces: list[Detection]) -> tuple[FaceParameters, None]:
        neutral = FaceParameters.neutral(
            len(frames), self.head.name, self.head.n_shape, self.head.n_expression
        )
        return replace(neutral, confidence=torch.ones(len(frames))), None

    def remarks(self) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "VIEWS", 4)
    monkeypatch.setattr(learning, "EVERY", 24)


@pytest.fixture(scope="module")
def models() -> NeutralFaces:
    return NeutralFaces(HeadModel.bundled())


@pytest.fixture
def pipeline(models: NeutralFaces) -> Iterator[Pipeline]:
    torch.manual_seed(0)
    yield Pipeline(randomize(AniFaceDiff(narrow_config(3)), 0), randomize(AutoEncoder(), 1), models.head)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (96, 96), mode="bilinear")[0]


def made(pipeline: Pipeline, models: NeutralFaces, picture: Tensor) -> Tensor:
    """The latents of the picture with its own motion."""
    source = torch.nn.functional.interpolate(picture[None], (64, 64), mode="area")
    neutral, _ = models.read(source, [])
    return pipeline.sample(pipeline.conditioning(source, neutral, neutral))


def error(pipeline: Pipeline, models: NeutralFaces, picture: Tensor) -> float:
    truth = pipeline.encode(torch.nn.functional.interpolate(picture[None], (64, 64), mode="area"))
    return float((made(pipeline, models, picture) - truth).square().mean())


# --- Learning ------------------------------------------------------------------------------------


def test_what_was_learned_draws_nearer_to_the_picture(
    pipeline: Pipeline, models: NeutralFaces, picture: Tensor, tmp_path: Path
) -> None:
    before = error(pipeline, models, picture)
    settings = LearningSettings(steps=40, rank=8, learning_rate=1e-2, size=64)
    save_lora(tmp_path / "a.safetensors", learn(pipeline, models, [picture], settings), {})
    assert error(pipeline, models, picture) == pytest.approx(before)  # only the file has it
    merge_lora(pipeline.model.unet, tmp_path / "a.safetensors")
    assert error(pipeline, models, picture) < 0.85 * before


def test_the_seed_decides_everything(pipeline: Pipeline, models: NeutralFaces, picture: Tensor) -> None:
    def up(seed: int) -> Tensor:
        adapters = learn(pipeline, models, [picture, picture], replace(QUICK, seed=seed))
        return torch.cat([adapter.up.weight.flatten() for adapter in adapters.values()])

    torch.testing.assert_close(up(1), up(1))
    assert not torch.allclose(up(1), up(2), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_networks_learn_in_float32(
    pipeline: Pipeline, models: NeutralFaces, picture: Tensor, dtype: torch.dtype
) -> None:
    reduced = Pipeline(pipeline.model, pipeline.autoencoder, models.head, dtype=dtype)
    adapters = learn(reduced, models, [picture], QUICK)
    assert {p.dtype for adapter in adapters.values() for p in adapter.parameters()} == {torch.float32}
    assert all(adapter.up.weight.abs().max() > 0 for adapter in adapters.values())


def test_progress_tells_every_step_and_shows_pictures(
    pipeline: Pipeline, models: NeutralFaces, picture: Tensor
) -> None:
    seen: list[tuple[int, int, bool]] = []

    def watch(done: int, total: int, shown: Tensor | None) -> None:
        assert shown is None or (shown.shape == (3, 64, 64) and 0 <= shown.min() <= shown.max() <= 1)
        seen.append((done, total, shown is not None))

    learn(pipeline, models, [picture], replace(QUICK, steps=6), watch)
    assert seen == [(step, 6, step in (5, 6)) for step in range(1, 7)]


def test_cancelling_leaves_the_network_as_it_was(
    pipeline: Pipeline, models: NeutralFaces, picture: Tensor
) -> None:
    before = made(pipeline, models, picture)

    def cancel(done: int, total: int, shown: Tensor | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(pipeline, models, [picture], QUICK, cancel)
    torch.testing.assert_close(made(pipeline, models, picture), before)


def test_what_cannot_be_learned_is_refused(pipeline: Pipeline, models: NeutralFaces, picture: Tensor) -> None:
    for pictures, settings, match in (
        ([], QUICK, "0 pictures"),
        ([picture] * 6, QUICK, "6 pictures"),
        ([picture], replace(QUICK, size=76), "size to learn with is 76.*multiple of 8"),
        ([picture], replace(QUICK, rank=0), "rank"),
        ([picture], replace(QUICK, steps=0), "steps"),
        ([picture, torch.zeros(3, 96, 96)], QUICK, "picture 2"),
    ):
        with pytest.raises(InputError, match=match):
            learn(pipeline, models, pictures, settings)
    foreign = Pipeline(pipeline.model, pipeline.autoencoder, models.head)
    foreign.model.config = replace(foreign.model.config, context="text")
    with pytest.raises(InputError, match="guided by more"):
        learn(foreign, models, [picture], QUICK)


def test_what_lies_beyond_the_picture_does_not_count() -> None:
    squares = torch.tensor([[0.0, 0.0, 1.0], [-0.5, 0.0, 1.0], [0.1, -0.5, 2.0]])
    whole, left, wide = _inside(squares, 4)[:, 0]
    assert whole.all()
    assert left.tolist() == [[0, 0, 1, 1]] * 4  # its left half is beyond the picture's left border
    assert wide.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


# --- Files ---------------------------------------------------------------------------------------


@pytest.fixture
def adapters(pipeline: Pipeline) -> dict[str, Adapter]:
    layers = layers_of(pipeline.model.unet, lambda name: name.startswith("up_blocks.0"))
    generator = torch.Generator().manual_seed(0)
    with adapted(layers, 2, generator) as made:
        for adapter in made.values():
            torch.nn.init.normal_(adapter.up.weight, generator=generator)
            for weight in adapter.parameters():
                weight.data = weight.data.half().float()  # as the file has it
    return made


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_merged_file_adds_what_the_adapter_adds(
    pipeline: Pipeline, adapters: dict[str, Adapter], strength: float, tmp_path: Path
) -> None:
    save_lora(tmp_path / "a.safetensors", adapters, {})
    layers = {name: pipeline.model.unet.get_submodule(name) for name in adapters}
    inputs = {
        name: torch.randn(1, layer.weight.shape[1], *[6] * (layer.weight.ndim - 2))
        for name, layer in layers.items()
    }
    with torch.no_grad():
        wanted = {n: layers[n](x) + strength * adapters[n](x) for n, x in inputs.items()}
        assert merge_lora(pipeline.model.unet, tmp_path / "a.safetensors", strength) == len(adapters)
        for name, x in inputs.items():
            torch.testing.assert_close(layers[name](x), wanted[name], rtol=1e-3, atol=1e-3)


def test_foreign_and_damaged_files_are_refused(
    pipeline: Pipeline, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, adapters, {})
    tensors = load_file(path)
    down = max(name for name in tensors if name.endswith(".lora_down.weight"))  # the last to be read
    up = down.replace("lora_down", "lora_up")
    for changed, match in (
        ({"lora_unet_elsewhere.lora_up.weight": torch.ones(2, 2)}, "lora_unet_elsewhere"),
        ({down: tensors[down][:1]}, "shapes"),
        ({down.replace("lora_down.weight", "alpha"): torch.ones(3)}, "shapes"),
        ({up: torch.full_like(tensors[up], torch.inf)}, "NaN or infinity"),
        ({down.replace("lora_down", "lora_mid"): torch.ones(2, 2)}, "another form"),
    ):
        before = {name: weight.clone() for name, weight in pipeline.model.unet.state_dict().items()}
        save_file({**tensors, **changed}, path)
        with pytest.raises(InputError, match=match):
            merge_lora(pipeline.model.unet, path)
        for name, weight in pipeline.model.unet.state_dict().items():
            torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
    save_file({}, path)
    with pytest.raises(InputError, match="no LoRA"):
        merge_lora(pipeline.model.unet, path)


def test_nothing_is_written_of_what_diverged(adapters: dict[str, Adapter], tmp_path: Path) -> None:
    next(iter(adapters.values())).up.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="lower learning rate"):
        save_lora(tmp_path / "a.safetensors", adapters, {})
    assert not list(tmp_path.iterdir())


# --- The command ---------------------------------------------------------------------------------


def test_reenact_uses_what_learn_has_written(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    arguments = [
        "--pictures",
        str(EXAMPLES / "source.png"),
        "--steps",
        "1",
        "--size",
        "32",
        "--device",
        "cpu",
    ]
    assert main(["learn", *arguments, "--out", str(out)]) == 0
    plain = Reenacting(bundled_checkpoint(), "cpu").pipeline.model.unet.state_dict()
    tuned = Reenacting(bundled_checkpoint(), "cpu", loras=[(out, 1.0)]).pipeline.model.unet.state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], tuned[name])}
    assert changed and all(name.startswith(("up_blocks", "conv_out")) for name in changed)


def test_the_header_tells_how_it_was_learned() -> None:
    header = lora_header(QUICK, "demo.safetensors")["anifacediff_learned"]
    assert '"checkpoint": "demo.safetensors"' in header and '"steps": 3' in header
