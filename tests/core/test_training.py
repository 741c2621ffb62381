"""The trainer: budgets and averages, distribution, losses, pools, and a whole experiment at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from anifacediff_core.capture import detector as detection
from anifacediff_core.capture.detector import face_square
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.render import draw_normals, render_normals
from anifacediff_core.lab.avatars.poses import random_frames
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.avatars.styles import StyleShares
from anifacediff_core.lab.evaluation.protocol import Protocol
from anifacediff_core.lab.training import distribution, engine
from anifacediff_core.lab.training.autoencoder import AutoencoderSettings, fold_moments, latent_moments
from anifacediff_core.lab.training.capture import (
    Augmentation,
    CaptureSettings,
    augment,
    detector_error,
    encoder_batch,
    jpeg,
)
from anifacediff_core.lab.training.data import Pool, PoolPlan, weaken_expression
from anifacediff_core.lab.training.phase import network_config
from anifacediff_core.lab.training.phases import PHASES, run_phase
from anifacediff_core.lab.training.reenactment import DenoisingSettings, diffuse, mixed_noise
from anifacediff_core.lab.training.run_logger import RunLogger
from anifacediff_core.lab.training.settings import build, read_experiment
from anifacediff_core.lab.training.task import Loop, TrainingError, load_weights
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.weights.checkpoint import PARTS, load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]

# The whole of `bundled` in seconds: a narrow network on 64² pictures.
TOY = """
seed: 3
network:
  preset: tiny
  block_out_channels: [32, 32, 32]
  attention_heads: [1, 1, 1]
  motion_heads: [1, 1, 1]
  cross_attention_dim: 32
  pose_channels: [8, 8, 16, 16]
  image_size: 56
  image_hidden: 32
  image_layers: 1
  image_heads: 2
  image_intermediate: 64
  expression_hidden: 32
phases:
  autoencoder:
    pool: {identities: 3, stills: 2, size: 64, normals: false, batch: 6}
    settings:
      {batch_size: 2, crop: 32, widths: [64, 64, 48, 32], adversary: {weight: 0.5, begin: 0.0, width: 8}}
    loop: {steps: 2, check_every: 1, snapshots: []}
  capture:
    pool: {identities: 3, stills: 2, size: 64, normals: false, renew_every: 2, batch: 6}
    settings: {batch_size: 2}
    loop: {steps: 1, check_every: 1, snapshots: []}
  stage1:
    pool: {identities: 3, stills: 1, track: 1, fps: 1, size: 64, renew_every: 2, batch: 6}
    settings: {batch_size: 4, learn: [image_encoder]}
    loop: {steps: 2, check_every: 1, snapshots: []}
    validation: {pairs: 1, size: 64, steps: 1}
  stage2:
    pool: {identities: 2, stills: 1, track: 3, size: 64, pictures: true}
    settings:
      batch_size: 2
      uncond_ratio: 0.5
      regression: 1.0
      difference_weight: 1.0
      picture_rows: 1
      adversary: {weight: 0.5, begin: 0.0, width: 8}
    loop: {steps: 2, check_every: 1, snapshots: []}
    validation: {pairs: 1, size: 64, frames: 3, steps: 1}
  evaluate: {pairs: 2, frames: 3, size: 64, steps: 1, batch: 1}
"""


class Line:
    """A task small enough to know its answer: fit y = 3 x - 1."""

    name, period = "line", 1

    def __init__(self, broken_at: int | None = None) -> None:
        self.module = nn.Linear(1, 1)
        self.unused = nn.Linear(2, 2)
        self.module.register_module("unused", self.unused)
        self.broken_at, self.drawn = broken_at, 0
        self.sampled: list[float] = []

    def draw(self, fraction: float) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        self.drawn += 1
        x = torch.randn(16, 1)
        y = 3 * x - 1
        return (x,), (y * float("nan") if self.drawn == self.broken_at else y,)

    def losses(self, outputs: Any, targets: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"loss": (outputs - targets[0]).square().mean()}

    def weights(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        self.sampled.append(fraction)
        return {"weight": float(self.module.weight.detach())}


def train_line(folder: Path, task: Line, **loop: Any) -> list[dict[str, Any]]:
    settings = Loop(learning_rate=0.1, lr_warmup_steps=5, mixed_precision="no", **loop)
    accelerator = distribution.make_accelerator(settings, seed=0)
    engine.run(task, settings, accelerator, folder, RunLogger(folder, accelerator))
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_loop_learns_and_leaves_averaged_weights_snapshots_and_a_log(tmp_path: Path) -> None:
    task = Line()
    log = train_line(tmp_path, task, steps=300, ema_decay=0.9, check_every=10, snapshots=(0.5,))
    weights = load_weights(tmp_path / "line.safetensors")
    assert abs(float(weights["weight"]) - 3) < 0.05
    assert abs(float(weights["bias"]) + 1) < 0.05
    assert task.sampled == [0.5, 1.0]
    start = next(entry for entry in log if entry["event"] == "start")
    assert start["unused"] == 2, "weights without a gradient are frozen, or DDP would wait for them"
    assert [entry for entry in log if entry["event"] == "step"][-1]["step"] == 300


def test_a_loss_that_is_not_a_number_stops_with_a_sentence_and_keeps_the_snapshot(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="phase 'line'.*snapshot"):
        train_line(tmp_path, Line(broken_at=80), steps=200, check_every=1, snapshots=(0.2,))
    assert torch.isfinite(load_weights(tmp_path / "line.safetensors")["weight"]).all()


def test_the_rate_warms_up_and_falls_to_its_end_by_steps_alone(tmp_path: Path) -> None:
    loop = Loop(steps=100, learning_rate=1.0, lr_warmup_steps=4)
    factor = engine.rate_factor(loop)
    assert [factor(step) for step in (0, 1)] == pytest.approx([0.25, 0.5], rel=1e-2)
    assert factor(50) == pytest.approx(0.505) and factor(100) == pytest.approx(0.01)
    assert engine.rate_factor(replace(loop, lr_scheduler="constant"))(90) == 1
    log = train_line(tmp_path, Line(), steps=8, check_every=1, snapshots=())
    found = [entry["rate"] for entry in log if entry["event"] == "step"]
    factor = engine.rate_factor(Loop(steps=8, lr_warmup_steps=5))
    assert found == pytest.approx([0.1 * factor(step) for step in range(8)], rel=1e-6)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_follows_quickly_at_first_and_leaves_the_weights_alone(
    tmp_path: Path, decay: float
) -> None:
    """Computed once more beside the training, with the decay of step n: (1 + n) / (10 + n) at most."""

    class Watched(Line):
        def draw(self, fraction: float) -> Any:
            history.append(self.module.weight.detach().clone())
            return super().draw(fraction)

    history: list[Tensor] = []
    task = Watched()
    train_line(tmp_path, task, steps=12, ema_decay=decay, check_every=4, snapshots=(0.5,))
    first, *weights = [*history[1:], task.module.weight.detach()]  # the first draw learns nothing
    average = first
    for n, weight in enumerate(weights, 1):
        average = torch.lerp(weight, average, min(decay, (1 + n) / (10 + n)))
    assert len(weights) == 12 and abs(weights[-1] - average) > 1e-4
    written = load_weights(tmp_path / "line.safetensors")["weight"]
    torch.testing.assert_close(written, average, rtol=1e-6, atol=1e-6)


def test_settings_are_built_from_yaml_and_unknown_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("seed: 1\nphases: {stage1: {loop: {steps: 10, learning_rate: 1e-3, snapshots: [0.5]}}}\n")
    experiment = read_experiment(path, ["phases.stage1.loop.steps=3", "phases.stage1.loop.cuda_graph=false"])
    loop = build(Loop, experiment["phases"]["stage1"]["loop"])
    assert loop == Loop(steps=3, learning_rate=1e-3, snapshots=(0.5,), cuda_graph=False)
    assert build(Loop, {"steps": 1, "average": 0.5, "warmup": 2}) == Loop(
        steps=1, ema_decay=0.5, lr_warmup_steps=2
    )
    with pytest.raises(InputError, match="lerning_rate"):
        build(Loop, {"lerning_rate": 1})
    with pytest.raises(InputError, match="no '='"):
        read_experiment(path, ["phases.stage1"])
    with pytest.raises(InputError, match="bundled"):
        read_experiment("nonsense")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.stage1.loop.steps=many", "stage1.loop.steps is 'many'; it must be a whole number"),
        ("phases.stage1.loop.steps=true", "stage1.loop.steps is True; it must be a whole number"),
        ("phases.stage1.loop.learning_rate=true", "stage1.loop.learning_rate is True; it must be a number"),
        ("phases.stage1.loop.cuda_graph=1", "stage1.loop.cuda_graph is 1; it must be true or false"),
        ("phases.stage1.loop.learning_rate=[1]", "learning_rate is .1.; it must be a number"),
        ("phases.stage1.loop.betas=[0.9]", "betas is .*; it must be a list of 2, each a number"),
        ("phases.stage1.loop=5", "stage1.loop is 5; it must hold settings"),
        ("phases.stage1.pool.stills=2", "stage1.pool lacks identities"),
        ("phases.stage1.loop.steps=[1", "not valid YAML"),
        ("phases.stage1=5", "each be a name with settings"),
        ("seed=one", "seed 'one'; give a whole number"),
        ("phases.stage1.loop.seconds=60", "stage1.loop.seconds is no setting any more.*write steps"),
        ("phases.stage1.pool={seconds: 9}", "stage1.pool.seconds is no setting any more.*write identities"),
        ("phases.stage1.loop={warmup: 3}", "stage1.loop lacks steps"),
        ("phases.stage1.settings={normals: {blured: 1}}", "setting blured in stage1.settings.normals; known"),
        ("phases.stage1.settings={normals: 3}", "settings.normals is 3; it must hold settings: weakened"),
        ("network=5", "network is 5; give a preset"),
        ("network.prediction=epsilon", "zero_terminal_snr to false"),
        ("network.n_expression=50", "reads 50 expressions and the head '.*' has 52"),
        ("phases.stage1.settings={batch_size: 1}", "none is left that sees its source"),
    ],
)
def test_what_an_experiment_cannot_mean_is_refused_with_a_sentence(
    tmp_path: Path, override: str, message: str
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("seed: 1\nphases: {stage1: {loop: {steps: 1}}}\n")
    if "settings" in override or "pool" in override:
        (tmp_path / "autoencoder.safetensors").write_bytes(_autoencoder())
    with pytest.raises(InputError, match=message):
        run_phase("stage1", read_experiment(path, [override]), tmp_path)


def _autoencoder() -> bytes:
    return save({f"vae.{name}": value for name, value in AutoEncoder().state_dict().items()})


def test_phases_on_files_of_another_network_are_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("seed: 1\nphases: {stage1: {loop: {steps: 1}}}\n")
    experiment = read_experiment(path)
    with pytest.raises(InputError, match="train the phase that makes it"):
        run_phase("stage1", experiment, tmp_path)
    (tmp_path / "autoencoder.safetensors").write_bytes(save({"vae.other": torch.zeros(1)}))
    with pytest.raises(InputError, match="of another network than this experiment's"):
        run_phase("stage1", experiment, tmp_path)


@pytest.mark.parametrize("name", ["bundled", "refine", "any_face", "sharp", "smoke"])
def test_shipped_experiments_name_known_settings_only(name: str) -> None:

    kinds: dict[str, type] = {"autoencoder": AutoencoderSettings, "capture": CaptureSettings}
    experiment = read_experiment(name)
    if not experiment.get("start"):
        network_config(experiment)
    planned = set(experiment["phases"])
    left_out = {"judges"} | {
        "refine": {"autoencoder", "stage2"},
        "any_face": {"autoencoder", "stage2"},
    }.get(name, set())
    assert planned == set(PHASES) - left_out
    for phase, settings in experiment["phases"].items():
        if phase == "evaluate":
            build(Protocol, settings)
            continue
        assert set(settings) <= {"pool", "settings", "loop", "validation"}
        build(PoolPlan, settings["pool"])
        build(Loop, settings["loop"])
        build(kinds.get(phase, DenoisingSettings), settings.get("settings"))


def test_experiments_with_former_names_of_settings_are_read() -> None:
    assert build(Loop, {"steps": 1, "clip": 0.5}).max_grad_norm == 0.5
    assert build(CaptureSettings, {"spoil": {"blur": 0.0}}).augmentation == Augmentation(blur=0)
    settings = build(DenoisingSettings, {"rows": 10, "unconditional": 0.5})
    assert (settings.batch_size, settings.split()) == (10, (5, 5))
    assert build(CaptureSettings, {"rows": 3}).batch_size == 3
    assert build(AutoencoderSettings, {"rows": 3}).batch_size == 3


def test_diffusion_targets_lead_back_to_the_clean_latents() -> None:
    latents, noise = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    alphas = torch.tensor([0.999, 0.7, 0.3, 0.01, 1e-8])
    signal, sigma = (x.sqrt().view(-1, 1, 1, 1) for x in (alphas, 1 - alphas))
    noisy, velocity = diffuse(latents, noise, alphas, "v_prediction")
    torch.testing.assert_close(signal * noisy - sigma * velocity, latents)
    torch.testing.assert_close(sigma * noisy + signal * velocity, noise)
    assert diffuse(latents, noise, alphas, "epsilon")[1] is noise


def test_clip_noise_has_unit_variance_and_every_degree_of_sharing() -> None:
    torch.manual_seed(0)
    noise = mixed_noise(400, 6, (4, 8, 8), torch.device("cpu")).view(400, 6, -1)
    assert noise.std() == pytest.approx(1, abs=0.02)
    together = (noise[:, 0] * noise[:, 1]).mean(1)
    assert (together > 0.95 * (noise[:, 0].square().mean(1))).float().mean() > 0.15
    assert (together.abs() < 0.2).float().mean() > 0.2
    assert 0.4 < together.mean() < 0.6


def test_folding_the_moments_keeps_the_picture_and_normalizes_the_latents() -> None:
    torch.manual_seed(0)
    autoencoder = AutoEncoder().eval()
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        autoencoder.encoder[-1].weight.mul_(3)  # near unit variance, as training leaves it
        mean, deviation = latent_moments(autoencoder, images)
        autoencoder.encoder[-1].weight.mul_(0.2 / deviation.mean())
        autoencoder.encoder[-1].bias.sub_(autoencoder.encoder[-1].bias).add_(0.02)
        mean, deviation = latent_moments(autoencoder, images)
        before = autoencoder(images.float() / 255)
        fold_moments(autoencoder, mean, deviation)
        # The clamp of the decoder is undone, so that the fold alone is compared.
        latents = autoencoder.encode(images.float() / 255)
        found = torch.nn.Sequential(*autoencoder.decoder[1:])(latents)
    folded_mean, folded_deviation = latent_moments(autoencoder, images)
    torch.testing.assert_close(folded_mean, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(folded_deviation, torch.ones(4), atol=1e-3, rtol=0)
    inside = (
        ...,
        slice(16, -16),
        slice(16, -16),
    )  # at the border a convolution pads zeros, which the mean shifts
    assert (found - before)[inside].abs().max() < 5e-3


# ---- pools and phases


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished toy experiment: its YAML file and its folder."""
    folder = tmp_path_factory.mktemp("toy")
    config = folder / "toy.yaml"
    config.write_text(TOY)
    experiment = read_experiment(config)
    for phase in ("autoencoder", "capture", "stage1", "stage2", "evaluate"):
        run_phase(phase, experiment, folder / "run")
    return config, folder / "run"


def test_a_whole_experiment_ends_in_a_checkpoint_that_the_pipeline_runs(toy: tuple[Path, Path]) -> None:
    _, folder = toy
    checkpoint = load_checkpoint(folder / "anifacediff.safetensors")
    assert set(checkpoint.parts) == set(PARTS) - {"deca", "smirk"}  # other projects'
    assert checkpoint.provenance["experiment"]["seed"] == 3
    assert checkpoint.provenance["trained"]["stage2"]["fraction"] == "1.0"
    head = HeadModel.bundled()
    pipeline = Pipeline.from_checkpoint(folder / "anifacediff.safetensors", head=head)
    frames = torch.cat(
        list(pipeline.reenact(torch.rand(1, 3, 64, 64), head.neutral(1), head.neutral(3), steps=1))
    )
    assert frames.shape == (3, 3, 64, 64)
    assert torch.isfinite(frames).all()


def test_stage_2_changes_the_temporal_modules_only(toy: tuple[Path, Path]) -> None:
    _, folder = toy
    first = load_weights(folder / "stage1.safetensors")
    second = load_weights(folder / "stage2.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)
    added = {key for key in second if key not in first}
    assert added and all(key.startswith("motion.") for key in added)
    assert any(second[key].abs().max() > 0 for key in added if "proj_out.weight" in key)


def test_the_report_of_an_experiment_has_every_variant(toy: tuple[Path, Path]) -> None:
    _, folder = toy
    report = json.loads((folder / "evaluation.json").read_text())
    generated = {"full", "no_adapter", "driver_shape", "no_fsa_no_adapter", "no_temporal", "captured"}
    assert set(report["results"]) == generated | {"source", "autoencoder"}
    assert set(report["read_back"]) == generated | {"truth"}
    assert (folder / "evaluation.jpg").stat().st_size > 1000
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| without expression adapter |" in card and "| stage2 | 1 |" in card and "seed 3" in card


def test_a_second_run_does_only_what_is_missing(toy: tuple[Path, Path]) -> None:
    config, folder = toy
    for file in ("stage2.safetensors", "stage2.done"):
        (folder / file).unlink()
    command = [sys.executable, "-m", "anifacediff_core", "train"]
    command += ["--config", str(config), "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=240)
    assert "stage2: snapshot" in found.stdout
    assert "stage1:" not in found.stdout
    assert (folder / "stage2.safetensors").exists() and (folder / "stage2.done").exists()


LAUNCHER = """#!/usr/bin/env bash
said="$*"
echo "${0##*/} $CUDA_VISIBLE_DEVICES $said" >> "$CALLS"
[ "$said" = "${said/--phase $FAILING/}" ] || exit 1
mkdir -p "${@: -1}" && touch "${@: -1}/$(sed 's/.*--phase \\([a-z0-9]*\\).*/\\1/' <<< "$said").done"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="for bash")
@pytest.mark.parametrize("name", ["bundled", "refine"])
def test_a_run_script_trains_every_phase_once_on_gpus_of_its_own(tmp_path: Path, name: str) -> None:
    script = Path(engine.__file__).parent / "runs" / f"{name}.sh"
    calls, phases = tmp_path / "calls", read_experiment(name)["phases"]
    for launcher in ("python", "accelerate"):
        (tmp_path / launcher).write_text(LAUNCHER)
        (tmp_path / launcher).chmod(0o755)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nseq 4\n")
    (tmp_path / "nvidia-smi").chmod(0o755)

    def train(failing: str) -> tuple[int, dict[str, str]]:
        calls.write_text("")
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "FAILING": failing}
        variables |= {"CUDA_VISIBLE_DEVICES": "all"}
        code = subprocess.run(["bash", str(script), str(tmp_path / "out")], env=variables).returncode
        lines = calls.read_text().splitlines()
        return code, {line.split("--phase ")[1].split()[0]: line for line in lines}

    code, found = train("stage1")
    assert code and "evaluate" not in found
    assert found["capture"].startswith("python 3 ") and found["stage1"].startswith("accelerate 0,1,2 ")
    code, found = train("none")
    assert code == 0 and set(found) == set(phases) - {"autoencoder", "capture"}
    assert all(f"train --config {name} --phase" in line for line in found.values())
    assert train("none") == (0, {})


def test_a_pool_holds_true_parameters_follows_its_seed_and_renews_its_oldest() -> None:
    head = HeadModel.bundled()
    studio = Studio(head)
    plan = PoolPlan(identities=2, stills=1, track=1, fps=1.0, size=64, batch=2, renew_every=2)
    pool, twin = (Pool(studio, head, plan, seed=5).fill() for _ in range(2))
    assert torch.equal(pool.images, twin.images) and len(pool) == 4
    assert torch.equal(pool.params.shape[0], pool.params.shape[1])
    assert not torch.equal(pool.params.shape[1], pool.params.shape[2])
    drawn = render_normals(head, pool.params, 64)
    assert (pool.normals.float() / 255 - drawn).abs().max() < 0.01
    before = pool.images.clone()
    pool.tick()
    assert torch.equal(pool.images, before)
    pool.tick()
    assert not torch.equal(pool.images[:2], before[:2])
    assert torch.equal(pool.images[2:], before[2:])


def test_a_pool_shows_avatars_in_styles_and_spoils_sources_only() -> None:
    head = HeadModel.bundled()
    studio, autoencoder = Studio(head), AutoEncoder()
    common = PoolPlan(identities=2, stills=2, size=64, batch=4, normals=False)
    plain = Pool(studio, head, common, seed=5).fill()
    plan = replace(common, styles=StyleShares(plain=0, graded=1), degraded=1.0, pictures=True)
    styled, twin = (Pool(studio, head, plan, 5, autoencoder, image_size=28).fill() for _ in range(2))
    assert torch.equal(styled.params.pose, plain.params.pose), "a style changes the look only"
    assert torch.equal(styled.images, twin.images)
    assert all(not torch.equal(styled.images[i], plain.images[i]) for i in range(4))
    clean = autoencoder.encode(styled.images.float() / 255)
    assert (styled.latents.float() - clean).abs().max() < 0.02, "the truth stays clean"
    assert not torch.equal(styled.source_latents, styled.latents)


def test_weakened_normals_keep_the_head_and_lose_the_expression() -> None:
    head = HeadModel.bundled()
    params = random_frames(6, torch.Generator().manual_seed(1), head)
    weak = weaken_expression(params, torch.Generator().manual_seed(0))
    assert torch.equal(weak.pose[:, :6], params.pose[:, :6])
    assert (weak.expression <= 0.6 * params.expression + 1e-6).all()


# ---- capture


def test_crops_and_their_cameras_agree() -> None:
    head = HeadModel.bundled()
    pool = Pool(Studio(head), head, PoolPlan(identities=2, stills=1, size=128, normals=False), seed=1).fill()
    settings = CaptureSettings(
        batch_size=4, augmentation=Augmentation(color=0, gray=0, blur=0, noise=0, blocks=0, occlusion=0)
    )
    crops, params = encoder_batch(pool, head, settings)
    covered = draw_normals(head, params, 224).amax(1, keepdim=True) > 0
    background = crops[:, :, :4].mean((2, 3), keepdim=True)
    unlike = (crops - background).abs().mean(1, keepdim=True)
    assert unlike[covered].mean() > 2 * unlike[~covered].mean() or unlike[covered].mean() > 0.1
    squares = face_square(head, params)
    assert (squares[:, :2] + squares[:, 2:] / 2 - 0.5).abs().max() < 0.1, "the face is in the crop's middle"


def test_augmented_pictures_stay_pictures_and_jpeg_hardly_changes_a_flat_one() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 3, 64, 64)
    augmented = augment(images, Augmentation())
    assert augmented.shape == images.shape and augmented.min() >= 0 and augmented.max() <= 1
    assert (augmented - images).abs().mean((1, 2, 3)).min() > 0
    flat = torch.full((4, 3, 32, 32), 0.5)
    assert (jpeg(flat) - flat).abs().max() < 0.02


def test_the_detector_loss_is_small_for_the_right_map_and_large_for_an_empty_one() -> None:
    squares = torch.tensor([[[0.2, 0.3, 0.4], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    heat, values = detection.encode(squares)
    logit = torch.where(heat == 1, 8.0, -8.0)
    right = detector_error(torch.cat([logit[:, None], values], 1), squares)
    empty = detector_error(torch.cat([torch.full_like(logit, -8.0)[:, None], values * 0], 1), squares)
    assert right["faces"] < 0.01 < 1 < empty["faces"]
    assert right["squares"] < 1e-5 < 0.1 < empty["squares"]
