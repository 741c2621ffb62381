"""Little meshes as grids of points: triangles and the few curves that the studio is modeled from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothstep(values: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """0 below ``low``, 1 above ``high``, smooth between them; falling when ``low`` exceeds ``high``."""
    t = ((values - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Blend colors (n, 3) by weights (n,)."""
    return first + (second - first) * weight[..., None]


def grid_faces(rows: int, columns: int, *, around: bool, along: bool = False) -> Tensor:
    """Triangles (n, 3) of a grid of points in row-major order.

    They are counter-clockwise where rows run down and columns to the right.

    Args:
        around: the last column joins the first.
        along: the last row joins the first.
    """
    row = torch.arange(rows if along else rows - 1)[:, None]
    column = torch.arange(columns if around else columns - 1)[None]
    below, right = (row + 1) % rows, (column + 1) % columns
    a, b = row * columns + column, row * columns + right
    c, d = below * columns + column, below * columns + right
    upper, lower = torch.stack([a, d, b], dim=-1), torch.stack([a, c, d], dim=-1)
    return torch.cat([upper.reshape(-1, 3), lower.reshape(-1, 3)])


def angles(count: int) -> Tensor:
    """(count,) angles around the circle, from 0."""
    return torch.arange(count) * (2 * math.pi / count)


def sphere(rows: int, columns: int, reach: float = math.pi) -> Tensor:
    """(rows * columns, 3) unit vectors around the pole +z, down to the polar angle ``reach``."""
    polar, azimuth = torch.linspace(0, reach, rows)[:, None], angles(columns)[None]
    points = torch.stack(
        [polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos().expand(rows, columns)], dim=-1
    )
    return points.reshape(-1, 3)


def tube(path: Tensor, radius: Tensor, sides: int, up: Tensor) -> Tensor:
    """A tube around a polyline.

    Args:
        path: (batch, points, 3).
        radius: (batch,) or (batch, points), meters.
        up: (3,) a direction that the path never runs along.

    Returns:
        (batch, points * sides, 3), a grid of points by sides.
    """
    ahead = F.normalize(torch.gradient(path, dim=1)[0], dim=-1, eps=1e-9)
    aside = F.normalize(torch.linalg.cross(ahead, up.expand_as(ahead)), dim=-1, eps=1e-9)
    above = torch.linalg.cross(aside, ahead)
    turn = angles(sides).to(path)[:, None]
    ring = aside[:, :, None] * turn.cos() + above[:, :, None] * turn.sin()
    radius = radius[:, None] if radius.dim() == 1 else radius
    return (path[:, :, None] + ring * radius[..., None, None]).flatten(1, 2)
