"""Light: key, fill and rim from soft to toon, contact shadows, outlines, backdrops. Colors are linear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .identity import BACKDROPS, DISCS, Backdrop, Light
from .material import WAVES, Clutter
from .mesh import mix, smoothstep
from .paint import Surface

GAMMA = 2.2
TERMINATOR = (1.0, 0.26, 0.14)  # color of light that has traveled through skin
CONTACT_REACH = 0.020  # meters over which a nearer surface darkens a farther one
OUTLINE_STEP = 0.012  # meters of depth that make an edge
KEY_CATCH, KEY_CATCH_SIZE = (
    (0.30, 0.36),
    0.20,
)  # catch light on the eyeball: offset towards the key, size in radians
SMALL_CATCH, SMALL_CATCH_SIZE = (-0.26, -0.24), 0.10


def shade(surface: Surface, normal: Tensor, light: Light) -> Tensor:
    """Linear color (n, 3) of n lit pixels; the camera looks along -z.

    Args:
        normal: (n, 3) unit, towards the camera.
        light: a row per pixel.
    """
    facing = (normal * light.key).sum(-1)
    diffuse = ((facing + surface.wrap) / (1 + surface.wrap)).clamp(min=0)
    # Full bands would draw every dimple of a face as a shape of its own.
    toon = light.toon * (1 - 0.4 * surface.scatter)
    diffuse = torch.lerp(diffuse, _banded(diffuse, light.bands), toon)
    linear = surface.albedo.clamp(0, 1) ** GAMMA

    sky = 0.62 + 0.38 * normal[:, 1]
    ambient = light.fill_color * (sky * surface.ambient)[:, None]
    key = (
        light.key_color
        * (diffuse * (0.5 + 0.5 * surface.ambient) * surface.ambient.clamp(max=1).sqrt())[:, None]
    )
    color = linear * (ambient + 0.86 * key)

    terminator = (1 - ((facing + 0.08) / 0.42).abs()).clamp(min=0) * surface.scatter * (1 - 0.6 * light.toon)
    color = color + linear * torch.tensor(TERMINATOR, device=color.device) * (0.15 * terminator)[:, None]

    half = F.normalize(light.key + torch.tensor([0.0, 0, 1], device=color.device), dim=-1)
    highlight = (normal * half).sum(-1).clamp(min=0) ** surface.gloss
    highlight = torch.lerp(
        highlight, smoothstep(highlight, 0.55, 0.68) * 0.55, light.toon * (1 - surface.scatter)
    )
    color = color + light.key_color * (highlight * surface.specular * surface.ambient)[:, None] * (
        0.30 + 0.55 * linear
    )

    edge = (1 - normal[:, 2].clamp(0, 1)) ** 2.5
    away = smoothstep(-(normal[:, 0] * light.key[:, 0].sign()), -0.2, 0.6) * (0.55 + 0.45 * normal[:, 1])
    edge = torch.lerp(edge, smoothstep(edge, 0.22, 0.34) * 0.6, light.toon)
    rim = edge * away * light.rim * surface.rim
    return color + (rim * surface.ambient)[:, None] * (0.25 + 0.9 * linear)


def catch_lights(color: Tensor, normal: Tensor, openness: Tensor, light: Light) -> Tensor:
    """The key light's reflection in the eyes and a small second one; none on closed eyes (``openness`` 0)."""
    side = light.key[:, 0].sign()
    for (dx, dy), size in ((KEY_CATCH, KEY_CATCH_SIZE), (SMALL_CATCH, SMALL_CATCH_SIZE)):
        toward = F.normalize(
            torch.stack([dx * side, torch.full_like(side, dy), torch.ones_like(side)], -1), dim=-1
        )
        angle = torch.acos((normal * toward).sum(-1).clamp(-1, 1))
        color = mix(
            color,
            torch.ones_like(color),
            smoothstep(angle, size, size * 0.7) * (0.96 if size > 0.15 else 0.7) * openness * light.catch,
        )
    return color


def contact_shadow(depth: Tensor, scale: Tensor, factor: int) -> Tensor:
    """Darkening (batch, height, width) where a nearer surface lies close above.

    So hair shades the forehead, the chin the neck, and lids the eyes.

    Args:
        depth: (batch, height, width) meters, larger = farther, +inf in the background.
        scale: (batch,) pixels per meter.
        factor: the map is computed at 1 / ``factor`` of the resolution.
    """
    covered = torch.isfinite(depth)
    far = torch.where(covered, depth, torch.full_like(depth, -1e3)).amax(dim=(1, 2), keepdim=True) + 0.02
    filled = torch.where(covered, depth, far)[:, None]
    small = F.avg_pool2d(filled, factor)
    reach = float(CONTACT_REACH * scale.mean() / factor)
    shadow = torch.zeros_like(small)
    for spread, strength in ((1.0, 0.55), (0.35, 0.45)):
        blurred = _shift_down(_blur(small, max(1.0, reach * spread)), round(reach * spread * 0.45))
        shadow = shadow + strength * ((small - blurred) / 0.016).clamp(0, 1)
    shadow = F.interpolate(shadow, size=depth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return 1 - 0.55 * shadow * covered


def outline(depth: Tensor, width: int) -> Tensor:
    """(batch, height, width) in [0, 1]: pixels at the near side of a step in depth, ``width`` pixels wide."""
    covered = torch.isfinite(depth)
    filled = torch.where(covered, depth, torch.full_like(depth, 1.0))[:, None]
    farthest = F.max_pool2d(filled, 2 * width + 1, stride=1, padding=width)
    return smoothstep((farthest - filled)[:, 0], OUTLINE_STEP, 2 * OUTLINE_STEP) * covered


def draw_backdrop(backdrop: Backdrop, size: int) -> Tensor:
    """Linear colors (batch, 3, size, size)."""
    line = (torch.arange(size, device=backdrop.device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x[None], y[None]

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    def is_kind(name: str) -> Tensor:
        return each((backdrop.kind == BACKDROPS.index(name)).float())

    along = x * each(backdrop.angle.cos()) + y * each(backdrop.angle.sin())
    gradient = smoothstep(along, -1.2, 1.2)
    center_y = -0.1
    distance = torch.hypot(x, y - center_y)
    vignette = smoothstep(distance, 0.15, 1.5)
    radius = 0.72 + 0.10 * each(backdrop.angle.sin())
    disc = smoothstep(torch.hypot(x, y + 0.08), radius - 0.012, radius + 0.012)
    diagonal = smoothstep(along - 0.1, -0.012, 0.012) * 0.85
    weight = gradient * (is_kind("gradient") + 0.8 * is_kind("bokeh")) + vignette * is_kind("vignette")
    weight = weight + disc * is_kind("disc") + diagonal * is_kind("diagonal")
    light, deep, accent = (
        color[:, :, None, None] ** GAMMA for color in (backdrop.light, backdrop.deep, backdrop.accent)
    )
    picture = torch.lerp(light, deep, weight[:, None])
    for index in range(DISCS):
        cx, cy, reach, strength = (each(value) for value in backdrop.discs[:, index].unbind(-1))
        spot = (
            smoothstep(torch.hypot(x - cx, y - cy), reach * 1.06, reach * 0.92) * strength * is_kind("bokeh")
        )
        picture = torch.lerp(picture, torch.lerp(accent, light, 0.4 * (index % 3) / 2), 0.42 * spot[:, None])
    return picture * (1 - 0.12 * smoothstep(distance, 0.8, 1.6))[:, None]


def add_clutter(picture: Tensor, clutter: Clutter) -> Tensor:
    """Linear colors (batch, 3, size, size) with wavy light and hard-edged things, as in rooms and gardens."""
    if not bool((clutter.waves > 0).any() | (clutter.leaves[..., 5] > 0).any()):
        return picture
    size = picture.shape[-1]
    line = (torch.arange(size, device=picture.device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    light = torch.zeros_like(picture)
    for number in range(WAVES if bool((clutter.waves > 0).any()) else 0):
        angle, phase, *tint = clutter.wave[:, number, :, None, None].unbind(1)
        frequency = 1.2 * 1.24**number
        along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        bent = 3 * frequency * along + phase + 1.7 * (frequency * across + 3 * phase).sin()
        light = light + bent.sin()[:, None] * torch.stack(tint, 1) / frequency**0.7
    result = picture * torch.exp(light * clutter.waves[:, None, None, None])
    for leaf in clutter.leaves.unbind(1):
        cx, cy, wide, high, angle, square, *color = leaf[..., None, None].unbind(1)
        along = (x - cx) * angle.cos() + (y - cy) * angle.sin()
        across = (y - cy) * angle.cos() - (x - cx) * angle.sin()
        along, across = along / wide.clamp(min=1e-3), across / high.clamp(min=1e-3)
        reach = along.abs() ** square + across.abs() ** square
        inside = (reach < 1) & (square > 0)
        result = torch.where(inside[:, None], torch.stack(color, 1), result)
    soft = F.interpolate(F.avg_pool2d(result, 8), size=size, mode="bilinear")
    return torch.lerp(result, soft, clutter.blur[:, None, None, None])


def to_display(linear: Tensor) -> Tensor:
    """Linear to sRGB-like [0, 1] with a soft shoulder in place of clipping."""
    knee = 0.75
    over = (linear - knee).clamp(min=0)
    soft = torch.where(linear > knee, knee + (1 - knee) * (1 - torch.exp(-over / (1 - knee))), linear)
    return soft.clamp(1e-6, 1) ** (1 / GAMMA)


def _banded(diffuse: Tensor, bands: Tensor) -> Tensor:
    """Quantize light into bands with a soft step between them."""
    level = diffuse * bands
    step = level.floor()
    return ((step + smoothstep(level - step, 0.34, 0.66)) / bands).clamp(max=1)


def _blur(image: Tensor, sigma: float) -> Tensor:
    half = max(1, round(2 * sigma))
    offsets = torch.arange(-half, half + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image, (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _shift_down(image: Tensor, pixels: int) -> Tensor:
    if pixels == 0:
        return image
    return torch.cat([image[:, :, :1].expand(-1, -1, pixels, -1), image[:, :, :-pixels]], dim=2)
