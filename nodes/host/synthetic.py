"""Videos of the host: their frames one by one, and a file that says that they are synthetic."""

from __future__ import annotations

import logging
import tempfile
import wave
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from anifacediff_core.capture.capture import rgb
from anifacediff_core.errors import InputError
from anifacediff_core.provenance import manifest
from anifacediff_core.provenance.container import copy_declared
from anifacediff_core.sound import keep_sound
from anifacediff_core.video import VideoWriter, join_videos, probe, read_frames

from .api import InputImpl
from .folders import C2PA, file_path
from .runtime import Progress, tell
from .video import file_of, video_of

QUALITY = 18  # crf


def frames_of(video: Any) -> tuple[Iterable[Tensor], int]:
    """Frames (1, 3, height, width) of a VIDEO, and how many: read while they are asked for."""
    if isinstance(video, InputImpl.VideoFromComponents):
        frames = _pictures(video.get_components())
        return (rgb(frame[None].float()) for frame in frames), len(frames)
    path = file_of(video)
    return (frame[None] for frame in read_frames(path)), probe(path).frames


def save_synthetic(
    video: Any,
    path: Path,
    metadata: dict[str, str],
    crf: int,
    certificate: str | None,
    private_key: str | None,
) -> tuple[Any, str]:
    """Write a VIDEO as mp4 that says it is synthetic, and sign it where there are a certificate and its key.

    Returns:
        the file as a VIDEO, and what was done. A file that cannot be signed is kept: it may have taken hours.
    """
    told: list[str] = []

    def warn(text: str) -> None:
        told.append(text)
        tell(text, logging.WARNING)

    if isinstance(video, InputImpl.VideoFromComponents):
        with tempfile.TemporaryDirectory(dir=_temporary()) as folder:
            encoded = _encode(video.get_components(), Path(folder), crf, warn)
            copy_declared(encoded, path, metadata, say=warn)
    else:
        copy_declared(file_of(video), path, metadata, say=warn)
    info = probe(path)
    note = f"{info.frames} frames, {info.rate} fps, declared synthetic"
    try:
        note = f"{note}, {_sign(path, certificate, private_key)}."
    except InputError as error:
        tell(str(error), logging.WARNING)
        note = f"{note}, but not signed: {error}"
    return video_of(path), " ".join([note, *told])


def _sign(path: Path, certificate: str | None, private_key: str | None) -> str:
    if certificate is None and private_key is None:
        return "not signed"
    if certificate is None or private_key is None:
        raise InputError("A C2PA manifest needs a certificate and its private key: choose both.")
    manifest.sign(path, file_path(C2PA, certificate), file_path(C2PA, private_key))
    return "signed with a C2PA manifest"


def _temporary() -> str:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _pictures(components: Any) -> Tensor:
    """Frames (frames, channels, height, width) as they are in memory."""
    images = components.images
    if images.ndim != 4 or 0 in images.shape:
        raise InputError("The video has no frames: connect Create Video with a picture or more.")
    return images.movedim(-1, 1)


def _encode(components: Any, folder: Path, crf: int, warn: Callable[[str], None]) -> Path:
    """An mp4 in the folder; the host's own encoder rounds the frame rate."""
    frames = _pictures(components)
    pictures, whole, audio = (folder / name for name in ("pictures.mp4", "video.mp4", "the video"))
    progress = Progress(len(frames))
    with VideoWriter(pictures, Fraction(components.frame_rate), crf=crf) as writer:
        for number, frame in enumerate(frames):
            writer.write(rgb(frame[None].float()))
            progress(number + 1, len(frames))

    def join(sound: Path | None, copied: bool) -> None:
        if sound is not None:
            _write_wave(components.audio, sound)
        join_videos([pictures], whole, writer.rate, (), sound, copied)

    keep_sound(join, None if components.audio is None else audio, warn)
    return whole


def _write_wave(audio: dict[str, Any], path: Path) -> None:
    """The host's AUDIO, waveform (1, channels, samples) in [-1, 1], as 16-bit."""
    if audio["waveform"].ndim != 3 or 0 in audio["waveform"].shape:
        raise InputError("The audio has no samples.")
    samples = audio["waveform"][0].float().clamp(-1, 1).mul(32767).round().short().cpu()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(int(audio["sample_rate"]))
        file.writeframes(samples.T.contiguous().numpy().tobytes())
