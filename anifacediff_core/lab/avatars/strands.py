"""Single strands of hair: they hang, curl and stand off the cap of hair, in front of face and backdrop.

A strand is a curve on the unposed head that follows the head; in the picture it is a line one or two samples
wide, which hides what lies behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.head.camera import project, to_pixels

from .hair import CENTER, LOWEST, Skull
from .identity import Identity
from .material import Strands
from .paint import Surface

CONTROLS = 24  # points of a curve
CLEARANCE = 0.004  # meters that a strand keeps off the skull
FRONT = 1.5  # samples that a strand has to be in front of a surface to hide it
DEPTH_STEPS = 32  # of one sample, in which depths are compared


@dataclass
class Drawn:
    """Samples of the picture that show a strand: frame, row, column, color (n, 3) linear."""

    frame: Tensor
    row: Tensor
    column: Tensor
    surface: Surface
    normal: Tensor


def build(skull: Skull, surface: Tensor, strands: Strands, lift: Tensor) -> Tensor:
    """Curves on the unposed head.

    Args:
        surface: (batch, rows, columns, 3) of the skull.
        lift: (batch,) meters from the skull at which they begin: the thickness of the cap of hair.

    Returns:
        (batch, strands, CONTROLS, 3) meters.
    """
    center = torch.tensor(CENTER, device=surface.device)
    root = _on_skull(surface, strands.polar, strands.azimuth)
    outward = F.normalize(root - center, dim=-1)
    down = torch.tensor([0.0, -1.0, 0.0], device=surface.device)
    along = F.normalize(down - outward * (outward * down).sum(-1, keepdim=True), dim=-1)
    side = torch.linalg.cross(outward, along)
    lean, spread = strands.lean[..., None], strands.spread[..., None]
    heading = F.normalize(along + lean * outward + spread * side, dim=-1)

    t = torch.linspace(0, 1, CONTROLS, device=surface.device)[:, None]
    length = strands.length[..., None, None]
    fall = strands.fall[..., None, None]
    path = torch.lerp(heading[..., None, :] * t, down * t, fall * t) * length
    wave = (t * strands.waves[..., None, None] + strands.phase[..., None, None]).sin() * t
    path = path + side[..., None, :] * wave * strands.curl[..., None, None]
    points = (root + outward * lift[:, None, None])[..., None, :] + path
    return _outside(points, surface, center)


def draw(points: Tensor, identity: Identity, camera: Tensor, depth: Tensor) -> Drawn:
    """Find the samples that show strands.

    Args:
        points: (batch, strands, CONTROLS, 3) posed, meters.
        camera: (batch, 3).
        depth: (batch, side, side) of the other surfaces in samples, farther is larger, inf where none is.
    """
    batch, count = points.shape[:2]
    side = depth.shape[-1]
    placed = to_pixels(project(points.flatten(1, 2), camera), side).view(batch, count, CONTROLS, 3)
    steps = max(3 * side // 4, 2 * CONTROLS)
    dense = F.interpolate(
        placed.flatten(0, 1).transpose(1, 2), size=steps, mode="linear", align_corners=True
    ).transpose(1, 2)
    dense = dense.reshape(batch, count * steps, 3)
    shown = (identity.strands.length > 0).repeat_interleave(steps, 1)
    frame = torch.arange(batch, device=points.device)[:, None].expand_as(shown)
    number = torch.arange(count * steps, device=points.device).expand_as(shown)
    # A strand is one sample wide, a thick one two.
    thick = identity.strands.thick.repeat_interleave(steps, 1) > 0
    keys = torch.full((batch * side * side,), torch.iinfo(torch.int64).max, device=points.device)
    for right in (0, 1):
        column, row = (dense[..., 0] + right).long(), dense[..., 1].long()
        inside = shown & (row >= 0) & (row < side) & (column >= 0) & (column < side)
        inside = inside & (thick if right else torch.ones_like(thick))
        place = (frame * side + row.clamp(0, side - 1)) * side + column.clamp(0, side - 1)
        inside = inside & (dense[..., 2] + FRONT < depth.flatten()[place])
        near = ((dense[..., 2] + 8 * side) * DEPTH_STEPS).long().clamp(min=0)
        key = near * (count * steps) + number
        keys.scatter_reduce_(0, place[inside], key[inside], "amin")
    seen = torch.nonzero(keys < torch.iinfo(torch.int64).max).squeeze(1)
    winner = keys[seen] % (count * steps)
    where, rest = seen // (side * side), seen % (side * side)
    strand = winner // steps
    color = torch.lerp(
        identity.hair.color[where], identity.hair.tip[where], identity.strands.light[where, strand, None]
    )
    surface = Surface.plain((color * identity.strands.shade[where, strand, None]).clamp(0, 1), 0.15, 9.0, 0.3)
    middle = points.mean((1, 2))
    at = points[where, strand, (winner % steps) * CONTROLS // steps] - middle[where]
    normal = F.normalize(at + torch.tensor([0.0, 0.0, 0.06], device=at.device), dim=-1)
    return Drawn(where, rest // side, rest % side, surface, normal)


def _on_skull(surface: Tensor, polar: Tensor, azimuth: Tensor) -> Tensor:
    """(batch, n, 3) points of the skull at angles (batch, n)."""
    rows, columns = surface.shape[1:3]
    row = (polar / LOWEST * (rows - 1)).round().long().clamp(0, rows - 1)
    column = (azimuth / (2 * torch.pi) * columns).round().long() % columns
    return surface[torch.arange(len(surface), device=surface.device)[:, None], row, column]


def _outside(points: Tensor, surface: Tensor, center: Tensor) -> Tensor:
    """The same curves, kept off the skull."""
    arm = points - center
    radius = arm.norm(dim=-1, keepdim=True).clamp(min=1e-4)
    polar = torch.acos((arm[..., 1] / radius[..., 0]).clamp(-1, 1))
    azimuth = torch.atan2(arm[..., 0], arm[..., 2])
    below = _on_skull(surface, polar.flatten(1), azimuth.flatten(1)).view_as(points) - center
    least = below.norm(dim=-1, keepdim=True) + CLEARANCE
    least = torch.where((polar < LOWEST)[..., None], least, torch.zeros_like(least))
    return center + arm * (radius.maximum(least) / radius)
