"""What gestures are made of: random numbers, curves in time, and columns of expressions by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Table = dict[str, float]


class Draw:
    """Random tensors of one generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=self.generator, device=self.generator.device)

    def normal(self, deviation: float, *size: int) -> Tensor:
        return deviation * torch.randn(size, generator=self.generator, device=self.generator.device)

    def around(self, median: float, spread: float, *size: int) -> Tensor:
        """Log-normal: positive, ``spread`` is the deviation of the logarithm, cut at two deviations."""
        return median * self.normal(1.0, *size).clamp(-2, 2).mul(spread).exp()

    def chance(self, probability: float | Tensor, *size: int) -> Tensor:
        return torch.rand(size, generator=self.generator, device=self.generator.device) < probability

    def choice(self, weights: tuple[float, ...] | list[float], *size: int) -> Tensor:
        edges = torch.tensor(weights, device=self.generator.device).cumsum(0)
        value = self.uniform(0, 1, *size) * edges[-1]
        return torch.bucketize(value, edges, right=True).clamp(max=len(weights) - 1)


def minimum_jerk(progress: Tensor) -> Tensor:
    """The smoothest way from 0 to 1: how people move head, eyes and hands."""
    x = progress.clamp(0, 1)
    return x * x * x * (10 - 15 * x + 6 * x * x)


def bump(offset: Tensor) -> Tensor:
    """A raised cosine: 1 at 0, 0 beyond ±1."""
    return 0.5 + 0.5 * torch.cos(math.pi * offset.clamp(-1, 1))


def blink(after: Tensor, opening: Tensor | float) -> Tensor:
    """A lid, seconds after it begins to fall: shut in 60 ms, open again in ``opening`` seconds."""
    return (minimum_jerk(after / 0.06) - minimum_jerk((after - 0.075) / opening)).clamp(min=0)


def steps(time: Tensor, begin: Tensor, duration: Tensor, values: Tensor) -> Tensor:
    """Go from one value to the next by minimum jerk.

    Args:
        time: (frames,).
        begin, duration: (clips, moves), when the move to ``values`` begins and how long it takes.
        values: (clips, moves, quantities).

    Returns:
        (clips, frames, quantities).
    """
    change = torch.diff(values, dim=1, prepend=torch.zeros_like(values[:, :1]))
    progress = minimum_jerk((time - begin[..., None]) / duration[..., None])  # (clips, moves, frames)
    return torch.einsum("cmt,cmq->ctq", progress, change)


def soft_limit(values: Tensor, limit: float) -> Tensor:
    """Hardly changed below half the limit, never beyond it."""
    return limit * torch.tanh(values / limit)


def sway(draw: Draw, clips: int, time: Tensor, quantities: int) -> Tensor:
    """Slow unrest whose amplitude falls with frequency (clips, frames, quantities), deviation about 1."""
    octaves = 5
    rates = (
        0.11
        * 2.0 ** torch.arange(octaves, device=time.device)
        * draw.uniform(0.8, 1.25, clips, quantities, octaves)
    )
    phases = draw.uniform(0, 2 * math.pi, clips, quantities, octaves)
    amplitudes = 0.5 ** torch.arange(octaves, device=time.device)
    waves = torch.sin(2 * math.pi * rates[:, None] * time[:, None, None] + phases[:, None])
    return (waves * amplitudes).sum(-1) * 1.2


def columns(names: list[str], *wanted: str) -> list[int]:
    """Columns of the named coefficients; a name without a side stands for both, as does "mouthRoll"."""
    endings = ("", "Left", "Right", "Upper", "Lower")
    return [
        index for index, name in enumerate(names) for base in wanted if name in {base + e for e in endings}
    ]


def table(rows: list[Table], names: list[str], device: torch.device) -> Tensor:
    """(rows, expressions) from coefficients by name; a name without a side sets both."""
    table = torch.zeros(len(rows), len(names))
    for row, values in enumerate(rows):
        for name, value in values.items():
            sides = [name] if name in names else [name + "Left", name + "Right"]
            for side in sides:
                if side in names:
                    table[row, names.index(side)] = value
    return table.to(device)
