"""Talking: syllables in time, and what they do to lips and jaw. Axes as in `tracks`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anifacediff_core.motion.curves import Draw, bump, table
from anifacediff_core.speech.lips import close_lips

# How vowels shape the mouth at full strength; a name without a side stands for both sides.
VOWELS: dict[str, dict[str, float]] = {
    "a": {"jawOpen": 0.58, "mouthLowerDown": 0.26, "mouthUpperUp": 0.14, "mouthStretch": 0.06},
    "e": {
        "jawOpen": 0.34,
        "mouthLowerDown": 0.3,
        "mouthUpperUp": 0.17,
        "mouthStretch": 0.22,
        "mouthSmile": 0.12,
    },
    "i": {
        "jawOpen": 0.15,
        "mouthLowerDown": 0.27,
        "mouthUpperUp": 0.17,
        "mouthStretch": 0.3,
        "mouthSmile": 0.18,
    },
    "o": {"jawOpen": 0.4, "mouthFunnel": 0.5, "mouthPucker": 0.18, "mouthLowerDown": 0.08},
    "u": {"jawOpen": 0.17, "mouthFunnel": 0.28, "mouthPucker": 0.62},
    "ə": {"jawOpen": 0.26, "mouthLowerDown": 0.16, "mouthUpperUp": 0.09, "mouthFunnel": 0.08},
}
VOWEL_WEIGHTS = (0.24, 0.2, 0.16, 0.14, 0.1, 0.16)
# Consonants at a syllable's onset. "closure" narrows the opening that the vowels make, whatever they are.
CONSONANTS: dict[str, dict[str, float]] = {
    "m": {"closure": 1.0, "mouthPress": 0.22, "mouthRollLower": 0.1, "mouthRollUpper": 0.08},
    "b": {"closure": 1.0, "mouthPress": 0.3},
    "f": {"closure": 0.62, "mouthRollLower": 0.42, "mouthUpperUp": 0.24},
    "s": {"closure": 0.6, "mouthStretch": 0.16, "mouthLowerDown": 0.22, "mouthSmile": 0.06},
    "t": {"closure": 0.5, "mouthLowerDown": 0.14},
    "w": {"closure": 0.45, "mouthPucker": 0.48, "mouthFunnel": 0.14},
    "k": {"closure": 0.25},
}
CONSONANT_WEIGHTS = (0.12, 0.13, 0.1, 0.18, 0.24, 0.09, 0.14)


@dataclass(frozen=True)
class Speech:
    """The syllables of clips; (clips, syllables) each.

    Attributes:
        onset: seconds, may lie before the clip.
        length: seconds to the end of the syllable.
        vowel, consonant: indices into ``VOWELS`` and ``CONSONANTS``.
        strength: 0 where nobody speaks, about 1 otherwise.
        stressed: bool.
    """

    onset: Tensor
    length: Tensor
    vowel: Tensor
    consonant: Tensor
    strength: Tensor
    stressed: Tensor


def random_speech(draw: Draw, clips: int, seconds: float, talking: float) -> Speech:
    """Syllables at 3.5 to 6 a second in phrases of about nine with pauses between them."""
    count = math.ceil((seconds + 1.5) * 6.5) + 2
    pace = draw.uniform(0.165, 0.27, clips, 1)
    length = pace * draw.around(1.0, 0.22, clips, count)
    last = draw.chance(1 / 9, clips, count)  # of a phrase: drawn out, then a breath
    length = torch.where(last, length * 1.35, length)
    pause = last * draw.uniform(0.25, 0.9, clips, count)
    spent = (length + pause).cumsum(1)
    onset = spent - (length + pause) - draw.uniform(0.3, 1.5, clips, 1)
    stressed = draw.chance(0.34, clips, count)
    strength = draw.around(1.0, 0.22, clips, count) * torch.where(stressed, 1.18, 0.82)
    strength = strength * draw.uniform(0.6, 1.15, clips, 1) * draw.chance(talking, clips, 1)
    vowel = draw.choice(VOWEL_WEIGHTS, clips, count)
    consonant = draw.choice(CONSONANT_WEIGHTS, clips, count)
    return Speech(onset, length, vowel, consonant, strength, stressed & (strength > 0))


def articulate(speech: Speech, time: Tensor, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Lips and jaw (clips, frames, expressions), nods (clips, frames), brows (clips, frames, expressions)."""
    offset = time - speech.onset[..., None]  # (clips, syllables, frames)
    length = speech.length[..., None]
    strength = speech.strength[..., None]
    # Vowels overlap their neighbors: the lips are on their way to the next one (co-articulation).
    vowel = bump((offset - 0.58 * length) / (0.78 * length)) * strength
    consonant = bump((offset - 0.04) / 0.085) * strength.clamp(max=1)
    vowel_shapes = table(list(VOWELS.values()), names, time.device)
    consonant_shapes = table(list(CONSONANTS.values()), names, time.device)
    closures = torch.tensor([shape["closure"] for shape in CONSONANTS.values()], device=time.device)
    face = torch.einsum("cst,cse->cte", vowel, vowel_shapes[speech.vowel])
    closure = (consonant * closures[speech.consonant][..., None]).amax(1).clamp(0, 1)[..., None]
    face = close_lips(face, closure, names)
    face = face + torch.einsum("cst,cse->cte", consonant, consonant_shapes[speech.consonant])

    stress = strength * speech.stressed[..., None]
    nods = (bump((offset - 0.10) / 0.26) * stress).sum(1) * 0.030
    accent = table([{"browInnerUp": 0.22, "browOuterUp": 0.24, "eyeWide": 0.10}], names, time.device)[0]
    accents = (bump((offset - 0.08) / 0.30) * stress).amax(1)[..., None] * accent
    return face, nods, accents
