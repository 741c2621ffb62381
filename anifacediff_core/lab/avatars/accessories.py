"""Hats and glasses. Points are unposed, in meters; an absent part collapses into the origin, undrawn."""

from __future__ import annotations

import torch
from torch import Tensor

from .hair import COLUMNS, Skull, signed_azimuth
from .identity import HATS, Accessories
from .mesh import angles, grid_faces, smoothstep, tube

HAT_ROWS = 22
BRIM_ROWS, BRIM_COLUMNS = 9, 21
BRIM_REACH = 0.074
RING, TUBE = 40, 8
TEMPLE = 8
TEMPLE_END = (0.083, 0.014, -0.005)  # above the ear

CAP_EDGE = {
    "beanie": (1.04, 1.40, 1.52),
    "cap": (1.06, 1.36, 1.50),
}  # polar angle in front, at the side, behind
HEADBAND = (0.86, 1.08, 1.42)  # its upper edge; it is HEADBAND_WIDTH wide
HEADBAND_WIDTH = 0.24


def hat_faces() -> Tensor:
    return grid_faces(HAT_ROWS, COLUMNS, around=True)


def brim_faces() -> Tensor:
    return grid_faces(BRIM_ROWS, BRIM_COLUMNS, around=False)


def glasses_faces() -> Tensor:
    """Two rings, a bridge and two temples."""
    ring = grid_faces(RING, TUBE, around=True, along=True)
    bar = grid_faces(TEMPLE, TUBE, around=True)
    parts, offset = [], 0
    for faces, points in ((ring, RING), (ring, RING), (bar, TEMPLE), (bar, TEMPLE), (bar, TEMPLE)):
        parts.append(faces + offset)
        offset += points * TUBE
    return torch.cat(parts)


def build_hat(skull: Skull, surface: Tensor, accessories: Accessories) -> tuple[Tensor, Tensor]:
    """Beanie, cap or headband.

    Returns:
        points (batch, HAT_ROWS * COLUMNS, 3); coordinates (…, 4): share from crown to edge, sine and
        cosine of the azimuth, openness to light.
    """
    azimuth = signed_azimuth(surface.device)[None, None]
    kind = accessories.hat[:, None, None]
    beanie, band = (kind == HATS.index("beanie")).float(), (kind == HATS.index("headband")).float()
    cap = (kind == HATS.index("cap")).float()
    row = torch.linspace(0, 1, HAT_ROWS, device=surface.device)[None, :, None]
    edge = beanie * _around(azimuth, CAP_EDGE["beanie"]) + cap * _around(azimuth, CAP_EDGE["cap"])
    edge = edge + accessories.hat_tilt[:, None, None] * azimuth.sin() * (beanie + cap)
    start = band * _around(azimuth, HEADBAND)
    width = band * HEADBAND_WIDTH + (1 - band) * edge
    outer = (row / 0.86).clamp(max=1)  # the last rows fold inwards
    polar = start + width * outer
    fold = smoothstep(row, 0.86, 1.0)

    height = beanie * (0.013 + 0.016 * smoothstep(outer, 0.75, 0.0)) + cap * (
        0.012 + 0.010 * smoothstep(outer, 0.9, 0.1)
    )
    cuff = beanie * 0.0055 * smoothstep(outer, 0.70, 0.74)
    bulge = (1 - (2 * outer - 1) ** 4).clamp(min=0)
    height = height + cuff * (1 - 0.5 * smoothstep(outer, 0.93, 1.0)) + band * (0.0155 * bulge + 0.002)
    height = height * (1 - fold) - 0.004 * fold
    point, outward = skull.at(surface, polar.expand(len(surface), HAT_ROWS, COLUMNS))
    point = point + outward * height[..., None]
    worn = (kind > 0)[..., None]
    point = torch.where(worn, point, torch.zeros_like(point))
    shape = point.shape[:-1]
    coordinates = torch.stack(
        [
            outer.expand(shape),
            azimuth.sin().expand(shape),
            azimuth.cos().expand(shape),
            (1 - 0.5 * fold).expand(shape),
        ],
        dim=-1,
    )
    return point.flatten(1, 2), coordinates.flatten(1, 2)


def build_brim(skull: Skull, surface: Tensor, accessories: Accessories) -> Tensor:
    """The cap's visor: (batch, BRIM_ROWS * BRIM_COLUMNS, 3)."""
    across = torch.linspace(-1, 1, BRIM_COLUMNS, device=surface.device)[None, None]
    out = torch.linspace(0, 1, BRIM_ROWS, device=surface.device)[None, :, None]
    azimuth = signed_azimuth(surface.device)
    polar = (
        _around(azimuth[None, None], CAP_EDGE["cap"]) + accessories.hat_tilt[:, None, None] * azimuth.sin()
    )
    root, _ = skull.at(surface, polar)
    # The visor's root follows the cap's edge over the forehead.
    column = (across[0, 0] * 0.95 / (2 * torch.pi) * COLUMNS) % COLUMNS
    left, blend = column.long() % COLUMNS, (column - column.floor())[None, :, None]
    root = torch.lerp(root[:, 0, left], root[:, 0, (left + 1) % COLUMNS], blend)[:, None]
    reach = BRIM_REACH * (1 - 0.85 * across.abs() ** 2.4) * out
    x = root[..., 0] * (1 + 0.06 * out)
    y = root[..., 1] + 0.004 - 0.48 * reach - 0.010 * across**2 * out + 0.004 * (out > 0.93)
    z = root[..., 2] + 0.006 + reach
    point = torch.stack([x, y, z], dim=-1)
    worn = (accessories.hat == HATS.index("cap"))[:, None, None, None]
    return torch.where(worn, point, torch.zeros_like(point)).flatten(1, 2)


def build_glasses(eyes: Tensor, radius: Tensor, nose: Tensor, accessories: Accessories) -> Tensor:
    """Thick frames.

    Args:
        eyes: (batch, 2, 3) eyeball centers, the subject's left first.
        radius: (batch,) of the eyeballs.
        nose: (batch, 3) the bridge of the nose, which carries the frame.

    Returns:
        (batch, points, 3) in the order of :func:`glasses_faces`.
    """
    turn = angles(RING).to(eyes)[None]
    power = (2 / accessories.frame_squareness)[:, None]
    cosine, sine = turn.cos(), turn.sin()
    wide = cosine.sign() * cosine.abs() ** power * accessories.frame_width[:, None]
    high = sine.sign() * sine.abs() ** power * accessories.frame_height[:, None]
    front = torch.maximum(eyes[:, :, 2].amax(1) + radius + 0.010, nose[:, 2] + 0.004)[:, None]
    thickness = accessories.frame_thickness
    rings, parts = [], []
    for index, side in ((0, 1.0), (1, -1.0)):
        x = side * torch.maximum(eyes[:, index, 0].abs(), accessories.frame_width + 0.0065)[:, None] + wide
        y = eyes[:, index, 1:2] - 0.002 + high
        z = front - 2.2 * (x * side - 0.012).clamp(min=0) ** 2 / 0.25
        ring = torch.stack([x, y, z], dim=-1)
        rings.append(ring)
        parts.append(_ring_tube(ring, thickness))
    up = torch.tensor([0.05, 1.0, 0.2], device=eyes.device)
    parts.append(_bar(rings[1][:, 2], rings[0][:, RING // 2 - 2], thickness, up, bow=0.003))
    for index, side in ((0, 1.0), (1, -1.0)):
        hinge = rings[index][:, 3 if side > 0 else RING // 2 - 3]
        end = torch.tensor(TEMPLE_END, device=eyes.device) * torch.tensor([side, 1, 1], device=eyes.device)
        parts.append(_bar(hinge, end.expand_as(hinge), thickness, up))
    points = torch.cat(parts, dim=1)
    return torch.where((accessories.glasses > 0)[:, None, None], points, torch.zeros_like(points))


def _around(azimuth: Tensor, values: tuple[float, float, float]) -> Tensor:
    """Front, side and back value blended around the head."""
    front, side, back = values
    across = azimuth.abs()
    to_side, to_back = smoothstep(across, 0.45, 1.4), smoothstep(across, 1.6, 2.6)
    return front + (side - front) * to_side + (back - side) * to_back


def _ring_tube(ring: Tensor, thickness: Tensor) -> Tensor:
    """A closed tube (batch, RING * TUBE, 3) around ``ring`` (batch, RING, 3)."""
    ahead = ring.roll(-1, 1) - ring.roll(1, 1)
    forward = torch.tensor([0.0, 0, 1], device=ring.device).expand_as(ring)
    outward = torch.nn.functional.normalize(torch.linalg.cross(ahead, forward), dim=-1, eps=1e-9)
    turn = angles(TUBE).to(ring)[:, None]
    section = outward[:, :, None] * turn.cos() + forward[:, :, None] * turn.sin()
    return (ring[:, :, None] + section * thickness[:, None, None, None]).flatten(1, 2)


def _bar(start: Tensor, end: Tensor, thickness: Tensor, up: Tensor, bow: float = 0.0) -> Tensor:
    share = torch.linspace(0, 1, TEMPLE, device=start.device)[None, :, None]
    path = torch.lerp(start[:, None], end[:, None], share)
    lift = torch.tensor([0.0, 1.0, 0.5], device=start.device) * bow * 4 * share * (1 - share)
    return tube(path + lift, thickness, TUBE, up)
