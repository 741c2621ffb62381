"""Axis-angle rotations, batched over the leading axes and differentiable, also at the identity."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix(axis_angle: Tensor) -> Tensor:
    """(..., 3) radians to rotation matrices (..., 3, 3): the exponential map (Rodrigues)."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    # sqrt has no gradient at 0; below 1e-6 rad the series' first terms are exact in float32.
    squared = axis_angle.square().sum(-1)[..., None, None]
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    first = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / angle.square())
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + first * skew + second * (skew @ skew)


def axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to axis-angle (..., 3), angles in [0, pi].

    Through the quaternion, which is stable everywhere.
    """
    quaternion = _quaternion(matrix)
    vector = quaternion[..., 1:]
    norm = vector.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(norm, quaternion[..., :1])
    return torch.where(norm > 1e-8, vector / norm.clamp(min=1e-12) * angle, 2 * vector)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The axis-angle of R(first) · R(second)."""
    return axis_angle(matrix(first) @ matrix(second))


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Angle in radians between two rotations given as axis-angle (..., 3)."""
    return axis_angle(matrix(first).transpose(-1, -2) @ matrix(second)).norm(dim=-1)


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Blend axis-angle rotations along the shortest arc; ``weight`` broadcasts against (..., 1)."""
    step = axis_angle(matrix(start).transpose(-1, -2) @ matrix(end))
    return axis_angle(matrix(start) @ matrix(step * weight))


def from_euler(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Head angles (...) in radians to axis-angle (..., 3): R = R_y(yaw) R_x(pitch) R_z(roll).

    Positive yaw turns the face to the picture's right, positive pitch nods down, positive roll tilts
    counter-clockwise.
    """
    zero = torch.zeros_like(yaw)
    turn = matrix(torch.stack([zero, yaw, zero], -1))
    nod = matrix(torch.stack([pitch, zero, zero], -1))
    tilt = matrix(torch.stack([zero, zero, roll], -1))
    return axis_angle(turn @ nod @ tilt)


def to_euler(axis_angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Yaw, pitch and roll (...) in radians of axis-angle (..., 3): the inverse of :func:`from_euler`."""
    turn = matrix(axis_angle)
    yaw = torch.atan2(turn[..., 0, 2], turn[..., 2, 2])
    pitch = torch.asin(-turn[..., 1, 2].clamp(-1, 1))
    roll = torch.atan2(turn[..., 1, 0], turn[..., 1, 1])
    return yaw, pitch, roll


def _quaternion(matrix: Tensor) -> Tensor:
    """(..., 4) w, x, y, z with w >= 0, from the best conditioned of the four classical formulas."""
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in matrix.unbind(-2))
    x, y, z = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m01 + m10, m02 + m20, m12 + m21
    formulas = (
        (1 + m00 + m11 + m22, x, y, z),
        (x, 1 + m00 - m11 - m22, xy, xz),
        (y, xy, 1 - m00 + m11 - m22, yz),
        (z, xz, yz, 1 - m00 - m11 + m22),
    )
    candidates = torch.stack([torch.stack(formula, -1) for formula in formulas], dim=-2)
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    chosen = torch.take_along_dim(candidates, best[..., None, None], dim=-2).squeeze(-2)
    chosen = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(chosen[..., :1] < 0, -chosen, chosen)
