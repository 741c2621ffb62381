"""The stages on shards: what they start from, what they learn, what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.training.data import NormalsNoise, Pairs
from anifacediff_core.lab.training.phases import PHASES, run_phase
from anifacediff_core.lab.training.reenactment import (
    DenoisingSettings,
    DenoisingTask,
    clean_of,
    snr_weight,
    target_of,
)
from anifacediff_core.lab.training.settings import build, read_experiment
from anifacediff_core.lab.training.stages import Preview, ShardSettings
from anifacediff_core.lab.training.task import Loop, load_weights
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.schedule import NoiseSchedule, make_sigmas
from anifacediff_core.weights.checkpoint import load_checkpoint, save_checkpoint
from harness.weights import narrow_config

TINY = narrow_config(levels=2)

EXPERIMENT = """
seed: 3
start: {folder}/start.safetensors
network: {{prediction: epsilon, zero_terminal_snr: false}}
phases:
  stage1:
    shards: {{urls: {folder}/shards, split: null, validation: null, workers: 0}}
    settings:
      {{batch_size: 2, uncond_ratio: 0, drop_expression: 0, head_weight: 1, gradient_checkpointing: true}}
    loop:
      {{steps: 3, optimizer: adam, learning_rate: 1e-2, schedule: constant, warmup: 0, precision: "no",
        check_every: 1, save_every: 2, snapshots: []}}
    validation: {{pairs: 2, steps: 1}}
  stage2:
    shards: {{urls: {folder}/shards, split: null, validation: null, workers: 0, frames: 3}}
    settings: {{rows: 2, noise_sharing: false}}
    loop: {{steps: 2, learning_rate: 1e-2, warmup: 0, precision: "no", check_every: 1, snapshots: []}}
    validation: {{pairs: 1, steps: 1}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a starting checkpoint, and a run of both stages."""
    from anifacediff_core.lab.cli import main

    folder = tmp_path_factory.mktemp("stages")
    shards = ["avatars", "shards", "--out", str(folder / "shards"), "--count", "3", "--frames", "5"]
    assert main([*shards, "--size", "64", "--device", "cpu"]) == 0
    torch.manual_seed(0)
    network, autoencoder = AniFaceDiff(TINY, motion=True), AutoEncoder()
    for parameter in network.motion.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    parts = {name: getattr(network, name).state_dict() for name in ("unet", "reference", "pose_encoder")}
    parts |= {name: getattr(network, name).state_dict() for name in ("expression_adapter", "image_encoder")}
    parts |= {"motion": network.motion.state_dict(), "vae": autoencoder.state_dict()}
    head = HeadModel.bundled().name
    save_checkpoint(folder / "start.safetensors", parts, TINY, head=head, dtype=torch.float32)
    (folder / "experiment.yaml").write_text(EXPERIMENT.format(folder=folder))
    experiment = read_experiment(folder / "experiment.yaml")
    for phase in ("stage1", "stage2"):
        run_phase(phase, experiment, folder / "run")
    return folder


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_learns_the_parts_that_the_paper_says(trained: Path) -> None:
    start = load_weights(trained / "start.safetensors")
    first, second = (load_weights(trained / f"run/{stage}.safetensors") for stage in ("stage1", "stage2"))
    kept = {name: value for name, value in start.items() if not name.startswith(("vae.", "motion."))}
    assert changed(kept, first) == {"unet", "reference", "pose_encoder", "expression_adapter"}
    assert changed(first, second) == set()
    motion = {name: value for name, value in start.items() if name.startswith("motion.")}
    assert changed(motion, second) == {"motion"}, "temporal modules go on from those of the start"
    moved = max(float((second[name] - motion[name]).abs().max()) for name in motion)
    assert 0 < moved < 0.1


def test_the_result_has_all_parts_and_tells_where_they_come_from(trained: Path) -> None:
    checkpoint = load_checkpoint(trained / "run/anifacediff.safetensors")
    assert set(checkpoint.parts) == set(load_checkpoint(trained / "start.safetensors").parts)
    assert checkpoint.config.prediction_type == "epsilon" and not checkpoint.config.zero_terminal_snr
    assert checkpoint.provenance["start"]["file"] == "start.safetensors"
    assert checkpoint.provenance["experiment"]["phases"]["stage1"]["loop"]["optimizer"] == "adam"
    assert (trained / "run/stage1_100.jpg").exists() and (trained / "run/stage2_100.jpg").exists()
    assert list((trained / "run/tensorboard").rglob("events.*"))


def test_a_stage_on_shards_goes_on_from_its_state(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_weights(trained / "run/stage1.safetensors")
    (trained / "run/stage1.safetensors").unlink()
    run_phase("stage1", read_experiment(trained / "experiment.yaml"), trained / "run")
    assert "resumed step 2" in capsys.readouterr().out
    after = load_weights(trained / "run/stage1.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_experiment_of_the_paper_names_known_settings_and_the_papers_numbers() -> None:
    experiment = read_experiment("paper")
    for phase, rows, steps in (("stage1", 16, 100_000), ("stage2", 4, 20_000)):
        values: dict[str, Any] = experiment["phases"][phase]
        loop, settings = build(Loop, values["loop"]), build(DenoisingSettings, values["settings"])
        build(ShardSettings, values["shards"])
        build(Preview, values["validation"])
        assert (settings.batch_size, loop.steps) == (rows, steps)
        assert (loop.optimizer, loop.learning_rate) == ("adam", 1e-5)
        assert (settings.head_weight, settings.detail_weight, settings.min_snr) == (1, 1, 0)
        assert phase in PHASES
    assert experiment["network"]["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd"},
        {"lr_scheduler": "stairs"},
        {"mixed_precision": "bf16_weights"},
        {"steps": 0},
        {"max_grad_norm": 0.0},
        {"check_every": 0},
    ],
)
def test_a_loop_that_cannot_run_is_refused_with_a_sentence(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="choose one of|above 0"):
        Loop(**{"steps": 1, **values})


def test_min_snr_weights_are_those_of_a_hand_computed_case() -> None:
    alphas = torch.tensor([0.9, 0.5, 0.0])  # SNR 9, 1, 0
    assert snr_weight(alphas, 5.0, "epsilon")[:2].tolist() == pytest.approx([5 / 9, 1.0])
    assert snr_weight(alphas, 5.0, "v_prediction").tolist() == pytest.approx([5 / 10, 1.0, 1.0])


class Fixed:
    """The same pairs for ever."""

    frames = 1

    def __init__(self, rows: int, size: int = 64) -> None:
        self.size = size
        torch.manual_seed(2)
        self.pairs = Pairs(
            torch.randn(rows, 4, size // 8, size // 8),
            torch.randn(rows, 3, 56, 56),
            torch.randn(rows, 4, size // 8, size // 8),
            torch.rand(rows, 3, size, size),
            torch.rand(rows, 52),
            torch.full((rows, 4, 3), -1e6),
        )

    def draw(self, rows: int) -> Pairs:
        return self.pairs

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.fixture(scope="module")
def network() -> AniFaceDiff:
    torch.manual_seed(4)
    network = AniFaceDiff(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("drop_reference", "source_latents"),
        ("drop_image", "source_pixels"),
        ("drop_expression", "expression"),
    ],
)
def test_a_dropped_condition_does_not_reach_the_prediction_and_the_others_do(
    network: AniFaceDiff, setting: str, field: str
) -> None:
    """Row by row: what changes when one condition of the pairs is another one."""

    def reach(value: float, name: str) -> bool:
        none = {"drop_reference": 0.0, "drop_image": 0.0, "drop_expression": 0.0, "uncond_ratio": 0.0}
        settings = DenoisingSettings(batch_size=2, **none | {setting: value})
        source = Fixed(2)
        task = DenoisingTask(network, source, torch.linspace(0.9, 0.1, 1000), settings, None, stage=1)  # type: ignore[arg-type]
        outputs = []
        for pairs in (
            source.pairs,
            replace(source.pairs, **{name: torch.randn(2, *getattr(source.pairs, name).shape[1:])}),
        ):
            source.pairs = pairs
            torch.manual_seed(0)
            inputs, _ = task.draw(0.0)
            with torch.no_grad():
                outputs.append(task.module(*inputs))
        return bool((outputs[0] - outputs[1]).abs().amax((1, 2, 3)).max() > 1e-6)

    fields = ("source_latents", "source_pixels", "expression")
    assert all(reach(0.0, name) for name in fields)
    assert not reach(1.0, field)
    others = [name for name in fields if name != field]
    assert all(reach(1.0, name) for name in others)


def test_everything_is_dropped_from_unconditional_rows_only(network: AniFaceDiff) -> None:
    settings = DenoisingSettings(batch_size=4, uncond_ratio=0.5, drop_reference=0.5)
    assert settings.split() == (2, 1)
    assert DenoisingSettings(batch_size=4, uncond_ratio=0.0).split() == (4, 4)
    assert DenoisingSettings(batch_size=4, uncond_ratio=0.01).split() == (3, 3), (
        "a share above none is one row"
    )


@pytest.mark.parametrize("frames", [1, 2])
def test_the_expression_is_never_dropped_where_normals_are_weakened(
    network: AniFaceDiff, frames: int
) -> None:
    """There only ψ says what the face does; the rows are those that the data weaken: the first."""
    source = Fixed(4 * frames)
    source.frames = frames  # type: ignore[misc]
    weights = {}
    for drop in (0.0, 1.0):
        settings = DenoisingSettings(batch_size=4, drop_expression=drop, normals=NormalsNoise(weakened=0.5))
        task = DenoisingTask(network, source, make_alphas(), settings, None, stage=1)  # type: ignore[arg-type]
        inputs, _ = task.draw(0.0)
        weights[drop] = inputs[6].view(4, frames)
    assert weights[0.0].eq(1).all()
    assert weights[1.0][:2].eq(1).all() and weights[1.0][2:].eq(0).all()


def test_a_clip_whose_error_stays_costs_less_than_one_whose_error_changes(network: AniFaceDiff) -> None:
    """The error is 1 everywhere, once with a sign that changes from frame to frame."""
    source = Fixed(6)
    source.frames = 3  # type: ignore[misc]
    losses = {}
    for weight in (0.0, 2.0):
        settings = DenoisingSettings(batch_size=2, difference_weight=weight, uncond_ratio=0.5)
        task = DenoisingTask(network, source, torch.linspace(0.9, 0.1, 1000), settings, None, stage=2)  # type: ignore[arg-type]
        target, even = torch.zeros(6, 4, 8, 8), torch.ones(6, 1, 8, 8)
        signs = torch.tensor([1.0, -1, 1, 1, -1, 1]).view(6, 1, 1, 1).expand_as(target)
        for name, outputs in (("still", torch.ones_like(target)), ("changing", signs)):
            losses[name, weight] = float(task.losses(outputs, (target, even))["loss"])
    assert losses == {("still", 0.0): 1, ("changing", 0.0): 1, ("still", 2.0): 1, ("changing", 2.0): 9}


def test_regression_on_clips_counts_what_changes_in_the_error(network: AniFaceDiff) -> None:
    """At pure noise a velocity is the clean latents' negative, so the error is 1 everywhere again."""
    source = Fixed(6)
    source.frames = 3  # type: ignore[misc]
    settings = DenoisingSettings(batch_size=2, regression=1.0, difference_weight=2.0, uncond_ratio=0.5)
    task = DenoisingTask(network, source, make_alphas(), settings, None, stage=2)  # type: ignore[arg-type]
    zeros, even = torch.zeros(6, 4, 8, 8), torch.ones(6, 1, 8, 8)
    signs = torch.tensor([1.0, -1, 1, 1, -1, 1]).view(6, 1, 1, 1).expand_as(zeros)
    still, changing = (
        float(task.losses(outputs, (zeros, even, zeros, torch.zeros(6)))["loss"])
        for outputs in (torch.ones_like(zeros), signs)
    )
    assert still == pytest.approx(0.9) and changing == pytest.approx(0.9 + 2 * 4)


def test_regression_compares_clean_latents_and_pictures_of_the_last_conditional_rows(
    network: AniFaceDiff,
) -> None:
    source = Fixed(4)
    source.pairs = replace(source.pairs, pictures=torch.full((4, 3, 64, 64), 51, dtype=torch.uint8))
    alphas = make_alphas()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return 0.2 + latents.sum() * 0 + wrong.expand(len(latents), 3, 64, 64)

    settings = DenoisingSettings(
        batch_size=4, uncond_ratio=0.5, regression=1.0, last_step=1.0, picture_rows=1
    )
    task = DenoisingTask(network, source, alphas, settings, None, stage=1, decode=decode)  # type: ignore[arg-type]
    (noisy, timesteps, *_), targets = task.draw(0.0)
    assert timesteps.tolist() == [999] * 4 and len(targets[4]) == 1
    signal, sigma = alphas[999].sqrt(), (1 - alphas[999]).sqrt()
    exact = (signal * noisy - source.pairs.latents) / sigma
    wrong = torch.zeros(())
    assert float(task.losses(exact, targets)["loss"]) == pytest.approx(0, abs=1e-5)
    assert float(task.losses(exact + 1, targets)["loss"]) > 0.1
    wrong = torch.tensor(0.3)
    assert float(task.losses(exact, targets)["picture"]) == pytest.approx(0.3, abs=1e-4)


def test_every_so_many_batches_are_of_large_pictures_in_fewer_rows(network: AniFaceDiff) -> None:
    settings = DenoisingSettings(batch_size=8, large_every=3, uncond_ratio=0.25)
    common, large = Fixed(8), Fixed(2, size=128)
    task = DenoisingTask(
        network,
        common,
        make_alphas(),
        settings,
        None,  # type: ignore[arg-type]
        stage=1,
        large=large,
    )
    assert task.period == 3
    shapes = []
    for _ in range(6):
        inputs, targets = task.draw(0.0)
        shapes.append(tuple(inputs[0].shape))
        task.losses(task.module(*inputs), targets)["loss"].backward()
    assert shapes == [(8, 4, 8, 8), (8, 4, 8, 8), (2, 4, 16, 16)] * 2
    task.draw(0.0)
    twin = DenoisingTask(network, common, make_alphas(), settings, None, stage=1, large=large)  # type: ignore[arg-type]
    twin.load_state_dict(task.state_dict())
    assert [len(twin.draw(0.0)[0][0]) for _ in range(2)] == [8, 2], "it goes on in the same order"


def test_regression_in_pixels_needs_pictures(network: AniFaceDiff) -> None:
    settings = DenoisingSettings(batch_size=2, regression=1.0, picture_rows=1)
    task = DenoisingTask(network, Fixed(2), make_alphas(), settings, None, stage=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pool.pictures"):
        task.draw(0.0)


def make_alphas() -> torch.Tensor:
    return NoiseSchedule(make_sigmas(True), "v_prediction").alphas


class Oracle(torch.nn.Module):
    """Predicts from the noisy latents what leads to the latents that it was told, plus a mistake."""

    def __init__(self, latents: torch.Tensor, alphas: torch.Tensor, kind: str, mistake: float) -> None:
        super().__init__()
        self.latents, self.alphas, self.kind, self.mistake = latents, alphas, kind, mistake

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, *conditions: torch.Tensor
    ) -> torch.Tensor:
        return target_of(noisy, self.latents + self.mistake, self.alphas[timesteps], self.kind)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_own_estimates_lead_back_to_the_truth(
    network: AniFaceDiff, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without mistakes they are the noisy latents of the truth; with them the target still is the truth."""
    source = Fixed(6)
    source.frames = 3  # type: ignore[misc]
    alphas = torch.linspace(0.99, 0.05, 1000)
    monkeypatch.setattr(network, "config", replace(network.config, prediction_type=kind))
    drawn = {}
    for share, mistake in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.3)):
        settings = DenoisingSettings(batch_size=2, own_estimates=share, uncond_ratio=0.5)
        task = DenoisingTask(network, source, alphas, settings, None, stage=2)  # type: ignore[arg-type]
        truth = source.draw(2).latents
        task.module = Oracle(truth, alphas, kind, mistake)  # type: ignore[assignment]
        torch.manual_seed(5)
        drawn[share, mistake] = task.draw(0.0)
        (noisy, timesteps, *_), (target, _) = drawn[share, mistake]
        clean, _ = clean_of(noisy, target, alphas[timesteps], kind)
        torch.testing.assert_close(clean, truth, atol=2e-4, rtol=0)
    plain, own, mistaken = (inputs[0] for inputs, _ in drawn.values())
    torch.testing.assert_close(own, plain, atol=2e-4, rtol=0)
    assert (mistaken - plain).abs().mean() > 0.01
