"""Dead leaves: pictures of nothing but things in front of each other, of all sizes, colors and textures.

Their statistics are those of photographs (Lee, Mumford and Huang 2001), and networks that restore pictures
learn from them nearly what they learn from photographs (Achddou et al. 2021, 2025). So an autoencoder gets to
know everything that avatars are not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .styles import Draws

LEAVES = 160  # of a picture, from behind to the front
SMALLEST, LARGEST = 0.012, 0.7  # half sizes in half frames; their density falls with the third power
FIELDS = 3  # textures that the leaves of a picture share


def dead_leaves(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw pictures.

    Args:
        generator: on the device of the result.

    Returns:
        (count, 3, size, size) in [0, 1].
    """
    side = 2 * size
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    line = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    textures = _textures(count, side, generator)
    palette = uniform(6, 3)
    palette = torch.lerp(palette.mean(-1, keepdim=True), palette, uniform(1, 1) * 1.3).clamp(0, 1)
    picture = palette[:, 0, :, None, None].expand(-1, -1, side, side).clone()
    # Inverse of the distribution whose density falls with the third power.
    share = uniform(LEAVES)
    reach = (SMALLEST**-2 * (1 - share) + LARGEST**-2 * share) ** -0.5
    reach[:, : LEAVES // 8] = LARGEST  # nothing of the ground is to be seen
    for number in range(LEAVES):
        turn, bend = each(uniform() * math.pi), each(uniform() * 6 - 3)
        dx, dy = x - each(uniform() * 2.4 - 1.2), y - each(uniform() * 2.4 - 1.2)
        along, across = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
        # Round, angular, or thin as a hair, and some of them bent.
        thin = each((uniform() < 0.25).float())
        across = across + thin * bend * along.square()
        slim = torch.where(thin > 0, each(0.004 + 0.02 * uniform()), each(reach[:, number]))
        slim = slim * (1 - (1 - thin) * each(0.7 * uniform()))
        long = torch.where(thin > 0, each(0.1 + 0.5 * uniform()), each(reach[:, number]))
        power = each(torch.where(uniform() < 0.6, 2.0, 8.0))
        inside = (along / long).abs() ** power + (across / slim).abs() ** power < 1
        chosen = palette[torch.arange(count, device=device), (uniform() * 6).long()]
        color = (chosen + 0.25 * (uniform(3) - 0.5))[:, :, None, None]
        kind = (uniform() * FIELDS).long()
        texture = textures[torch.arange(count, device=device), kind][:, None]
        shade = each((uniform() - 0.5) * 0.6) * along + each((uniform() - 0.5) * 0.6) * across
        painted = color + (each(0.35 * uniform() ** 2) * texture[:, 0] + shade)[:, None]
        picture = torch.where(inside[:, None], painted, picture)
    picture = F.avg_pool2d(picture.clamp(0, 1), 2)
    soft = F.avg_pool2d(F.pad(picture, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return torch.lerp(picture, soft, Draws(count, generator).chance(0.15)[:, 0])


def _textures(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, FIELDS, side, side) noise of mean 0 and about unit deviation, from fine to coarse grain."""
    noise = torch.zeros(count, FIELDS, side, side, device=generator.device)
    total = torch.zeros(count, FIELDS, 1, 1, device=generator.device)
    for octave in range(1, 7):
        grid = max(side >> octave, 2)
        strength = torch.rand(count, FIELDS, 1, 1, generator=generator, device=generator.device) ** 2
        values = torch.randn(count, FIELDS, grid, grid, generator=generator, device=generator.device)
        noise = noise + strength * F.interpolate(values, size=side, mode="bicubic")
        total = total + strength.square()
    return noise / total.sqrt().clamp(min=1e-3)
