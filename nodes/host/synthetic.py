"""Videos of the host: their frames, and a file that says that they are synthetic."""

from __future__ import annotations

import logging
import tempfile
import wave
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.capture.extract import rgb
from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError
from anifacediff_core.provenance import manifest
from anifacediff_core.provenance.container import COMPOSITE, SOURCE_TYPE, copy_declared
from anifacediff_core.sound import keep_sound, read_sound
from anifacediff_core.video import (
    VideoWriter,
    frame_pace,
    frame_times,
    join_videos,
    probe,
    read_frames,
    read_pixels,
    to_tensor,
)

from .api import InputImpl
from .folders import C2PA, file_path
from .history import is_composite, made_of
from .runtime import Progress, notify
from .video import file_of, part_of, temporary_folder, video_of

QUALITY = 18  # crf
SAME_RATE = 0.03  # as a share: rates that differ by less are one, measured in different ways


@dataclass(frozen=True)
class Timing:
    """What a new video takes from the driving one, or from Create Video.

    Attributes:
        rate: frames a second; the mean where there are times.
        times: of every frame, in seconds from the first, if they follow no constant rate.
        sound: the file whose sound goes along, or the host's AUDIO.
        start: when the pictures begin, in seconds by the clock of that file.
        note: what was taken, for the report.
    """

    rate: Fraction
    times: Sequence[float] = ()
    sound: Path | dict[str, Any] | None = None
    start: Fraction | None = None
    note: str = ""


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
    *,
    driving: Any = None,
    nodes: list[Mapping[str, Any]] | None = None,
    time_server: str = "",
) -> tuple[Any, str]:
    """Write a VIDEO as mp4 that says it is synthetic, and sign it where there are a certificate and its key.

    Args:
        driving: VIDEO from which frames of Create Video take their times and their sound.
        nodes: of the workflow that made the VIDEO; they tell what it was made of, and how.
        time_server: see `manifest.sign`.

    Returns:
        the file as a VIDEO, and what was done. A file that cannot be signed is kept: it may have taken hours.
    """
    notes: list[str] = []
    made = nodes or []
    source_type = COMPOSITE if is_composite(made) else SOURCE_TYPE

    def warn(text: str) -> None:
        notes.append(text)
        notify(text, logging.WARNING)

    if isinstance(video, InputImpl.VideoFromComponents):
        components = video.get_components()
        timing = _timing(components, driving)
        with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
            encoded = _encode(_pictures(components), timing, Path(folder), crf, warn)
            copy_declared(encoded, path, metadata, say=warn, source_type=source_type)
        taken = timing.note
    else:
        copy_declared(file_of(video), path, metadata, say=warn, source_type=source_type)
        taken = "" if driving is None else ", with times and sound of its own, not of the driving video"
    info = probe(path)
    note = f"{info.frames} frames, {info.rate} fps{taken}, declared synthetic"
    try:
        extra = {"inputs": made_of(made), "source_type": source_type, "time_server": time_server.strip()}
        note = f"{note}, {_sign(path, certificate, private_key, extra)}."
    except InputError as error:
        notify(str(error), logging.WARNING)
        note = f"{note}, but not signed: {error}"
    return video_of(path), " ".join([note, *notes])


def _sign(path: Path, certificate: str | None, private_key: str | None, extra: dict[str, Any]) -> str:
    if certificate is None and private_key is None:
        return "not signed"
    if certificate is None or private_key is None:
        raise InputError("A C2PA manifest needs a certificate and its private key: choose both.")
    named = manifest.sign(path, file_path(C2PA, certificate), file_path(C2PA, private_key), **extra)
    ingredients = f" that names {', '.join(map(shown, named))}" if named else ""
    return f"signed with a C2PA manifest{ingredients}"


def components_of(video: Any) -> tuple[Tensor, dict[str, Any] | None, float]:
    """IMAGE, AUDIO and frames a second of a VIDEO as players show it: upright, with square pixels, in the
    colors of a common screen, the sound in its place. The host's own components obey none or some of that.
    """
    if isinstance(video, InputImpl.VideoFromComponents):
        given = video.get_components()
        return given.images, given.audio, float(given.frame_rate)
    path, part = part_of(video)
    rate, times = frame_pace(path, part)
    pixels = list(read_pixels(path, part))  # as bytes: as floats there will be one copy, not two
    images = torch.empty(len(pixels), *pixels[0].shape)
    for image, frame in zip(images, pixels, strict=True):
        image.copy_(to_tensor(frame).movedim(0, -1))
    shown_at = frame_times(path, part)
    seconds = (times[-1] if times else (len(pixels) - 1) / float(rate)) + 1 / float(rate)
    sound = None
    try:
        sound = read_sound(path, shown_at[0] if shown_at else Fraction(0), seconds)
    except InputError as error:
        notify(f"{str(error).rstrip('.')}: it is left out.", logging.WARNING)
    if sound is None:
        return images, None, float(rate)
    samples, sample_rate = sound
    audio = {"waveform": torch.from_numpy(samples)[None], "sample_rate": sample_rate}
    return images, audio, float(rate)


def _pictures(components: Any) -> Tensor:
    """Frames (frames, channels, height, width) as they are in memory."""
    images = components.images
    if images.ndim != 4 or 0 in images.shape:
        raise InputError("The video has no frames: connect Create Video with a picture or more.")
    return images.movedim(-1, 1)


def _timing(components: Any, driving: Any) -> Timing:
    """When the frames of Create Video are shown, and with which sound."""
    own = Timing(Fraction(components.frame_rate), sound=components.audio)
    if driving is None:
        return own
    times: Sequence[float] = ()
    sound: Path | dict[str, Any] | None
    start = None
    if isinstance(driving, InputImpl.VideoFromComponents):
        given = driving.get_components()
        shown_at = [number / Fraction(given.frame_rate) for number in range(len(given.images))]
        rate, sound = Fraction(given.frame_rate), given.audio
    else:
        path, part = part_of(driving)
        rate, times = frame_pace(path, part)
        shown_at = frame_times(path, part)
        sound, start = (path if probe(path).has_audio else None), next(iter(shown_at), None)
    count, there = len(_pictures(components)), len(shown_at)
    heard = "sound" if sound is not None else "no sound"
    if sound is None:
        sound, start = own.sound, None
    if count == there or (count < there and abs(own.rate / rate - 1) < SAME_RATE):
        cut = "" if count == there else f" (the first {count} of its {there} frames)"
        note = f", times and {heard} of the driving video{cut}"
        return Timing(rate, times[:count], sound, start, note)
    note = f", {heard} of the driving video but not its times, since that has {there} frames"
    return Timing(own.rate, (), sound, start, note)


def _encode(frames: Tensor, timing: Timing, folder: Path, crf: int, warn: Callable[[str], None]) -> Path:
    """An mp4 in the folder; the host's own encoder rounds the frame rate."""
    pictures, whole, audio = (folder / name for name in ("pictures.mp4", "video.mp4", "the video"))
    progress = Progress(len(frames))
    with VideoWriter(pictures, timing.rate, crf=crf) as writer:
        for number, frame in enumerate(frames):
            writer.write(rgb(frame[None].float()))
            progress(number + 1, len(frames))

    def join(sound: Path | None, copied: bool) -> None:
        if sound == audio:
            assert isinstance(timing.sound, dict)
            write_wave(timing.sound, audio)
        join_videos([pictures], whole, writer.rate, timing.times, sound, copied, sound_start=timing.start)

    keep_sound(join, audio if isinstance(timing.sound, dict) else timing.sound, warn)
    return whole


def write_wave(audio: dict[str, Any], path: Path) -> None:
    """The host's AUDIO, waveform (1, channels, samples) in [-1, 1], as 16-bit."""
    if audio["waveform"].ndim != 3 or 0 in audio["waveform"].shape:
        raise InputError("The audio has no samples.")
    samples = audio["waveform"][0].float().clamp(-1, 1).mul(32767).round().short().cpu()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(int(audio["sample_rate"]))
        file.writeframes(samples.T.contiguous().numpy().tobytes())
