"""Solid textures: random waves in the coordinates of the paint, so that they stay on the surface."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .material import WAVES, Texture
from .mesh import mix, smoothstep
from .paint import Surface

FINEST, COARSEST = 90.0, 1.5  # radians per decimeter
SPOT = (0.30, 0.55, 0.60)  # how much of red, green and blue a spot takes
SPOT_FROM = 1.1  # of the noise, whose deviation is 0.7
STRAND_SCALE = 3.5  # hair is finer than skin
CHUNK = 1 << 20  # pixels whose waves are held at once


def directions(device: torch.device) -> Tensor:
    """(WAVES, 3) wave vectors, the same for all avatars: their phases and amplitudes differ."""
    generator = torch.Generator().manual_seed(7)
    toward = F.normalize(torch.randn(WAVES, 3, generator=generator), dim=-1)
    octaves = torch.rand(WAVES, generator=generator) * math.log(FINEST / COARSEST)
    return (toward * (COARSEST * octaves.exp())[:, None]).to(device)


def solid_noise(position: Tensor, texture: Texture, owner: Tensor) -> Tensor:
    """(n,) noise of mean 0 and deviation 0.7 at positions (n, 3); `owner` is each one's row of `texture`."""
    waves = directions(position.device)
    values = torch.empty(len(position), device=position.device)
    for start in range(0, len(position), CHUNK):
        part = slice(start, start + CHUNK)
        angle = position[part] @ waves.T + texture.phase[owner[part]]
        values[part] = (angle.sin() * texture.amplitude[owner[part]]).sum(1)
    return values


def weathered(surface: Surface, chart: Tensor, texture: Texture, owner: Tensor) -> Surface:
    """Skin (n pixels at (n, 3) decimeters) with blotches, spots and a shine of its own."""
    noise = solid_noise(chart, texture, owner)
    surface.albedo = _tinted(surface.albedo, noise * texture.skin[owner], texture, owner)
    spot = ((noise - SPOT_FROM) * 4).clamp(0, 1) * texture.spots[owner]
    darker = surface.albedo * (1 - torch.tensor(SPOT, device=spot.device))
    surface.albedo = mix(surface.albedo, darker, spot)
    surface.specular = surface.specular * texture.shine[owner]
    return surface


def stranded(surface: Surface, strand: Tensor, texture: Texture, owner: Tensor) -> Surface:
    """Hair (n, 4), see `paint.paint_hair`, in strands: noise that is drawn out along them."""
    along = strand[:, :1] * 10 * texture.stretch[owner, None]
    noise = solid_noise(torch.cat([along, strand[:, 1:3] * STRAND_SCALE], 1), texture, owner)
    amount = noise * texture.hair[owner] * (0.3 + 0.7 * smoothstep(strand[:, 0], 0.0, 0.04))
    surface.albedo = _tinted(surface.albedo, amount, texture, owner)
    return surface


def woven(surface: Surface, coordinates: Tensor, texture: Texture, owner: Tensor) -> Surface:
    """Cloth (n, 4) in patterns of any kind."""
    noise = solid_noise(coordinates[:, :3] * 1.6, texture, owner)
    surface.albedo = _tinted(surface.albedo, noise * texture.cloth[owner], texture, owner)
    return surface


def _tinted(albedo: Tensor, amount: Tensor, texture: Texture, owner: Tensor) -> Tensor:
    return (albedo * torch.exp(amount[:, None] * texture.tint[owner])).clamp(0, 1)
