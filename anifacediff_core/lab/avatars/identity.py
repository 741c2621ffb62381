"""What an avatar is made of. Everything here stays the same under any pose, expression and camera.

Lengths are meters on the average head, angles radians; hairlines are polar angles from the crown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anifacediff_core.head.model import HeadModel

from . import palettes
from .batch import Batch, Rng
from .material import Clutter, Mouth, Strands, Texture

SHAPE_SPREAD, SHAPE_LIMIT = 0.75, 2.0
LIGHT_SCALES = 5  # how many neighbors of the skin scale count as light

HAIR_STYLES = (
    "bald",
    "buzz",
    "crop",
    "side_part",
    "bob",
    "long",
    "wavy",
    "curly",
    "bun",
    "mohawk",
    "spiky",
    "bowl",
)
HAIR_WEIGHTS = (0.05, 0.07, 0.12, 0.13, 0.12, 0.11, 0.10, 0.10, 0.08, 0.04, 0.05, 0.03)
#                bald  buzz  crop  side  bob   long  wavy  curly bun   mohawk spiky bowl
HAIR_FRONT = (0.90, 1.10, 1.08, 1.10, 1.10, 1.10, 1.08, 1.04, 1.05, 1.06, 1.08, 1.30)
HAIR_SIDE = (1.20, 1.40, 1.42, 1.45, 1.70, 1.70, 1.70, 1.40, 1.42, 1.34, 1.42, 1.52)
HAIR_BACK = (1.50, 1.72, 1.74, 1.74, 1.78, 1.78, 1.78, 1.72, 1.72, 1.70, 1.72, 1.76)
HAIR_THICKNESS = (0.0, 0.0035, 0.0120, 0.0135, 0.0170, 0.0150, 0.0170, 0.0300, 0.0070, 0.0035, 0.0120, 0.0150)
HAIR_TOP = (0.0, 0.0, 0.0140, 0.0120, 0.0050, 0.0040, 0.0060, 0.0060, 0.0020, 0.0, 0.0060, 0.0050)
HAIR_GROOVES = (0.0, 0.0, 0.0030, 0.0028, 0.0026, 0.0026, 0.0034, 0.0, 0.0018, 0.0, 0.0040, 0.0026)
HAIR_FRINGE = (0.0, 0.0, 0.35, 0.30, 0.55, 0.40, 0.35, 0.10, 0.20, 0.0, 0.20, 0.0)

HATS = ("none", "beanie", "cap", "headband")
COLLARS = ("crew", "turtleneck", "hoodie", "shirt")
BACKDROPS = ("gradient", "vignette", "bokeh", "disc", "diagonal")
DISCS = 7


@dataclass(frozen=True)
class Skin(Batch):
    """Colors sRGB (batch, 3); strengths (batch,) in [0, 1]."""

    tone: Tensor
    lips: Tensor
    lip_strength: Tensor
    blush: Tensor
    freckles: Tensor
    eyeshadow: Tensor
    eyeshadow_strength: Tensor
    lash: Tensor


@dataclass(frozen=True)
class FaceHair(Batch):
    """Brows and beard. ``beard``, ``mustache``, ``goatee`` are strengths; ``stubble`` makes them thin."""

    brow: Tensor
    brow_thickness: Tensor
    brow_height: Tensor
    brow_arch: Tensor
    brow_tilt: Tensor
    color: Tensor
    beard: Tensor
    mustache: Tensor
    goatee: Tensor
    stubble: Tensor


@dataclass(frozen=True)
class Eyes(Batch):
    """Iris color (batch, 3), iris radius as an angle on the eyeball, pupil as a share of the iris; ``white``
    (batch, 3) a factor of the sclera's color.
    """

    iris: Tensor
    radius: Tensor
    pupil: Tensor
    white: Tensor


@dataclass(frozen=True)
class Hair(Batch):
    """The cap of hair around the skull; see :mod:`.hair`."""

    style: Tensor
    color: Tensor
    tip: Tensor
    front: Tensor
    side: Tensor
    back: Tensor
    thickness: Tensor
    top: Tensor
    fringe: Tensor
    part: Tensor
    length: Tensor
    grooves: Tensor
    count: Tensor
    sweep: Tensor
    wave: Tensor
    phase: Tensor
    bun: Tensor
    bun_pair: Tensor
    bun_height: Tensor


@dataclass(frozen=True)
class Accessories(Batch):
    """Hat (index into ``HATS``) and glasses."""

    hat: Tensor
    hat_color: Tensor
    hat_accent: Tensor
    hat_tilt: Tensor
    glasses: Tensor
    frame_color: Tensor
    frame_width: Tensor
    frame_height: Tensor
    frame_squareness: Tensor
    frame_thickness: Tensor


@dataclass(frozen=True)
class Body(Batch):
    """Clothes. ``collar`` indexes ``COLLARS``; ``stripes`` is the stripe period in meters, 0 for none."""

    width: Tensor
    collar: Tensor
    color: Tensor
    accent: Tensor
    stripes: Tensor
    collar_accent: Tensor


@dataclass(frozen=True)
class Backdrop(Batch):
    """``kind`` indexes ``BACKDROPS``; ``discs`` (batch, DISCS, 4): x, y, radius in half frames, strength."""

    kind: Tensor
    light: Tensor
    deep: Tensor
    accent: Tensor
    angle: Tensor
    discs: Tensor


@dataclass(frozen=True)
class Light(Batch):
    """Key light direction (batch, 3) towards the light; colors linear; ``toon`` 0 soft .. 1 banded; ``catch``
    strength of its reflection in the eyes.
    """

    key: Tensor
    key_color: Tensor
    fill_color: Tensor
    rim: Tensor
    toon: Tensor
    bands: Tensor
    outline: Tensor
    catch: Tensor


@dataclass(frozen=True)
class Identity(Batch):
    """A batch of avatars; ``shape`` (batch, shapes) is β of the head.

    ``rest`` (batch, expressions) is how a face looks while it does nothing (narrow lids): no part of ψ.
    """

    shape: Tensor
    rest: Tensor
    skin: Skin
    face_hair: FaceHair
    eyes: Eyes
    hair: Hair
    accessories: Accessories
    body: Body
    backdrop: Backdrop
    light: Light
    mouth: Mouth
    texture: Texture
    clutter: Clutter
    foreground: Clutter
    strands: Strands

    @classmethod
    def random(
        cls, count: int, generator: torch.Generator, head: HeadModel, device: torch.device | str | None = None
    ) -> Identity:
        """Draw avatars; the same seed gives the same avatars.

        Args:
            count: how many.
            generator: the source of all randomness.
            head: the head model that they will wear.
            device: of the result; default the generator's.
        """
        rng = Rng(count, generator, device)
        shape = rng.normal(head.n_shape).clamp(-SHAPE_LIMIT, SHAPE_LIMIT) * SHAPE_SPREAD
        scheme = palettes.SCHEMES.to(rng.device)[rng.choose([1.0] * len(palettes.SCHEMES))]
        masculine = rng.uniform(0, 1)
        skin = _skin(rng, masculine)
        accessories = _accessories(rng, scheme)
        hair = _hair(rng, scheme, masculine, accessories)
        return cls(
            shape=shape,
            rest=torch.zeros(count, head.n_expression, device=rng.device),
            skin=skin,
            face_hair=_face_hair(rng, hair, masculine),
            eyes=Eyes(
                _vary(rng, rng.pick(palettes.IRIS), 0.06),
                rng.uniform(0.57, 0.67),
                rng.uniform(0.34, 0.44),
                torch.ones(count, 3, device=rng.device),
            ),
            hair=hair,
            accessories=accessories,
            body=_body(rng, scheme),
            backdrop=_backdrop(rng, scheme),
            light=_light(rng, scheme),
            mouth=Mouth(torch.ones(count, 3, device=rng.device), torch.zeros(count, device=rng.device)),
            texture=Texture.none(count, rng.device),
            clutter=Clutter.none(count, rng.device),
            foreground=Clutter.none(count, rng.device),
            strands=Strands.none(count, rng.device),
        )


def _vary(rng: Rng, color: Tensor, spread: float) -> Tensor:
    return (color * (1 + rng.normal(3) * spread)).clamp(0.02, 1)


def _skin(rng: Rng, masculine: Tensor) -> Skin:
    scale = palettes.SKIN.to(rng.device)
    position = rng.uniform(0, len(scale) - 1.001)
    lower = position.long()
    tone = torch.lerp(scale[lower], scale[lower + 1], (position - lower)[:, None])
    made_up = masculine < 0.5
    return Skin(
        tone=_vary(rng, tone, 0.015),
        lips=rng.pick(palettes.LIPS),
        lip_strength=torch.where(made_up, rng.uniform(0.45, 0.95), rng.uniform(0.25, 0.5)),
        blush=rng.uniform(0.25, 0.8),
        freckles=rng.chance(0.2) * rng.uniform(0.5, 1.0) * (position < LIGHT_SCALES),
        eyeshadow=rng.pick(palettes.EYESHADOW),
        eyeshadow_strength=made_up * rng.chance(0.5) * rng.uniform(0.2, 0.55),
        lash=torch.where(made_up, rng.uniform(0.8, 1.0), rng.uniform(0.45, 0.75)),
    )


def _hair(rng: Rng, scheme: Tensor, masculine: Tensor, accessories: Accessories) -> Hair:
    weights = torch.tensor(HAIR_WEIGHTS, device=rng.device).expand(rng.count, -1).clone()
    long_styles = [HAIR_STYLES.index(name) for name in ("bob", "long", "wavy", "bun")]
    short_styles = [HAIR_STYLES.index(name) for name in ("bald", "buzz", "crop")]
    weights[:, long_styles] *= (1.6 - 1.3 * masculine)[:, None]
    weights[:, short_styles] *= (0.25 + 1.5 * masculine)[:, None]
    # Nothing tall fits under a hat.
    tall = [HAIR_STYLES.index(name) for name in ("curly", "bun", "mohawk", "spiky")]
    covered = (accessories.hat == HATS.index("beanie")) | (accessories.hat == HATS.index("cap"))
    weights[:, tall] *= (~covered)[:, None]
    mohawk_like = [HAIR_STYLES.index(name) for name in ("bald", "buzz", "mohawk")]
    weights[:, mohawk_like] *= (accessories.hat != HATS.index("headband"))[:, None]
    style = rng.choose(weights)

    def of_style(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=rng.device)[style]

    def is_style(*names: str) -> Tensor:
        return torch.stack([style == HAIR_STYLES.index(name) for name in names]).any(0)

    dyed = rng.chance(0.22)[:, None]
    color = _vary(rng, torch.where(dyed, scheme[:, 4], rng.pick(palettes.NATURAL_HAIR)), 0.05)
    length = is_style("bob") * rng.uniform(0.015, 0.055) + is_style("long") * rng.uniform(0.09, 0.17)
    length = length + is_style("wavy") * rng.uniform(0.08, 0.16)
    return Hair(
        style=style,
        color=color,
        tip=(color * rng.uniform(1.08, 1.4, 1)).clamp(0, 1),
        front=of_style(HAIR_FRONT) + rng.uniform(-0.05, 0.05),
        side=of_style(HAIR_SIDE) + rng.uniform(-0.04, 0.04),
        back=of_style(HAIR_BACK),
        thickness=of_style(HAIR_THICKNESS) * rng.uniform(0.85, 1.2),
        top=of_style(HAIR_TOP) * rng.uniform(0.5, 1.3),
        fringe=(rng.uniform(0, 1) < of_style(HAIR_FRINGE)) * rng.uniform(0.12, 0.30),
        part=rng.uniform(0.35, 0.8) * torch.where(rng.chance(0.5), 1.0, -1.0),
        length=length,
        grooves=of_style(HAIR_GROOVES) * rng.uniform(0.7, 1.2),
        count=rng.uniform(8, 13).round(),
        sweep=rng.uniform(-0.7, 0.7),
        wave=is_style("wavy") * rng.uniform(0.006, 0.010),
        phase=rng.uniform(0, 2 * math.pi, 4),
        bun=is_style("bun") * rng.uniform(0.031, 0.041),
        bun_pair=rng.chance(0.4).float(),
        bun_height=rng.uniform(0.2, 0.8),
    )


def _face_hair(rng: Rng, hair: Hair, masculine: Tensor) -> FaceHair:
    grows = (masculine > 0.5) & rng.chance(0.5) & (hair.length == 0)
    kind = rng.choose([0.4, 0.2, 0.25, 0.15])  # full beard, mustache, goatee, stubble
    full, stubble = (kind == 0) | (kind == 3), (kind == 3).float()
    strength = rng.uniform(0.85, 1.0)
    return FaceHair(
        brow=(hair.color * rng.uniform(0.45, 0.75, 1)).clamp(0.05, 0.75),
        brow_thickness=rng.uniform(0.034, 0.052) + 0.012 * masculine,
        brow_height=rng.uniform(1.58, 1.635),
        brow_arch=rng.uniform(0.03, 0.09),
        brow_tilt=rng.uniform(-0.11, 0.01),
        color=hair.color * 0.85,
        beard=grows * full * strength,
        mustache=grows * (full | (kind == 1) | (kind == 2) & rng.chance(0.6)) * strength,
        goatee=grows * (full | (kind == 2)) * strength,
        stubble=stubble,
    )


def _accessories(rng: Rng, scheme: Tensor) -> Accessories:
    own_color = rng.chance(0.5)[:, None]
    return Accessories(
        hat=rng.choose([0.80, 0.08, 0.07, 0.05]),
        hat_color=torch.where(own_color, scheme[:, 2], scheme[:, 3]),
        hat_accent=torch.where(own_color, scheme[:, 4], scheme[:, 2]),
        hat_tilt=rng.uniform(-0.05, 0.06),
        glasses=rng.chance(0.25).float(),
        frame_color=torch.where(rng.chance(0.65)[:, None], rng.pick(palettes.FRAMES), scheme[:, 2] * 0.8),
        frame_width=rng.uniform(0.0245, 0.0275),
        frame_height=rng.uniform(0.0185, 0.0225),
        frame_squareness=rng.uniform(2.0, 3.6),
        frame_thickness=rng.uniform(0.0026, 0.0036),
    )


def _body(rng: Rng, scheme: Tensor) -> Body:
    swapped = rng.chance(0.3)[:, None]
    return Body(
        width=rng.uniform(0.88, 1.12),
        collar=rng.choose([0.35, 0.2, 0.25, 0.2]),
        color=_vary(rng, torch.where(swapped, scheme[:, 3], scheme[:, 2]), 0.03),
        accent=torch.where(swapped, scheme[:, 2], scheme[:, 3]),
        stripes=rng.chance(0.25) * rng.uniform(0.026, 0.045),
        collar_accent=rng.chance(0.4).float(),
    )


def _backdrop(rng: Rng, scheme: Tensor) -> Backdrop:
    flipped = rng.chance(0.3)[:, None]
    discs = torch.stack(
        [
            rng.uniform(-1.1, 1.1, DISCS),
            rng.uniform(-1.1, 0.9, DISCS),
            rng.uniform(0.12, 0.34, DISCS),
            rng.uniform(0.25, 0.7, DISCS),
        ],
        dim=-1,
    )
    return Backdrop(
        kind=rng.choose([0.25, 0.25, 0.2, 0.18, 0.12]),
        light=torch.where(flipped, scheme[:, 1], scheme[:, 0]),
        deep=torch.where(flipped, scheme[:, 0], scheme[:, 1]),
        accent=scheme[:, 3],
        angle=rng.uniform(0, 2 * math.pi),
        discs=discs,
    )


def _light(rng: Rng, scheme: Tensor) -> Light:
    across = rng.uniform(0.35, 0.95) * torch.where(rng.chance(0.5), 1.0, -1.0)
    up = rng.uniform(0.35, 0.8)
    key = torch.stack([across.sin() * up.cos(), up.sin(), across.cos() * up.cos()], dim=1)
    warmth = rng.uniform(-0.4, 1.0, 1)
    white = torch.ones(1, 3, device=rng.device)
    key_color = (white + warmth * torch.tensor([0.05, 0.0, -0.08], device=rng.device)) * rng.uniform(
        0.88, 1.05, 1
    )
    # The set bounces its color into the shadows.
    bounce = scheme[:, 0] / scheme[:, 0].mean(1, keepdim=True)
    fill_color = torch.lerp(
        torch.tensor([0.94, 0.98, 1.08], device=rng.device).expand_as(bounce), bounce, 0.4
    )
    toon = torch.where(rng.chance(0.35), rng.uniform(0.6, 1.0), rng.chance(0.3) * rng.uniform(0.1, 0.5))
    return Light(
        key=key,
        key_color=key_color,
        fill_color=fill_color * rng.uniform(0.46, 0.58, 1),
        rim=rng.uniform(0.15, 0.6),
        toon=toon,
        bands=rng.choose([0.6, 0.4]).float() + 2,
        outline=(toon > 0.55) * rng.chance(0.7) * rng.uniform(0.6, 0.95),
        catch=torch.ones(rng.count, device=rng.device),
    )
