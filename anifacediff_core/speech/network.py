"""The network that reads lips and jaw from a voice, and what it hears: log-mel bands.

Times: the wave has ``RATE`` samples a second, its features 100 frames a second, the result ``FPS``. Frame k
of either is centered on the time k / rate.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError

ASSET = Path(__file__).resolve().parent.parent / "assets" / "speech.safetensors"
RATE = 16_000  # samples a second
HOP, WINDOW, FFT = 160, 400, 512  # samples
BANDS, LOWEST, HIGHEST = 40, 60.0, 7600.0  # Hz
FPS = 50
SAMPLES = RATE // FPS  # of each frame of the result
QUIETEST = -55.0  # dB of full scale; below, nobody speaks, however loud the rest is
RANGE = 60.0  # dB below the voice that are heard
# What the network tells, each in [0, 1]; a name without a side stands for both. "shut" is whether lips meet.
CHANNELS = (
    "jawOpen", "mouthFunnel", "mouthPucker", "mouthLowerDown", "mouthUpperUp", "mouthStretch", "mouthSmile",
    "mouthPress", "mouthRollLower", "mouthRollUpper", "shut",
)  # fmt: skip
WIDTH = 80
DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8)
REACH = 0.8  # seconds to either side that can change a frame of the result


class SpeechNetwork(nn.Module):
    """Residual dilated convolutions over time, which look ahead as far as back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(BANDS, WIDTH, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GELU(),
                nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation),
                nn.GELU(),
                nn.Conv1d(WIDTH, WIDTH, 1),
            )
            for dilation in DILATIONS
        )
        self.out = nn.Conv1d(WIDTH, len(CHANNELS), 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (waves, frames / 2, channels) of features (waves, frames, bands)."""
        hidden = self.stem(features.transpose(1, 2))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.out(F.gelu(hidden)).transpose(1, 2)


def load_network(path: str | Path = ASSET) -> SpeechNetwork:
    """The network of a file that ``anifacediff speech train`` has written, in evaluation mode.

    Raises:
        InputError: the file is missing, damaged or something else.
    """
    network = SpeechNetwork()
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{Path(path).name} holds no weights that read speech: install the extension again, or give a "
            "file of the command speech train."
        ) from error
    return network.eval()


def level(wave: Tensor) -> Tensor:
    """How loud the voice is, in dB of full scale (waves, 1): that of the louder moments, `QUIETEST` at least.

    Args:
        wave: (waves, samples), at least one sample.
    """
    padded = F.pad(wave, (0, -wave.shape[-1] % WINDOW))
    power = padded.unflatten(-1, (-1, WINDOW)).square().mean(-1)
    return decibels(power.float().quantile(0.95, dim=-1, keepdim=True)).clamp(min=QUIETEST)


def log_mel(wave: Tensor, loudness: Tensor) -> Tensor:
    """What the network hears, whatever the loudness: (waves, 1 + samples / HOP, BANDS).

    Args:
        wave: (waves, samples) at ``RATE``, in [-1, 1].
        loudness: (waves, 1) of the voice, see :func:`level`.

    Returns:
        0 about as loud as the voice, -1 where it is `RANGE` decibels below or quieter.
    """
    window = torch.hann_window(WINDOW, device=wave.device)
    spectrum = torch.stft(wave, FFT, HOP, WINDOW, window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square() * (4 / window.sum() ** 2)
    bands = decibels(torch.einsum("wft,bf->wtb", power, mel_bands().to(wave.device)))
    return ((bands - loudness[..., None]) / RANGE).clamp(min=-1)


def decibels(power: Tensor) -> Tensor:
    return 10 * power.clamp(min=1e-12).log10()


def mel_bands() -> Tensor:
    """Triangles over the spectrum, evenly spaced by O'Shaughnessy's mel: (BANDS, FFT / 2 + 1)."""

    def mel(frequency: float) -> float:
        return 2595 * math.log10(1 + frequency / 700)

    edges = torch.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    frequency = torch.linspace(0, RATE / 2, FFT // 2 + 1)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
