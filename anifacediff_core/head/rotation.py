"""Axis-angle rotations. All functions are batched over the leading axes and differentiable, also at the identity."""

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
    return torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device) + first * skew + second * (skew @ skew)


def axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to axis-angle (..., 3), angles in [0, π]: through the quaternion, stable everywhere."""
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

    Positive yaw turns the face to the picture's right, positive pitch nods down, positive roll tilts counter-clockwise.
    """
    zero = torch.zeros_like(yaw)
    turn = matrix(torch.stack([zero, yaw, zero], -1))
    nod = matrix(torch.stack([pitch, zero, zero], -1))
    tilt = matrix(torch.stack([zero, zero, roll], -1))
    return axis_angle(turn @ nod @ tilt)


def _quaternion(matrix: Tensor) -> Tensor:
    """(..., 4) w, x, y, z with w >= 0, from the best conditioned of the four classical formulas."""
    m = matrix
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    candidates = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1),
            torch.stack([m[..., 2, 1] - m[..., 1, 2], 1 + m00 - m11 - m22, m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0]], -1),
            torch.stack([m[..., 0, 2] - m[..., 2, 0], m[..., 0, 1] + m[..., 1, 0], 1 - m00 + m11 - m22, m[..., 1, 2] + m[..., 2, 1]], -1),
            torch.stack([m[..., 1, 0] - m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1], 1 - m00 - m11 + m22], -1),
        ],
        dim=-2,
    )
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    chosen = torch.take_along_dim(candidates, best[..., None, None], dim=-2).squeeze(-2)
    chosen = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(chosen[..., :1] < 0, -chosen, chosen)
