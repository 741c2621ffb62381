"""Videos of the host as files: nothing here holds more than a frame in memory."""

from __future__ import annotations

import io as streams
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from av.error import FFmpegError

from anifacediff_core.errors import InputError
from anifacediff_core.storage import file_digest
from anifacediff_core.video import WHOLE, Part

from .api import InputImpl, io, ui


def part_of(video: Any) -> tuple[Path, Part]:
    """The file behind a VIDEO, and which part of it that is; see :func:`file_of`."""
    part = _part(video)
    return (file_of(video), WHOLE) if part is None else (_stored(video), part)


def file_of(video: Any) -> Path:
    """The file behind a VIDEO; one that has none, or is a part of one, gets one in the temporary folder."""
    if _part(video) == WHOLE:
        return _stored(video)
    return _kept(lambda path: video.save_to(str(path)))


def _part(video: Any) -> Part | None:
    """Which part of its file a VIDEO is; None if it has no file, or the host does not tell."""
    if isinstance(video, InputImpl.VideoFromComponents):
        return None
    if not hasattr(video, "as_trimmed"):  # a host that cannot cut
        return WHOLE
    if hasattr(video, "get_active_trim_window"):
        return Part(*video.get_active_trim_window())
    whole = InputImpl.VideoFromFile(video.get_stream_source())
    return WHOLE if whole.get_duration() == video.get_duration() else None


def _stored(video: Any) -> Path:
    source = video.get_stream_source()
    if isinstance(source, streams.BytesIO):
        return _kept(lambda path: path.write_bytes(source.getbuffer()))
    return Path(source)


def temporary_folder() -> Path:
    """The host's, which need not be there yet."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kept(write: Callable[[Path], object]) -> Path:
    """A file in the temporary folder that has the name of its content."""
    folder = temporary_folder()
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        written = Path(beside) / "video.mp4"
        try:
            write(written)
        except (UnicodeError, FFmpegError, ValueError) as error:
            raise InputError(
                f"The host cannot write the video to a file ({error}): give a whole one."
            ) from error
        path = folder / f"anifacediff_{file_digest(written)[:16]}.mp4"
        written.replace(path)
    return path


def preview_of(name: str) -> ui.PreviewVideo:
    """What shows a video on the node that made it, by its name below the output folder."""
    folder, _, file = name.rpartition("/")
    return ui.PreviewVideo([ui.SavedResult(file, folder, io.FolderType.output)])


def video_of(path: Path) -> Any:
    """A file as the host's VIDEO."""
    return InputImpl.VideoFromFile(str(path))
