"""How much of a training budget has passed, and the learning rate that follows from it."""

from __future__ import annotations

import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from .task import Loop


class Clock:
    """The fraction of the budget that has passed: the same on all processes, without a wait at every step.

    Every `check_every` steps the main process reads the time and tells the others; in between, the fraction
    goes on at the pace seen last. Training ends at such a reading only, so that no process waits for one that
    has stopped.
    """

    _KEPT = ("offset", "step", "read_at", "read", "pace")

    def __init__(self, loop: Loop, accelerator: Accelerator, already: float) -> None:
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
        return self.step % self.loop.check_every == 0 or self.step in (1, 10, self.loop.steps)

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

    def state_dict(self) -> dict[str, float]:
        passed = time.monotonic() - self.started
        return {name: getattr(self, name) for name in self._KEPT} | {"passed": passed}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where `state_dict` was called: what lies between does not count."""
        for name in self._KEPT:
            setattr(self, name, state[name])
        self.started = time.monotonic() - state["passed"]

    def _agree(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, device=self.accelerator.device, dtype=torch.float64)))


def learning_rate(loop: Loop, step: int, progress: float) -> float:
    """Linear warm-up over steps, then the schedule over the share of training that is done."""
    warm = min(1.0, (step + 1) / max(loop.warmup, 1))
    if loop.schedule == "constant":
        return loop.learning_rate * warm
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return loop.learning_rate * warm * (loop.final_rate + (1 - loop.final_rate) * cosine)
