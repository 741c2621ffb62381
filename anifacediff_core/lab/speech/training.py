"""Training of the network that reads speech, on a CPU within minutes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.progress import Progress
from anifacediff_core.speech.motion import at_rate
from anifacediff_core.speech.network import FPS, RATE, SAMPLES, SpeechNetwork, level, log_mel
from anifacediff_core.storage import write_tensors

from ..options import Positive
from .synthesis import Espeak, Phoneme, Utterance, flite
from .texts import LANGUAGES, random_text
from .visemes import targets

# Voices that are measured and never trained on.
HELD_OUT = ("f5", "m7", "Andrea", "Michael", "klatt4", "shelby")
# They distort or whisper; and their jaws are not to follow a robot's hum.
LEFT_OUT = ("announcer", "aunty", "Demonic", "whisper", "whisperf", "fast", "UniRobot", "anikaRobot")
FLITE_VOICES = ("awb", "kal16")
OF_FLITE = 0.25  # share of the utterances
STRETCH = (0.86, 1.16)
SILENT = 0.12  # share of the parts with nobody who speaks, but noise
EMA = 0.999


@dataclass(frozen=True)
class SpeechTraining:
    """How the network learns."""

    utterances: Annotated[Positive, "that are synthesized"] = 2400
    steps: Annotated[Positive, "of training"] = 4000
    batch: Annotated[Positive, "parts of utterances in each step"] = 16
    seconds: Annotated[float, "of each part"] = 2.56
    learning_rate: Annotated[float, "at its highest; it falls to 0 by a cosine"] = 2e-3
    seed: Annotated[int, "of everything random"] = 1


def synthesize(count: int, seed: int, progress: Progress) -> list[Utterance]:
    """Utterances of every voice but those that are held out, in many languages, speeds and pitches."""
    espeak, dice = Espeak(), random.Random(seed)
    made: list[Utterance] = []
    unwanted = {*HELD_OUT, *LEFT_OUT}
    variants = [name for name in espeak.variants if name not in unwanted and "obosoft" not in name]
    while len(made) < count:
        text = random_text(dice)
        if dice.random() < OF_FLITE:
            spoken = flite(text, dice.choice(FLITE_VOICES))
        else:
            voice = f"{dice.choice(LANGUAGES)}+{dice.choice(variants)}"
            spoken = espeak.speak(
                text, voice, *(dice.randint(*ends) for ends in ((110, 230), (10, 90), (20, 90)))
            )
        if spoken.wave.shape[0] > RATE:
            made.append(stretched(spoken, dice.uniform(*STRETCH)))
            progress(len(made), count)
    return made


def stretched(spoken: Utterance, factor: float) -> Utterance:
    """Faster by a factor, with a shorter throat and a higher voice, as on a tape."""
    wave = at_rate(spoken.wave[None], round(RATE * factor))[0]
    return Utterance(
        wave, tuple(Phoneme(sound, start / factor, end / factor) for sound, start, end in spoken.phonemes)
    )


def train(settings: SpeechTraining, utterances: Sequence[Utterance], progress: Progress) -> SpeechNetwork:
    """Returns: the mean of the last weights, in evaluation mode."""
    torch.manual_seed(settings.seed)
    truth = [_targets(spoken) for spoken in utterances]
    network, mean = SpeechNetwork(), SpeechNetwork().requires_grad_(False)
    mean.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.05
    )
    for step in range(settings.steps):
        loss = _loss(network, *_batch(settings, utterances, truth))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for kept, new in zip(mean.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - min(EMA, step / (step + 10)))
        progress(step + 1, settings.steps)
    return mean.eval()


def save(network: SpeechNetwork, settings: SpeechTraining, path: Path) -> None:
    """Write the weights in float16, with how they came about in the header."""
    made = {"settings": asdict(settings), "held_out": HELD_OUT, "torch": torch.__version__}
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    write_tensors(path, tensors, {"anifacediff-speech": json.dumps(made)})


def _targets(spoken: Utterance) -> Tensor:
    return targets(spoken.phonemes, torch.arange(len(spoken.wave) // SAMPLES + 1) / FPS)


def _loss(network: SpeechNetwork, wave: Tensor, truth: Tensor) -> Tensor:
    """Squared error of the shapes, dearer where they are strong; cross entropy of lips that meet."""
    told = network(log_mel(wave, level(wave)))[:, : truth.shape[1]]
    shapes, wanted = told[..., :-1].sigmoid(), truth[..., :-1]
    off = ((shapes - wanted).square() * (1 + 2 * wanted)).mean()
    jerk = (shapes.diff(dim=1) - wanted.diff(dim=1)).square().mean()
    shut = F.binary_cross_entropy_with_logits(told[..., -1], truth[..., -1])
    return 10 * off + 20 * jerk + shut


# ---- batches


def _batch(
    settings: SpeechTraining, utterances: Sequence[Utterance], truth: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Waves (batch, samples) as a microphone may hear them, and their truth (batch, frames, channels)."""
    frames = round(settings.seconds * FPS)
    waves = torch.zeros(settings.batch, frames * SAMPLES)
    wanted = torch.zeros(settings.batch, frames, truth[0].shape[1])
    for row, number in enumerate(torch.randint(len(utterances), (settings.batch,)).tolist()):
        whole, told = utterances[number].wave, truth[number]
        start = int(torch.randint(-frames // 3, max(len(told) - frames // 2, 1), ()))
        first, skipped = max(start, 0), max(-start, 0)  # silence before the speech, and behind it
        part, own = whole[first * SAMPLES :][: (frames - skipped) * SAMPLES], told[first:][: frames - skipped]
        waves[row, skipped * SAMPLES :][: len(part)] = part
        wanted[row, skipped:][: len(own)] = own
    silent = torch.rand(settings.batch) < SILENT
    waves[silent], wanted[silent] = 0.0, 0.0
    waves = heard(waves)
    loud = 10 ** _uniform(-4, -0.5, settings.batch, 1)
    return torch.where(silent[:, None], loud * _noise(*waves.shape), waves).clamp(-1, 1), wanted


def heard(waves: Tensor) -> Tensor:
    """Waves (waves, samples) in rooms, by microphones, with noise, loud or quiet; their times stay."""
    count, samples = waves.shape
    spectrum = torch.fft.rfft(waves, 2 * samples)
    frequency = torch.linspace(0, RATE / 2, spectrum.shape[-1])
    echo = torch.fft.rfft(_rooms(count), 2 * samples)
    waves = torch.fft.irfft(spectrum * echo * _microphones(count, frequency))[:, :samples]
    loud = waves.square().mean(-1, keepdim=True).sqrt().clamp(min=0.01)
    ratio = 10 ** (-_uniform(5, 50, count, 1) / 20)
    waves = waves + loud * ratio * _noise(count, samples)
    gain = 10 ** (_uniform(-20, 6, count, 1) / 20)
    return (waves * gain).clamp(-1, 1)


def _uniform(low: float, high: float, *size: int) -> Tensor:
    return low + (high - low) * torch.rand(size)


def _rooms(count: int) -> Tensor:
    """Impulse responses (count, 0.3 s): the sound itself, then an echo that dies away; half have none."""
    time = torch.arange(round(0.3 * RATE)) / RATE
    decay = torch.exp(-time / _uniform(0.015, 0.09, count, 1))
    strength = _uniform(0.0, 0.12, count, 1) * (torch.rand(count, 1) < 0.5)
    echo = torch.randn(count, len(time)) * decay * strength
    echo[:, 0] = 1.0
    return echo


def _microphones(count: int, frequency: Tensor) -> Tensor:
    """Amplification (count, frequencies): a tilt, a resonance or two, at times the band of a telephone."""
    octaves = (frequency.clamp(min=50) / 1000).log2()
    boost = _uniform(-4, 4, count, 1) * octaves  # dB
    for _ in range(3):
        middle, width = _uniform(-3, 3, count, 1), _uniform(0.3, 1.5, count, 1)
        boost = boost + _uniform(-9, 9, count, 1) * torch.exp(-(((octaves - middle) / width) ** 2))
    highest = torch.where(torch.rand(count, 1) < 0.15, 3400.0, 8000.0)
    steep = torch.sigmoid((highest - frequency) / 150) + 1e-3
    return 10 ** (boost.clamp(-24, 24) / 20) * torch.where(highest < 8000, steep, 1.0)


def _noise(count: int, samples: int) -> Tensor:
    """Noise between white and brown (count, samples), of deviation 1."""
    spectrum = torch.fft.rfft(torch.randn(count, samples))
    frequency = torch.linspace(0, RATE / 2, spectrum.shape[-1]).clamp(min=40)
    noise = torch.fft.irfft(spectrum * (frequency / 1000) ** -_uniform(0, 1, count, 1), samples)
    return noise / noise.std(dim=-1, keepdim=True)
