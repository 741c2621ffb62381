"""Paint: per-pixel colors in fixed coordinates, so that lips, brows and freckles follow every expression.

Positions on the skin are decimeters on the unstylized head (``CHART_ORIGIN``): x to the subject's left, y up,
z to the front.
Every function takes n pixels of one material and the row of the batch that each belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import palettes
from .identity import COLLARS, HAIR_STYLES, HATS, Accessories, Body, Eyes, FaceHair, Hair, Skin
from .material import Mouth
from .mesh import mix, smoothstep

CHART_ORIGIN = (0.0, 0.125, 0.05)  # meters, of the head's chart
EYE_CENTER = (0.312, 1.363)
MOUTH_Y = 0.695
TEETH = 12  # of an arch as far as it is seen


@dataclass
class Surface:
    """What light meets at n pixels.

    Attributes:
        albedo: (n, 3) sRGB.
        specular: (n,) strength of highlights; gloss (n,) their exponent.
        wrap: (n,) how far light reaches around the form.
        scatter: (n,) subsurface glow at the terminator.
        ambient: (n,) share of light that reaches the surface.
        rim: (n,) share of the rim light.
    """

    albedo: Tensor
    specular: Tensor
    gloss: Tensor
    wrap: Tensor
    scatter: Tensor
    ambient: Tensor
    rim: Tensor

    @classmethod
    def plain(
        cls, albedo: Tensor, specular: float = 0.05, gloss: float = 16.0, wrap: float = 0.2, rim: float = 1.0
    ) -> Surface:
        n, like = len(albedo), albedo
        filled = [
            torch.full((n,), value, device=like.device) for value in (specular, gloss, wrap, 0.0, 1.0, rim)
        ]
        return cls(albedo, *filled)


def chart_decimeters(chart: Tensor) -> Tensor:
    """The head's chart in the units that paint is described in."""
    return (chart + torch.tensor(CHART_ORIGIN, device=chart.device)) * 10


def beard_mask(chart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Beard, mustache and goatee in [0, 1] at chart positions (..., 3) in decimeters; lips excluded."""
    x, y, z = chart.unbind(-1)
    across = x.abs()
    free = 1 - lip_mask(chart)
    cheek_line = 0.64 + 0.62 * (across / 0.70) ** 2
    on_jaw = smoothstep(z + 0.6 * y, 0.66, 0.90) * smoothstep(z + 1.2 * y, 1.10, 1.38)
    beard = smoothstep(y, cheek_line + 0.05, cheek_line - 0.05) * on_jaw * smoothstep(across, 0.735, 0.69)
    front = smoothstep(z, 0.95, 1.15)
    arch = 0.845 - 0.9 * across**2
    mustache = torch.exp(-(((y - arch) / 0.042) ** 2)) * smoothstep(across, 0.30, 0.22) * front
    mustache = smoothstep(mustache, 0.25, 0.6)
    goatee = smoothstep(across, 0.235, 0.175) * smoothstep(y, 0.61, 0.56) * on_jaw
    return beard * free, mustache * free, goatee * free


def beard_strength(chart: Tensor, face_hair: FaceHair) -> Tensor:
    """(n,) how dense the facial hair is."""
    beard, mustache, goatee = beard_mask(chart)
    strength = torch.maximum(beard * face_hair.beard, mustache * face_hair.mustache)
    return torch.maximum(strength, goatee * face_hair.goatee)


def lip_mask(chart: Tensor) -> Tensor:
    x, y, z = chart.unbind(-1)
    arch = 1 - (x.abs() / 0.235) ** 2
    rise = arch.clamp(min=0)
    top = MOUTH_Y + 0.086 * rise**0.75 - 0.016 * torch.exp(-((x / 0.04) ** 2))
    bottom = MOUTH_Y - 0.122 * rise**0.6
    inside = smoothstep(y, bottom - 0.014, bottom + 0.014) * smoothstep(y, top + 0.014, top - 0.014)
    return inside * smoothstep(arch, 0.0, 0.06) * smoothstep(z, 1.24, 1.31)


def paint_skin(chart: Tensor, occlusion: Tensor, skin: Skin, face_hair: FaceHair, hair: Hair) -> Surface:
    """Skin with blush, freckles, lips, brows, lashes, beard and shaved scalp.

    Args:
        chart: (n, 3) decimeters.
        occlusion: (n,) baked openness of the closed-mouth head.
    """
    x, y, z = chart.unbind(-1)
    across = x.abs()
    front = smoothstep(z, 0.9, 1.15)
    surface = Surface.plain(_blushed(chart, front, skin), specular=0.10, gloss=14.0, wrap=0.35)
    surface.scatter = torch.ones_like(x)
    surface.ambient = 0.40 + 0.60 * smoothstep(occlusion, 0.0, 0.7)

    lips = lip_mask(chart)
    lip_color = 0.35 * skin.tone + 0.65 * skin.lips * (0.45 + 0.55 * skin.tone.amax(1, keepdim=True))
    surface.albedo = mix(surface.albedo, lip_color, lips * (0.40 + 0.60 * skin.lip_strength))
    surface.specular = surface.specular + 0.22 * lips

    shaved = _scalp(chart) * (hair.style == HAIR_STYLES.index("mohawk")) * 0.35
    surface.albedo = mix(surface.albedo, hair.color * 0.7, shaved)

    density = beard_strength(chart, face_hair)
    painted = density * (0.92 - 0.62 * face_hair.stubble)
    surface.albedo = mix(surface.albedo, face_hair.color, painted)
    surface.scatter = surface.scatter * (1 - painted)

    shadow, lash = _eye_makeup(chart, front)
    surface.albedo = mix(surface.albedo, skin.eyeshadow, shadow * skin.eyeshadow_strength)
    surface.albedo = mix(surface.albedo, face_hair.brow, _brows(across, y, front, face_hair) * 0.94)
    ink = palettes.LASH.to(chart).expand_as(surface.albedo)
    surface.albedo = mix(surface.albedo, ink, lash * skin.lash)
    surface.scatter = surface.scatter * (1 - lash)

    cavity = (occlusion < 0.10) & (y > 0.35) & (y < 1.05) & (z < 1.36) & (z > 0.6) & (across < 0.4)
    surface.albedo = torch.where(cavity[:, None], palettes.CAVITY.to(chart), surface.albedo)
    surface.specular = torch.where(cavity, 0.0, surface.specular)
    surface.rim = torch.where(cavity, 0.0, surface.rim)
    return surface


def paint_tongue(chart: Tensor) -> Surface:
    surface = Surface.plain(
        palettes.TONGUE.to(chart).expand(len(chart), 3), specular=0.18, gloss=20.0, wrap=0.4, rim=0.0
    )
    # The tongue darkens towards the throat.
    surface.ambient = 0.25 + 0.65 * smoothstep(chart[:, 2], 0.75, 1.25)
    return surface


def paint_eye(direction: Tensor, openness: Tensor, normal: Tensor, eyes: Eyes, skin: Skin) -> Surface:
    """Sclera, limbal ring, iris and pupil.

    Args:
        direction: (n, 3) on the eyeball, the pupil at +z.
        openness: (n,) 0 where the lids are closed: lashes fill the slit that the lids leave.
        normal: (n, 3) in the world.
    """
    unit = F.normalize(direction, dim=-1)
    angle = torch.acos(unit[:, 2].clamp(-1, 1))
    share = angle / eyes.radius
    azimuth = torch.atan2(unit[:, 1], unit[:, 0])
    # Lit from below through the cornea, dark towards the upper lid: reads as depth.
    glow = 0.85 + 0.55 * smoothstep(share, 0.35, 0.85) - 0.40 * (unit[:, 1] / eyes.radius.sin()).clamp(-1, 1)
    rays = 1 + 0.07 * (azimuth * 9).sin() * smoothstep(share, 0.4, 0.7)
    iris = (eyes.iris * (glow * rays)[:, None]).clamp(0, 1)
    iris = mix(iris, eyes.iris * 0.16, smoothstep(share, 0.80, 0.95))
    iris = mix(torch.full_like(iris, 0.025), iris, smoothstep(share, eyes.pupil - 0.05, eyes.pupil + 0.07))
    white = palettes.SCLERA.to(unit) * eyes.white
    white = mix(
        white,
        torch.tensor([0.93, 0.72, 0.68], device=unit.device).expand_as(white),
        0.35 * smoothstep(angle, 0.85, 1.3),
    )
    lashes = torch.lerp(skin.tone * 0.6, palettes.LASH.to(unit).expand_as(white), 0.6)
    color = mix(lashes, mix(iris, white, smoothstep(share, 0.97, 1.06)), openness)
    surface = Surface.plain(color, specular=0.0, wrap=0.7, rim=0.0)
    surface.ambient = 1.08 - 0.42 * smoothstep(normal[:, 1], 0.10, 0.52)
    return surface


def paint_teeth(coordinates: Tensor, mouth: Mouth) -> Surface:
    """Teeth as one band, clean or with gaps: across in [-1, 1], gum 0 to tip 1, lower arch 1 or upper 0."""
    across, height, lower = coordinates.unbind(-1)
    gap = smoothstep((across * TEETH * torch.pi / 2).sin().abs(), 0.25, 0.05) * mouth.gaps
    white = palettes.TEETH.to(coordinates) * mouth.tint * (1 - gap)[:, None]
    gum = palettes.GUM.to(coordinates).expand(len(coordinates), 3)
    surface = Surface.plain(
        mix(gum, white, smoothstep(height, 0.10, 0.24)), specular=0.12, gloss=30.0, wrap=0.6, rim=0.0
    )
    surface.ambient = (0.92 - 0.12 * lower) * (1 - 0.55 * smoothstep(across.abs(), 0.45, 1.0))
    return surface


def paint_hair(strand: Tensor, hair: Hair) -> Surface:
    """Soft locks: broad bands of a lighter tone along the strands.

    Args:
        strand: (n, 4) meters along the strand, sine and cosine of azimuth, openness.
    """
    along, openness = strand[:, 0], strand[:, 3]
    azimuth = torch.atan2(strand[:, 1], strand[:, 2])
    polar = along / 0.09
    phase = hair.phase
    locks = (0.5 * hair.count * (azimuth + hair.sweep * polar.clamp(max=1.7)) + phase[:, 0]).sin().abs()
    fine = (1.5 * hair.count.round() * azimuth + phase[:, 1] + 1.5 * (2 * polar + phase[:, 2]).sin()).sin()
    curly = hair.style == HAIR_STYLES.index("curly")
    blobs = (
        (7 * azimuth + phase[:, 1]).sin() * (7.5 * polar + phase[:, 2] + 0.8 * azimuth.sin()).sin()
    ).abs()
    light = torch.where(curly, blobs, 0.65 * locks + 0.2 * fine + 0.15)
    color = mix(hair.color * 0.86, hair.tip, light.clamp(0, 1) * (0.55 + 0.45 * smoothstep(polar, 0.2, 1.6)))
    surface = Surface.plain(color, specular=0.20, gloss=9.0, wrap=0.25)
    valley = torch.where(
        curly, 0.62 + 0.38 * smoothstep(blobs, 0.0, 0.5), 0.72 + 0.28 * smoothstep(locks, 0.0, 0.45)
    )
    surface.ambient = openness * valley
    surface.specular = torch.where(curly, 0.05, 0.22) * openness
    buzz = hair.style == HAIR_STYLES.index("buzz")
    surface.specular = torch.where(buzz, 0.03, surface.specular)
    surface.ambient = torch.where(buzz, openness, surface.ambient)
    surface.albedo = torch.where(buzz[:, None], hair.color * 0.95, surface.albedo)
    return surface


def paint_hat(coordinates: Tensor, accessories: Accessories) -> Surface:
    """Knitted ribs and a folded cuff, panels of a cap, or a plain band."""
    share = coordinates[:, 0]
    azimuth = torch.atan2(coordinates[:, 1], coordinates[:, 2])
    beanie = (accessories.hat == HATS.index("beanie")).float()
    cap = (accessories.hat == HATS.index("cap")).float()
    ribs = (azimuth * 18).cos()
    seams = smoothstep((azimuth * 3).sin().abs(), 0.10, 0.02) * smoothstep(share, 0.1, 0.2)
    cuff = smoothstep(share, 0.70, 0.74) * beanie
    visor = cap * (share > 1.2)
    color = mix(accessories.hat_color, accessories.hat_accent, (cuff + visor) * (accessories.hat_tilt > 0))
    color = color * (1 - 0.15 * visor)[:, None]
    shade = 1 + 0.07 * ribs * beanie * smoothstep(share, 0.15, 0.4) - 0.18 * seams * cap * (share < 1.2)
    surface = Surface.plain((color * shade[:, None]).clamp(0, 1), specular=0.03, gloss=8.0)
    surface.ambient = coordinates[:, 3] * (1 - 0.35 * torch.exp(-(((share - 0.69) / 0.025) ** 2)) * beanie)
    return surface


def paint_frame(accessories: Accessories) -> Surface:
    return Surface.plain(accessories.frame_color, specular=0.35, gloss=22.0)


def paint_clothes(coordinates: Tensor, body: Body, skin: Skin) -> Surface:
    """Cloth with broad stripes, and the bare chest in an open collar.

    Args:
        coordinates: (n, 4): share down the torso (0 to 1) or around the collar's rim (-2 to -1), sine and
            cosine of the azimuth, height in meters on the unposed body.
    """
    share, sine, cosine, height = coordinates.unbind(-1)
    collar = share < -0.5
    period = body.stripes.clamp(min=1e-3)
    stripe = smoothstep((height * 6.2832 / period).sin(), -0.15, 0.15) * (body.stripes > 0)
    color = mix(body.color, body.accent, stripe * ~collar)
    trim = torch.lerp(body.color * 0.86, body.accent, body.collar_accent[:, None])
    color = torch.where(collar[:, None], trim, color)
    # A shirt opens in a V, skin below it; a placket runs down from there.
    shirt = (body.collar == COLLARS.index("shirt")) & (cosine > 0) & ~collar
    width = sine.abs()
    skin_shown = shirt * smoothstep(width - 0.52 * (0.44 - share).clamp(min=0), 0.02, -0.01)
    color = mix(color, skin.tone, skin_shown)
    surface = Surface.plain(color, specular=0.02, gloss=6.0)
    surface.ambient = torch.where(
        collar, 0.45 + 0.55 * smoothstep(share, -1.9, -1.55), torch.ones_like(share)
    )
    surface.scatter = skin_shown
    return surface


def _blushed(chart: Tensor, front: Tensor, skin: Skin) -> Tensor:
    """Skin tone with rosy cheeks, nose and ears, and freckles: (n, 3)."""
    x, y, z = chart.unbind(-1)
    across = x.abs()
    cheeks = torch.exp(-(((across - 0.43) / 0.17) ** 2 + ((y - 1.03) / 0.13) ** 2)) * front
    nose = 0.6 * torch.exp(-((x / 0.14) ** 2 + ((y - 1.01) / 0.10) ** 2)) * (z > 1.42)
    ears = 0.7 * smoothstep(across, 0.72, 0.80) * ((y > 0.8) & (y < 1.5))
    rosy = torch.tensor([1.0, 0.60, 0.55], device=chart.device)
    tone = skin.tone * (1 + (rosy - 1) * ((cheeks + nose + ears) * skin.blush)[:, None] * 0.72)
    dots = ((x * 52).sin() * (y * 57 + x * 20).sin()) + 0.4 * (x * 31 + y * 40).sin()
    area = torch.exp(-(((across - 0.30) / 0.26) ** 2 + ((y - 1.07) / 0.11) ** 2)) * front
    return mix(
        tone,
        tone * torch.tensor([0.78, 0.62, 0.52], device=chart.device),
        smoothstep(dots, 0.85, 1.15) * area * skin.freckles,
    )


def _brows(across: Tensor, y: Tensor, front: Tensor, face_hair: FaceHair) -> Tensor:
    along = (across - 0.115) / 0.40
    inside = along.clamp(0, 1)
    middle = (
        face_hair.brow_height
        + face_hair.brow_arch * (inside * 2.6).sin()
        + face_hair.brow_tilt * (along - 0.5)
    )
    half = (
        face_hair.brow_thickness * (1.05 - 0.72 * inside**1.6) * (0.7 + 0.3 * smoothstep(along, -0.06, 0.12))
    )
    return (
        smoothstep((y - middle).abs(), half * 1.15, half * 0.80)
        * smoothstep(along, -0.05, 0.05)
        * smoothstep(along, 1.04, 0.96)
        * front
    )


def _eye_makeup(chart: Tensor, front: Tensor) -> tuple[Tensor, Tensor]:
    """Eyeshadow on the upper lid and the lash line at its rim: (n,) each."""
    x, y, z = chart.unbind(-1)
    dx = (x.abs() - EYE_CENTER[0]) / 0.150
    radius = torch.hypot(dx, (y - 1.365) / 0.105)
    shadow = smoothstep(radius, 1.25, 0.85) * smoothstep(y, 1.36, 1.40) * front
    rim = torch.hypot((x.abs() - EYE_CENTER[0]) / 0.120, (y - 1.36) / 0.054)
    lash = smoothstep(rim, 1.13, 1.04) * smoothstep(y, 1.352, 1.362) * (z > 1.1)
    return shadow, lash


def _scalp(chart: Tensor) -> Tensor:
    _, y, z = chart.unbind(-1)
    return smoothstep(y + 0.55 * (z - 1.2), 1.80, 1.84)
