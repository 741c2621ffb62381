"""The training loop: budget, schedule, averaging, log, snapshots; distribution is accelerate's.

A phase of training is a `Task`: it owns a module, draws batches, computes losses and says what a snapshot
holds. The engine knows nothing about faces.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, broadcast, set_seed
from safetensors.torch import load_file
from torch import Tensor, nn

from ..storage import write_tensors

Tensors = tuple[Tensor, ...]


class TrainingError(RuntimeError):
    """Training cannot go on; the last snapshot on disk is usable."""


@dataclass(frozen=True)
class Loop:
    """How long and how to optimize.

    Arguments:
        seconds: budget of wall-clock time for the whole phase, the drawing of its data included, or None.
        steps: budget of optimizer steps, or None. Whichever budget ends first counts.
        learning_rate: its peak, reached after `warmup` steps; then it falls as a cosine over the
            *fraction of the budget* that has passed, to `final_rate` times the peak.
        average: weight of the past in the running average of the weights.
        precision: "no" for float32, "bf16" for autocast, "bf16_weights" for a copy of the
            module in bf16 beside its float32 weights: the fastest, since norms run in bf16 too.
        cuda_graph: record forward and backward once and replay them; falls back to eager where that fails.
        channels_last: memory layout of convolutions.
        check_every: steps between two looks at the clock and the loss; in between nothing waits for
            the device.
        snapshots: fractions of the budget at which weights and samples are written, besides the end.
    """

    seconds: float | None = None
    steps: int | None = None
    learning_rate: float = 1e-3
    final_rate: float = 0.01
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.998
    precision: str = "bf16"
    cuda_graph: bool = True
    channels_last: bool = False
    check_every: int = 50
    snapshots: tuple[float, ...] = (0.25, 0.5, 0.75)


class Task(Protocol):
    """One phase of training."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Maps the inputs that `draw` gives to a tensor or a tuple of tensors; what it holds is optimized."""
        ...

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        """A batch: inputs of the module and what `losses` needs besides. Shapes never change."""
        ...

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        """Scalars; the one named "loss" is minimized, the others are logged."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """What a snapshot file holds. Called with the averaged weights in place."""
        ...

    def sample(self, path: Path, fraction: float) -> dict[str, float]:
        """Write a picture, return measures. Called on the main process with the averaged weights."""
        ...


def make_accelerator(loop: Loop, seed: int) -> Accelerator:
    """An Accelerator whose processes draw different random numbers, for one process or many."""
    on_cpu = not torch.cuda.is_available()
    # accelerate renames the argument below from 1.15 on and keeps the old name working.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if loop.precision == "bf16" and not on_cpu else "no",
        kwargs_handlers=[
            # Casts must not be cached: a recorded graph would read the casts of the first step for ever.
            AutocastKwargs(cache_enabled=False),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    set_seed(seed, device_specific=True)
    if not on_cpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = (
            4  # trying ten algorithms for each of many shapes takes half a minute
        )
    return accelerator


class Journal:
    """Progress as lines for people and as JSON lines for programs; only the main process writes."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.started = time.monotonic()
        self.path = folder / "log.jsonl"
        self.main = accelerator.is_main_process
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def __call__(self, phase: str, event: str, **values: Any) -> None:
        if not self.main:
            return
        rounded = {
            key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()
        }
        record = {"seconds": round(self.elapsed(), 1), "phase": phase, "event": event, **rounded}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        text = " ".join(f"{key} {value}" for key, value in rounded.items())
        print(f"[{record['seconds']:7.1f}] {phase}: {event} {text}", flush=True)


class Clock:
    """The fraction of the budget that has passed: the same on all processes, without a wait at every step.

    Every `check_every` steps the main process reads the time and tells the others; in between, the fraction
    goes on at the pace seen last. Training ends at such a reading only, so that no process waits for one that
    has stopped.
    """

    def __init__(self, loop: Loop, accelerator: Accelerator, already: float) -> None:
        if loop.seconds is None and loop.steps is None:
            raise ValueError("A training loop needs a budget: seconds or steps.")
        self.loop, self.accelerator = loop, accelerator
        self.started = time.monotonic() - already
        # The main process's number for all: a learning rate that differed would let the weights drift apart.
        self.offset = self._agree(already / loop.seconds if loop.seconds else 0.0)
        self.step, self.read_at = 0, 0
        self.read, self.pace = self.offset, 0.0

    @property
    def fraction(self) -> float:
        return min(self.read + (self.step - self.read_at) * self.pace, 1.0)

    @property
    def progress(self) -> float:
        """The share of the *training* that is done, 0 at the first step: the time spent on data before is
        left out.
        """
        return max((self.fraction - self.offset) / max(1 - self.offset, 1e-6), 0.0)

    def due(self) -> bool:
        return self.step % self.loop.check_every == 0 or self.step in (1, 10)

    def check(self) -> float:
        """Agree on the time; called by all processes at the same steps."""
        parts = [self.step / self.loop.steps] if self.loop.steps else []
        if self.loop.seconds:
            parts.append((time.monotonic() - self.started) / self.loop.seconds)
        now = self._agree(max(parts))
        if self.step > self.read_at:
            self.pace = (now - self.read) / (self.step - self.read_at)
        self.read, self.read_at = now, self.step
        return self.read

    def _agree(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, device=self.accelerator.device, dtype=torch.float64)))


def learning_rate(loop: Loop, step: int, progress: float) -> float:
    """Linear warm-up over steps, cosine over the share of training that is done."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return (
        loop.learning_rate
        * min(1.0, (step + 1) / loop.warmup)
        * (loop.final_rate + (1 - loop.final_rate) * cosine)
    )


class Average:
    """A running average of weights (EMA), which `applied` puts in the weights' place for a while."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.decay = decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        # A young average follows quickly: the first weights are worth little.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def load_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a file whose names begin with `prefix`, without it."""
    found = {key[len(prefix) :]: value for key, value in load_file(path).items() if key.startswith(prefix)}
    if not found:
        raise TrainingError(
            f"{path} holds no weights named {prefix}*; train the phase that makes them first."
        )
    return found


class Worker(nn.Module):
    """The module that runs forward and backward: the task's own, or a copy of it in another precision.

    The weights that the optimizer changes stay the task's, in float32; a copy hands its gradients over before
    every step and takes the weights after it.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.module = module if dtype is None else copy.deepcopy(module).to(dtype)
        self.own = list(module.parameters())
        self.learning: list[tuple[nn.Parameter, nn.Parameter]] = []

    def forward(self, *inputs: Tensor) -> Any:
        if self.dtype is not None:
            inputs = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in inputs)
        return self.module(*inputs)

    def freeze_unused(self) -> int:
        """Stop optimizing weights that the last backward pass did not reach and return their number.

        Distributed training would wait for their gradients.
        """
        frozen = 0
        for own, used in zip(self.own, self.module.parameters(), strict=True):
            if used.requires_grad and used.grad is None:
                own.requires_grad_(False)
                used.requires_grad_(False)
                frozen += 1
            elif used.requires_grad:
                self.learning.append((own, used))
            used.grad = None
        return frozen

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        if self.dtype is None:
            return
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for own, used in self.learning:
            assert used.grad is not None
            own.grad = torch.empty_like(own) if own.grad is None else own.grad
            targets.append(own.grad)
            sources.append(used.grad)
        torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def take_weights(self) -> None:
        """Prepare the next step: weights of the last one, no gradients."""
        if self.dtype is not None:
            torch._foreach_copy_([used for _, used in self.learning], [own for own, _ in self.learning])
        for _, used in self.learning:
            used.grad = None


def make_worker(task: Task, loop: Loop, accelerator: Accelerator) -> tuple[Worker, int, str]:
    """Build the worker, find out what learns, record its CUDA graphs.

    Graphs must lie inside DDP, so this comes before it.

    Returns:
        the worker, the number of weights that are frozen because nothing depends on them, and how it runs.
    """
    on_gpu = accelerator.device.type == "cuda"
    worker = Worker(task.module, torch.bfloat16 if loop.precision == "bf16_weights" and on_gpu else None)
    inputs, targets = task.draw(0.0)
    with accelerator.autocast():
        outputs = worker(*inputs)
    task.losses(outputs, targets)["loss"].backward()
    frozen = worker.freeze_unused()
    if not on_gpu or not loop.cuda_graph:
        return worker, frozen, "eager"
    del outputs
    try:
        samples = tuple(x.clone() for x in inputs)
        with accelerator.autocast():
            torch.cuda.make_graphed_callables(worker, samples, allow_unused_input=True)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return worker, frozen, f"eager, recording failed: {str(error).splitlines()[0]}"
    return worker, frozen, "recorded"


@torch.no_grad()
def share_start(module: nn.Module, accelerator: Accelerator) -> None:
    """Begin with the main process's weights everywhere."""
    if accelerator.num_processes > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(broadcast(tensor.detach().clone()))


def run(task: Task, loop: Loop, accelerator: Accelerator, folder: Path, journal: Journal) -> None:
    """Train until the budget is spent; write `<task name>.safetensors` at the snapshots and at the end."""
    task.module.to(accelerator.device).train()
    if loop.channels_last:
        task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    share_start(task.module, accelerator)
    worker, frozen, mode = make_worker(task, loop, accelerator)
    trainable = [own for own, _ in worker.learning]
    average = Average(trainable, loop.average)
    optimizer = torch.optim.AdamW(
        trainable,
        lr=loop.learning_rate,
        betas=loop.betas,
        weight_decay=loop.weight_decay,
        fused=accelerator.device.type == "cuda",
    )
    module, optimizer = accelerator.prepare(worker, optimizer)
    count = sum(p.numel() for p in trainable)
    facts = {"parameters": count, "unused": frozen, "processes": accelerator.num_processes, "mode": mode}
    journal(task.name, "start", **facts)

    clock = Clock(loop, accelerator, already=journal.elapsed())
    marks = [mark for mark in loop.snapshots if mark > clock.offset]
    losses: dict[str, Tensor] = {}
    began = time.monotonic()
    while True:
        if clock.due():
            clock.check()
            if losses:
                pace = clock.step / max(time.monotonic() - began, 1e-6)
                _report(task, journal, clock, losses, pace, optimizer.param_groups[0]["lr"])
            if clock.fraction >= 1:
                break
            if marks and clock.fraction >= marks[0]:
                _snapshot(task, average, accelerator, folder, journal, marks.pop(0))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(loop, clock.step, clock.progress)
        inputs, targets = task.draw(clock.progress)
        losses = task.losses(module(*inputs), targets)
        accelerator.backward(losses["loss"])
        worker.hand_over_gradients()
        gradient = torch.nn.utils.clip_grad_norm_(trainable, loop.clip, foreach=True)
        optimizer.step()
        worker.take_weights()
        losses = {key: value.detach() for key, value in losses.items()} | {"gradient": gradient}
        clock.step += 1
        average.update(clock.step)
    _snapshot(task, average, accelerator, folder, journal, 1.0)


def _report(
    task: Task, journal: Journal, clock: Clock, losses: dict[str, Tensor], pace: float, rate: float
) -> None:
    values = {key: float(value) for key, value in losses.items()}
    journal(
        task.name,
        "step",
        step=clock.step,
        fraction=clock.fraction,
        rate=rate,
        steps_per_second=pace,
        **values,
    )
    if not math.isfinite(values["loss"]):
        raise TrainingError(
            f"The loss of phase '{task.name}' is {values['loss']} at step {clock.step}; "
            "the last snapshot is intact, lower learning_rate and train this phase again."
        )


def _sample(task: Task, path: Path, fraction: float) -> dict[str, Any]:
    """Pictures are welcome but never worth a training run."""
    try:
        return task.sample(path, fraction)
    except Exception as error:
        return {"sample_failed": f"{type(error).__name__}: {error}"}


def _snapshot(
    task: Task, average: Average, accelerator: Accelerator, folder: Path, journal: Journal, fraction: float
) -> None:
    """Write averaged weights, then pictures and measures; the others wait."""
    if accelerator.is_main_process:
        task.module.eval()
        with average.applied(), torch.no_grad():
            write_tensors(folder / f"{task.name}.safetensors", task.weights(), {"fraction": str(fraction)})
            measures = _sample(task, folder / f"{task.name}_{round(100 * fraction):03d}.jpg", fraction)
        task.module.train()
        journal(task.name, "snapshot", fraction=fraction, **measures)
    accelerator.wait_for_everyone()
