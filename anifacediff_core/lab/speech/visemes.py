"""What lips and jaw do with phonemes whose times are known; the shapes are those of `avatars.talk`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anifacediff_core.lab.avatars.talk import CONSONANTS, VOWELS
from anifacediff_core.motion.curves import bump, table
from anifacediff_core.speech.lips import close_lips
from anifacediff_core.speech.network import CHANNELS

from .synthesis import Phoneme

# IPA's letters by what the mouth does: shapes of `talk` and how much of each.
MOUTHS: dict[str, dict[str, float]] = {
    "aɑɐ": {"a": 1.0},
    "æ": {"a": 0.8, "e": 0.3},
    "ʌ": {"a": 0.75},
    "ɒ": {"a": 0.6, "o": 0.5},
    "eɛ": {"e": 1.0},
    "iɪɨ": {"i": 1.0},
    "oɔ": {"o": 1.0},
    "øœɵ": {"o": 0.6, "e": 0.3},
    "uʊʉ": {"u": 1.0},
    "yʏ": {"u": 0.85, "i": 0.2},
    "əɘɚɝɜɤɯ": {"ə": 1.0},
    "m": {"m": 1.0},
    "pbβɓ": {"b": 1.0},
    "fvɱʋ": {"f": 1.0},
    "szɕʑʂʐ": {"s": 1.0},
    "ʃʒ": {"s": 1.0, "w": 0.5},
    "tdnlɾrθðɬʎɭɖʈɳ": {"t": 1.0},
    "wʍɥ": {"w": 1.0},
    "ɹɻ": {"w": 0.5, "t": 0.6},
    "kɡgŋxɣqχʁʀjɲcɟʝħ": {"k": 1.0},
}
SHAPES = {letter: shapes for letters, shapes in MOUTHS.items() for letter in letters}
LIPS = "pbmβɓ"  # what the lips meet for
ON_THE_WAY = 0.09  # seconds that a vowel reaches into its neighbors
RAMP = 0.06  # seconds in which a consonant comes and goes
NARROW = 0.65  # closure up to which the lips don't meet, as for f and s
RELEASE = 0.02  # seconds before its end at which a stop opens


def letters_of(phonemes: Sequence[Phoneme]) -> list[Phoneme]:
    """Phonemes of one letter each, which share the time of theirs evenly; without pauses and stress."""
    found = []
    for phoneme in phonemes:
        plain = unicodedata.normalize("NFD", phoneme.sound)
        letters = [letter for letter in plain if letter in SHAPES]
        step = (phoneme.end - phoneme.start) / max(len(letters), 1)
        for number, letter in enumerate(letters):
            start = phoneme.start + number * step
            found.append(Phoneme(letter, start, start + step))
    return found


def lips(phonemes: Sequence[Phoneme], time: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
    """The mouth at given times, on its way from sound to sound (co-articulation).

    Args:
        time: (frames,) seconds.
        names: ARKit's, of the expressions.

    Returns:
        expressions (frames, expressions) in [0, 1], and how far the lips are closed (frames, 1).
    """
    letters = letters_of(phonemes)
    vowels = _weights(letters, time, list(VOWELS), _vowel)
    consonants = _weights(letters, time, list(CONSONANTS), _consonant)
    face = (
        vowels / vowels.sum(1, keepdim=True).clamp(min=1) @ table(list(VOWELS.values()), names, time.device)
    )
    shut = time.new_tensor([shape["closure"] for shape in CONSONANTS.values()])
    closure = (consonants * shut).amax(1, keepdim=True)
    face = close_lips(face, closure, names)
    face = face + consonants @ table(list(CONSONANTS.values()), names, time.device)
    return face.clamp(0, 1), closure


def targets(phonemes: Sequence[Phoneme], time: Tensor) -> Tensor:
    """What the network is to tell: (frames, channels)."""
    face, closure = lips(phonemes, time, list(CHANNELS[:-1]))
    return torch.cat([face, ((closure - NARROW) / (1 - NARROW)).clamp(min=0)], dim=1)


def _weights(
    letters: list[Phoneme], time: Tensor, shapes: Sequence[str], envelope: Callable[[Phoneme, Tensor], Tensor]
) -> Tensor:
    """How much of each shape there is (frames, shapes)."""
    result = time.new_zeros(len(time), len(shapes))
    for letter in letters:
        for name, amount in SHAPES[letter.sound].items():
            if name in shapes:
                column = result[:, shapes.index(name)]
                column.copy_(torch.maximum(column, amount * envelope(letter, time)))
    return result


def _vowel(letter: Phoneme, time: Tensor) -> Tensor:
    middle, half = (letter.start + letter.end) / 2, (letter.end - letter.start) / 2
    return bump((time - middle) / (half + ON_THE_WAY))


def _consonant(letter: Phoneme, time: Tensor) -> Tensor:
    end = max(letter.end - RELEASE, letter.start)
    outside = torch.maximum(letter.start - time, time - end).clamp(min=0)
    return bump(outside / RAMP)
