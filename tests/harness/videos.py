"""Driving videos for tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = Fraction(30000, 1001)
SOUND_RATE = 16000


def steady(frames: int) -> list[float]:
    """Times of frames at `RATE`."""
    return [float(number / RATE) for number in range(frames)]


def write_driver(
    path: Path,
    times: Sequence[float],
    seconds: float | None = None,
    side: int = 32,
    sound: tuple[str, int] = ("aac", SOUND_RATE),
) -> None:
    """Frames that brighten, shown at `times`, with a tone of so many seconds, of such a codec and rate."""
    codec, sound_rate = sound
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=90000)
        video.width = video.height = side
        video.pix_fmt = "yuv420p"
        heard = output.add_stream(codec, rate=sound_rate) if seconds else None
        if heard is not None:
            heard.codec_context.layout = "mono"
        for index, time in enumerate(times):
            pixels = np.full((side, side, 3), 255 * index // len(times), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 90000), Fraction(1, 90000)
            output.mux(video.encode(frame))
        output.mux(video.encode())
        if heard is not None and seconds is not None:
            tone = (8000 * np.sin(np.arange(round(seconds * sound_rate)) / 8)).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            samples.sample_rate = sound_rate
            output.mux(heard.encode(samples))
            output.mux(heard.encode())
