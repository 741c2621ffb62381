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
# What folds the forehead, the place between the brows, the eyes' corners, the cheeks, and below the eyes.
CREASES = (
    ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    ("browDownLeft", "browDownRight"),
    ("eyeSquintLeft", "eyeSquintRight", "cheekSquintLeft", "cheekSquintRight"),
    ("mouthSmileLeft", "mouthSmileRight", "noseSneerLeft", "noseSneerRight"),
    ("eyeSquintLeft", "eyeSquintRight", "eyeBlinkLeft", "eyeBlinkRight"),
)
RESTING_CREASE = 0.25  # of the depth that stays while a face does nothing
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


def crease_amounts(expression: Tensor, names: list[str]) -> Tensor:
    """How far a face folds at `CREASES`: (batch, 5) from ψ (batch, expressions) in ARKit's actions."""
    return torch.stack(
        [expression[:, [names.index(name) for name in group]].sum(1).clamp(0, 1) for group in CREASES], 1
    )


def creased(surface: Surface, chart: Tensor, amounts: Tensor) -> Surface:
    """Skin (n pixels at (n, 3) decimeters) with the lines that its expression draws.

    Args:
        amounts: (n, 5), how deep those of `CREASES` are.
    """
    x, y, z = chart.unbind(-1)
    across = x.abs()

    def line(distance: Tensor, width: float, window: Tensor) -> Tensor:
        return torch.exp(-((distance / width) ** 2)) * window

    arch = y - 0.03 * (across * 4).cos()
    brow = smoothstep(across, 0.42, 0.30)
    forehead = torch.stack([line(arch - height, 0.009, brow) for height in (1.55, 1.62, 1.69)]).amax(0)
    frown = line(across - 0.045, 0.011, smoothstep((y - 1.46).abs(), 0.075, 0.03))
    out = across - 0.455
    ray = smoothstep(out, 0.0, 0.02) * smoothstep(out, 0.13, 0.05)
    feet = torch.stack([line(y - 1.36 - slope * out, 0.007, ray) for slope in (-0.55, -0.05, 0.5)]).amax(0)
    down = (0.98 - y) / 0.32
    folds = line(across - 0.14 - 0.15 * down, 0.016, smoothstep((down - 0.5).abs(), 0.52, 0.35))
    bags = line(torch.hypot((across - 0.31) / 1.5, (y - 1.37).clamp(max=0)) - 0.095, 0.012, y < 1.36)
    depth = (torch.stack([forehead, frown, feet, folds, bags], 1) * amounts).amax(1) * smoothstep(z, 0.8, 1.0)
    surface.albedo = surface.albedo * (1 - 0.55 * depth[:, None])
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
