"""Driving videos for tests."""

from __future__ import annotations

import struct
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
    heard_at: float = 0.0,
) -> None:
    """Frames that brighten, shown at `times`, with a tone of so many seconds, of such a codec and rate, that
    begins at `heard_at`.
    """
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
            if heard_at:
                samples.pts, samples.time_base = round(heard_at * sound_rate), Fraction(1, sound_rate)
            output.mux(heard.encode(samples))
            output.mux(heard.encode())


def write_frames(
    path: Path,
    frames: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    aspect: Fraction | None = None,
    matrix: int | None = None,
    full: bool = False,
    transfer: int | None = None,
    title: str | None = None,
) -> None:
    """Frames (frames, height, width, 3), uint8, or uint16 of HDR in BT.2020, at 25 a second; as exact as the
    codec allows.

    Args:
        size: width and height that are stored, of pixels that are `aspect` times as wide as high.
        matrix, full: of YUV and its range, as numbers of H.273.
    """
    deep = frames.dtype == np.uint16
    codec = "ffv1" if deep else "mpeg4" if path.suffix == ".avi" else "libx264"
    form = "mpegts" if path.suffix == ".ts" else None
    width, height = size or (frames.shape[2], frames.shape[1])
    with av.open(str(path), "w", format=form) as output:
        if title is not None:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=25, options={"crf": "4"} if codec == "libx264" else {})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p10le" if deep else "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        matrix = 9 if deep else matrix
        if matrix is not None:
            stream.codec_context.colorspace = matrix
            stream.codec_context.color_range = 2 if full else 1
        if transfer is not None:
            stream.codec_context.color_trc = transfer
            stream.codec_context.color_primaries = 9
        given = {} if matrix is None else {"dst_colorspace": matrix, "dst_color_range": 2 if full else 1}
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels), format="rgb48le" if deep else "rgb24"
            )
            picture = picture.reformat(width, height, stream.pix_fmt, interpolation="BICUBIC", **given)
            picture.pts, picture.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())


def stamp_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into an mp4: stored (x, y) is shown at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
