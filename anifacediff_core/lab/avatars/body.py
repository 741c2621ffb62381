"""Torso and collar. They stay with the root joint while the head turns above them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anifacediff_core.head.model import HeadModel

from .identity import Body
from .mesh import angles, grid_faces, smoothstep

COLUMNS = 48
# Rows of the torso: half width, half depth, height, all in meters; the first hides inside the neck.
PROFILE = (
    (0.046, 0.046, -0.104), (0.056, 0.054, -0.112), (0.066, 0.061, -0.120), (0.080, 0.068, -0.127),
    (0.100, 0.076, -0.133), (0.124, 0.084, -0.140), (0.150, 0.090, -0.150), (0.172, 0.094, -0.165),
    (0.186, 0.096, -0.187), (0.193, 0.097, -0.215), (0.196, 0.098, -0.260), (0.198, 0.098, -0.340),
    (0.200, 0.098, -0.600),
)  # fmt: skip
SLOPE = 0.38  # the neck's base is higher behind than in front, meters per meter
COLLAR_POINTS = 10

#             crew    turtle  hoodie  shirt
RIM_HEIGHT = (0.012, 0.034, 0.020, 0.026)  # above the neck's base
RIM_THICKNESS = (0.0065, 0.0060, 0.0180, 0.0045)
RIM_GAP = (0.004, 0.0025, 0.016, 0.006)  # from the neck
RIM_DROP = (0.006, 0.012, 0.014, 0.022)  # how far the outer side hangs down
RIM_BACK = (0.000, 0.000, 0.022, 0.006)  # extra height behind
RIM_OPENING = (0.0, 0.0, 0.35, 1.0)  # a notch in front


def torso_faces() -> Tensor:
    return grid_faces(len(PROFILE), COLUMNS, around=True)


def collar_faces() -> Tensor:
    return grid_faces(COLLAR_POINTS, COLUMNS, around=True)


class Torso(nn.Module):
    """Shoulders that fit the neck of each shape."""

    neck: Tensor
    profile: Tensor

    def __init__(self, head: HeadModel, chart: Tensor) -> None:
        """``chart``: (vertices, 3) decimeters on the neutral head."""
        super().__init__()
        neck = head.regions["neck"]
        self.register_buffer("neck", neck[head.template[neck, 1] < -0.085], persistent=False)
        self.register_buffer("profile", torch.tensor(PROFILE, device=chart.device), persistent=False)

    def forward(self, rest: Tensor, body: Body) -> tuple[Tensor, Tensor]:
        """Torso and collar.

        Args:
            rest: (batch, vertices, 3) the unposed head.

        Returns:
            points (batch, (rows + COLLAR_POINTS) * COLUMNS, 3) and coordinates (…, 4):
            share down the torso (0 to 1) or around the collar's rim (-2 to -1), sine and cosine of azimuth,
            unposed height in meters.
        """
        neck = rest[:, self.neck]
        half_width = neck[..., 0].abs().amax(dim=1)
        center_z = (neck[..., 2].amax(dim=1) + neck[..., 2].amin(dim=1)) / 2
        turn = angles(COLUMNS).to(rest)
        torso = self._torso(half_width, center_z, turn, body)
        collar = self._collar(half_width, center_z, turn, body)
        batch = len(rest)
        # 1 where the gallery's pictures end; the last row lies below them.
        down = torch.linspace(0, 1, len(PROFILE) - 1, device=rest.device)
        down = torch.cat([down, down[-1:] + 1])[:, None].expand(-1, COLUMNS)
        collar_side = torch.linspace(0, 1, COLLAR_POINTS, device=rest.device)[:, None].expand(-1, COLUMNS) - 2
        share = torch.cat([down, collar_side])
        coordinates = torch.stack([share, turn.sin().expand_as(share), turn.cos().expand_as(share)], dim=-1)
        points = torch.cat([torso, collar], dim=1)
        return points, torch.cat([coordinates.flatten(0, 1).expand(batch, -1, -1), points[..., 1:2]], dim=-1)

    def _torso(self, half_width: Tensor, center_z: Tensor, turn: Tensor, body: Body) -> Tensor:
        wide, deep, height = self.profile.unbind(1)
        base_width = PROFILE[1][0]
        fits = smoothstep(wide, 0.12, 0.056)  # 1 at the neck, 0 at the shoulders
        neck_scale = (half_width / base_width)[:, None]
        scale = neck_scale * fits + (body.width[:, None] * (1 - fits))
        x = (wide * scale)[..., None] * turn.sin()
        z = (deep * (neck_scale * fits + 1 - fits))[..., None] * turn.cos()
        slope = SLOPE * fits
        y = height[:, None] - slope[:, None] * z - 0.55 * (x.abs() - 0.10).clamp(min=0) ** 2 / 0.1
        return torch.stack([x, y, z + center_z[:, None, None]], dim=-1).flatten(1, 2)

    def _collar(self, half_width: Tensor, center_z: Tensor, turn: Tensor, body: Body) -> Tensor:
        def of_collar(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=turn.device)[body.collar][:, None, None]

        height, thickness, gap = of_collar(RIM_HEIGHT), of_collar(RIM_THICKNESS), of_collar(RIM_GAP)
        drop, back, opening = of_collar(RIM_DROP), of_collar(RIM_BACK), of_collar(RIM_OPENING)
        share = torch.linspace(0, 1, COLLAR_POINTS, device=turn.device)[None, :, None]
        front = turn.cos()[None, None]
        # Up the inner side, over the rim, down the outer side.
        around_rim = torch.pi * smoothstep(share, 0.15, 0.75)
        notch = opening * torch.exp(-((turn.sin() / 0.22) ** 2))[None, None] * (front > 0)
        rim = (height + back * (0.5 - 0.5 * front)) * (1 - 0.8 * notch)
        inner = smoothstep(share, 0.0, 0.15) * rim - (1 - smoothstep(share, 0.0, 0.15)) * 0.012
        outer_drop = smoothstep(share, 0.75, 1.0) * (rim + drop)
        y = inner + 0.5 * thickness * around_rim.sin() - outer_drop
        r = (
            gap
            + thickness * 0.5 * (1 - around_rim.cos())
            + smoothstep(share, 0.75, 1.0) * (0.006 + 0.3 * drop)
        )
        x = (half_width[:, None, None] + r) * turn.sin()
        z = (half_width[:, None, None] * 0.96 + r) * front
        base = -0.118
        y = y + base - SLOPE * z
        return torch.stack([x.expand_as(y), y, z.expand_as(y) + center_z[:, None, None]], dim=-1).flatten(
            1, 2
        )
