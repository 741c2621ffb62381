"""Videos of the host as files: nothing here holds more than a frame in memory."""

from __future__ import annotations

import io as streams
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import InputImpl

from anifacediff_core.storage import file_digest
from anifacediff_core.video import probe

CUT = 1.5  # frames; where a VIDEO is longer or shorter than its file by more, another node has cut it


def file_of(video: Any) -> Path:
    """The file behind a VIDEO; one that has none, or is a part of one, gets one in the temporary folder."""
    if not isinstance(video, InputImpl.VideoFromComponents):
        source = video.get_stream_source()
        if isinstance(source, streams.BytesIO):
            return _kept(lambda path: path.write_bytes(source.getbuffer()))
        path, info = Path(source), probe(source)
        if abs(float(video.get_duration() * info.rate) - info.frames) < CUT:
            return path
    return _kept(lambda path: video.save_to(str(path)))


def _kept(write: Callable[[Path], object]) -> Path:
    """A file in the temporary folder that has the name of its content."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        written = Path(beside) / "video.mp4"
        write(written)
        path = folder / f"anifacediff_{file_digest(written)[:16]}.mp4"
        written.replace(path)
    return path


def video_of(path: Path) -> Any:
    """A file as the host's VIDEO."""
    return InputImpl.VideoFromFile(str(path))
