"""Pictures and videos on disk, as float RGB tensors in [0, 1] with axes (frames, 3, height, width).

Videos are read and written as streams, so that memory does not grow with their length. The frame rate stays
the exact fraction that the file holds, and sound is copied packet by packet when the container allows it.
Frames are read as a player shows them, see :mod:`.display`; those of animated pictures, see :mod:`.pictures`.
PyAV is imported by what needs it: training writes pictures only and does without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .display import Display
from .errors import InputError
from .finite import require_finite
from .media import open_media, video_stream
from .pictures import STILL, is_moving, is_picture, moving_frames, open_picture, shown
from .sound import Sound, add_copy

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv"}
MICROSECONDS = 1_000_000  # the unit of a container's duration
FALLBACK_RATE = Fraction(25)
TICK = Fraction(1, 90_000)  # the unit of times that follow no rate
UNEVEN = 0.5  # frames: a video one of whose frames is further from where its rate has it has no constant rate


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself; `frames` is 0 when the container does not tell.

    Attributes:
        width, height: in pixels, as shown.
    """

    width: int
    height: int
    rate: Fraction
    frames: int
    has_audio: bool


@dataclass(frozen=True)
class Part:
    """A part of a video.

    Attributes:
        start: in seconds by the file's own clock; frames that are shown earlier are left out.
        duration: in seconds; 0 is all of the rest.
    """

    start: float = 0.0
    duration: float = 0.0

    def ticks(self, unit: Fraction) -> tuple[float, float]:
        """From which time on, and before which, frames belong to it, in such a unit; as ComfyUI counts."""
        first = int(self.start / unit) if self.start > 0 else -inf
        return first, int((self.start + self.duration) / unit) if self.duration else inf


WHOLE = Part()


def probe(path: str | Path) -> VideoInfo:
    """Size, exact frame rate and number of frames of a video file."""
    if is_picture(path):
        return _probe_picture(path)
    from av.error import FFmpegError

    with open_media(path) as container:
        stream = video_stream(container)
        rate = stream.average_rate or stream.guessed_rate or FALLBACK_RATE
        frames = stream.frames
        if not frames and container.duration:
            frames = round(Fraction(container.duration, MICROSECONDS) * rate)
        frames = min(frames, Path(path).stat().st_size)  # whatever it says: each takes a byte or more
        has_audio, frame = bool(container.streams.audio), None
        with suppress(FFmpegError):
            frame = next(container.decode(stream), None)
        width, height = Display.of(stream, frame).size
    return VideoInfo(width, height, Fraction(rate), frames, has_audio)


def _probe_picture(path: str | Path) -> VideoInfo:
    size, count = (0, 0), 0
    for pixels, _ in moving_frames(path):
        size, count = (pixels.shape[1], pixels.shape[0]), count + 1
    return VideoInfo(*size, frame_pace(path)[0], count, has_audio=False)


def frame_pace(path: str | Path, part: Part = WHOLE) -> tuple[Fraction, list[float]]:
    """The frame rate; and if there is no constant one, when each frame is shown, in seconds from the first.

    The container tells both, nothing is decoded. Of the rates that it names the one is taken that fits the
    frames best: a mean is distorted by how long the last frame is shown.
    """
    shown_at = frame_times(path, part)
    times = [float(time - shown_at[0]) for time in shown_at]
    if is_picture(path):
        mean = Fraction(len(times) - 1, 1) / shown_at[-1] if times[1:] else 1 / Fraction(STILL)
        return _pace(times, [mean.limit_denominator(1001)])
    with open_media(path) as container:
        stream = video_stream(container)
        named = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    return _pace(times, [rate.limit_denominator(1_000_000) for rate in named or [FALLBACK_RATE]])


def _pace(times: list[float], rates: Sequence[Fraction]) -> tuple[Fraction, list[float]]:
    """The rate that fits best; and the times, if none does."""

    def deviation(rate: Fraction) -> float:
        return max(abs(time * float(rate) - number) for number, time in enumerate(times))

    if len(times) < 2:
        return rates[0], []
    best = min(rates, key=deviation)
    steady = deviation(best) <= UNEVEN or any(first == second for first, second in pairwise(times))
    return (best, []) if steady else (rates[0], times)


def frame_times(path: str | Path, part: Part = WHOLE) -> list[Fraction]:
    """When each frame is shown, in seconds by the file's own clock; empty if the container does not tell."""
    if is_picture(path):
        lengths = [Fraction(seconds).limit_denominator(1000) for _, seconds in moving_frames(path)]
        return list(accumulate(lengths[:-1], initial=Fraction(0)))
    with open_media(path) as container:
        stream = video_stream(container)
        unit = stream.time_base
        first, end = part.ticks(unit)
        stamps = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
    if None in stamps:
        return []
    return [stamp * unit for stamp in sorted(stamps) if first <= stamp < end]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(height, width, 3) uint8 -> (3, height, width) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().div_(255)


def to_pixels(image: Tensor) -> np.ndarray:
    """(channels, height, width) in [0, 1] -> (height, width, channels) uint8."""
    pixels = image.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def read_frames(path: str | Path) -> Iterator[Tensor]:
    """Frames of a video one after the other, each (3, height, width), all of one size."""
    return map(to_tensor, read_pixels(path))


def read_pixels(path: str | Path, part: Part = WHOLE) -> Iterator[np.ndarray]:
    """Frames of a video, or of a part of it, one after the other: (height, width, 3) uint8 as they are shown.

    Raises:
        InputError: not a video, damaged, or without a frame.
    """
    if is_picture(path):
        yield from (pixels for pixels, _ in moving_frames(path))
        return
    from av.error import FFmpegError

    with open_media(path) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        first, end = part.ticks(stream.time_base)
        display = None
        try:
            if first > 0:
                container.seek(int(first), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or first <= frame.pts < end:
                    display = display or Display.of(stream, frame)
                    yield display.pixels(frame)
                elif frame.pts >= end:
                    break
        except FFmpegError as error:
            raise InputError(f"{path} is damaged and could not be decoded to its end ({error}).") from error
    if display is None:
        raise InputError(f"{path} holds no frame; give a video with at least one.")


def read_image(path: str | Path) -> Tensor:
    """A picture file as (1, 3, height, width), in sRGB; transparency is laid over middle gray."""
    if not Path(path).is_file():
        raise InputError(f"There is no picture file {path}.")
    with open_picture(path) as picture:
        pixels = shown(picture)
    return to_tensor(pixels)[None]


def is_still(path: str | Path) -> bool:
    """Whether a file is to be read as a picture: by its name, unless it moves."""
    return Path(path).suffix.lower() in IMAGE_ENDINGS and not is_moving(path)


def numbered_pictures(folder: str | Path) -> list[Path]:
    """Pictures of a folder in the order of the numbers in their names: 2.png before 10.png."""
    found = [p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_ENDINGS and p.name[0] != "."]
    return sorted(found, key=lambda p: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", p.name)])


def write_image(path: str | Path, image: Tensor, quality: int = 92) -> None:
    """Write (3, height, width) as PNG or JPEG, by the name's ending."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_pixels(image)).save(path, quality=quality)


def contact_sheet(columns: Iterable[Tensor]) -> Tensor:
    """Columns of equally sized pictures (rows, 3, height, width) side by side -> (3, rows*height,
    columns*width).
    """
    strips = [column.detach().float().cpu().clamp(0, 1) for column in columns]
    return torch.cat([torch.cat(list(strip), dim=1) for strip in strips], dim=2)


def join_videos(
    parts: Sequence[Path],
    path: str | Path,
    rate: Fraction,
    times: Sequence[float] = (),
    audio_from: str | Path | None = None,
    copy_sound: bool = True,
    cut_sound: bool = True,
    sound_start: Fraction | None = None,
) -> int:
    """Join videos of :class:`VideoWriter` into one, packet by packet: nothing is encoded again.

    Args:
        parts: of one rate, size and encoder; see :func:`codec_parameters`.
        times: of every frame, in seconds, for a video without a constant rate; see :func:`frame_pace`.
        audio_from: video or sound file whose sound goes along; see :func:`.sound.keep_sound`.
        copy_sound: False encodes it, since packets of a damaged or old file may have times that mp4 refuses.
        cut_sound: whether it ends with the pictures.
        sound_start: see :class:`.sound.Sound`.

    Returns:
        the number of frames.
    """
    import av

    unit = TICK if times else 1 / rate

    def tick(number: int) -> int:
        """When a frame is shown; decoding begins some frames earlier than the first one."""
        if not times:
            return number
        if 0 <= number < len(times):
            return round(times[number] / unit)
        over = number if number < 0 else number - len(times) + 1
        return round((times[0 if number < 0 else -1] + over / rate) / unit)

    sound = None if audio_from is None else Sound(audio_from, copy_sound, sound_start)
    delays = [_delay(part, rate) for part in parts]
    done, video = 0, None
    try:
        with av.open(str(path), "w", format="mp4") as output:
            for part, delay in zip(parts, delays, strict=True):
                first, earlier = done, max(delays) - delay
                with open_media(part) as container:
                    source = video_stream(container)
                    if video is None:
                        video = add_copy(output, source)
                        video.time_base = unit
                        if sound is not None:
                            sound.add_to(output)
                    for packet in container.demux(source):
                        if packet.dts is None:
                            continue
                        frames = packet.time_base * rate  # in a unit of the part's time
                        shown, decoded = (first + round(stamp * frames) for stamp in (packet.pts, packet.dts))
                        packet.stream, packet.time_base = video, unit
                        packet.pts, packet.dts = tick(shown), tick(decoded - earlier)
                        packet.duration = tick(shown + 1) - packet.pts
                        output.mux(packet)
                        done += 1
                        if sound is not None:
                            sound.copy(float(tick(done) * unit))
            if sound is not None and not cut_sound:
                sound.copy(float("inf"))
    finally:
        if sound is not None:
            sound.close()
    return done


def _delay(path: Path, rate: Fraction) -> int:
    """By how many frames decoding begins before the first one is shown: in very short videos by fewer."""
    with open_media(path) as container:
        packet = next(container.demux(container.streams.video[0]))
        return round((packet.pts - packet.dts) * packet.time_base * rate)


def codec_parameters(path: str | Path) -> tuple[bytes, int, int]:
    """What the videos that :func:`join_videos` joins have in common: the encoder's header and the size."""
    with open_media(path) as container:
        codec = video_stream(container).codec_context
        return codec.extradata or b"", codec.width, codec.height


class VideoWriter:
    """Writes an H.264 mp4; with `audio_from`, the sound of that video or sound file is copied beside
    the pictures, with `cut_sound` only as far as there are pictures. If it is to be `repeatable`, the same
    frames always give the same file: by one thread, since the number of cores counts otherwise, and without
    x264's macroblock tree, which reads memory that nothing was written to if the width is no multiple of 128.

    Use it as a context manager. When the body raises, the unfinished file is removed.
    """

    def __init__(
        self,
        path: str | Path,
        rate: Fraction,
        audio_from: str | Path | None = None,
        crf: int = 16,
        cut_sound: bool = False,
        repeatable: bool = False,
    ) -> None:
        import av

        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rate = Fraction(rate).limit_denominator(1_000_000)
        self.crf = crf
        self.cut_sound = cut_sound
        self.repeatable = repeatable
        self.frames = 0
        self._stream: Any = None
        self._container: Any = av.open(str(path), "w", format="mp4")
        self._sound = Sound(audio_from) if audio_from is not None else None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            if kind is None and self._stream is not None:
                self.close()
                whole = True
                return
            self._container.close()
            if self._sound is not None:
                self._sound.close()
        finally:  # closing writes as well: on a full disk it fails
            if not whole:
                self.path.unlink(missing_ok=True)

    def write(self, frames: Tensor) -> None:
        """Append frames (count, 3, height, width) of one size; an odd edge is repeated to make it even.

        Raises:
            InputError: NaN or infinity, of which pictures would be black.
        """
        from av import VideoFrame

        for frame in require_finite(frames, self.frames):
            pixels = to_pixels(frame)
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            if self._stream is None:
                self._start(pixels.shape[1], pixels.shape[0])
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture.pts = self.frames
            picture.time_base = 1 / self.rate
            self._container.mux(self._stream.encode(picture))
            self.frames += 1
            if self._sound is not None:
                self._sound.copy(float(self.frames / self.rate))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        if self._sound is not None and not self.cut_sound:
            self._sound.copy(float("inf"))
        self._container.close()
        if self._sound is not None:
            self._sound.close()

    def _start(self, width: int, height: int) -> None:
        options = {"crf": str(self.crf), "threads": "0"}
        if self.repeatable:
            options |= {"threads": "1", "mbtree": "0"}
        self._stream = self._container.add_stream("libx264", rate=self.rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        if self._sound is not None:
            self._sound.add_to(self._container)
