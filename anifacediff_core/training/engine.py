"""The training loop: budget, schedule, log, states to go on from, snapshots; distribution is accelerate's.

A phase of training is a `Task`: it owns a module, draws batches, computes losses and says what a snapshot
holds. The engine knows nothing about faces.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..storage import write_tensors
from .clock import Clock, learning_rate
from .distribution import shards_weights, share_start, whole
from .journal import Journal
from .states import UNREADABLE, load_own, newest_state, save_state, told
from .task import OPTIMIZERS, Loop, Task, TrainingError, states_folder
from .worker import Average, make_worker


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
