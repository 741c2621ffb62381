"""The trainer: budgets and averages, distribution, losses, pools, and a whole experiment at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.training import engine
from anifacediff_core.training.autoencoder import fold_moments, latent_moments
from anifacediff_core.training.conductor import Lane, divide
from anifacediff_core.training.engine import Average, Clock, Loop, TrainingError, learning_rate
from anifacediff_core.training.reenactment import diffuse, mixed_noise
from anifacediff_core.training.settings import build, read_experiment

REPOSITORY = Path(__file__).resolve().parents[2]


class Line:
    """A task small enough to know its answer: fit y = 3 x - 1."""

    name = "line"

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

    def sample(self, path: Path, fraction: float) -> dict[str, float]:
        self.sampled.append(fraction)
        return {"weight": float(self.module.weight.detach())}


def train_line(folder: Path, task: Line, **loop: Any) -> list[dict[str, Any]]:
    settings = Loop(learning_rate=0.1, warmup=5, precision="no", **loop)
    accelerator = engine.make_accelerator(settings, seed=0)
    engine.run(task, settings, accelerator, folder, engine.Journal(folder, accelerator))
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_loop_learns_and_leaves_averaged_weights_snapshots_and_a_log(tmp_path: Path) -> None:
    task = Line()
    log = train_line(tmp_path, task, steps=300, average=0.9, check_every=10, snapshots=(0.5,))
    weights = engine.load_weights(tmp_path / "line.safetensors")
    assert abs(float(weights["weight"]) - 3) < 0.05
    assert abs(float(weights["bias"]) + 1) < 0.05
    assert task.sampled == [0.5, 1.0]
    start = next(entry for entry in log if entry["event"] == "start")
    assert start["unused"] == 2, "weights without a gradient are frozen, or DDP would wait for them"
    assert [entry for entry in log if entry["event"] == "step"][-1]["step"] == 300


def test_a_budget_of_seconds_ends_in_time_and_the_rate_falls_with_it(tmp_path: Path) -> None:
    log = train_line(tmp_path, Line(), seconds=1.0, check_every=5, snapshots=())
    steps = [entry for entry in log if entry["event"] == "step"]
    assert 0.9 < log[-1]["seconds"] < 5
    assert steps[-1]["rate"] < 0.02 * max(entry["rate"] for entry in steps) + 1e-2


def test_a_loss_that_is_not_a_number_stops_with_a_sentence_and_keeps_the_snapshot(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="phase 'line'.*snapshot"):
        train_line(tmp_path, Line(broken_at=80), steps=200, check_every=1, snapshots=(0.2,))
    assert torch.isfinite(engine.load_weights(tmp_path / "line.safetensors")["weight"]).all()


def test_the_cosine_starts_after_the_time_that_data_took() -> None:
    loop = Loop(seconds=100.0, learning_rate=1.0, warmup=1)
    clock = Clock(loop, accelerator=None, already=40.0)  # type: ignore[arg-type]
    assert clock.fraction == pytest.approx(0.4)
    assert clock.progress == pytest.approx(0.0)
    clock.read = 0.7
    assert clock.progress == pytest.approx(0.5)
    assert learning_rate(loop, 10, 0.5) == pytest.approx(0.505)


def test_an_average_puts_itself_in_place_and_away_again() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = Average([weight], decay=0.5)
    with torch.no_grad():
        weight.fill_(8.0)
    average.update(step=100)
    with average.applied():
        assert weight.tolist() == [4.0] * 3
    assert weight.tolist() == [8.0] * 3


def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        "from torch import nn\n"
        "from anifacediff_core.training.engine import Loop, make_accelerator\n"
        "a = make_accelerator(Loop(steps=1), 0)\n"
        "torch.manual_seed(0); m = nn.Linear(4, 2); x = torch.randn(8, 4)\n"
        "n = 8 // a.num_processes; part = x[a.process_index * n:(a.process_index + 1) * n]\n"
        "m = a.prepare(m); loss = m(part).square().mean(); a.backward(loss)\n"
        "g = a.unwrap_model(m).weight.grad\n"
        "if a.is_main_process: torch.save(g, sys.argv[1])\n"
        "a.end_training()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    grads = []
    for processes in (1, 2):
        target = tmp_path / f"{processes}.pt"
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        )
        command = [sys.executable, *launcher, str(script), str(target)]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
        grads.append(torch.load(target, weights_only=True))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


def test_devices_are_divided_among_lanes_side_by_side() -> None:
    row: dict[str, int | str] = {"autoencoder, stage1": "rest", "capture": 1}
    main, side = ("autoencoder", "stage1"), ("capture",)
    assert divide(row, 4) == [[Lane(main, (0, 1, 2)), Lane(side, (3,))]]
    assert divide(row, 2) == [[Lane(main, (0,)), Lane(side, (1,))]]
    assert divide(row, 1) == [[Lane(main, (0,))], [Lane(side, (0,))]]
    assert divide(row, 0) == [[Lane(main, ())], [Lane(side, ())]]
    assert divide({"stage2": "rest"}, 4) == [[Lane(("stage2",), (0, 1, 2, 3))]]


def test_settings_are_built_from_yaml_and_unknown_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "seed: 1\nphases: {stage1: {loop: {seconds: 10, learning_rate: 1e-3, snapshots: [0.5]}}}\nplan: []\n"
    )
    experiment = read_experiment(
        path, ["phases.stage1.loop.seconds=3", "phases.stage1.loop.cuda_graph=false"]
    )
    loop = build(Loop, experiment["phases"]["stage1"]["loop"])
    assert loop == Loop(seconds=3, learning_rate=1e-3, snapshots=(0.5,), cuda_graph=False)
    with pytest.raises(InputError, match="lerning_rate"):
        build(Loop, {"lerning_rate": 1})
    with pytest.raises(InputError, match="no '='"):
        read_experiment(path, ["phases.stage1"])
    with pytest.raises(InputError, match="bundled"):
        read_experiment("nonsense")


@pytest.mark.parametrize("name", ["bundled", "smoke"])
def test_shipped_experiments_name_known_settings_only(name: str) -> None:
    from anifacediff_core.evaluation.avatars import Protocol
    from anifacediff_core.training.autoencoder import AutoencoderSettings
    from anifacediff_core.training.capture import CaptureSettings
    from anifacediff_core.training.data import PoolPlan
    from anifacediff_core.training.phases import PHASES, network_config
    from anifacediff_core.training.reenactment import DenoisingSettings

    kinds: dict[str, type] = {"autoencoder": AutoencoderSettings, "capture": CaptureSettings}
    experiment = read_experiment(name)
    network_config(experiment)
    assert (
        {phase.strip() for row in experiment["plan"] for lane in row for phase in lane.split(",")}
        == set(experiment["phases"])
        == set(PHASES)
    )
    for phase, settings in experiment["phases"].items():
        if phase == "evaluate":
            build(Protocol, {k: v for k, v in settings.items() if k != "seconds"})
            continue
        assert set(settings) <= {"pool", "settings", "loop", "validation"}
        build(PoolPlan, settings["pool"])
        build(Loop, settings["loop"])
        build(kinds.get(phase, DenoisingSettings), settings.get("settings"))


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
