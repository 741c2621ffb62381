"""Hair: a polar grid around the skull, from the crown down to a hairline; long hair hangs below it.

Column 0 lies in front, azimuth grows towards the subject's left (+x). The polar angle is measured at
the skull's center from straight up. Rows run along the strands.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifacediff_core.head.model import HeadModel

from .identity import HAIR_STYLES, HATS, Accessories, Hair
from .mesh import angles, grid_faces, smoothstep, sphere

CENTER = (0.0, 0.035, -0.005)  # of the skull, meters on the average head
SKULL_ROWS, COLUMNS = 26, 72
LOWEST = 1.80  # polar angle down to which the skull is known
ROWS, HEM_ROWS = 36, 6  # the last rows turn inwards and close the hem
HANG_FROM = 1.70  # polar angle from which long hair hangs freely
SKULL_RADIUS = 0.09  # turns polar angles into meters
BUN_ROWS, BUN_COLUMNS = 12, 18
UNDER_HAT = 0.98  # polar angle that a fringe under a hat does not pass
NECK_FREE = 0.10  # hair this far below the hairline no longer follows the head fully


class Skull(nn.Module):
    """The skull without ears as a radius over the polar grid, bound to the head's shape basis."""

    base: Tensor
    basis: Tensor
    direction: Tensor

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        solid = _solid_vertices(head)
        center = torch.tensor(CENTER, device=head.template.device)
        polar = torch.linspace(0, LOWEST, SKULL_ROWS)[:, None]
        azimuth = angles(COLUMNS)[None]
        direction = torch.stack(
            [polar.sin() * azimuth.sin(), polar.cos().expand(-1, COLUMNS), polar.sin() * azimuth.cos()],
            dim=-1,
        ).to(center)
        radius = _cast(direction, (head.template - center)[head.faces[solid[head.faces].all(dim=1)]])
        base = center + direction * _smooth(_fill(radius))[..., None]
        near, weights = _nearest(base.flatten(0, 1), head.template, torch.nonzero(solid).squeeze(1))
        basis = (head.shape_basis[near] * weights[..., None, None]).sum(1)
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("basis", basis.unflatten(0, (SKULL_ROWS, COLUMNS)), persistent=False)
        self.register_buffer("direction", direction, persistent=False)

    def forward(self, shape: Tensor) -> Tensor:
        """(batch, SKULL_ROWS, COLUMNS, 3) for β (batch, shapes)."""
        return self.base + torch.einsum("bs,rcxs->brcx", shape, self.basis)

    def at(self, surface: Tensor, polar: Tensor) -> tuple[Tensor, Tensor]:
        """Points on the skull and directions outward, (batch, rows, COLUMNS, 3) each.

        Args:
            polar: (batch, rows, COLUMNS) polar angles.
        """
        position = polar.clamp(0, LOWEST) / LOWEST * (SKULL_ROWS - 1)
        row = position.long().clamp(max=SKULL_ROWS - 2)
        blend = (position - row)[..., None]
        upper = row[..., None].expand(*row.shape, 3)
        direction = self.direction.expand(len(surface), -1, -1, -1)

        def sample(grid: Tensor) -> Tensor:
            return torch.lerp(grid.gather(1, upper), grid.gather(1, upper + 1), blend)

        return sample(surface), F.normalize(sample(direction), dim=-1)


def hair_faces() -> Tensor:
    return grid_faces(ROWS, COLUMNS, around=True)


def bun_faces() -> Tensor:
    ball = grid_faces(BUN_ROWS, BUN_COLUMNS, around=True)
    return torch.cat([ball, ball + BUN_ROWS * BUN_COLUMNS])


def signed_azimuth(device: torch.device) -> Tensor:
    """(COLUMNS,) in (-π, π], 0 in front, positive to the subject's left."""
    turn = angles(COLUMNS).to(device)
    return torch.where(turn > math.pi, turn - 2 * math.pi, turn)


def build_hair(
    skull: Skull, surface: Tensor, hair: Hair, accessories: Accessories
) -> tuple[Tensor, Tensor, Tensor]:
    """Model the cap of hair.

    Args:
        surface: (batch, SKULL_ROWS, COLUMNS, 3) from the skull.

    Returns:
        points (batch, ROWS * COLUMNS, 3), unposed; strand coordinates (…, 4): meters along the strand,
        sine and cosine of the azimuth, openness to light; weight of the neck joint (batch, ROWS * COLUMNS).
    """
    azimuth = signed_azimuth(surface.device)[None]
    hairline = _hairline(hair, accessories, azimuth)
    hang = _hang(hair, azimuth)
    cap_angle = torch.where(hang > 0.004, torch.full_like(hairline, HANG_FROM).minimum(hairline), hairline)
    along, hem = _rows(surface.device)
    distance = along[None, :, None] * (cap_angle * SKULL_RADIUS + hang)[:, None]  # meters along the strand
    polar = (distance / SKULL_RADIUS).minimum(cap_angle[:, None])
    below = distance - polar * SKULL_RADIUS
    point, outward = skull.at(surface, polar)

    thickness = _thickness(hair, accessories, azimuth[:, None], polar, along[None, :, None], below)
    inside = torch.where(below > 0, 0.2 * thickness - 0.004, torch.full_like(thickness, -0.005))
    closing = (hem**2)[None, :, None]
    point = point + outward * (thickness * (1 - closing) + inside * closing)[..., None]
    point = point + _fall(hair, azimuth[:, None], below)
    grown = (hair.style != HAIR_STYLES.index("bald"))[:, None, None, None]
    point = torch.where(grown, point, torch.zeros_like(point))

    sine, cosine = azimuth.sin().expand_as(hairline), azimuth.cos().expand_as(hairline)
    openness = 1 - 0.5 * hem[None, :, None].expand_as(distance)
    strand = torch.stack(
        [distance, sine[:, None].expand_as(distance), cosine[:, None].expand_as(distance), openness], -1
    )
    follows = 1 - 0.6 * smoothstep(below, 0.03, NECK_FREE)
    return point.flatten(1, 2), strand.flatten(1, 2), follows.flatten(1, 2)


def build_buns(skull: Skull, surface: Tensor, hair: Hair) -> tuple[Tensor, Tensor]:
    """One bun behind the crown or a pair above the ears.

    Returns:
        points (batch, 2 * BUN_ROWS * BUN_COLUMNS, 3), unposed, all at the origin without a bun; strand
        coordinates alike (…, 4).
    """
    ball = sphere(BUN_ROWS, BUN_COLUMNS).to(surface)
    center = torch.tensor(CENTER, device=surface.device)
    spokes = (surface - center).flatten(1, 2)
    parts, strands = [], []
    for side in (1.0, -1.0):
        single = torch.stack([torch.zeros_like(hair.bun), hair.bun_height.cos(), -hair.bun_height.sin()], -1)
        pair = torch.stack(
            [
                torch.full_like(hair.bun, 0.72 * side),
                torch.full_like(hair.bun, 0.68),
                torch.full_like(hair.bun, -0.12),
            ],
            -1,
        )
        outward = F.normalize(torch.lerp(single, pair, hair.bun_pair[:, None]), dim=-1)
        radius = hair.bun * (1 - 0.22 * hair.bun_pair)
        toward = torch.einsum("bnx,bx->bn", F.normalize(spokes, dim=-1), outward)
        skull_radius = (spokes.norm(dim=-1) * torch.softmax(toward * 40, dim=1)).sum(1)
        middle = center + outward * (skull_radius + hair.thickness + 0.55 * radius)[:, None]
        points = middle[:, None] + ball * radius[:, None, None]
        parts.append(torch.where((hair.bun > 0)[:, None, None], points, torch.zeros_like(points)))
        flat = torch.cat([ball[:, 2:] * 0.05, ball[:, :2], torch.ones_like(ball[:, :1])], dim=1)
        strands.append(flat.expand(len(points), -1, -1))
    return torch.cat(parts, 1), torch.cat(strands, 1)


def _hairline(hair: Hair, accessories: Accessories, azimuth: Tensor) -> Tensor:
    """(batch, COLUMNS) polar angle at which the cap ends."""
    across = azimuth.abs()
    part = hair.part[:, None]
    parted = (hair.style == HAIR_STYLES.index("side_part"))[:, None]
    # A fringe falls from the parting to the other side; without a parting it covers the middle.
    fringe_center = torch.where(parted, -0.5 * part, 0.2 * part)
    fringe = hair.fringe[:, None] * (1 - ((azimuth - fringe_center).abs() / 0.85).clamp(0, 1) ** 2)
    waves = (
        0.035
        * (azimuth * hair.count[:, None] * 0.5 + hair.phase[:, :1]).sin().abs()
        * (hair.grooves > 0)[:, None]
    )
    # The line climbs at the temples a little, as hair does.
    front = hair.front[:, None] + fringe + waves - 0.05 * torch.exp(-(((across - 0.55) / 0.2) ** 2))
    front = front - 0.10 * parted * torch.exp(-(((azimuth - part) / 0.22) ** 2))
    # Beanie and cap hold the fringe back.
    held = (accessories.hat == HATS.index("beanie")) | (accessories.hat == HATS.index("cap"))
    front = torch.where(held[:, None], front.clamp(max=UNDER_HAT), front)
    to_side, to_back = smoothstep(across, 0.62, 1.12), smoothstep(across, 1.75, 2.3)
    line = front + (hair.side[:, None] - front) * to_side
    # Sideburns.
    line = line + 0.10 * (hair.length == 0)[:, None] * torch.exp(-(((across - 1.22) / 0.13) ** 2))
    return line + (hair.back[:, None] - line) * to_back


def _hang(hair: Hair, azimuth: Tensor) -> Tensor:
    """(batch, COLUMNS) meters that hair hangs below the skull."""
    across = azimuth.abs()
    length = hair.length[:, None] * (0.86 + 0.14 * smoothstep(across, 1.2, 2.4))
    uneven = 1 + 0.05 * (azimuth * hair.count[:, None] * 0.5 + hair.phase[:, 1:2]).sin()
    return length * uneven * smoothstep(across, 0.95, 1.25)


def _rows(device: torch.device) -> tuple[Tensor, Tensor]:
    """(ROWS,) position along the strand and (ROWS,) how far the hem is turned in."""
    open_rows = ROWS - HEM_ROWS
    along = torch.cat(
        [torch.linspace(0, 1, open_rows, device=device) ** 0.92, torch.ones(HEM_ROWS, device=device)]
    )
    hem = torch.cat([torch.zeros(open_rows, device=device), torch.linspace(0.2, 1, HEM_ROWS, device=device)])
    return along, hem


def _thickness(
    hair: Hair, accessories: Accessories, azimuth: Tensor, polar: Tensor, along: Tensor, below: Tensor
) -> Tensor:
    """(batch, ROWS, COLUMNS) meters above the skull."""

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    def is_style(name: str) -> Tensor:
        return each((hair.style == HAIR_STYLES.index(name)).float())

    across = azimuth.abs()
    lean = 1 + 0.45 * azimuth.sin() * each(-hair.part.sign()) * is_style("side_part")
    lift = torch.exp(-(((polar - 0.35) / 0.75) ** 2)) + 0.8 * torch.exp(
        -(((across / 0.7) ** 2) + ((polar - 0.95) / 0.35) ** 2)
    )
    thickness = each(hair.thickness) * (1 + 0.25 * lean - 0.25) + each(hair.top) * lift * lean
    # Rounded ridges with soft valleys between them.
    swept = azimuth + each(hair.sweep) * polar
    ridge = (0.5 * each(hair.count) * swept + each(hair.phase[:, 0])).sin().abs() ** 0.7 - 0.6
    grown_in = smoothstep(polar, 0.1, 0.7)
    thickness = thickness + each(hair.grooves) * ridge * grown_in
    parting = (
        torch.exp(-(((azimuth - each(hair.part)) / 0.13) ** 2))
        * smoothstep(polar, 0.15, 0.4)
        * (across < 1.2)
    )
    thickness = thickness * (1 - 0.55 * parting * is_style("side_part"))
    middle = torch.exp(-((azimuth / 0.12) ** 2)) * smoothstep(polar, 0.15, 0.4) * (each(hair.fringe) == 0)
    thickness = thickness * (1 - 0.4 * middle * (is_style("long") + is_style("wavy") + is_style("bob")))
    curls = (
        (7 * azimuth + each(hair.phase[:, 1])).sin()
        * (7.5 * polar + each(hair.phase[:, 2]) + 0.8 * azimuth.sin()).sin()
    ).abs()
    thickness = thickness + 0.009 * is_style("curly") * curls
    spikes = (
        (5 * azimuth + 0.4 * (6 * polar).sin()).cos().abs()
        * (5.2 * polar + each(hair.phase[:, 2])).cos().abs()
    ) ** 1.5
    thickness = thickness + 0.022 * is_style("spiky") * spikes * smoothstep(polar, 1.4, 0.9)
    crest = torch.exp(-(((azimuth.sin() * polar.sin()) / 0.20) ** 2)) * smoothstep(polar, 1.9, 1.2)
    jagged = 1 + 0.16 * (polar * 9 * azimuth.cos().sign() + each(hair.phase[:, 3])).sin()
    thickness = thickness + 0.042 * is_style("mohawk") * crest * jagged

    covered = each(accessories.hat > 0).float()
    band = each(accessories.hat == HATS.index("headband")).float()
    under = smoothstep(polar, 1.30, 1.05) * covered * (1 - band)
    thickness = torch.lerp(thickness, thickness.clamp(max=0.006), under)
    thickness = torch.lerp(
        thickness, thickness.clamp(max=0.012), band * torch.exp(-(((polar - 0.95) / 0.2) ** 2))
    )

    short = (below <= 0).float() * each((hair.length == 0).float())
    rounded = (1 - (along.clamp(0, 1) ** 7) * (0.45 + 0.2 * smoothstep(across, 0.7, 1.2))) * short + (
        1 - short
    ) * (1 - 0.35 * along**6)
    return thickness * rounded


def _fall(hair: Hair, azimuth: Tensor, below: Tensor) -> Tensor:
    """(batch, ROWS, COLUMNS, 3) displacement of hanging hair: down, apart, in waves, tips curled in."""

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    drop = below.clamp(min=0)
    share = drop / each(hair.length).clamp(min=1e-3)
    bob = each((hair.style == HAIR_STYLES.index("bob")).float())
    wave = (
        each(hair.wave)
        * (drop * 75 + each(hair.phase[:, 2]) + 2 * azimuth.sin()).sin()
        * smoothstep(drop, 0.0, 0.03)
    )
    radial = (
        0.10 * drop + wave - 0.012 * bob * smoothstep(share, 0.55, 1.0) + 0.008 * smoothstep(drop, 0.0, 0.03)
    )
    tangent = 0.6 * wave
    x = azimuth.sin() * radial + azimuth.cos() * tangent * azimuth.sign()
    # Front strands stay beside the face.
    z = (
        azimuth.cos() * radial
        - 0.10 * drop
        - 0.016 * smoothstep(azimuth.abs(), 1.45, 1.0) * smoothstep(drop, 0, 0.05)
    )
    return torch.stack([x.expand_as(drop), -drop, z.expand_as(drop)], dim=-1)


def _solid_vertices(head: HeadModel) -> Tensor:
    """(vertices,) bool: open skin without the ears."""
    solid = torch.zeros(len(head.template), dtype=torch.bool, device=head.template.device)
    solid[head.regions["head_skin"]] = True
    solid &= head.occlusion > 0.25
    solid[head.regions["ears"]] = False
    return solid


def _cast(direction: Tensor, triangles: Tensor) -> Tensor:
    """Distance (rows, columns) along ``direction`` (rows, columns, 3) to the outermost triangle (n, 3, 3)."""
    rays = direction.flatten(0, 1)
    origin, edge_1, edge_2 = (
        triangles[:, 0],
        triangles[:, 1] - triangles[:, 0],
        triangles[:, 2] - triangles[:, 0],
    )
    cross = torch.linalg.cross(
        rays[:, None].expand(-1, len(triangles), 3), edge_2[None].expand(len(rays), -1, 3)
    )
    determinant = (cross * edge_1).sum(-1)
    inverse = 1 / torch.where(determinant.abs() < 1e-14, 1e-14, determinant)
    first = (cross * -origin).sum(-1) * inverse
    normal = torch.linalg.cross(-origin, edge_1)
    second = (rays @ normal.T) * inverse
    hit = (first >= -1e-4) & (second >= -1e-4) & (first + second <= 1 + 1e-4)
    distance = (normal * edge_2).sum(-1)[None] * inverse
    return torch.where(hit & (distance > 0), distance, 0.0).amax(dim=1).view(direction.shape[:2])


def _fill(radius: Tensor, steps: int = 300) -> Tensor:
    """Grow known values over rays that hit nothing (value 0)."""
    missing, known = radius == 0, (radius > 0).float()
    for _ in range(steps):
        total, weight = _neighbors(radius * known), _neighbors(known)
        radius = torch.where(missing, total / weight.clamp(min=1e-6), radius)
        known = torch.where(missing & (weight > 0), 1.0, known)
    return radius


def _neighbors(grid: Tensor) -> Tensor:
    around = grid.roll(1, 1) + grid.roll(-1, 1)
    padded = F.pad(grid, (0, 0, 1, 1))
    return around + padded[:-2] + padded[2:]


def _smooth(radius: Tensor, steps: int = 3) -> Tensor:
    for _ in range(steps):
        across = (radius.roll(1, 1) + 2 * radius + radius.roll(-1, 1)) / 4
        padded = torch.cat([across[:1], across, across[-1:]])
        radius = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return radius


def _nearest(points: Tensor, vertices: Tensor, candidates: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """Indices (points, count) of the nearest candidates and inverse-distance weights that sum to 1."""
    distance, order = torch.cdist(points, vertices[candidates]).topk(count, dim=1, largest=False)
    weights = 1 / (distance + 0.003) ** 2
    return candidates[order], weights / weights.sum(1, keepdim=True)
