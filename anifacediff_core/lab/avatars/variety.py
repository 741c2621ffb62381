"""Avatars for training beyond the gallery's looks: everything that makes one unlike the others, drawn wide.

A network that learns from the gallery alone turns a photograph into a figure of the gallery. What it needs is
not realism but variety around it: textures, proportions, light, rooms, and faces that rest in their own way.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters

from .batch import Rng
from .identity import HAIR_STYLES, Identity
from .material import LEAF, LEAVES, STRANDS, WAVES, Clutter, Mouth, Strands, Texture
from .poses import SCALE
from .texture import directions

WIDER = 0.8  # proportions reach up to 1.8 times as far as the gallery's
RESTING: dict[tuple[str, ...], tuple[float, float]] = {  # probability, strongest
    ("eyeBlinkLeft", "eyeBlinkRight"): (0.6, 0.5),
    ("eyeSquintLeft", "eyeSquintRight"): (0.4, 0.7),
    ("eyeWideLeft", "eyeWideRight"): (0.1, 0.4),
    ("browDownLeft", "browDownRight"): (0.25, 0.6),
    ("browInnerUp",): (0.2, 0.5),
    ("browOuterUpLeft", "browOuterUpRight"): (0.2, 0.5),
    ("mouthSmileLeft", "mouthSmileRight"): (0.2, 0.3),
    ("mouthFrownLeft", "mouthFrownRight"): (0.25, 0.4),
    ("mouthStretchLeft", "mouthStretchRight"): (0.15, 0.4),
    ("mouthPressLeft", "mouthPressRight"): (0.2, 0.4),
    ("mouthPucker",): (0.15, 0.3),
    ("mouthShrugLower",): (0.15, 0.3),
    ("jawForward",): (0.2, 0.6),
    ("cheekPuff",): (0.2, 0.4),
    ("cheekSquintLeft", "cheekSquintRight"): (0.2, 0.5),
    ("noseSneerLeft", "noseSneerRight"): (0.15, 0.4),
}
FAR, NEAR = 0.5, 1.2  # times the scale of the gallery's camera
HALF_HEAD = 0.11  # meters from its center that a head needs in the picture
YAW, PITCH, ROLL = 0.6, 0.35, 0.35  # radians that a turned head may add


def widen(identity: Identity, share: float, generator: torch.Generator, head: HeadModel) -> Identity:
    """Give about `share` of the avatars a look far from the gallery's; the others stay as they are."""
    rng = Rng(len(identity), generator, identity.device)
    wide = rng.chance(share).float()
    # In this order: the avatars of a seed follow from that of the draws.
    shape = identity.shape * (1 + wide * rng.chance(0.6) * rng.uniform(0, WIDER))[:, None]
    rest = _rest(rng, head.expression_names) * wide[:, None]
    return replace(
        _lit(rng, _made_up(rng, identity, wide), wide),
        shape=shape,
        rest=rest,
        texture=_texture(rng, wide),
        clutter=_clutter(rng, wide),
        foreground=_foreground(rng, wide),
        strands=_strands(rng, wide * (identity.hair.style != HAIR_STYLES.index("bald"))),
    )


def wander(
    motion: FaceParameters, frames: int, share: float, generator: torch.Generator, head: HeadModel
) -> FaceParameters:
    """Move and turn about `share` of the avatars (identity-major, `frames` of each) all over the picture.

    Their mouths are wide open and show teeth more often.
    """
    avatars = Rng(len(motion) // frames, generator, motion.camera.device)
    rng = Rng(len(motion), generator, motion.camera.device)
    wide = avatars.chance(share)
    base = torch.exp(avatars.uniform(math.log(FAR), math.log(NEAR)))
    place = avatars.uniform(-1, 1, 2)
    zoom = 0.08 * rng.normal() + rng.chance(0.3) * rng.uniform(-0.6, 0.6)
    scale = SCALE * (base.repeat_interleave(frames) * zoom.exp()).clamp(FAR, NEAR)
    room = (1 / scale - HALF_HEAD).clamp(min=0.02)[:, None]
    where = (place.repeat_interleave(frames, 0) + 0.35 * rng.normal(2)).clamp(-1, 1) * room
    where[:, 1] = 0.7 * where[:, 1] - 0.017
    camera = torch.cat([scale[:, None], where], 1)
    turned = rng.chance(0.35)[:, None] * rng.uniform(-1, 1, 3)
    turn = turned * torch.tensor([PITCH, YAW, ROLL], device=camera.device)
    pose = motion.pose.clone()
    pose[:, 3:6] = pose[:, 3:6] + turn
    chosen = wide.repeat_interleave(frames)[:, None]
    expression = torch.maximum(motion.expression, _mouths(rng, head.expression_names) * chosen)
    return replace(
        motion,
        expression=expression,
        camera=torch.where(chosen, camera, motion.camera),
        pose=torch.where(chosen, pose, motion.pose),
    )


def _mouths(rng: Rng, names: list[str]) -> Tensor:
    """(rows, expressions): smiles that show teeth, and open mouths; nothing for most rows."""
    actions = torch.zeros(rng.count, len(names), device=rng.device)
    smile, wide = rng.chance(0.22), rng.chance(0.18)
    ranges: dict[tuple[str, ...], tuple[Tensor, float, float]] = {
        ("mouthSmileLeft", "mouthSmileRight"): (smile, 0.4, 1.0),
        ("mouthUpperUpLeft", "mouthUpperUpRight"): (smile, 0.1, 0.8),
        ("mouthLowerDownLeft", "mouthLowerDownRight"): (smile, 0.0, 0.8),
        ("mouthStretchLeft", "mouthStretchRight"): (smile & rng.chance(0.4), 0.0, 0.6),
        ("cheekSquintLeft", "cheekSquintRight"): (smile, 0.2, 0.8),
        ("jawOpen",): (smile | wide, 0.0, 1.0),
    }
    for group, (shown, low, high) in ranges.items():
        amount = shown * rng.uniform(low, high)
        for action in group:
            actions[:, names.index(action)] = amount
    jaw = names.index("jawOpen")
    actions[:, jaw] = torch.where(smile, 0.4, 1.0) * actions[:, jaw]
    return actions


def _rest(rng: Rng, names: list[str]) -> Tensor:
    rest = torch.zeros(rng.count, len(names), device=rng.device)
    for actions, (probability, strongest) in RESTING.items():
        amount = rng.chance(probability) * rng.uniform(0, strongest)
        for action in actions:
            rest[:, names.index(action)] = amount
    return rest


def _made_up(rng: Rng, identity: Identity, wide: Tensor) -> Identity:
    """Skin, brows, eyes and mouth from bare to painted."""
    skin, hair, eyes, glasses = identity.skin, identity.face_hair, identity.eyes, identity.accessories
    on = wide[:, None]
    bare = torch.tensor([1.0, 0.78, 0.76], device=on.device)
    lips = torch.lerp(skin.lips, skin.tone * bare, on * rng.uniform(0, 1, 1))
    brow = torch.lerp(hair.brow, skin.tone * 0.8, on * rng.uniform(0, 0.7, 1))
    dark = rng.chance(0.4)[:, None] * on
    natural = rng.uniform(0.02, 0.4, 1) * (1 + 0.3 * rng.normal(3)).clamp(0.4, 1.6)
    iris = torch.where(rng.chance(0.4)[:, None] & (on > 0), natural, eyes.iris)
    white = rng.uniform(0.5, 1.0, 1) * torch.cat([rng.uniform(0.95, 1, 1), rng.uniform(0.85, 1, 2)], 1)
    tooth = torch.stack([torch.ones_like(wide), rng.uniform(0.88, 1), rng.uniform(0.65, 1)], 1)
    tooth = tooth * rng.uniform(0.55, 1.0, 1)

    def scaled(values: Tensor, low: float, high: float) -> Tensor:
        return values * torch.lerp(torch.ones_like(wide), rng.uniform(low, high), wide)

    return replace(
        identity,
        skin=replace(
            skin,
            lips=lips,
            lip_strength=scaled(skin.lip_strength, 0.1, 1.1).clamp(0, 1),
            blush=scaled(skin.blush, 0, 1.1).clamp(0, 1),
            lash=scaled(skin.lash, 0.2, 1.0),
        ),
        face_hair=replace(
            hair,
            brow=brow,
            brow_thickness=scaled(hair.brow_thickness, 0.5, 1.3),
            brow_tilt=hair.brow_tilt + wide * rng.uniform(-0.08, 0.08),
        ),
        eyes=replace(
            eyes,
            iris=torch.lerp(iris, iris * rng.uniform(0.2, 0.6, 1), dark),
            radius=scaled(eyes.radius, 0.75, 1.15),
            pupil=scaled(eyes.pupil, 0.6, 1.6),
            white=torch.lerp(torch.ones_like(white), white, on),
        ),
        accessories=replace(glasses, frame_thickness=scaled(glasses.frame_thickness, 0.35, 1.3)),
        mouth=Mouth(torch.lerp(torch.ones_like(tooth), tooth, on), rng.uniform(0, 0.5) * wide),
    )


def _lit(rng: Rng, identity: Identity, wide: Tensor) -> Identity:
    """Light from anywhere in front, hard or soft, of any color; flat drawings stay among them."""
    light = identity.light
    across, up = rng.uniform(-1.4, 1.4), rng.uniform(-0.3, 1.2)
    key = torch.stack([across.sin() * up.cos(), up.sin(), across.cos() * up.cos()], 1)
    color = (1 + 0.18 * rng.normal(3)).clamp(0.4, 1.6)
    photographic = rng.chance(0.75) * wide
    balance = rng.uniform(0, 1, 1)  # all from the sky, or all from the key light

    def blend(first: Tensor, second: Tensor) -> Tensor:
        return torch.lerp(first, second, wide.view(-1, *[1] * (first.dim() - 1)))

    return replace(
        identity,
        light=replace(
            light,
            key=torch.where(wide[:, None] > 0, key, light.key),
            key_color=blend(light.key_color, color * (0.25 + 1.0 * balance)),
            fill_color=blend(
                light.fill_color, (1.05 - 0.75 * balance) * (1 + 0.12 * rng.normal(3)).clamp(0.5, 1.5)
            ),
            rim=light.rim * (1 - wide * rng.uniform(0.3, 1)),
            toon=light.toon * (1 - photographic),
            outline=light.outline * (1 - photographic),
            catch=blend(light.catch, rng.uniform(-0.4, 1.2).clamp(0, 1)),
        ),
    )


def _texture(rng: Rng, wide: Tensor) -> Texture:
    frequency = directions(wide.device).norm(dim=-1)
    amplitude = frequency ** -rng.uniform(0.1, 1.4, 1) * rng.uniform(-1, 1, WAVES)
    amplitude = amplitude / amplitude.norm(dim=1, keepdim=True)
    return Texture(
        phase=rng.uniform(0, 2 * math.pi, WAVES),
        amplitude=amplitude * wide[:, None],
        tint=rng.uniform(0.6, 1.4, 3),
        skin=0.4 * rng.uniform(0, 1) ** 2,
        spots=0.5 * rng.uniform(0, 1) ** 2,
        hair=0.9 * rng.uniform(0, 1),
        stretch=0.05 + rng.uniform(0, 1) ** 3,
        cloth=0.6 * rng.uniform(0, 1) ** 2,
        shine=torch.lerp(torch.ones_like(wide), rng.uniform(0.1, 2.6), wide),
        wrinkles=rng.chance(0.6) * rng.uniform(0.1, 1) * wide,
    )


def _clutter(rng: Rng, wide: Tensor) -> Clutter:
    """Dead leaves: sizes by a power law, in front of each other, up to the frame's own size."""
    small = rng.uniform(0, 1, LEAVES) ** 2
    size = 0.04 + 0.6 * small
    shown = (rng.uniform(0, 1, LEAVES) < rng.uniform(0, 1, 1) ** 1.5) * rng.chance(0.75)[:, None]
    square = torch.where(rng.uniform(0, 1, LEAVES) < 0.5, 2.0, rng.uniform(4, 16, LEAVES))
    tilted = rng.chance(0.4)[:, None] * rng.uniform(0, math.pi, LEAVES)
    gray = rng.uniform(0, 1, LEAVES)[..., None].expand(-1, -1, 3)
    color = torch.lerp(gray, rng.uniform(0, 1, LEAVES, 3), rng.uniform(0, 1, 1, 1)) ** 2
    shape = [rng.uniform(-1.1, 1.1, LEAVES), rng.uniform(-1.1, 1.1, LEAVES)]
    shape += [size * rng.uniform(0.4, 1.6, LEAVES), size * rng.uniform(0.4, 1.6, LEAVES), tilted]
    leaves = torch.cat([torch.stack([*shape, square * shown * wide[:, None]], -1), color], -1)
    order = small.argsort(dim=1, descending=True)  # the large ones behind
    return Clutter(
        waves=1.4 * rng.uniform(0, 1) ** 1.5 * wide,
        wave=torch.cat([rng.uniform(0, 2 * math.pi, WAVES, 2), rng.uniform(-0.5, 0.5, WAVES, 3)], dim=-1),
        leaves=leaves.gather(1, order[..., None].expand_as(leaves)),
        blur=rng.chance(0.4) * rng.uniform(0.5, 1),
    )


def _foreground(rng: Rng, wide: Tensor) -> Clutter:
    """Hardly ever more than one thing in front, of a hand's or a microphone's size, mostly low."""
    count = 2
    shown = (rng.uniform(0, 1, count) < 0.5) * (rng.chance(0.2) * wide)[:, None]
    size, angle = rng.uniform(0.06, 0.4, count), rng.uniform(0, math.pi, count)
    square = torch.where(rng.uniform(0, 1, count) < 0.6, 2.0, 5.0) * shown
    place = [rng.uniform(-1, 1, count), rng.uniform(-0.3, 1.1, count)]
    shape = [*place, size, size * rng.uniform(0.2, 1, count), angle, square]
    color = rng.uniform(0, 0.8, count, 3) ** 2
    leaves = torch.cat([torch.stack(shape, -1), color], -1)
    assert leaves.shape[-1] == LEAF
    return replace(Clutter.none(len(wide), wide.device), leaves=leaves)


def _strands(rng: Rng, wide: Tensor) -> Strands:
    """Locks of a few strands: fringes over the forehead, hair that hangs at the sides or stands off."""
    locks = 24
    amount = (rng.chance(0.7) * wide)[:, None] * rng.uniform(0.2, 1, 1)
    kind = rng.uniform(0, 1, locks)
    fringe = kind < rng.uniform(0, 0.5, 1)
    loose = ~fringe & (kind > rng.uniform(0.6, 1, 1))

    def of(in_fringe: Tensor | float, is_loose: Tensor | float, hanging: Tensor | float) -> Tensor:
        return torch.where(fringe, in_fringe, torch.where(loose, is_loose, hanging))

    def each(values: Tensor, spread: float) -> Tensor:
        return values.repeat_interleave(STRANDS // locks, 1) + spread * rng.normal(STRANDS)

    side = torch.where(rng.uniform(0, 1, locks) < 0.5, -1.0, 1.0)
    azimuth = of(
        rng.uniform(-0.9, 0.9, locks),
        rng.uniform(-math.pi, math.pi, locks),
        side * rng.uniform(0.9, 2.6, locks),
    )
    polar = of(rng.uniform(0.7, 1.2, locks), rng.uniform(0.1, 1.5, locks), rng.uniform(0.9, 1.6, locks))
    long = rng.uniform(0.05, 0.3, 1)
    length = of(
        rng.uniform(0.03, 0.1, locks), rng.uniform(0.02, 0.08, locks), long * rng.uniform(0.5, 1, locks)
    )
    lean = of(rng.uniform(0, 0.5, locks), rng.uniform(0.5, 2.5, locks), rng.uniform(0, 0.5, locks))
    curl = rng.chance(0.6)[:, None] * rng.uniform(0, 0.018, 1)
    shown = (rng.uniform(0, 1, STRANDS) < amount).float()
    return Strands(
        polar=each(polar, 0.03),
        azimuth=each(azimuth, 0.03),
        length=(each(length, 0.006) * shown).clamp(min=0),
        lean=each(lean, 0.08),
        spread=each(rng.uniform(-0.6, 0.6, locks), 0.1),
        fall=each(of(0.4, 0.3, 0.9), 0.1),
        curl=each(curl.expand(-1, locks), 0.002),
        waves=each(rng.uniform(2, 18, 1).expand(-1, locks), 0.5),
        phase=each(rng.uniform(0, 2 * math.pi, locks), 0.4),
        light=rng.uniform(0, 1, STRANDS),
        shade=rng.uniform(0.6, 1.25, STRANDS),
        thick=(rng.uniform(0, 1, STRANDS) < rng.uniform(0, 1, 1)).float(),
    )
