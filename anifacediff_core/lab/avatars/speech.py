"""A voice for a track: friendly babble whose vowels and consonants are those that the lips show.

A pulse train (glottal flow) and noise pass through the resonances of the mouth (formants) that belong to each
syllable: source and filter, in overlapping windows. It says nothing, but lips and sound belong together.
"""

from __future__ import annotations

import numpy as np

from anifacediff_core.head.model import HeadModel

from .talk import CONSONANTS, VOWELS, Speech
from .tracks import Performance

# Resonances of an average mouth in Hz, in the order of `tracks.VOWELS`: a, e, i, o, u, ə.
FORMANTS = {
    "a": (760, 1300, 2500), "e": (480, 1900, 2600), "i": (300, 2250, 3000), "o": (480, 880, 2500),
    "u": (330, 800, 2350), "ə": (520, 1450, 2450),
}  # fmt: skip
HIGHER = (3500, 4500)
BANDWIDTHS = (80, 100, 140, 220, 300)
# Noise of a consonant: loudness, center and width in Hz, seconds.
NOISES = {
    "m": (0.0, 300, 100, 0.08), "b": (0.10, 900, 700, 0.012), "f": (0.06, 5200, 3500, 0.09),
    "s": (0.12, 6800, 2400, 0.10), "t": (0.16, 4200, 2200, 0.018), "w": (0.0, 700, 300, 0.08),
    "k": (0.13, 2100, 900, 0.022),
}  # fmt: skip
VOICED = {
    "m": 0.45,
    "b": 0.12,
    "f": 0.05,
    "s": 0.02,
    "t": 0.02,
    "w": 0.60,
    "k": 0.02,
}  # left during the closure
WINDOW, HOP = 1024, 256
LOUDNESS = 0.11  # root mean square where somebody speaks


def speech_audio(
    performance: Performance,
    head: HeadModel,
    rate: int = 44100,
    pitch: float = 175.0,
    clip: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Sound of a performance.

    Args:
        performance: from :func:`.tracks.perform`.
        head: its head.
        rate: samples per second.
        pitch: of the voice in Hz; about 115 is low, 210 high, 280 a child's.
        clip: which clip of the performance.
        seed: of breath and consonant noise.

    Returns:
        (samples,) float32 in [-1, 1], exactly as long as the clip.
    """
    laugh = performance.laugh[clip].double().cpu().numpy()
    frames = len(laugh)
    samples = round(frames / performance.fps * rate)
    time = np.arange(samples) / rate
    speech = _one(performance.speech, clip)
    rng = np.random.default_rng(seed)
    frame_times = np.arange(frames) / performance.fps
    laugh = np.interp(time, frame_times, laugh)
    jaw = performance.params.expression[
        clip * frames : (clip + 1) * frames, head.expression_names.index("jawOpen")
    ]
    jaw = np.interp(time, frame_times, jaw.double().cpu().numpy())
    voice, formants = _mouth(speech, time)
    giggle = laugh * _bursts(jaw, rate)
    voice = voice * (1 - laugh) + 0.8 * giggle
    formants = formants + laugh[:, None] * (np.array(FORMANTS["ə"]) - formants) * 0.8
    tone = _pulses(_intonation(speech, time, pitch) * (1 + 0.25 * giggle), rate, rng)
    breath = rng.standard_normal(samples) * (0.02 + 0.10 * giggle)
    sound = _resonate((tone + breath) * voice, formants, rate)
    sound = _normalized(sound) + _consonants(speech, time, 1 - laugh, rate, rng)
    return _finish(sound, rate, rng)


def _one(speech: Speech, clip: int) -> dict[str, np.ndarray]:
    return {name: getattr(speech, name)[clip].double().cpu().numpy() for name in Speech.__dataclass_fields__}


def _bump(offset: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(offset, -1, 1))


def _near(time: np.ndarray, start: float, end: float) -> slice:
    """The samples between two times."""
    return slice(*np.searchsorted(time, [start, end]).tolist())


def _mouth(speech: dict[str, np.ndarray], time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loudness of the voice (samples,) and the first three formants (samples, 3)."""
    table = np.array([FORMANTS[name] for name in VOWELS], float)
    voiced = np.array([VOICED[name] for name in CONSONANTS])
    loudness, held = np.zeros_like(time), np.ones_like(time)
    weight, formants = np.full_like(time, 1e-3), np.full((len(time), 3), 1e-3) * table[-1]
    for onset, length, vowel, consonant, strength in _syllables(speech):
        near = _near(time, onset - 0.3 * length, onset + 1.4 * length)
        shape = _bump((time[near] - onset - 0.55 * length) / (0.85 * length))
        loudness[near] = np.maximum(loudness[near], shape**0.6 * strength)
        weight[near] += shape
        formants[near] += shape[:, None] * table[int(vowel)]
        near = _near(time, onset - 0.035, onset + 0.115)
        closed = _bump((time[near] - onset - 0.04) / 0.075) * (1 - voiced[int(consonant)])
        held[near] = np.minimum(held[near], 1 - closed * min(strength * 2, 1))
    return loudness * held, formants / weight[:, None]


def _syllables(speech: dict[str, np.ndarray]) -> list[tuple[float, float, float, float, float]]:
    rows = zip(*(speech[name] for name in ("onset", "length", "vowel", "consonant", "strength")), strict=True)
    return [row for row in rows if row[-1] > 0]


def _intonation(speech: dict[str, np.ndarray], time: np.ndarray, pitch: float) -> np.ndarray:
    """Fundamental frequency (samples,): falls along a phrase, rises on stressed syllables."""
    ends = speech["onset"] + speech["length"]
    starts = speech["onset"][np.append(True, speech["onset"][1:] - ends[:-1] > 0.1)]
    since = time[:, None] - starts
    since = np.where(since >= -0.05, since, np.inf).min(axis=1)
    since = np.where(np.isfinite(since), since, 0.0)
    melody = 1.08 - 0.10 * np.clip(since, 0, 2.2)
    for onset, length, stressed in zip(speech["onset"], speech["length"], speech["stressed"], strict=True):
        near = _near(time, onset - 0.5 * length, onset + 1.5 * length)
        melody[near] += (0.15 if stressed else 0.03) * _bump((time[near] - onset - 0.5 * length) / length)
    return pitch * melody * (1 + 0.006 * np.sin(2 * np.pi * 5.3 * time))


def _pulses(frequency: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Glottal flow (samples,): opens slowly, closes quickly, rests; as irregular as a living voice."""
    wander = np.convolve(rng.standard_normal(len(frequency)), np.hanning(rate // 40) / 20, mode="same")
    phase = np.cumsum(frequency * (1 + 0.004 * wander)) / rate % 1.0
    opening, closing = 0.42, 0.16
    rise = 0.5 - 0.5 * np.cos(np.pi * np.clip(phase / opening, 0, 1))
    fall = np.cos(0.5 * np.pi * np.clip((phase - opening) / closing, 0, 1))
    flow = np.where(phase < opening, rise, fall)
    # The lips radiate the change of the flow.
    return np.diff(flow, prepend=flow[:1]) * rate / 4000


def _resonate(source: np.ndarray, formants: np.ndarray, rate: int) -> np.ndarray:
    """Pass the source through the formants, which change from window to window."""
    padded = np.pad(source, (WINDOW, 2 * WINDOW))
    starts = np.arange(0, len(padded) - WINDOW, HOP)
    window = np.hanning(WINDOW + 1)[:-1]
    blocks = padded[starts[:, None] + np.arange(WINDOW)] * window
    middle = np.clip(starts + WINDOW // 2 - WINDOW, 0, len(source) - 1)
    peaks = np.concatenate([formants[middle], np.tile(HIGHER, (len(middle), 1))], axis=1)
    spectrum = np.fft.rfft(blocks, 2 * WINDOW) * _transfer(peaks, np.fft.rfftfreq(2 * WINDOW, 1 / rate))
    filtered = np.fft.irfft(spectrum)
    result = np.zeros(len(padded) + 2 * WINDOW)
    for start, block in zip(starts, filtered, strict=True):
        result[start : start + 2 * WINDOW] += block
    return result[WINDOW : WINDOW + len(source)] * HOP / WINDOW * 2


def _transfer(peaks: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Response (windows, frequencies) of resonances (windows, 5) one after the other, 1 at 0 Hz."""
    s = 2j * np.pi * frequency
    response = np.ones((len(peaks), len(frequency)), complex)
    for column, bandwidth in enumerate(BANDWIDTHS):
        pole = -np.pi * bandwidth + 2j * np.pi * peaks[:, column : column + 1]
        response *= (pole * pole.conj()) / ((s - pole) * (s - pole.conj()))
    return response


def _bursts(jaw: np.ndarray, rate: int) -> np.ndarray:
    """The jaw's quick opening, 0 to 1: the "ha" of laughing."""
    width = rate // 4
    calm = np.convolve(
        np.pad(jaw, width, mode="edge"), np.hanning(width) / np.hanning(width).sum(), mode="same"
    )
    return np.clip(0.35 + (jaw - calm[width:-width]) / 0.14, 0, 1)


def _consonants(
    speech: dict[str, np.ndarray], time: np.ndarray, quiet: np.ndarray, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Hisses and pops of the consonants (samples,)."""
    result = np.zeros_like(time)
    frequency = np.fft.rfftfreq(len(time), 1 / rate)
    noise = np.fft.rfft(rng.standard_normal(len(time)))
    names = list(CONSONANTS)
    for kind, (loudness, center, width, seconds) in NOISES.items():
        chosen = [row for row in _syllables(speech) if names[int(row[3])] == kind]
        if loudness == 0 or not chosen:
            continue
        colored = np.fft.irfft(noise * np.exp(-0.5 * ((frequency - center) / width) ** 2), len(time))
        colored /= colored.std() + 1e-9
        envelope = np.zeros_like(time)
        for onset, _, _, _, strength in chosen:
            near = _near(time, onset + 0.045 - seconds, onset + 0.045 + seconds)
            burst = _bump((time[near] - onset - 0.045) / seconds) * min(strength, 1.2)
            envelope[near] = np.maximum(envelope[near], burst)
        result += loudness * 0.35 * colored * envelope
    return result * quiet


def _normalized(sound: np.ndarray) -> np.ndarray:
    """Even loudness where there is any."""
    loud = np.abs(sound) > 0.02 * np.abs(sound).max(initial=1e-9)
    level = np.sqrt(np.mean(sound[loud] ** 2)) if loud.any() else 1.0
    return sound * LOUDNESS / max(level, 1e-9)


def _finish(sound: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A small room, soft treble, no clicks at the ends, no clipping."""
    tail = rng.standard_normal(rate // 6) * np.exp(-np.arange(rate // 6) / (0.03 * rate))
    tail *= 0.20 / np.sqrt(np.sum(tail**2))
    tail[: rate // 100] = 0
    tail[0] = 1.0
    size = len(sound) + len(tail)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    warmth = 1 / np.sqrt(1 + (frequency / 6500) ** 4)
    warmth *= 1 - np.exp(-((frequency / 70) ** 2))
    wet = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size) * warmth, size)[: len(sound)]
    fade = np.clip(np.minimum(np.arange(len(wet)), np.arange(len(wet))[::-1]) / (0.02 * rate), 0, 1)
    return np.tanh(1.2 * wet * fade).astype(np.float32) / 1.2
