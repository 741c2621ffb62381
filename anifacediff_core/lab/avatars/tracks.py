"""Motion that looks like a person: talking, smiling, laughing, looking around, blinking, turning the head.

Everything is a sum of short gestures placed in time: syllables, moods, fixations, blinks, turns. Each has the
form of the real movement (raised cosines for the lips, minimum-jerk profiles for head and eyes, a blink that
closes faster than it opens), so that speed and rest are distributed as in a person, not as in noise.

Times are in seconds from the clip's first frame; gestures also begin before it. Axes of the tensors here:
(clips, gestures), and (clips, frames) or (clips, frames, expressions) once evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.gaze import GAZE_PITCH, GAZE_YAW, gaze_pose, write_gaze
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.curves import (
    Draw,
    Table,
    blink,
    columns,
    minimum_jerk,
    soft_limit,
    steps,
    sway,
    table,
)

from .poses import PITCH, ROLL, SCALE, SCALE_SPREAD, SHIFT_Y, YAW, random_frames
from .talk import Speech, articulate, random_speech

__all__ = ["Performance", "Speech", "perform", "random_frames", "random_tracks", "track"]

LEAD = 3.0  # seconds before the clip in which gestures may begin


class Mood(NamedTuple):
    """A gesture of the face: relative frequency, seconds held (from, to), seconds to rise, pitch and roll of
    the head in radians, coefficients at full strength; a name without a side stands for both."""

    often: float
    held: tuple[float, float]
    rise: float
    tilt: tuple[float, float]
    face: Table


MOODS: dict[str, Mood] = {
    "smile": Mood(1.5, (0.6, 3.0), 0.4, (-0.01, 0.03), {
        "mouthSmile": 0.7, "cheekSquint": 0.45, "eyeSquint": 0.28, "mouthDimple": 0.2}),
    "grin": Mood(1.1, (0.5, 2.0), 0.32, (-0.02, 0.03), {
        "mouthSmile": 0.8, "cheekSquint": 0.55, "eyeSquint": 0.36, "mouthUpperUp": 0.28,
        "mouthLowerDown": 0.2, "jawOpen": 0.12}),
    "laugh": Mood(1.1, (0.7, 2.2), 0.28, (-0.12, 0.04), {
        "mouthSmile": 0.88, "cheekSquint": 0.75, "eyeSquint": 0.6, "mouthUpperUp": 0.32,
        "mouthLowerDown": 0.24, "jawOpen": 0.3, "noseSneer": 0.14, "browInnerUp": 0.12,
        "mouthStretch": 0.12}),
    "surprise": Mood(1.0, (0.3, 1.2), 0.16, (-0.05, 0.0), {
        "browInnerUp": 0.85, "browOuterUp": 0.72, "eyeWide": 0.75, "jawOpen": 0.3, "mouthFunnel": 0.16}),
    "frown": Mood(1.0, (0.5, 1.8), 0.3, (0.04, 0.02), {
        "browDown": 0.78, "eyeSquint": 0.28, "mouthFrown": 0.32, "mouthPress": 0.34, "noseSneer": 0.1}),
    "sad": Mood(0.8, (0.6, 2.0), 0.45, (0.07, 0.04), {
        "browInnerUp": 0.72, "mouthFrown": 0.68, "mouthShrugLower": 0.36,
        "eyeSquint": 0.14, "eyeBlink": 0.14}),
    "disgust": Mood(0.6, (0.3, 1.0), 0.25, (-0.03, 0.04), {
        "noseSneer": 0.78, "mouthUpperUp": 0.46, "browDown": 0.42, "cheekSquint": 0.34, "mouthFrown": 0.22}),
    "doubt left": Mood(0.5, (0.5, 1.6), 0.28, (0.0, 0.07), {
        "browOuterUpLeft": 0.75, "browDownRight": 0.52, "eyeSquintRight": 0.3, "mouthLeft": 0.36,
        "mouthSmileLeft": 0.2}),
    "doubt right": Mood(0.5, (0.5, 1.6), 0.28, (0.0, 0.07), {
        "browOuterUpRight": 0.75, "browDownLeft": 0.52, "eyeSquintLeft": 0.3, "mouthRight": 0.36,
        "mouthSmileRight": 0.2}),
    "press": Mood(0.7, (0.3, 1.0), 0.22, (0.03, 0.0), {
        "mouthPress": 0.58, "mouthRollLower": 0.45, "mouthRollUpper": 0.42, "mouthDimple": 0.24}),
    "puff": Mood(0.35, (0.3, 0.8), 0.25, (-0.01, 0.02), {
        "cheekPuff": 0.8, "mouthPucker": 0.22, "browInnerUp": 0.15}),
    "kiss": Mood(0.35, (0.2, 0.7), 0.22, (-0.02, 0.05), {
        "mouthPucker": 0.85, "mouthFunnel": 0.18, "eyeSquint": 0.2}),
    "chew left": Mood(0.25, (0.2, 0.6), 0.22, (0.0, 0.03), {
        "jawLeft": 0.6, "jawOpen": 0.16, "mouthLeft": 0.22}),
    "chew right": Mood(0.25, (0.2, 0.6), 0.22, (0.0, 0.03), {
        "jawRight": 0.6, "jawOpen": 0.16, "mouthRight": 0.22}),
    "defiance": Mood(0.35, (0.4, 1.2), 0.26, (-0.06, 0.0), {
        "jawForward": 0.68, "mouthShrugLower": 0.34, "browDown": 0.3, "mouthPress": 0.2}),
    "shrug": Mood(0.6, (0.3, 0.9), 0.22, (-0.02, 0.06), {
        "mouthShrugUpper": 0.45, "mouthShrugLower": 0.55, "browInnerUp": 0.42, "browOuterUp": 0.36,
        "mouthFrown": 0.34}),
    "tongue": Mood(0.2, (0.3, 0.7), 0.22, (0.0, 0.05), {
        "tongueOut": 0.75, "jawOpen": 0.38, "mouthSmile": 0.34}),
    "wink left": Mood(0.2, (0.12, 0.35), 0.12, (0.0, 0.05), {
        "eyeBlinkLeft": 0.97, "cheekSquintLeft": 0.62, "mouthSmile": 0.36, "browDownLeft": 0.25}),
    "wink right": Mood(0.2, (0.12, 0.35), 0.12, (0.0, 0.05), {
        "eyeBlinkRight": 0.97, "cheekSquintRight": 0.62, "mouthSmile": 0.36, "browDownRight": 0.25}),
}  # fmt: skip
NO_MOOD_WEIGHT = 5.0


@dataclass(frozen=True)
class Performance:
    """A track together with what the voice needs to know of it.

    Attributes:
        params: (clips * frames), clip-major.
        speech: the syllables.
        laugh: (clips, frames) in [0, 1].
        fps: frame rate.
    """

    params: FaceParameters
    speech: Speech
    laugh: Tensor
    fps: float


def random_tracks(
    clips: int, frames: int, fps: float, generator: torch.Generator, head: HeadModel
) -> FaceParameters:
    """Motion of ``clips`` different people.

    Args:
        clips: number of clips.
        frames: frames of each.
        fps: frame rate in Hz.
        generator: decides everything; the result lies on its device.
        head: a head with ARKit's expressions.

    Returns:
        (clips * frames), clip-major; β is 0, the eyes follow the gaze.
    """
    return perform(clips, frames, fps, generator, head).params


def track(frames: int, fps: float, generator: torch.Generator, head: HeadModel) -> FaceParameters:
    """Motion of one person; as :func:`random_tracks` with one clip."""
    return random_tracks(1, frames, fps, generator, head)


def perform(
    clips: int,
    frames: int,
    fps: float,
    generator: torch.Generator,
    head: HeadModel,
    talking: float = 0.62,
    moods: float = 1.0,
) -> Performance:
    """Tracks with their speech, see :func:`random_tracks`.

    Args:
        talking: share of the clips in which the person talks.
        moods: how much of the other facial expressions to show, 0 for none.
    """
    names = _require_arkit(head)
    draw = Draw(generator)
    time = torch.arange(frames, device=generator.device) / fps
    speech = random_speech(draw, clips, frames / fps, talking)
    face, mood_head, laugh = _moods(draw, clips, time, names, moods)
    face = face + _resting_face(draw, clips, names)[:, None]
    quiet = 1 - laugh[..., None]
    voice, nods, accents = articulate(speech, time, names)
    face = face + voice * quiet + accents * draw.uniform(0.2, 1.2, clips, 1, 1) * quiet
    # Rounded lips and a broad smile exclude each other.
    rounding = columns(names, "mouthPucker", "mouthFunnel")
    smile = face[..., columns(names, "mouthSmile")].mean(-1, keepdim=True).clamp(0, 1)
    face[..., rounding] = face[..., rounding] * (1 - 0.6 * smile)

    angles = _head_angles(draw, clips, time, nods * quiet[..., 0], mood_head)
    gaze, blink = _gaze_and_blinks(draw, clips, time, angles)
    face = _asymmetry(draw, face, names)
    lids = columns(names, "eyeBlink")
    face[..., lids] = torch.maximum(face[..., lids], blink)
    face[..., columns(names, "eyeWide")] *= 1 - blink
    write_gaze(face, gaze, draw.uniform(0.0, 0.03, clips, 1), names)
    face = _plausible(face.clamp(0, 1), names)
    camera = _cameras(draw, clips, time)
    return Performance(_parameters(face, angles, camera, head), speech, laugh, fps)


# ---- moods


def _moods(
    draw: Draw, clips: int, time: Tensor, names: list[str], amount: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Faces (clips, frames, expressions), pitch and roll (clips, frames, 2), laughter (clips, frames)."""
    device = time.device
    count = math.ceil((float(time[-1]) + LEAD) / 2.2)
    kind = draw.choice([NO_MOOD_WEIGHT] + [mood.often for mood in MOODS.values()], clips, count) - 1
    active = kind >= 0
    kind = kind.clamp(min=0)
    held = torch.tensor([mood.held for mood in MOODS.values()], device=device)[kind]
    rise = torch.tensor([mood.rise for mood in MOODS.values()], device=device)[kind] * draw.around(
        1.0, 0.2, clips, count
    )
    hold = held[..., 0] + (held[..., 1] - held[..., 0]) * draw.uniform(0, 1, clips, count)
    # One mood follows the other, a little overlapping.
    gaps = rise + hold + draw.around(0.5, 0.6, clips, count)
    begin = gaps.cumsum(1) - gaps - draw.uniform(0.2, LEAD, clips, 1)
    after = time - begin[..., None]
    envelope = minimum_jerk(after / rise[..., None])
    envelope = envelope * (1 - minimum_jerk((after - (rise + hold)[..., None]) / (1.5 * rise)[..., None]))
    strength = draw.uniform(0.3, 1.2, clips, count) * active * amount
    # Nobody holds a face perfectly still.
    unrest = 1 + 0.10 * sway(draw, clips, time, count).transpose(1, 2)
    envelope = envelope * unrest.clamp(min=0.6) * strength[..., None]  # (clips, moods, frames)

    shapes = table([mood.face for mood in MOODS.values()], names, device)[kind]
    shapes = shapes * draw.around(1.0, 0.25, clips, count, len(names))
    face = torch.einsum("cmt,cme->cte", envelope, shapes)
    turn = torch.tensor([mood.tilt for mood in MOODS.values()], device=device)[kind]
    side = torch.stack([torch.ones(clips, count, device=device), draw.normal(1.0, clips, count)], dim=-1)
    angles = torch.einsum("cmt,cma->cta", envelope, turn * side)

    laughing = kind == list(MOODS).index("laugh")
    laugh = (envelope * laughing[..., None]).sum(1).clamp(0, 1)
    # "Ha ha ha": about five bursts a second in the jaw and, weaker, in the head.
    phase = 2 * math.pi * (draw.uniform(4.2, 5.4, clips, 1) * time + draw.uniform(0, 1, clips, 1))
    swing = sway(draw, clips, time, 2)
    burst = (
        laugh
        * (0.5 + 0.5 * torch.sin(phase + 0.9 * swing[..., 0]))
        * (1 + 0.3 * swing[..., 1]).clamp(0.2, 1.6)
    )
    face[..., columns(names, "jawOpen")] += 0.24 * burst[..., None]
    angles[..., 0] = angles[..., 0] + 0.018 * burst
    return face, angles, laugh


def _resting_face(draw: Draw, clips: int, names: list[str]) -> Tensor:
    """What a face does when it does nothing: everyone has a little of something (clips, expressions)."""
    rest = table(
        [{"mouthSmile": 0.14, "browInnerUp": 0.10, "browDown": 0.10, "eyeSquint": 0.12, "eyeWide": 0.08,
          "mouthFrown": 0.06, "mouthPress": 0.08, "eyeBlink": 0.06, "mouthShrugLower": 0.06}],
        names,
        draw.generator.device,
    )  # fmt: skip
    return rest * draw.normal(1.0, clips, len(names)).clamp(0, 2)


def _asymmetry(draw: Draw, face: Tensor, names: list[str]) -> Tensor:
    """One side always moves a little more than the other."""
    left = torch.tensor([name.endswith("Left") for name in names], device=face.device).float()
    right = torch.tensor([name.endswith("Right") for name in names], device=face.device).float()
    tilt = draw.normal(0.07, len(face), 1, 1).clamp(-0.2, 0.2)
    return face * (1 + tilt * (left - right))


# ---- head, eyes, lids


def _head_angles(draw: Draw, clips: int, time: Tensor, nods: Tensor, moods: Tensor) -> Tensor:
    """Yaw, pitch, roll (clips, frames, 3) in radians: postures, sway, nods in the rhythm of speech."""
    count = math.ceil((float(time[-1]) + LEAD) / 0.9) + 1
    begin = draw.around(1.1, 0.6, clips, count).cumsum(1) - draw.uniform(0.5, LEAD, clips, 1)
    begin[:, 0] = -100.0  # the first posture is already there
    spread = torch.tensor([0.19, 0.085, 0.055], device=time.device) * draw.uniform(0.35, 1.35, clips, 1, 1)
    postures = draw.normal(1.0, clips, count, 3).clamp(-2.2, 2.2) * spread
    duration = draw.around(0.42, 0.25, clips, count) + 0.5 * postures.norm(dim=-1)
    angles = steps(time, begin, duration, postures)
    angles = angles + sway(draw, clips, time, 3) * torch.tensor([0.010, 0.007, 0.006], device=time.device)
    angles = angles + _gestures(draw, clips, time)
    angles = angles + F.pad(moods, (1, 0))
    angles[..., 1] = angles[..., 1] + nods
    limits = (YAW, PITCH, ROLL)
    limited = [soft_limit(angle, limit) for angle, limit in zip(angles.unbind(-1), limits, strict=True)]
    return torch.stack(limited, dim=-1)


def _gestures(draw: Draw, clips: int, time: Tensor) -> Tensor:
    """Now and then a nod or a shake of the head: two to three swings that die away (clips, frames, 3)."""
    begin = draw.uniform(-1.0, max(float(time[-1]), 1.0) * 1.5, clips, 1)
    after = (time - begin).clamp(min=0)
    rate = draw.uniform(1.5, 2.4, clips, 1)
    swing = (
        torch.sin(2 * math.pi * rate * after) * minimum_jerk(after / 0.25) * torch.exp(-((after / 0.9) ** 2))
    )
    amplitude = draw.uniform(0.04, 0.11, clips, 1) * draw.chance(0.3, clips, 1)
    nod = draw.chance(0.6, clips, 1)
    zero = torch.zeros_like(swing)
    return (
        torch.stack([torch.where(nod, zero, swing), torch.where(nod, swing, zero), zero], -1)
        * amplitude[..., None]
    )


def _gaze_and_blinks(draw: Draw, clips: int, time: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Yaw and pitch of the eyes in the head, in radians, and both lids: (clips, frames, 2) each."""
    count = math.ceil((float(time[-1]) + LEAD) / 0.45) + 2
    begin = draw.around(0.85, 0.65, clips, count).cumsum(1) - draw.uniform(0.3, LEAD, clips, 1)
    begin[:, 0] = -100.0
    # A person looks at the camera, away to think, and along with the head.
    spread = torch.tensor([0.24, 0.13], device=time.device)
    away = draw.normal(1.0, clips, count, 2).clamp(-2, 2) * spread * draw.uniform(0.5, 1.3, clips, 1, 1)
    at_camera = draw.chance(draw.uniform(0.25, 0.8, clips, 1), clips, count)
    fixational = draw.normal(0.012, clips, count, 2)
    target = torch.where(at_camera[..., None], fixational, away + fixational)
    distance = torch.diff(target, dim=1, prepend=target[:, :1]).norm(dim=-1)
    # The main sequence: a saccade takes 20 ms and 2.5 ms a degree.
    looking = steps(time, begin, 0.020 + 0.143 * distance, target)
    # The eyes keep to their target while the head turns, and go along with it in part.
    follow = draw.uniform(0.15, 0.5, clips, 1, 1)
    gaze = looking - (1 - follow) * angles[..., :2]
    gaze = torch.stack([soft_limit(gaze[..., 0], GAZE_YAW), soft_limit(gaze[..., 1], GAZE_PITCH)], dim=-1)

    spontaneous = draw.around(3.2, 0.45, clips, math.ceil((float(time[-1]) + LEAD) / 1.3) + 1)
    times = spontaneous.cumsum(1) - draw.uniform(0.0, 5.0, clips, 1)
    with_saccade = (distance > 0.22) & draw.chance(0.4, clips, count)
    times = torch.cat([times, torch.where(with_saccade, begin - 0.02, -100.0)], dim=1)
    return gaze, _blinks(draw, time, times)


def _blinks(draw: Draw, time: Tensor, begin: Tensor) -> Tensor:
    """Lids (clips, frames, 2): shut in 60 ms, open again in 120 to 160, some blinks not quite closed."""
    clips, count = begin.shape
    after = time - begin[..., None]
    opening = draw.uniform(0.12, 0.16, clips, count)[..., None]
    depth = draw.uniform(0.82, 1.0, clips, count)[..., None]
    lids = (blink(after, opening) * depth).amax(1)
    return torch.stack([lids, lids * draw.uniform(0.95, 1.0, clips, 1)], dim=-1)


def _cameras(draw: Draw, clips: int, time: Tensor) -> Tensor:
    """(clips, frames, 3): the person sits still in front of a camera that stands still."""
    scale = SCALE * draw.uniform(-SCALE_SPREAD, SCALE_SPREAD, clips, 1).exp()
    place = draw.normal(1.0, clips, 1, 2).clamp(-2, 2) * torch.tensor([0.010, 0.005], device=time.device)
    place = place + torch.tensor([0.0, sum(SHIFT_Y) / 2], device=time.device)
    drift = sway(draw, clips, time, 3) * torch.tensor([0.004, 0.0009, 0.0006], device=time.device)
    drift = drift * draw.uniform(0.2, 1.2, clips, 1, 1)
    return torch.cat([(scale * drift[..., 0].exp())[..., None], place + drift[..., 1:]], dim=-1)


# ---- assembly


def _plausible(face: Tensor, names: list[str]) -> Tensor:
    """Undo combinations in which lips or lids would pass through each other."""
    face = face.clone()
    jaw = face[..., columns(names, "jawOpen")]
    close, tongue = columns(names, "mouthClose"), columns(names, "tongueOut")
    face[..., close] = torch.minimum(face[..., close], jaw)
    face[..., tongue] = torch.minimum(face[..., tongue], 2.2 * jaw)
    roll = columns(names, "mouthRoll")
    face[..., roll] = face[..., roll] * (1 - 0.7 * jaw)
    wide, shut = columns(names, "eyeWide"), columns(names, "eyeBlink")
    face[..., wide] = face[..., wide] * (1 - face[..., shut])
    return face


def _parameters(face: Tensor, angles: Tensor, camera: Tensor, head: HeadModel) -> FaceParameters:
    """Join (clips, frames, ...) parts into parameters, clip-major; the eye joints follow the expression."""
    expression = face.flatten(0, 1)
    yaw, pitch, roll = angles.flatten(0, 1).unbind(-1)
    neck = rotation.from_euler(yaw, pitch, roll)
    rest = torch.zeros_like(neck)
    pose = torch.cat([rest, neck, rest, gaze_pose(expression, head.expression_names)], dim=1)
    return FaceParameters(
        shape=expression.new_zeros(len(expression), head.n_shape),
        expression=expression,
        pose=pose,
        camera=camera.flatten(0, 1),
        valid=torch.ones(len(expression), dtype=torch.bool, device=expression.device),
        head=head.name,
    )


def _require_arkit(head: HeadModel) -> list[str]:
    names = head.expression_names
    if "jawOpen" not in names or "eyeLookInLeft" not in names:
        raise InputError(
            f"The head '{head.name}' has no ARKit expressions; motion tracks need the bundled head."
        )
    return names
