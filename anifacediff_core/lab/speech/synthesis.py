"""Synthesized speech whose phonemes and times are known, from eSpeak NG's library and from flite.

Both are programs of the system (Debian: ``espeak-ng``, ``flite``). The extension needs neither.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from ctypes.util import find_library
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.sound import read_sound
from anifacediff_core.speech.motion import at_rate

# espeak-ng/speak_lib.h
SYNCHRONOUS, PHONEME_EVENTS, IPA = 2, 1, 2
PHONEME = 7  # an event's type; the last one's is 0
SPEED, PITCH, PITCH_RANGE = 1, 3, 4  # parameters
UTF8, PHONEMES = 1, 0x100  # flags
# The events of these come with the burst, after the silence in which the mouth is closed.
VOICELESS, SILENCE = "ptkcq", 0.045  # seconds

# flite's phones
ARPABET = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "ay": "aɪ", "b": "b", "ch": "tʃ",
    "d": "d", "dh": "ð", "eh": "ɛ", "er": "ɚ", "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ",
    "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ",
    "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w",
    "y": "j", "z": "z", "zh": "ʒ", "pau": "",
}  # fmt: skip


class Phoneme(NamedTuple):
    """A sound in IPA, from and to which second; a pause has no sound."""

    sound: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Speech at `network.RATE`.

    Attributes:
        wave: (samples,) in [-1, 1].
        phonemes: in the order of time, without gaps.
    """

    wave: Tensor
    phonemes: tuple[Phoneme, ...]


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("text", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """eSpeak NG, of which a process has one. A voice is a language with a variant, such as "en-us+f3".

    Raises:
        InputError: it is not installed.
    """

    def __init__(self) -> None:
        name = find_library("espeak-ng")
        if name is None:
            raise InputError("eSpeak NG is missing: install it (Debian and Ubuntu: apt install espeak-ng).")
        self.library = ctypes.CDLL(name)
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS | IPA)
        self.waves: list[np.ndarray] = []
        self.events: list[tuple[str, float]] = []
        self.callback = _Callback(self._take)  # kept, since the library keeps only its address
        self.library.espeak_SetSynthCallback(self.callback)

    @cached_property
    def variants(self) -> list[str]:
        """Names of the installed variants, in alphabetical order."""
        listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True)
        return sorted(set(re.findall(r"!v/(\S+)", listed.stdout)))

    def speak(self, text: str, voice: str, speed: int = 165, pitch: int = 50, spread: int = 50) -> Utterance:
        """Args:
            speed: words a minute. pitch, spread: of the melody, 0 to 100.

        Raises:
            InputError: there is no such voice.
        """
        self.waves, self.events = [], []
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise InputError(f"eSpeak NG has no voice '{voice}': install its data.")
        for parameter, value in ((SPEED, speed), (PITCH, pitch), (PITCH_RANGE, spread)):
            self.library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self.library.espeak_Synth(data, len(data), 0, 1, 0, UTF8 | PHONEMES, None, None)
        wave = torch.from_numpy(np.concatenate([np.zeros(1, np.int16), *self.waves])).float() / 32768
        ends = [start for _, start in self.events[1:]] + [len(wave) / self.rate]
        found = [
            Phoneme(sound, *_closed(sound, start, end)) for (sound, start), end in zip(self.events, ends)
        ]
        return Utterance(at_rate(wave[None], self.rate)[0], tuple(found))

    def _take(self, wave: Any, samples: int, events: Any) -> int:
        if wave and samples:
            self.waves.append(np.ctypeslib.as_array(wave, (samples,)).copy())
        for number in range(1 << 20):
            event = events[number]
            if event.type == PHONEME:
                self.events.append((event.id.text.decode("utf-8", "ignore"), event.milliseconds / 1000))
            elif event.type == 0:
                break
        return 0


def _closed(sound: str, start: float, end: float) -> tuple[float, float]:
    return (start - SILENCE if sound[:1] in VOICELESS and sound else start), end


def flite(text: str, voice: str) -> Utterance:
    """English by flite, whose voices are made of a person's recordings: rms, slt, awb, kal.

    Raises:
        InputError: it is not installed.
    """
    if shutil.which("flite") is None:
        raise InputError("flite is missing: install it (Debian and Ubuntu: apt install flite).")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        heard = read_sound(path, Fraction(0), 600.0)
    assert heard is not None
    phones = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", told)]
    starts = [0.0, *(end for _, end in phones)]
    found = [Phoneme(ARPABET[name], start, end) for (name, end), start in zip(phones, starts)]
    return Utterance(at_rate(torch.from_numpy(heard[0]), heard[1])[0], tuple(found))
