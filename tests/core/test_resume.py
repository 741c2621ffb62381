"""Training goes on exactly where it stopped; full disks, broken losses and signals leave what is usable."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.training import distribution, engine, launch, states
from anifacediff_core.lab.training.data import Pool, PoolPlan
from anifacediff_core.lab.training.phases import run_phase
from anifacediff_core.lab.training.run_logger import RunLogger
from anifacediff_core.lab.training.settings import read_experiment
from anifacediff_core.lab.training.task import Loop, TrainingError, load_weights

REPOSITORY = Path(__file__).resolve().parents[2]

TOY = """
seed: 3
network:
  preset: tiny
  block_out_channels: [32, 32]
  attention_levels: [true, true]
  attention_heads: [1, 1]
  motion_heads: [1, 1]
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
    settings: {batch_size: 2, crop: 32}
    loop: {steps: 2, check_every: 1, snapshots: []}
  stage1:
    pool: {identities: 4, stills: 1, track: 1, fps: 1, size: 64, renew_every: 2, batch: 4}
    settings: {batch_size: 4, learn: [image_encoder], drop_reference: 0.3, drop_image: 0.3}
    loop: {steps: 9, check_every: 1, save_every: 3, snapshots: [], learning_rate: 1e-2, warmup: 2}
    validation: {pairs: 1, size: 64, steps: 1}
"""


class Walk:
    """Fits y = 3 x - 1 on numbers of its own and of torch, slowly enough to be stopped between two steps."""

    name, period = "walk", 1

    def __init__(self, pause: float = 0.0) -> None:
        self.module = nn.Linear(1, 1)
        nn.init.constant_(self.module.weight, 0.3)
        nn.init.zeros_(self.module.bias)
        self.pause, self.drawn, self.broken_from = pause, 0, 10**9

    def draw(self, fraction: float) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        self.drawn += 1
        time.sleep(self.pause)
        x = torch.randn(8, 1) + self.drawn % 7
        y = 3 * x - 1
        return (x,), (y * float("nan") if self.drawn >= self.broken_from else y,)

    def losses(self, outputs: Any, targets: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        return {"loss": (outputs - targets[0]).square().mean()}

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.module.state_dict())

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def walk(folder: Path, task: Walk | None = None, **loop: Any) -> dict[int, float]:
    """Train and return the loss of every step in the log, the last entry of each."""
    settings = Loop(
        **{
            "steps": 40,
            "learning_rate": 0.05,
            "lr_warmup_steps": 5,
            "mixed_precision": "no",
            "check_every": 1,
        }
        | {"snapshots": (), "checkpointing_steps": 10}
        | loop
    )
    task = task or Walk()
    accelerator = distribution.make_accelerator(settings, seed=0)
    engine.run(task, settings, accelerator, folder, RunLogger(folder, accelerator))
    return losses(folder / "log.jsonl")


def losses(log: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if entry["event"] == "step"}


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_run_that_is_stopped_goes_on_with_the_same_losses(tmp_path: Path, optimizer: str) -> None:
    whole = walk(tmp_path / "whole", optimizer=optimizer)
    broken = Walk()
    broken.broken_from = 28
    with pytest.raises(TrainingError, match="state of step 20 is intact"):
        walk(tmp_path / "parts", broken, optimizer=optimizer)
    parts = walk(tmp_path / "parts", optimizer=optimizer)
    assert list(whole) == list(range(1, 41))
    assert {step: parts[step] for step in range(21, 41)} == {step: whole[step] for step in range(21, 41)}
    first, second = (load_weights(tmp_path / name / "walk.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_the_last_states_stay_and_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    walk(tmp_path, checkpoints_total_limit=2)
    folder = tmp_path / "walk.states"
    assert [path.name for path in sorted(folder.iterdir())] == ["step_000000020", "step_000000030"]
    (folder / ".step_000000099").mkdir()
    assert states.newest_state(folder) == folder / "step_000000030"


def test_a_full_disk_is_told_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = torch.save, []

    def fill(value: object, place: Any, *rest: Any, **more: Any) -> None:
        if "process_" in str(place):
            calls.append(place)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(value, place, *rest, **more)

    monkeypatch.setattr(torch, "save", fill)
    walk(tmp_path)
    names = sorted(path.name for path in (tmp_path / "walk.states").iterdir())
    assert names == ["step_000000010", "step_000000030"], "neither a half state nor a lost older one"
    assert "state_not_saved" in capsys.readouterr().out
    assert (tmp_path / "walk.safetensors").exists()


def test_a_result_that_cannot_be_written_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine, "write_tensors", fail)
    with pytest.raises(
        TrainingError, match="could not be written.*No space left.*state of step 30 is intact"
    ):
        walk(tmp_path)


def test_a_state_of_another_experiment_is_refused_with_a_sentence(tmp_path: Path) -> None:
    walk(tmp_path, steps=12)
    other = Walk()
    other.module = nn.Linear(1, 1, bias=False)
    with pytest.raises(TrainingError, match="doesn't fit this experiment"):
        walk(tmp_path, other)
    (tmp_path / "walk.states" / "step_000000010" / "process_0.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged; delete that folder"):
        walk(tmp_path)


def test_a_state_whose_budget_was_time_is_refused_with_a_sentence(tmp_path: Path) -> None:
    walk(tmp_path, steps=12)
    torch.save({"processes": 1, "clock": {"step": 10}}, tmp_path / "walk.states/step_000000010/process_0.pt")
    with pytest.raises(TrainingError, match="whose budget was time; delete the folder"):
        walk(tmp_path)


def test_a_lower_rate_counts_though_a_state_has_another(tmp_path: Path) -> None:
    walk(tmp_path, steps=40, learning_rate=0.05, lr_scheduler="constant")
    walk(tmp_path, steps=40, learning_rate=0.02, lr_scheduler="constant")
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [entry["rate"] for entry in entries if entry["event"] == "step"]
    assert rates[39] == pytest.approx(0.05) and rates[40:] == pytest.approx([0.02] * 10)


def test_a_state_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    walk(tmp_path, steps=12)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"processes": 1, "clock": Bomb()}, tmp_path / "walk.states/step_000000010/process_0.pt")
    with pytest.raises(ValueError, match="damaged"):
        walk(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_signal_ends_training_with_a_state_from_which_it_goes_on(tmp_path: Path) -> None:
    class Signaled(Walk):
        def draw(self, fraction: float) -> Any:
            if self.drawn == 17:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().draw(fraction)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingError, match=r"asked to stop at step 17.*state of step 17 is intact"):
        walk(tmp_path / "parts", Signaled())
    assert signal.getsignal(signal.SIGTERM) == before
    assert walk(tmp_path / "parts") == walk(tmp_path / "whole")


ENDLESS = """
import pathlib, signal, sys, time
states = pathlib.Path(sys.argv[1])
def stop(*_):
    (states / f"step_{len(list(states.iterdir())):09d}").mkdir()
    sys.exit(1)  # as torch's launcher does, whatever its workers say
signal.signal(signal.SIGTERM, stop)
states.mkdir(exist_ok=True)
(states / f"step_{len(list(states.iterdir())):09d}").mkdir()
time.sleep(60)
"""


def test_a_run_that_is_asked_to_stop_lets_its_phase_save_and_starts_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []

    def command(arguments: list[str], processes: int) -> list[str]:
        launched.append(arguments)
        return [sys.executable, "-c", ENDLESS, str(tmp_path / "walk.states")]

    def ask() -> None:
        while states.newest_state(tmp_path / "walk.states") is None:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(launch, "launch_command", command)
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(InputError, match="asked to stop; run the same command"):
        launch.run_all({"phases": {"walk": {}, "next": {}}}, tmp_path, ["train"], devices=0)
    assert launched == [["train", "--phase", "walk"]]
    assert len(list((tmp_path / "walk.states").iterdir())) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_phase_that_gets_no_further_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'walk.states/step_1')!r}).mkdir(parents=True)"
    monkeypatch.setattr(launch, "launch_command", lambda *_: [sys.executable, "-c", code + "; sys.exit(9)"])
    with pytest.raises(InputError, match="stopped at walk"):
        launch.run_all({"phases": {"walk": {}}}, tmp_path, [], devices=0)
    with pytest.raises(InputError, match="99 GPUs were asked for"):
        launch.run_all({"phases": {"walk": {}}}, tmp_path, [], devices=99)


def test_a_log_whose_reader_is_gone_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("builtins.print", gone)
    assert max(walk(tmp_path, steps=3)) == 3


def test_accumulated_batches_learn_like_one_larger_batch(tmp_path: Path) -> None:
    """Of a quadratic loss over one long draw, halves together have the gradient of the whole."""

    class Halves(Walk):
        rows = 8

        def draw(self, fraction: float) -> Any:
            self.drawn += 1
            generator = torch.Generator().manual_seed((self.drawn - 1) * self.rows // 8 + 1)
            x = torch.randn(8, 1, generator=generator)
            if self.rows == 4:
                x = x[:4] if self.drawn % 2 == 1 else x[4:]
            return (x,), (3 * x - 1,)

    once, twice = Halves(), Halves()
    twice.rows = 4
    twice.drawn = -1  # the batch that finds out what learns
    once.drawn = -1
    whole = walk(tmp_path / "whole", once, steps=5, checkpointing_steps=0)
    halves = walk(tmp_path / "halves", twice, steps=5, checkpointing_steps=0, gradient_accumulation_steps=2)
    assert halves == pytest.approx(whole, rel=1e-5)


class Recorded(torch.autograd.Function):
    """A backward pass as CUDA graphs replay it: its result lies where the next one writes."""

    static = torch.zeros(1, 1)

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        Recorded.static.copy_(gradient.T @ ctx.saved_tensors[0])
        return Recorded.static.detach(), None


def test_accumulated_gradients_of_a_recorded_pass_do_not_share_memory() -> None:
    module = nn.Linear(1, 1, bias=False)
    for part, x in enumerate((2.0, 4.0)):
        Recorded.apply(module.weight, torch.full((1, 1), x)).sum().backward()
        if part == 0:
            engine.keep_gradients([module.weight])
    assert module.weight.grad.item() == 6


def test_a_gradient_that_is_not_a_number_ends_training_though_the_loss_is_one(tmp_path: Path) -> None:
    class Root(Walk):
        def losses(self, outputs: Any, targets: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
            loss = super().losses(outputs, targets)["loss"]
            # At 0 the root is 0 and its slope is not a number.
            return {"loss": loss + (0 * loss).sqrt() if self.drawn == 14 else loss}

    with pytest.raises(TrainingError, match="gradient, is not a number at step 1.*step 10 is intact"):
        walk(tmp_path, Root())


def test_training_ends_at_its_last_step_whenever_the_loss_is_looked_at(tmp_path: Path) -> None:
    assert max(walk(tmp_path, steps=13, check_every=50, checkpointing_steps=0)) == 13


def test_a_divided_state_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's writers of divided weights raise what is no Exception."""

    def fail(*_: Any, **__: Any) -> None:
        raise CheckpointException("write", {0: (OSError(errno.EIO, "the cable is out"), None)})  # type: ignore[dict-item]

    monkeypatch.setattr(Accelerator, "save_state", fail)
    walk(tmp_path, steps=12)
    assert "the cable is out" in capsys.readouterr().out
    assert (tmp_path / "walk.safetensors").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin"])
def test_a_damaged_file_of_a_state_is_told(tmp_path: Path, name: str) -> None:
    walk(tmp_path, steps=12)
    (tmp_path / "walk.states" / "step_000000010" / name).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="is damaged or doesn't fit"):
        walk(tmp_path)


def test_a_phase_whose_predecessor_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no .*autoencoder\.safetensors; train the phase"):
        load_weights(tmp_path / "autoencoder.safetensors", "vae.")


def test_a_pool_comes_back_as_it_was() -> None:
    head = HeadModel.bundled()
    studio = Studio(head)
    plan = PoolPlan(identities=5, stills=2, size=64, batch=4, renew_every=1)
    pool, fresh = Pool(studio, head, plan, seed=5).fill(), Pool(studio, head, plan, seed=5)
    for _ in range(4):
        pool.tick()
    fresh.load_state_dict(pool.state_dict())
    for twin in (pool, fresh):
        twin.tick()
    assert pool.groups == fresh.groups and pool.groups[0] >= 3
    for name in ("images", "normals", "coarse", "spots"):
        assert torch.equal(getattr(pool, name), getattr(fresh, name)), name
    assert torch.equal(pool.params.expression, fresh.params.expression)
    other = Pool(studio, head, replace(plan, identities=3), seed=5)
    with pytest.raises(InputError, match="another pool of avatars"):
        other.load_state_dict(pool.state_dict())


@pytest.mark.slow
def test_a_stage_killed_in_the_middle_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = tmp_path / "toy.yaml"
    config.write_text(TOY)
    experiment = read_experiment(config)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_phase("autoencoder", experiment, whole)
    killed.mkdir()
    (killed / "autoencoder.safetensors").write_bytes((whole / "autoencoder.safetensors").read_bytes())

    # Both with the same number of threads: sums in another order are other numbers.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "anifacediff_core", "train", "--config", str(config)]
    command += ["--phase", "stage1", "--out"]
    subprocess.run([*command, str(whole)], env=environment, capture_output=True, timeout=240, check=True)
    command.append(str(killed))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "stage1: step step 5 " in line:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "stage1.safetensors").exists()
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "stage1: resumed step 3" in found.stdout
    expected, resumed = losses(whole / "log.jsonl"), losses(killed / "log.jsonl")
    assert len(expected) == 9
    assert resumed == pytest.approx(expected, rel=1e-6)
    first, second = (load_weights(folder / "stage1.safetensors") for folder in (whole, killed))
    differing = [name for name in first if not torch.allclose(first[name], second[name], atol=1e-6)]
    assert differing == []


@pytest.mark.slow
def test_a_lost_worker_is_started_again_from_the_last_state(tmp_path: Path) -> None:
    config = tmp_path / "toy.yaml"
    config.write_text(TOY)
    folder = tmp_path / "run"
    run_phase("autoencoder", read_experiment(config), folder)
    (folder / "autoencoder.done").touch()
    command = [sys.executable, "-m", "anifacediff_core", "train", "--config", str(config)]
    command += ["--out", str(folder), "--devices", "0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said, killed = [], False
    for line in process.stdout:
        said.append(line)
        if "stage1: step step 4 " in line and not killed:
            killed = True
            subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=True)
    assert process.wait() == 0, "".join(said)
    assert any("goes on from step_000000003" in line for line in said)
    assert any("resumed step 3" in line for line in said)
    assert (folder / "stage1.done").exists() and len(losses(folder / "log.jsonl")) == 9


def test_a_state_that_cannot_take_its_name_is_told_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "step_000000020":
            raise OSError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    walk(tmp_path)
    names = sorted(path.name for path in (tmp_path / "walk.states").iterdir())
    assert names == ["step_000000010", "step_000000030"]
    assert "state_not_saved" in capsys.readouterr().out
