"""The training loop: schedule, log, states to go on from, snapshots; distribution is accelerate's.

A phase of training is a `Task`: it owns a module, draws batches, computes losses and says what a snapshot
holds. The engine knows nothing about faces.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from anifacediff_core.storage import write_tensors

from .distribution import own_part, shards_weights, share_start, whole
from .graphs import ForwardBySize
from .run_logger import RunLogger
from .states import UNREADABLE, describe_error, load_own, newest_state, save_state
from .task import OPTIMIZERS, Loop, Task, Tensors, TrainingError, states_folder


def run(task: Task, loop: Loop, accelerator: Accelerator, folder: Path, logger: RunLogger) -> None:
    """Train for the loop's steps; write `<task name>.safetensors` at the snapshots and at the end.

    Where states of an earlier run of the same phase are, training goes on from the newest, with the numbers
    that it would have had without the break.

    Raises:
        TrainingError: the loss or its gradient is not a number, a signal asked to stop, or the result cannot
            be written.
    """
    try:
        _Run(task, loop, accelerator, folder, logger).train()
    finally:
        accelerator.free_memory()  # what distributes the weights must go before what it talks through


def learning(module: nn.Module) -> list[nn.Parameter]:
    """The weights that the optimizer changes."""
    return [weight for weight in module.parameters() if weight.requires_grad]


def freeze_unused(task: Task, accelerator: Accelerator) -> tuple[list[Tensors], int]:
    """Stop optimizing weights that a backward pass doesn't reach: DDP would wait for their gradients.

    Returns:
        inputs of every shape, and how many weights are frozen.
    """
    inputs, targets = task.draw(0.0)
    with accelerator.autocast():
        outputs = task.module(*inputs)
    task.losses(outputs, targets)["loss"].backward()
    frozen = [weight for weight in learning(task.module) if weight.grad is None]
    for weight in frozen:
        weight.requires_grad_(False)
    task.module.zero_grad()
    return [inputs, *(task.draw(0.0)[0] for _ in range(task.period - 1))], len(frozen)


def record(module: nn.Module, batches: list[Tensors], accelerator: Accelerator) -> str:
    """Record a module's forward and backward pass as CUDA graphs; returns how it runs then."""
    parts: dict[nn.Module, Tensors] = {}
    for inputs in batches:
        parts[module.of(inputs[0]) if isinstance(module, ForwardBySize) else module] = inputs
    try:
        with accelerator.autocast():
            for part, inputs in parts.items():
                samples = tuple(value.clone() for value in inputs)
                torch.cuda.make_graphed_callables(part, samples, allow_unused_input=True)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return f"eager, recording failed: {str(error).splitlines()[0]}"
    return "recorded"


@torch.no_grad()
def keep_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Make the gradients of a first batch one's own, for those of further batches to be added.

    What a recorded backward pass gives is its own memory, into which its next replay writes.
    """
    for weight in weights:
        if weight.grad is not None:
            weight.grad = weight.grad.clone()


def rate_factor(loop: Loop) -> Callable[[int], float]:
    """Learning rate of a step as a share of its peak: linear warm-up, then the schedule over all steps."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(loop.lr_warmup_steps, 1))
        if loop.lr_scheduler == "constant":
            return warm
        cosine = 0.5 * (1 + math.cos(math.pi * min(step / loop.steps, 1.0)))
        return warm * (loop.min_lr_ratio + (1 - loop.min_lr_ratio) * cosine)

    return factor


class _Run:
    """One run of one task."""

    def __init__(
        self, task: Task, loop: Loop, accelerator: Accelerator, folder: Path, logger: RunLogger
    ) -> None:
        self.task, self.loop, self.accelerator, self.logger = task, loop, accelerator, logger
        self.folder, self.states = folder, states_folder(folder, task.name)
        self.sharded = shards_weights(accelerator)
        task.module.to(accelerator.device).train()
        if loop.channels_last:
            task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        share_start(task.module, accelerator)
        batches, unused = freeze_unused(task, accelerator)
        mode = "eager"
        if accelerator.device.type == "cuda" and loop.cuda_graph and not self.sharded:
            mode = record(task.module, batches, accelerator)  # graphs must lie inside DDP
        self.recorded = mode == "recorded"
        optimizer = OPTIMIZERS[loop.optimizer](
            learning(task.module), lr=loop.learning_rate, betas=loop.betas, weight_decay=loop.weight_decay
        )
        self.module, self.optimizer = accelerator.prepare(task.module, optimizer)
        self.trainable = learning(task.module)  # only now: sharding has replaced the parameters
        self.ema = None
        if loop.ema_decay:  # -1: the warm-up (1 + n) / (10 + n) begins with the first step
            self.ema = EMAModel(self.parts, decay=loop.ema_decay, update_after_step=-1, foreach=True)
        self.step = 0
        self.broken = torch.zeros((), device=accelerator.device)
        self.stopping = False
        facts = {
            "parameters": sum(weight.numel() for weight in self.trainable),
            "unused": unused,
            "processes": accelerator.num_processes,
            "mode": mode,
        }
        logger(task.name, "start", **facts)

    @property
    def parts(self) -> list[Tensor]:
        """What this process holds of the weights, in their memory; EMAModel averages what asks for gradients.

        Asked for anew every time: sharding may move them.
        """
        return [own_part(weight.detach()).requires_grad_() for weight in self.trainable]

    @property
    def fraction(self) -> float:
        """The share of the training that is done."""
        return min(self.step / self.loop.steps, 1.0)

    def train(self) -> None:
        loop = self.loop
        self._resume()
        begun, began = self.step, time.monotonic()
        for group in self.optimizer.param_groups:
            group["initial_lr"] = loop.learning_rate  # of this run, whatever a state says
        self.schedule = LambdaLR(self.optimizer, rate_factor(loop), last_epoch=self.step - 1)
        purge = {"tensorboard": {"purge_step": begun}}
        self.accelerator.init_trackers(self.task.name, init_kwargs=purge if begun else {})
        marks = [mark for mark in loop.snapshots if mark > self.fraction]
        losses: dict[str, Tensor] = {}
        saved_at = begun
        with self._signals():
            while True:
                # In between nothing waits for the device.
                if self.step % loop.check_every == 0 or self.step in (1, 10) or self.step >= loop.steps:
                    if losses:
                        self._report(losses, (self.step - begun) / max(time.monotonic() - began, 1e-6))
                    if self.step >= loop.steps:
                        break
                    self._stop_if_asked()
                    if marks and self.fraction >= marks[0]:
                        self._snapshot(marks.pop(0))
                    if loop.checkpointing_steps and self.step - saved_at >= loop.checkpointing_steps:
                        saved_at = self.step
                        self._save()
                losses = self._step()
        self._snapshot(1.0)

    def _step(self) -> dict[str, Tensor]:
        count = self.loop.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        for part in range(count):
            inputs, targets = self.task.draw(self.fraction)
            last = part == count - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                losses = self.task.losses(self.module(*inputs), targets)
                self.accelerator.backward(losses["loss"] / count)
            if part == 0 and not last and self.recorded:
                keep_gradients(self.trainable)
            for name, value in losses.items():
                share = value.detach() / count
                sums[name] = sums[name] + share if name in sums else share
        gradient = self.accelerator.clip_grad_norm_(self.trainable, self.loop.max_grad_norm)
        self.rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        sums["gradient"] = whole(gradient).detach()
        # Finite losses can have gradients that are not; a scaler (fp16) leaves such steps out by itself.
        watched = sums["loss"] if self.accelerator.scaler else sums["loss"] + sums["gradient"]
        self.broken = torch.maximum(self.broken, (~torch.isfinite(watched)).float())
        self.step += 1
        if self.ema is not None:
            self.ema.step(self.parts)
        return sums

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the running average in the place of the weights for a while."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parts)
        self.ema.copy_to(self.parts)
        try:
            yield
        finally:
            self.ema.restore(self.parts)

    # ---- what is written

    def _report(self, losses: dict[str, Tensor], pace: float) -> None:
        task = self.task
        broken = self.accelerator.reduce(self.broken, "sum") if self._many() else self.broken
        values = {key: float(value) for key, value in losses.items()}
        values |= {"rate": self.rate, "steps_per_second": pace}
        self.logger(task.name, "step", step=self.step, fraction=self.fraction, **values)
        self.logger.log(self.step, values)
        if broken:
            raise TrainingError(
                f"The loss of phase '{task.name}', or its gradient, is not a number at step {self.step}; "
                f"{self._rest()} Lower its learning_rate and run the same command again."
            )

    def _snapshot(self, fraction: float) -> None:
        """Write averaged weights, then pictures and measures; the others wait."""
        task, path = self.task, self.folder / f"{self.task.name}.safetensors"
        measures: dict[str, Any] = {}
        task.module.eval()
        with self._averaged(), torch.no_grad():
            # Of sharded weights every process has a part.
            weights = task.weights() if self.sharded or self.accelerator.is_main_process else {}
            weights = {name: whole(weight) for name, weight in weights.items()}
            if self.accelerator.is_main_process:
                measures = self._write(path, weights, fraction)
        task.module.train()
        self.logger(task.name, "snapshot", fraction=fraction, **measures)
        self.logger.log(self.step, measures, self._picture(fraction))
        self.accelerator.wait_for_everyone()
        if fraction == 1.0 and measures.get("not_written"):
            raise TrainingError(f"{path} could not be written ({measures['not_written']}). {self._rest()}")

    def _write(self, path: Path, weights: dict[str, Tensor], fraction: float) -> dict[str, Any]:
        try:
            write_tensors(path, weights, {"fraction": str(fraction), "step": str(self.step)})
        except (OSError, RuntimeError) as error:
            return {"not_written": str(error).splitlines()[0]}
        if self.sharded:
            return {"sample_failed": "the weights are divided among the processes"}
        try:
            return dict(self.task.validate(self._picture(fraction), fraction))
        except Exception as error:  # pictures are welcome but never worth a training run
            return {"sample_failed": f"{type(error).__name__}: {error}"}

    def _picture(self, fraction: float) -> Path:
        return self.folder / f"{self.task.name}_{round(100 * fraction):03d}.jpg"

    # ---- going on

    def _save(self) -> None:
        own: dict[str, Any] = {
            "task": self.task.state_dict(),
            "step": self.step,
            "elapsed": self.logger.elapsed(),
            "processes": self.accelerator.num_processes,
        }
        if self.ema is not None and (self.sharded or self.accelerator.is_main_process):
            own["average"] = self.ema.shadow_params
        problem = save_state(self.accelerator, self.states, self.step, own, self.loop.checkpoints_total_limit)
        if problem:
            self.logger(self.task.name, "state_not_saved", step=self.step, reason=problem)
        else:
            self.logger(self.task.name, "state", step=self.step)

    def _resume(self) -> None:
        """Take up the newest state, if there is any."""
        state = newest_state(self.states)
        if state is None:
            return
        rank = self.accelerator.process_index
        shared = load_own(state, rank if self.sharded else 0)
        if not shared or (self.sharded and shared["processes"] != self.accelerator.num_processes):
            raise TrainingError(
                f"The training state {state} is of another number of processes; start as many as then, "
                "or delete the folder to begin anew."
            )
        if "clock" in shared:
            raise TrainingError(
                f"The training state {state} is of an older version, whose budget was time; "
                "delete the folder to begin anew."
            )
        try:
            self.accelerator.load_state(str(state))
            self._resume_average(shared)
        except UNREADABLE as error:
            raise TrainingError(
                f"The training state {state} is damaged or doesn't fit this experiment "
                f"({describe_error(error)}); delete the folder to begin anew."
            ) from error
        self.step = shared["step"]
        self.logger.resume_clock(shared["elapsed"])
        own = load_own(state, rank)
        if own and own["processes"] == self.accelerator.num_processes:
            self.task.load_state_dict(own["task"])
        self.logger(self.task.name, "resumed", step=self.step)

    def _resume_average(self, state: dict[str, Any]) -> None:
        if self.ema is not None:
            for value, saved in zip(self.ema.shadow_params, state["average"], strict=True):
                value.copy_(saved)
            self.ema.optimization_step = state["step"]

    def _rest(self) -> str:
        state = newest_state(self.states)
        if state is None:
            return "The last snapshot is intact."
        return f"The state of step {int(state.name.split('_')[1])} is intact."

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note when a cluster asks to stop: training then ends at the next look at the loss."""

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
        if self.loop.checkpointing_steps:
            self._save()
        raise TrainingError(
            f"Phase '{self.task.name}' was asked to stop at step {self.step}. {self._rest()} "
            "Run the same command to go on."
        )

    def _many(self) -> bool:
        return self.accelerator.num_processes > 1
