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


def write_driver(path: Path, times: Sequence[float], seconds: float | None = None, side: int = 32) -> None:
    """Frames that brighten, shown at `times`, with a tone of so many seconds."""
    with av.open(str(path), "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=90000)
        video.width = video.height = side
        video.pix_fmt = "yuv420p"
        sound = output.add_stream("aac", rate=SOUND_RATE) if seconds else None
        for index, time in enumerate(times):
            pixels = np.full((side, side, 3), 255 * index // len(times), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 90000), Fraction(1, 90000)
            output.mux(video.encode(frame))
        output.mux(video.encode())
        if sound is not None and seconds is not None:
            tone = (8000 * np.sin(np.arange(round(seconds * SOUND_RATE)) / 8)).astype(np.int16)[None]
            heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            heard.sample_rate = SOUND_RATE
            output.mux(sound.encode(heard))
            output.mux(sound.encode())
