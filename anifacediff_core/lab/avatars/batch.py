"""Dataclasses of tensors that share a leading axis, and seeded random draws for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Batch")


class Batch:
    """Base of frozen dataclasses whose fields are tensors (batch, ...) or further batches."""

    def __len__(self) -> int:
        first = next(iter(_values(self).values()))
        return len(first)

    def __getitem__(self: Self, index: int | slice | Sequence[int] | Tensor) -> Self:
        """Some of the rows; the batch axis always stays."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return replace(self, **{name: value[index] for name, value in _values(self).items()})  # type: ignore[type-var]

    def to(self: Self, device: torch.device | str) -> Self:
        return replace(self, **{name: value.to(device) for name, value in _values(self).items()})  # type: ignore[type-var]

    def repeat_interleave(self: Self, times: int) -> Self:
        """Each row ``times`` times in succession."""
        index = torch.arange(len(self)).repeat_interleave(times)
        return self[index.to(self.device)]

    @property
    def device(self) -> torch.device:
        first = next(iter(_values(self).values()))
        return first.device


def _values(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]


class Rng:
    """Seeded draws of ``count`` rows; a seed means the same for any target device."""

    def __init__(
        self, count: int, generator: torch.Generator, device: torch.device | str | None = None
    ) -> None:
        self.count, self.generator = count, generator
        self.device = torch.device(device) if device is not None else generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(self.count, *shape, generator=self.generator, device=self.generator.device)
        return draw.to(self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device).to(
            self.device
        )

    def chance(self, probability: float | Tensor) -> Tensor:
        """(count,) bool."""
        return self.uniform(0, 1) < probability

    def choose(self, weights: Sequence[float] | Tensor) -> Tensor:
        """(count,) int64 drawn with ``weights`` (options,) or (count, options)."""
        table = torch.as_tensor(weights, dtype=torch.float32, device=self.device).expand(self.count, -1)
        cumulated = (table / table.sum(1, keepdim=True)).cumsum(1)
        return (self.uniform(0, 1, 1) > cumulated[:, :-1]).sum(1)

    def pick(self, palette: Tensor) -> Tensor:
        """(count, 3) rows of a palette (colors, 3)."""
        return palette.to(self.device)[self.choose([1.0] * len(palette))]
