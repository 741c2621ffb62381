"""Faces that are discs, and what stands for the networks that find them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.capture.detector import Detection
from anifacediff_core.head.model import HeadModel


@dataclass
class Discs:
    """Stands for a detector: a face is a bright red disc, seen if it is wide enough."""

    least: float = 0.15  # of the picture's longer side
    head: HeadModel = field(default_factory=HeadModel.bundled)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        height, width = frames.shape[-2:]
        self.sizes += [(height, width)] * len(frames)
        return [self._detect(frame, max(height, width)) for frame in frames]

    def _detect(self, frame: Tensor, longer: int) -> list[Detection]:
        found = []
        for value in frame[0].unique().tolist():
            where = torch.nonzero(frame[0] == value)
            (top, left), (bottom, right) = where.amin(0).tolist(), (where.amax(0) + 1).tolist()
            side = 2 * max(right - left, bottom - top)
            if value > 0.5 and side >= self.least * longer:
                x, y = (left + right - side) / 2, (top + bottom - side) / 2
                found.append(Detection(0.9, (x / longer, y / longer, side / longer)))
        return found

    def read(self, frames: Tensor, faces: list[Detection]) -> Any:
        raise AssertionError("a crop needs no parameters")

    def to(self, device: torch.device) -> Discs:
        return self

    def remarks(self) -> list[str]:
        return []


def discs(height: int, width: int, *places: tuple[float, float, float]) -> Tensor:
    """A picture (1, 3, height, width) with discs at x, y, radius in pixels, each of its own red."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    picture = torch.full((1, 3, height, width), 0.2)
    for number, (left, top, radius) in enumerate(places):
        picture[0, 0][torch.hypot(x - left, y - top) < radius] = 0.6 + 0.02 * number
    return picture
