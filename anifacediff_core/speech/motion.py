"""From a voice to a motion: the network's lips, and gestures in the rhythm of the voice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..head import rotation
from ..head.gaze import look_along, write_gaze
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..motion.curves import columns, table
from ..motion.parts import require_numbers
from ..motion.retime import LONGEST
from ..progress import Progress
from ..sound import read_sound, resampled
from .gestures import Gestures, gestures
from .lips import OPENINGS
from .network import CHANNELS, FPS, RANGE, RATE, REACH, SAMPLES, SpeechNetwork, level, load_network, log_mel

EMPTY = "The sound is empty: connect one that has something to hear."
LONGEST_FILE = 3600.0  # seconds, since a sound is in memory as a whole
CHUNK = 30 * FPS  # frames that the network reads at once
STILL = 0.03  # of a channel: less is none
SEALING = (0.08, 0.25)  # "shut" between which the lips go on to meet; chosen on voices of the training


@dataclass(frozen=True)
class SpeechSettings:
    """How much of everything: 0 none, 1 as the voice says, more exaggerates.

    Attributes:
        mouth, brows, head: of lips and jaw, of raised brows, of the head's motion.
        blinks: how often, beside the usual.
        seed: of the gestures; what the voice says decides about the mouth alone.
    """

    mouth: float = 1.0
    brows: float = 1.0
    blinks: float = 1.0
    head: float = 1.0
    seed: int = 0


def speech_to_motion(
    sound: Tensor,
    rate: int,
    head: HeadModel,
    fps: Fraction,
    settings: SpeechSettings = SpeechSettings(),
    *,
    network: SpeechNetwork | None = None,
    progress: Progress | None = None,
) -> FaceParameters:
    """A motion that fits a voice, of an average face in the middle of the picture.

    Args:
        sound: (channels, samples) in [-1, 1].
        rate: samples a second.
        head: a head with ARKit's expressions.
        fps: frames a second of the result.
        network: by default the bundled one.
        progress: called with the frames done and all of them.

    Returns:
        As many frames as the sound takes, rounded, one at least; frame k is centered on the time k / fps.

    Raises:
        InputError: there is no sound, or NaN in it, a setting is no number, the head has no ARKit
            expressions, or the result would be too long.
    """
    require_numbers(**{name: float(value) for name, value in vars(settings).items() if name != "seed"})
    if "jawOpen" not in head.expression_names:
        raise InputError(f"The head '{head.name}' has no ARKit expressions; use the bundled head for speech.")
    wave = at_rate(sound, rate)
    frames = max(1, round(wave.shape[-1] * fps / RATE))
    if frames > LONGEST:
        raise InputError(
            f"The motion would have {frames} frames, more than {LONGEST}: cut the sound, or lower the fps."
        )
    mouth, loudness = _read(wave, network or load_network(), progress)
    time = torch.arange(frames) / float(fps)
    made = gestures(loudness, FPS, time, settings.seed, settings.blinks)
    expression = mouth_shapes(at_times(mouth, time, fps), settings.mouth, head.expression_names)
    expression = _with_gestures(expression, made, settings, head.expression_names)
    angles = made.angles * settings.head
    write_gaze(expression, made.glances - 0.7 * angles[:, :2], 0.01, head.expression_names)
    neutral = head.neutral(1).to("cpu").expand(frames)
    pose = torch.cat(
        [torch.zeros(frames, 3), rotation.from_euler(*angles.unbind(-1)), neutral.pose[:, 6:]], 1
    )
    return look_along(replace(neutral, expression=expression, pose=pose), head.expression_names)


def file_to_motion(
    path: str | Path,
    head: HeadModel,
    fps: Fraction,
    settings: SpeechSettings,
    *,
    most: int | None = None,
    progress: Progress | None = None,
) -> FaceParameters:
    """As :func:`speech_to_motion` of a sound file, of its first ``most`` frames.

    Raises:
        InputError: also if the file cannot be read, or is longer than `LONGEST_FILE`.
    """
    seconds = LONGEST_FILE + 1 if most is None else min(float(most / fps), LONGEST_FILE)
    heard = read_sound(path, Fraction(0), seconds)
    if heard is None:
        raise InputError(f"{Path(path).name} holds no sound: give a file that has some.")
    if heard[0].shape[1] > LONGEST_FILE * heard[1]:
        raise InputError(f"{Path(path).name} is longer than {LONGEST_FILE / 3600:g} hour: cut it into parts.")
    return speech_to_motion(torch.from_numpy(heard[0]), heard[1], head, fps, settings, progress=progress)


def at_rate(sound: Tensor, rate: int) -> Tensor:
    """The mean of all channels at the network's rate: (1, samples).

    Raises:
        InputError: there is no sample, or NaN or infinity.
    """
    if not sound.numel() or rate < 1:
        raise InputError(EMPTY)
    if not torch.isfinite(sound).all():
        raise InputError("The sound contains NaN or infinity; check where it comes from.")
    mono = sound.float().mean(0).cpu().numpy()
    wave = torch.from_numpy(np.ascontiguousarray(resampled(mono, rate, RATE)))[None]
    if not wave.numel():  # also of a sound that is shorter than a sample at the network's rate
        raise InputError(EMPTY)
    return wave


@torch.inference_mode()
def _read(wave: Tensor, network: SpeechNetwork, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """The network's channels (frames, channels) at `network.FPS`, and how loud it is (frames,) in [0, 1]."""
    loudness, margin = level(wave), math.ceil(REACH * FPS)
    frames = wave.shape[-1] // SAMPLES + 1
    wave = _extended(wave, margin * SAMPLES, (margin + 1) * SAMPLES)
    told, loud = [], []
    for start in range(0, frames, CHUNK):
        stop = min(start + CHUNK, frames)
        part = wave[:, start * SAMPLES : (stop + 2 * margin + 1) * SAMPLES]
        features = log_mel(part, loudness)
        own = slice(margin, margin + stop - start)
        told.append(network(features)[0, own].sigmoid())
        loud.append(_loudness(features[0, ::2])[own])
        if progress is not None:
            progress(stop, frames)
    return torch.cat(told), torch.cat(loud)


def _extended(wave: Tensor, before: int, behind: int) -> Tensor:
    """The wave with its mirror image at both ends: noise that began would be taken for a word."""
    most = wave.shape[-1] - 1
    mirrored = F.pad(wave, (min(before, most), min(behind, most)), mode="reflect")
    return F.pad(mirrored, (max(before - most, 0), max(behind - most, 0)))


def _loudness(features: Tensor) -> Tensor:
    """(frames,) of all bands together (frames, bands): 1 as loud as the voice, 0 is `RANGE` below."""
    nepers = RANGE * math.log(10) / 10
    return (1 + features.mul(nepers).logsumexp(1) / nepers).clamp(0, 1)


def at_times(mouth: Tensor, time: Tensor, fps: Fraction) -> Tensor:
    """Channels between the network's frames; a closure that falls between two frames counts for both."""
    wide = max(1, 2 * int(FPS / fps / 2) + 1)
    shut = F.max_pool1d(mouth[None, None, :, -1], wide, 1, wide // 2)[0, 0]
    mouth = torch.cat([mouth[:, :-1], shut[:, None]], dim=1)
    place = (time * FPS).clamp(max=len(mouth) - 1)
    before = place.long()
    after = (before + 1).clamp(max=len(mouth) - 1)
    return torch.lerp(mouth[before], mouth[after], (place - before)[:, None])


def mouth_shapes(mouth: Tensor, strength: float, names: list[str]) -> Tensor:
    """Expressions (frames, expressions) of the network's channels (frames, channels).

    The network is unsure of when lips meet, so that they would hardly ever: a suspicion is enough.

    Args:
        strength: of all but whether the lips meet.
    """
    mouth = ((mouth - STILL) / (1 - STILL)).clamp(0, 1)
    face = (strength * mouth[:, :-1]).clamp(0, 1) @ table(
        [{name: 1.0} for name in CHANNELS[:-1]], names, mouth.device
    )
    low, high = SEALING
    sealed = ((mouth[:, -1:] - low) / (high - low)).clamp(0, 1)
    face[:, columns(names, *OPENINGS[1:])] *= 1 - sealed
    face[:, columns(names, "mouthClose")] = face[:, columns(names, "jawOpen")] * sealed
    return face


def _with_gestures(face: Tensor, made: Gestures, settings: SpeechSettings, names: list[str]) -> Tensor:
    raised = table([{"browInnerUp": 0.5, "browOuterUp": 0.45, "eyeWide": 0.15}], names, face.device)
    face = face + made.brows[:, None] * settings.brows * raised
    lids, wide = columns(names, "eyeBlink"), columns(names, "eyeWide")
    face[:, lids] = torch.maximum(face[:, lids], made.lids[:, None])
    face[:, wide] *= 1 - made.lids[:, None]
    return face.clamp(0, 1)
