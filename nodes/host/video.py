"""Videos of the host as files: nothing here holds more than a frame in memory."""

from __future__ import annotations

import hashlib
import io as streams
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import InputImpl

from anifacediff_core.errors import InputError
from anifacediff_core.video import probe


def file_of(video: Any) -> Path:
    """The file behind a VIDEO. One that has none, or is a part of a file, gets one in the temporary folder.

    Raises:
        InputError: there is no video.
    """
    source = video.get_stream_source()
    if not isinstance(source, streams.BytesIO):
        path = Path(source)
        info = probe(path)
        if abs(float(video.get_duration() * info.rate) - info.frames) < 1.5:
            return path
        source = streams.BytesIO()  # cut by another node, which the file knows nothing of
        video.save_to(source)
    content = source.getbuffer()
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"anifacediff_{hashlib.sha256(content).hexdigest()[:16]}.mp4"
    if not content:
        raise InputError("The driving video is empty: connect Load Video.")
    if not path.exists():
        path.write_bytes(content)
    return path


def video_of(path: Path) -> Any:
    """A file as the host's VIDEO."""
    return InputImpl.VideoFromFile(str(path))


def input_path(value: Any) -> Path | None:
    """The file of the input folder that a value of a workflow names, if it does."""
    if not isinstance(value, str) or not value or "\0" in value or "\n" in value:
        return None
    path = Path(folder_paths.get_annotated_filepath(value))
    try:
        return path if path.is_file() else None
    except OSError:  # a text that is too long for a name
        return None
