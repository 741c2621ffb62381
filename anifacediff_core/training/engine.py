"""The training loop: budget, schedule, log, states to go on from, snapshots; distribution is accelerate's.

A phase of training is a `Task`: it owns a module, draws batches, computes losses and says what a snapshot
holds. The engine knows nothing about faces.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, broadcast, set_seed
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError
from ..storage import write_tensors
from .clock import Clock, learning_rate
from .journal import Journal
from .states import UNREADABLE, load_own, newest_state, save_state, told
from .worker import Average, make_worker, shards_weights, whole

Tensors = tuple[Tensor, ...]


class TrainingError(InputError):
    """Training cannot go on; what is on disk is usable."""


@dataclass(frozen=True)
class Loop:
    """How long and how to optimize.

    Arguments:
        seconds: budget of wall-clock time for the whole phase, the drawing of its data included, or None.
        steps: budget of optimizer steps, or None. Whichever budget ends first counts.
        optimizer: "adamw", "adam", or "adamw8bit", whose averages take 8 bits (bitsandbytes, GPU only).
        learning_rate: its peak, reached after `warmup` steps.
        schedule: "cosine", which falls over the *fraction of the budget* that has passed to `final_rate`
            times the peak, or "constant".
        clip: longest gradient, as a norm over all weights; longer ones are shortened to it.
        accumulate: batches whose gradients make up one step.
        average: weight of the past in the running average of the weights; 0 keeps none.
        precision: "no" for float32, "bf16" or "fp16" for autocast, "bf16_weights" for a copy of the
            module in bf16 beside its float32 weights: the fastest, since norms run in bf16 too.
        cuda_graph: record forward and backward once and replay them; falls back to eager where that fails.
        channels_last: memory layout of convolutions.
        check_every: steps between two looks at the clock and the loss; in between nothing waits for
            the device.
        save_every: steps between two states from which training can go on exactly; 0 keeps none.
        keep: how many of these states stay on disk.
        snapshots: fractions of the budget at which weights and samples are written, besides the end.
    """

    seconds: float | None = None
    steps: int | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    final_rate: float = 0.01
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    average: float = 0.998
    precision: str = "bf16"
    cuda_graph: bool = True
    channels_last: bool = False
    check_every: int = 50
    save_every: int = 0
    keep: int = 2
    snapshots: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        choices = {
            "optimizer": tuple(OPTIMIZERS),
            "schedule": ("cosine", "constant"),
            "precision": ("no", "bf16", "fp16", "bf16_weights"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"The loop's {name} is {getattr(self, name)!r}; choose one of {', '.join(known)}."
                )
        if self.seconds is None and self.steps is None:
            raise InputError("The loop has no budget; give it seconds or steps.")
        for name in ("seconds", "steps", "learning_rate", "clip", "accumulate", "check_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"The loop's {name} is {value}; give a number above 0.")


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

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands in its data, besides torch's own random numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        ...


def make_accelerator(loop: Loop, seed: int, folder: Path | None = None) -> Accelerator:
    """An Accelerator whose processes draw different random numbers, for one process or many.

    Arguments:
        folder: where TensorBoard's files go, if TensorBoard is installed.
    """
    on_cpu = not torch.cuda.is_available()
    # accelerate renames the argument below from 1.15 on and keeps the old name working.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    tracked = folder is not None and _tensorboard_works()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=loop.precision if loop.precision in ("bf16", "fp16") and not on_cpu else "no",
        log_with="tensorboard" if tracked else None,
        project_dir=str(folder) if folder is not None else None,
        kwargs_handlers=[
            # Casts must not be cached: a recorded graph would read the casts of the first step for ever.
            AutocastKwargs(cache_enabled=False),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    _require_known_distribution(accelerator, loop)
    set_seed(seed, device_specific=True)
    if not on_cpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = (
            4  # trying ten algorithms for each of many shapes takes half a minute
        )
    return accelerator


def _tensorboard_works() -> bool:
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        return False
    return True


def _require_known_distribution(accelerator: Accelerator, loop: Loop) -> None:
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED" or (kind == "FSDP" and not accelerator.is_fsdp2):
        raise InputError(
            f"accelerate is configured for {kind}, which this trainer doesn't know; "
            "set distributed_type to MULTI_GPU, or to FSDP with fsdp_version: 2."
        )
    if kind == "FSDP" and accelerator.state.fsdp_plugin.auto_wrap_policy is not None:
        # The reference's keys and values are projected before the UNet's blocks run, with their weights.
        raise InputError(
            "FSDP is configured to divide each block by itself, but blocks of this network use each other's "
            "weights; set fsdp_auto_wrap_policy: NO_WRAP."
        )
    if kind == "FSDP" and loop.precision == "bf16_weights":
        raise InputError("The precision bf16_weights needs whole weights, which FSDP divides; use bf16.")
    if kind == "FSDP" and loop.precision == "fp16":
        # accelerate would take the scale off the gradients twice wherever some weights are frozen.
        raise InputError("The precision fp16 doesn't work where FSDP divides the weights; use bf16.")


def _adamw8bit(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    if not torch.cuda.is_available():
        raise InputError("The optimizer adamw8bit needs a GPU; use adamw.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "The optimizer adamw8bit needs bitsandbytes; pip install bitsandbytes, or use adamw."
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return optimizer


def _fused(kind: type[torch.optim.Adam]) -> Any:
    def make(parameters: Any, **options: Any) -> torch.optim.Optimizer:
        return kind(parameters, fused=parameters[0].device.type == "cuda", **options)

    return make


OPTIMIZERS = {"adamw": _fused(torch.optim.AdamW), "adam": _fused(torch.optim.Adam), "adamw8bit": _adamw8bit}


def load_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a file whose names begin with `prefix`, without it."""
    if not path.exists():
        raise TrainingError(f"There is no {path}; train the phase that makes it first.")
    found = {key[len(prefix) :]: value for key, value in load_file(path).items() if key.startswith(prefix)}
    if not found:
        raise TrainingError(
            f"{path} holds no weights named {prefix}*; train the phase that makes them first."
        )
    return found


def states_folder(folder: Path, phase: str) -> Path:
    """Where the states of a phase lie in the folder of a run."""
    return folder / f"{phase}.states"


@torch.no_grad()
def share_start(module: nn.Module, accelerator: Accelerator) -> None:
    """Begin with the main process's weights everywhere."""
    if accelerator.num_processes > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(broadcast(tensor.detach().clone()))


def run(task: Task, loop: Loop, accelerator: Accelerator, folder: Path, journal: Journal) -> None:
    """Train until the budget is spent; write `<task name>.safetensors` at the snapshots and at the end.

    Where states of an earlier run of the same phase are, training goes on from the newest, with the numbers
    that it would have had without the break.

    Raises:
        TrainingError: the loss or its gradient is not a number, a signal asked to stop, or the result cannot
            be written.
    """
    try:
        _Run(task, loop, accelerator, folder, journal).train()
    finally:
        accelerator.free_memory()  # what distributes the weights must go before what it talks through


class _Run:
    """One run of one task."""

    def __init__(
        self, task: Task, loop: Loop, accelerator: Accelerator, folder: Path, journal: Journal
    ) -> None:
        self.task, self.loop, self.accelerator, self.journal = task, loop, accelerator, journal
        self.folder, self.states = folder, states_folder(folder, task.name)
        self.sharded = shards_weights(accelerator)
        task.module.to(accelerator.device).train()
        if loop.channels_last:
            task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        share_start(task.module, accelerator)
        self.worker, frozen, mode = make_worker(task, loop, accelerator)
        optimizer = OPTIMIZERS[loop.optimizer](
            [own for own, _ in self.worker.learning],
            lr=loop.learning_rate,
            betas=loop.betas,
            weight_decay=loop.weight_decay,
        )
        self.module, self.optimizer = accelerator.prepare(self.worker, optimizer)
        # Only now: sharding has replaced the parameters.
        self.learning = self.worker.learning
        self.trainable = [own for own, _ in self.learning]
        self.average = Average(self.trainable, loop.average)
        self.clock = Clock(loop, accelerator, already=journal.elapsed())
        self.broken = torch.zeros((), device=accelerator.device)
        self.stopping = False
        facts = {
            "parameters": sum(own.numel() for own in self.trainable),
            "unused": frozen,
            "processes": accelerator.num_processes,
            "mode": mode,
        }
        journal(task.name, "start", **facts)

    def train(self) -> None:
        step_before = self._resume()
        purge = {"tensorboard": {"purge_step": step_before}}
        self.accelerator.init_trackers(self.task.name, init_kwargs=purge if step_before else {})
        marks = [mark for mark in self.loop.snapshots if mark > max(self.clock.offset, self.clock.read)]
        losses: dict[str, Tensor] = {}
        began, saved_at = time.monotonic(), step_before
        with self._signals():
            while True:
                if self.clock.due():
                    self.clock.check()
                    if losses:
                        pace = (self.clock.step - step_before) / max(time.monotonic() - began, 1e-6)
                        self._report(losses, pace)
                    if self.clock.fraction >= 1:
                        break
                    self._stop_if_asked()
                    if marks and self.clock.fraction >= marks[0]:
                        self._snapshot(marks.pop(0))
                    if self.loop.save_every and self.clock.step - saved_at >= self.loop.save_every:
                        saved_at = self.clock.step
                        self._save()
                losses = self._step()
        self._snapshot(1.0)

    def _step(self) -> dict[str, Tensor]:
        loop, clock = self.loop, self.clock
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(loop, clock.step, clock.progress)
        sums: dict[str, Tensor] = {}
        for part in range(loop.accumulate):
            inputs, targets = self.task.draw(clock.progress)
            last = part == loop.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                losses = self.task.losses(self.module(*inputs), targets)
                self.accelerator.backward(losses["loss"] / loop.accumulate)
            if part == 0 and not last:
                self.worker.keep_gradients(self.learning)
            for name, value in losses.items():
                share = value.detach() / loop.accumulate
                sums[name] = sums[name] + share if name in sums else share
        self.worker.hand_over_gradients(self.learning)
        gradient = self.accelerator.clip_grad_norm_(self.trainable, loop.clip)
        self.optimizer.step()
        self.worker.take_weights(self.learning)
        sums["gradient"] = whole(gradient).detach()
        # Finite losses can have gradients that are not; a scaler (fp16) leaves such steps out by itself.
        watched = sums["loss"] if self.accelerator.scaler else sums["loss"] + sums["gradient"]
        self.broken = torch.maximum(self.broken, (~torch.isfinite(watched)).float())
        clock.step += 1
        self.average.update(clock.step)
        return sums

    # ---- what is written

    def _report(self, losses: dict[str, Tensor], pace: float) -> None:
        task, clock = self.task, self.clock
        broken = self.accelerator.reduce(self.broken, "sum") if self._many() else self.broken
        values = {key: float(value) for key, value in losses.items()}
        values |= {"rate": self.optimizer.param_groups[0]["lr"], "steps_per_second": pace}
        self.journal(task.name, "step", step=clock.step, fraction=clock.fraction, **values)
        self.journal.draw(clock.step, values)
        if broken:
            raise TrainingError(
                f"The loss of phase '{task.name}', or its gradient, is not a number at step {clock.step}; "
                f"{self._rest()} Lower its learning_rate and run the same command again."
            )

    def _snapshot(self, fraction: float) -> None:
        """Write averaged weights, then pictures and measures; the others wait."""
        task, path = self.task, self.folder / f"{self.task.name}.safetensors"
        measures: dict[str, Any] = {}
        task.module.eval()
        with self.average.applied(), torch.no_grad():
            # Of sharded weights every process has a part.
            weights = task.weights() if self.sharded or self.accelerator.is_main_process else {}
            weights = {name: whole(weight) for name, weight in weights.items()}
            if self.accelerator.is_main_process:
                measures = self._write(path, weights, fraction)
        task.module.train()
        self.journal(task.name, "snapshot", fraction=fraction, **measures)
        self.journal.draw(self.clock.step, measures, self._picture(fraction))
        self.accelerator.wait_for_everyone()
        if fraction == 1.0 and measures.get("not_written"):
            raise TrainingError(f"{path} could not be written ({measures['not_written']}). {self._rest()}")

    def _write(self, path: Path, weights: dict[str, Tensor], fraction: float) -> dict[str, Any]:
        try:
            write_tensors(path, weights, {"fraction": str(fraction), "step": str(self.clock.step)})
        except (OSError, RuntimeError) as error:
            return {"not_written": str(error).splitlines()[0]}
        if self.sharded:
            return {"sample_failed": "the weights are divided among the processes"}
        try:
            return dict(self.task.sample(self._picture(fraction), fraction))
        except Exception as error:  # pictures are welcome but never worth a training run
            return {"sample_failed": f"{type(error).__name__}: {error}"}

    def _picture(self, fraction: float) -> Path:
        return self.folder / f"{self.task.name}_{round(100 * fraction):03d}.jpg"

    # ---- going on

    def _save(self) -> None:
        own: dict[str, Any] = {
            "task": self.task.state_dict(),
            "clock": self.clock.state_dict(),
            "elapsed": self.journal.elapsed(),
            "processes": self.accelerator.num_processes,
        }
        if self.sharded or self.accelerator.is_main_process:
            own |= {"average": self.average.state_dict(), "originals": self.worker.originals()}
        problem = save_state(self.accelerator, self.states, self.clock.step, own, self.loop.keep)
        if problem:
            self.journal(self.task.name, "state_not_saved", step=self.clock.step, reason=problem)
        else:
            self.journal(self.task.name, "state", step=self.clock.step)

    def _resume(self) -> int:
        """Take up the newest state; returns its step, 0 without any."""
        state = newest_state(self.states)
        if state is None:
            return 0
        rank = self.accelerator.process_index
        shared = load_own(state, rank if self.sharded else 0)
        if not shared or (self.sharded and shared["processes"] != self.accelerator.num_processes):
            raise TrainingError(
                f"The training state {state} is of another number of processes; start as many as then, "
                "or delete the folder to begin anew."
            )
        try:
            self.accelerator.load_state(str(state))
            self.worker.load_originals(shared["originals"])
            self.average.load_state_dict(shared["average"])
        except UNREADABLE as error:
            raise TrainingError(
                f"The training state {state} is damaged or doesn't fit this experiment ({told(error)}); "
                "delete the folder to begin anew."
            ) from error
        self.clock.load_state_dict(shared["clock"])
        self.journal.go_on(shared["elapsed"])
        own = load_own(state, rank)
        if own and own["processes"] == self.accelerator.num_processes:
            self.task.load_state_dict(own["task"])
        self.journal(self.task.name, "resumed", step=self.clock.step)
        return self.clock.step

    def _rest(self) -> str:
        state = newest_state(self.states)
        if state is None:
            return "The last snapshot is intact."
        return f"The state of step {int(state.name.split('_')[1])} is intact."

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note when a cluster asks to stop: training then ends at the next look at the clock."""

        def note(number: int, frame: Any) -> None:
            self.stopping = True

        try:
            before = signal.signal(signal.SIGTERM, note)
        except ValueError:  # only the main thread may listen
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stop_if_asked(self) -> None:
        asked = torch.tensor(float(self.stopping), device=self.accelerator.device)
        if not (self.accelerator.reduce(asked, "sum") if self._many() else asked):
            return
        if self.loop.save_every:
            self._save()
        raise TrainingError(
            f"Phase '{self.task.name}' was asked to stop at step {self.clock.step}. {self._rest()} "
            "Run the same command to go on."
        )

    def _many(self) -> bool:
        return self.accelerator.num_processes > 1
