"""Eyeballs and teeth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anifacediff_core.head.model import HeadModel

from .mesh import grid_faces, sphere

BALL_ROWS, BALL_COLUMNS = 16, 28
BALL_REACH = 0.72 * math.pi  # the back of the eyeball is never seen
ARC = 17  # points along a row of teeth
# Rows of the dental arches on the neutral head in decimeters, gum to tip: height, offset to the front.
UPPER_ROWS = ((0.80, -0.02), (0.76, 0.010), (0.72, 0.015), (0.685, 0.010), (0.68, -0.03))
LOWER_ROWS = ((0.605, -0.060), (0.625, -0.040), (0.664, -0.034), (0.668, -0.065))
ARC_WIDTH, ARC_FRONT, ARC_DEPTH = 0.185, 1.345, 0.16  # decimeters


def ball_faces() -> Tensor:
    return grid_faces(BALL_ROWS, BALL_COLUMNS, around=True)


def teeth_faces() -> Tensor:
    upper = grid_faces(len(UPPER_ROWS), ARC, around=False)
    lower = grid_faces(len(LOWER_ROWS), ARC, around=False)
    return torch.cat([upper, lower + len(UPPER_ROWS) * ARC])


class Eyeballs(nn.Module):
    """Fine spheres in place of the head's coarse eyeballs."""

    ball: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ball", sphere(BALL_ROWS, BALL_COLUMNS, BALL_REACH), persistent=False)

    def forward(self, head: HeadModel, rest: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
        """Unposed eyeballs of the size and place of the head's own.

        Args:
            rest: (batch, vertices, 3) the unposed head.
            joints: (batch, 5, 3).

        Returns:
            (batch, 2 * points, 3), the subject's left first, and their radius (batch,).
        """
        left = rest[:, head.regions["left_eye"]] - joints[:, 3, None]
        radius = left.norm(dim=-1).amax(dim=1)
        balls = joints[:, 3:5, None] + self.ball * radius[:, None, None, None]
        return balls.flatten(1, 2), radius


class Teeth(nn.Module):
    """Two dental arches that follow the lips' place on the face; the lower one moves with the jaw."""

    arches: Tensor
    coordinates: Tensor
    basis: Tensor
    jaw_basis: Tensor
    is_lower: Tensor

    def __init__(self, head: HeadModel, chart: Tensor) -> None:
        """``chart``: (vertices, 3) decimeters on the neutral head."""
        super().__init__()
        upper, lower = _arch(UPPER_ROWS), _arch(LOWER_ROWS)
        lips = head.regions["lips"]
        chin = torch.nonzero(
            (chart[:, 0].abs() < 0.12) & (chart[:, 1] > 0.40) & (chart[:, 1] < 0.55) & (chart[:, 2] > 1.2)
        ).squeeze(1)
        # The stylized face has its mouth elsewhere than the neutral head that the arches are drawn on.
        shift = (head.template[lips] - chart[lips] / 10).mean(0)
        jaw = torch.tensor(
            [name.startswith("jaw") for name in head.expression_names], device=chart.device
        ).float()
        across = torch.linspace(-1, 1, ARC)
        self.register_buffer("arches", torch.cat([upper, lower]).to(chart) / 10 + shift, persistent=False)
        self.register_buffer("coordinates", _coordinates(across).to(chart), persistent=False)
        self.register_buffer("basis", head.shape_basis[lips].mean(0), persistent=False)
        self.register_buffer("jaw_basis", head.expression_basis[chin].mean(0) * jaw * 0.9, persistent=False)
        is_lower = torch.arange(len(upper) + len(lower)) >= len(upper)
        self.register_buffer("is_lower", is_lower.float().to(chart), persistent=False)

    def forward(self, shape: Tensor, expression: Tensor) -> Tensor:
        """(batch, points, 3), unposed."""
        place = torch.einsum("bs,xs->bx", shape, self.basis)
        drop = torch.einsum("be,xe->bx", expression, self.jaw_basis)
        return self.arches + place[:, None] + drop[:, None] * self.is_lower[:, None]


def _arch(rows: tuple[tuple[float, float], ...]) -> Tensor:
    across = torch.linspace(-1, 1, ARC)
    lines = [
        torch.stack(
            [ARC_WIDTH * across, torch.full_like(across, height), ARC_FRONT + front - ARC_DEPTH * across**2],
            dim=-1,
        )
        for height, front in rows
    ]
    return torch.cat(lines)


def _coordinates(across: Tensor) -> Tensor:
    """(points, 3): position along the arch in [-1, 1], gum 0 to tip 1, lower arch 1 or upper 0."""
    parts = []
    for index, rows in enumerate((UPPER_ROWS, LOWER_ROWS)):
        height = torch.linspace(0, 1, len(rows)).repeat_interleave(ARC)
        parts.append(
            torch.stack([across.repeat(len(rows)), height, torch.full_like(height, float(index))], dim=-1)
        )
    return torch.cat(parts)
