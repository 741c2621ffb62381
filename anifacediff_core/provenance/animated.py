"""Animated pictures: GIF with one palette for all frames, and words in files whose writers know none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HUNDREDTH = Fraction(1, 100)  # GIF's unit of time, in seconds
# Steady from frame to frame, where diffused errors would crawl.
DITHER = "dither=bayer:bayer_scale=3:alpha_threshold=128"
MODEL, MAKE = 0x0110, 0x010F  # of EXIF, where ComfyUI keeps prompt and workflow
EXIF_FLAG, XMP_FLAG = 0x08, 0x04  # of WebP's header


def encode_gif(frames: Callable[[], Iterator[np.ndarray]], shown_at: Callable[[int], int], path: str) -> None:
    """Write a GIF that repeats: once through the frames for the palette, once to draw with it.

    Args:
        frames: gives them from the first on, (height, width, 3 or 4) uint8; alpha below half is clear.
        shown_at: when a frame is shown, in hundredths of a second.
    """
    import av

    palette = _palette(frames())
    with av.open(path, "w", format="gif") as output:
        stream: Any = None
        for number, picture in enumerate(_painted(frames(), palette)):
            if stream is None:
                stream = output.add_stream("gif", rate=100)
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "pal8"
                stream.codec_context.time_base = HUNDREDTH
            picture.pts, picture.time_base = shown_at(number), HUNDREDTH
            output.mux(stream.encode(picture))
        if stream is not None:
            output.mux(stream.encode())


def _palette(frames: Iterator[np.ndarray]) -> Any:
    """The 256 colors of a video, as a picture."""
    graph: Any = None
    for number, pixels in enumerate(frames):
        frame = _rgba(pixels, number)
        if graph is None:
            graph, source = _graph(frame)
            last = graph.add("palettegen")
            sink = graph.add("buffersink")
            source.link_to(last)
            last.link_to(sink)
            graph.configure()
        source.push(frame)
    source.push(None)
    return sink.pull()


def _painted(frames: Iterator[np.ndarray], palette: Any) -> Iterator[Any]:
    """Frames in the colors of a palette."""
    graph: Any = None
    for number, pixels in enumerate(frames):
        frame = _rgba(pixels, number)
        if graph is None:
            graph, source = _graph(frame)
            colors = graph.add_buffer(
                width=palette.width, height=palette.height, format=palette.format, time_base=HUNDREDTH
            )
            use = graph.add("paletteuse", DITHER)
            sink = graph.add("buffersink")
            source.link_to(use, 0, 0)
            colors.link_to(use, 0, 1)
            use.link_to(sink)
            graph.configure()
            colors.push(palette)
            colors.push(None)
        source.push(frame)
        yield from _ready(sink)
    source.push(None)
    yield from _ready(sink)


def _graph(frame: Any) -> tuple[Any, Any]:
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=HUNDREDTH
    )
    return graph, source


def _ready(sink: Any) -> Iterator[Any]:
    """What a graph has finished so far."""
    from av.error import BlockingIOError, EOFError

    while True:
        try:
            yield sink.pull()
        except (BlockingIOError, EOFError):
            return


def _rgba(pixels: np.ndarray, number: int) -> Any:
    from av import VideoFrame

    clear = pixels.shape[2] == 4
    if not clear:
        pixels = np.pad(pixels, ((0, 0), (0, 0), (0, 1)), constant_values=255)
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgba")
    frame.pts, frame.time_base = number, HUNDREDTH
    return frame


def add_to_gif(path: Path, comment: str, xmp: str) -> None:
    """A comment, and XMP as Adobe puts it, in front of a GIF's first frame."""
    content = path.read_bytes()
    colors = content[10]
    start = 13 + (3 * 2 ** ((colors & 7) + 1) if colors & 0x80 else 0)
    text = comment.encode("ascii", "replace")
    blocks = b"".join(bytes([len(part)]) + part for part in _parts(text, 255))
    said = b"\x21\xfe" + blocks + b"\0"
    # a reader that skips blocks by their length runs into the trailer, wherever it comes from
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    said += b"\x21\xff\x0bXMP DataXMP" + xmp.encode() + trailer
    path.write_bytes(content[:start] + said + content[start:])


def _parts(text: bytes, most: int) -> Iterator[bytes]:
    return (text[start : start + most] for start in range(0, len(text), most))


def add_to_webp(path: Path, fields: Mapping[str, str], xmp: str) -> None:
    """XMP, if there is any, and what ComfyUI finds a workflow by, behind an animated WebP's frames."""
    content = bytearray(path.read_bytes())
    exif = Image.Exif()
    if "prompt" in fields:
        exif[MODEL] = f"prompt:{fields['prompt']}"
    for place, name in enumerate(sorted(fields.keys() - {"prompt"})):
        exif[MAKE - place] = f"{name}:{fields[name]}"
    content[20] |= (XMP_FLAG if xmp else 0) | (EXIF_FLAG if fields else 0)
    if fields:
        content += _chunk(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0"))
    if xmp:
        content += _chunk(b"XMP ", xmp.encode())
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    path.write_bytes(content)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
