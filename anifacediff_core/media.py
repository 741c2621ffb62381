"""Opening videos and sound files with FFmpeg: only the formats that are named here, and nothing that a file
leads to: no other file, no address, no program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InputError

# FFmpeg's names. Left out is what lists other files (HLS, DASH, concat), draws text, or is a still picture.
VIDEO_FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "dv", "h264", "hevc",
    "m4v", "ivf", "obu", "nut", "yuv4mpegpipe",
)  # fmt: skip
SOUND_FORMATS = (
    "wav", "w64", "aiff", "au", "caf", "mp3", "aac", "flac", "ac3", "eac3", "dts", "amr", "ape", "wv",
)  # fmt: skip
MOST_PIXELS = 120_000_000  # of a picture or frame: as float RGB that takes 1.4 GB


def open_media(path: str | Path, needs_video: bool = True) -> Any:
    """A container to read from; the caller closes it. Names in it that are not UTF-8 cost nothing.

    Raises:
        InputError: no file, none of the known formats, damaged, or without pictures where it needs some.
    """
    import av
    from av.error import FFmpegError

    if not Path(path).is_file():
        raise InputError(f"There is no video file {path}.")
    known = {"format_whitelist": ",".join(VIDEO_FORMATS + SOUND_FORMATS), "protocol_whitelist": "file"}
    try:  # the protocol is named since a file may be called "12:30.mp4"
        container = av.open(f"file:{path}", container_options=known, metadata_errors="replace")
    except FFmpegError as error:
        raise InputError(
            f"{path} could not be read as a video ({error.strerror}); is the file complete, and of a format "
            "that can be read?"
        ) from error
    try:
        if needs_video:
            _require_pictures(path, container)
    except BaseException:
        container.close()
        raise
    return container


def video_stream(container: Any) -> Any:
    """The stream of a container's pictures; the cover of a piece of music is none."""
    from av.stream import Disposition

    cover = Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def is_sound(path: str | Path) -> bool:
    """Whether a file holds sound and no pictures; the cover of a piece of music is none."""
    try:
        with open_media(path, needs_video=False) as container:
            return video_stream(container) is None and bool(container.streams.audio)
    except InputError:
        return False


def require_affordable(path: object, width: int, height: int) -> None:
    """Refuse pictures that would fill the memory, before anything of them is decoded."""
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{path} says that it has {width}×{height} pixels, more than the {MOST_PIXELS // 1_000_000} "
            "million that are taken: scale it down first."
        )


def _require_pictures(path: str | Path, container: Any) -> None:
    stream = video_stream(container)
    if stream is None:
        raise InputError(f"{path} has no video stream; give a file that has one.")
    if stream.codec_context is None:
        raise InputError(f"The codec of the video {path} is unknown: convert it to H.264.")
    if not (stream.width and stream.height):
        raise InputError(f"{path} does not say how large its pictures are; is the file complete?")
    require_affordable(path, stream.width, stream.height)
