"""How well a network reads voices that it was not trained on: jaw, closed lips, silence.

The lips are measured on the head: the gap between their inner edges, in millimeters more than at rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.progress import Progress
from anifacediff_core.speech.motion import speech_to_motion
from anifacediff_core.speech.network import RATE, SpeechNetwork

from .synthesis import Espeak, Utterance, flite
from .texts import SENTENCES
from .training import HELD_OUT, heard
from .visemes import LIPS, letters_of, lips

RECORDED = ("slt", "rms")  # voices of flite, made of recordings of a woman and a man
FPS = Fraction(24)
SHUT, OPEN = 1.0, 3.0  # millimeters
OPEN_VOWELS = "aɑɐæʌɒeɛoɔ"
LONG = 0.06  # seconds of a vowel that opens the mouth in any case
PAUSE = 1.5  # seconds of silence around each sentence
REST = 0.3  # seconds after which the mouth has come to rest
INNER_LIPS = ((61, 67), (62, 66), (63, 65))


@dataclass(frozen=True)
class Said:
    """What came of a sentence.

    Attributes:
        jaw_r: correlation of the jaw's opening with that of the phonemes, while there is speech.
        closed, closures: how many of the p, b, m closed the lips, and how many there are.
        opened, openings: how many of the open vowels opened them, and how many there are.
        silence: the widest gap in silence, in millimeters.
    """

    jaw_r: float
    closed: int
    closures: int
    opened: int
    openings: int
    silence: float


def measure(network: SpeechNetwork, progress: Progress) -> dict[str, Any]:
    """Ten sentences of each held-out voice, clean and through rooms, microphones and noise.

    Returns:
        for each voice and, where flite is there, its voices: means over the sentences.
    """
    head, espeak = HeadModel.bundled(), Espeak()
    voices: dict[str, Callable[[str], Utterance]] = {
        f"en-us+{name}": partial(espeak.speak, voice=f"en-us+{name}") for name in HELD_OUT
    }
    if shutil.which("flite"):
        voices |= {f"flite {name}": partial(flite, voice=name) for name in RECORDED}
    report, total = {}, 2 * len(voices) * len(SENTENCES)
    done = 0
    torch.manual_seed(0)
    for name, speak in voices.items():
        for place, spoil in (("", lambda waves: waves), (", in rooms with noise", heard)):
            said = []
            for sentence in SENTENCES:
                said.append(measure_one(speak(sentence), head, network, spoil))
                done += 1
                progress(done, total)
            report[name + place] = _mean(said)
    return report


def measure_one(
    spoken: Utterance, head: HeadModel, network: SpeechNetwork, spoil: Callable[[Tensor], Tensor]
) -> Said:
    """One utterance, with a pause before and behind it."""
    around = round(PAUSE * RATE)
    wave = spoil(F.pad(spoken.wave, (around, around))[None])
    made = speech_to_motion(wave, RATE, head, FPS, network=network)
    time = torch.arange(len(made)) / float(FPS) - PAUSE
    names, jaw = head.expression_names, head.expression_names.index("jawOpen")
    wanted, _ = lips(spoken.phonemes, time, names)
    gap = lip_gap(made, head)
    length = len(spoken.wave) / RATE
    speaking = (time > 0) & (time < length)
    silent = (time < -REST) | (time > length + REST)
    letters = letters_of(spoken.phonemes)
    shut = [_within(gap, time, each.start, each.end).min() for each in letters if each.sound in LIPS]
    wide = [
        _within(gap, time, each.start, each.end).max()
        for each in letters
        if each.sound in OPEN_VOWELS and each.end - each.start > LONG
    ]
    r = torch.corrcoef(torch.stack([made.expression[speaking, jaw], wanted[speaking, jaw]]))[0, 1]
    return Said(
        float(r),
        sum(bool(each < SHUT) for each in shut),
        len(shut),
        sum(bool(each > OPEN) for each in wide),
        len(wide),
        float(gap[silent].max()),
    )


def lip_gap(params: FaceParameters, head: HeadModel) -> Tensor:
    """Millimeters (frames,) between the inner edges of the lips, more than at rest."""
    facing = replace(params, pose=torch.zeros_like(params.pose))
    upper, lower = zip(*INNER_LIPS, strict=True)
    gaps = []
    for part in (head.neutral(1), *(facing[start : start + 64] for start in range(0, len(params), 64))):
        points = head(part.to(head.template.device)).cpu()[:, head.landmarks.cpu(), 1]
        gaps.append(1000 * (points[:, list(upper)] - points[:, list(lower)]).mean(1))
    return torch.cat(gaps[1:]) - gaps[0]


def _within(values: Tensor, time: Tensor, start: float, end: float) -> Tensor:
    """The frames that show a time, the nearest at least."""
    half = 0.5 / float(FPS)
    return values[(time > start - half) & (time < end + half)]


def _mean(said: list[Said]) -> dict[str, float]:
    closures, openings = sum(each.closures for each in said), sum(each.openings for each in said)
    return {
        "jaw r, mean": sum(each.jaw_r for each in said) / len(said),
        "jaw r, lowest": min(each.jaw_r for each in said),
        "closed on p, b, m": sum(each.closed for each in said) / closures,
        "p, b, m": closures,
        "open on open vowels": sum(each.opened for each in said) / openings,
        "open vowels": openings,
        "widest gap in silence, mm": max(each.silence for each in said),
    }


def markdown(report: dict[str, dict[str, float]]) -> str:
    """A table, a line for each voice."""
    heads = [
        "voice",
        "jaw r, mean",
        "lowest",
        "closed on p, b, m",
        "open on open vowels",
        "gap in silence, mm",
    ]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, row in report.items():
        lines.append(
            f"| {name} | {row['jaw r, mean']:.2f} | {row['jaw r, lowest']:.2f} "
            f"| {row['closed on p, b, m']:.0%} of {row['p, b, m']:.0f} "
            f"| {row['open on open vowels']:.0%} of {row['open vowels']:.0f} "
            f"| {row['widest gap in silence, mm']:.2f} |"
        )
    return "\n".join(lines)
