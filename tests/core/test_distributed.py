"""Several processes learn what one would, and weights divided among them (FSDP) come back whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin

from anifacediff_core.errors import InputError
from anifacediff_core.lab.training import distribution
from anifacediff_core.lab.training.task import Loop, load_weights

REPOSITORY = Path(__file__).resolve().parents[2]

GRADIENTS = """
import sys, torch
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.lab.training.data import Pairs
from anifacediff_core.lab.training.distribution import make_accelerator
from anifacediff_core.lab.training.task import Loop
from anifacediff_core.lab.training.reenactment import DenoisingSettings, DenoisingTask
from anifacediff_core.lab.training.engine import freeze_unused
from dataclasses import replace

accelerator = make_accelerator(Loop(steps=1, mixed_precision="no"), 0)
rank, world = accelerator.process_index, accelerator.num_processes
config = replace(
    NetworkConfig.tiny(), block_out_channels=(32, 32), attention_levels=(True, True), attention_heads=(1, 1),
    motion_heads=(1, 1), cross_attention_dim=32, pose_channels=(8, 8, 16, 16), image_size=56, image_hidden=32,
    image_layers=1, image_heads=2, image_intermediate=64, expression_hidden=32,
)
torch.manual_seed(1)
model = AniFaceDiff(config)
for parameter in model.parameters():  # nothing silent: zeros would hide what lies behind them
    torch.nn.init.normal_(parameter, std=0.1)
ROWS = 4
pairs = Pairs(
    source_latents=torch.randn(ROWS, 4, 8, 8), source_pixels=torch.randn(ROWS, 3, 56, 56),
    latents=torch.randn(ROWS, 4, 8, 8), normals=torch.rand(ROWS, 3, 64, 64), expression=torch.rand(ROWS, 52),
    spots=torch.rand(ROWS, 4, 3) * 32 + 8,
)
# One process has two conditional rows and then two without conditions; two processes have one of each.
mine = torch.arange(ROWS) if world == 1 else torch.tensor([rank, rank + 2])


class Same:
    frames, size = 1, 64

    def draw(self, rows):
        return Pairs(**{name: value[mine] for name, value in vars(pairs).items() if value is not None})


settings = DenoisingSettings(
    batch_size=len(mine), uncond_ratio=0.5, drop_expression=0, min_snr=5.0, learn=("image_encoder",)
)
task = DenoisingTask(model, Same(), torch.linspace(0.99, 0.01, 1000), settings, None, stage=1)
# The same noise and time steps for the same rows, however they are divided.
noise, times = torch.randn(ROWS, 4, 8, 8), torch.tensor([10, 300, 600, 990])
torch.randn_like = lambda x: noise[mine]
torch.randint = lambda high, size, device: times[mine]
freeze_unused(task, accelerator)
module = accelerator.prepare(task.module)
inputs, targets = task.draw(0.0)
accelerator.backward(task.losses(module(*inputs), targets)["loss"])
gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
if accelerator.is_main_process:
    torch.save(gradients, sys.argv[1])
accelerator.end_training()
"""

SHARDED = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from anifacediff_core.lab.training import distribution, engine
from anifacediff_core.lab.training.task import Loop
from anifacediff_core.lab.training.run_logger import RunLogger


class Task:
    name, period = "sharded", 1

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 2))
        self.module[2].bias.requires_grad_(False)
        self.truth = torch.randn(6, 2)
        self.drawn = 0

    def draw(self, fraction):
        self.drawn += 1
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(self.drawn))
        return (x,), (x @ self.truth,)

    def losses(self, outputs, targets):
        return {"loss": (outputs - targets[0]).square().mean()}

    def weights(self):
        return dict(self.module.state_dict())

    def validate(self, path, fraction):
        return {}

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


folder, steps = Path(sys.argv[1]), int(sys.argv[2])
loop = Loop(steps=20, learning_rate=0.02, lr_warmup_steps=2, mixed_precision="no", check_every=1,
            snapshots=(), checkpointing_steps=5, lr_scheduler="constant", ema_decay=0.9)
accelerator = distribution.make_accelerator(loop, 0, folder)
if "FSDP_VERSION" in os.environ:  # which accelerate itself heeds on GPUs only
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    assert accelerator.is_fsdp2
task = Task()
if steps < 20:
    draw = task.draw
    def stop(fraction):
        if task.drawn > steps:
            raise SystemExit(3)
        return draw(fraction)
    task.draw = stop
engine.run(task, loop, accelerator, folder, RunLogger(folder, accelerator))
accelerator.end_training()
"""


def launch(
    script: Path, *arguments: object, processes: int, **environment: str
) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    variables |= {"CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path: Path) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    found = []
    for processes in (1, 2):
        ended = launch(script, tmp_path / f"{processes}.pt", processes=processes)
        assert ended.returncode == 0, ended.stderr[-3000:]
        found.append(torch.load(tmp_path / f"{processes}.pt", weights_only=True))
    one, two = found
    assert set(one) == set(two) and len(one) > 100
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def losses(folder: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if entry["event"] == "step"}


@pytest.mark.parametrize("kind", ["DDP", "FSDP"])
def test_weights_over_two_processes_train_stop_go_on_and_come_back_whole(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if kind == "FSDP" else {}
    if kind == "FSDP":
        environment |= {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    alone = launch(script, tmp_path / "alone", 20, processes=1)
    assert alone.returncode == 0, alone.stderr[-3000:]
    killed = launch(script, tmp_path / "two", 12, processes=2, **environment)
    assert killed.returncode != 0 and not (tmp_path / "two/sharded.safetensors").exists()
    ended = launch(script, tmp_path / "two", 20, processes=2, **environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "resumed step 10" in ended.stdout
    assert ("divided among the processes" in ended.stdout) == (kind == "FSDP")
    # Both processes draw the same batches here, so they learn what one alone does.
    expected, found = losses(tmp_path / "alone"), losses(tmp_path / "two")
    assert found == pytest.approx(expected, rel=1e-4)
    one, two = (load_weights(tmp_path / name / "sharded.safetensors") for name in ("alone", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_the_trainer_does_not_know_is_refused_with_a_sentence(kind: DistributedType) -> None:
    first = SimpleNamespace(distributed_type=kind, is_fsdp2=False)
    with pytest.raises(InputError, match="fsdp_version: 2"):
        distribution._require_known_distribution(first, Loop(steps=1))  # type: ignore[arg-type]


def test_fp16_is_refused_where_weights_are_divided() -> None:
    whole = _divided("NO_WRAP")
    with pytest.raises(InputError, match="use bf16"):
        distribution._require_known_distribution(whole, Loop(steps=1, mixed_precision="fp16"))  # type: ignore[arg-type]
    distribution._require_known_distribution(whole, Loop(steps=1, mixed_precision="bf16"))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP"])
def test_dividing_block_by_block_is_refused_with_a_sentence(policy: str) -> None:
    with pytest.raises(InputError, match="NO_WRAP"):
        distribution._require_known_distribution(_divided(policy), Loop(steps=1))  # type: ignore[arg-type]


def _divided(policy: str) -> SimpleNamespace:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy=policy)
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True, state=state)
