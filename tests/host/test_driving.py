"""The driving video in graphs: its frames as players show them, its times and sound in the saved result."""

from __future__ import annotations

import io as streams
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from anifacediff_core.video import frame_pace, probe, read_frames
from harness.extension import Extension
from harness.videos import stamp_matrix, steady, write_driver, write_frames

SAVING = {"filename_prefix": "video/driven", "crf": 18}
UNEVEN = [0.0, 0.05, 0.11, 0.13, 0.2, 0.4, 0.43, 0.47, 0.5, 0.6, 0.61, 0.7]
FRAMES = len(UNEVEN)
EARLY = [time + 0.25 for time in steady(FRAMES)]


def loaded(path: Path | streams.BytesIO, **cut: float) -> Any:
    """A VIDEO of Load Video, or of Trim Video."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(path if isinstance(path, streams.BytesIO) else str(path), **cut)


def made(frames: int, fps: float = 30.0, audio: Any = None) -> Any:
    """A VIDEO of Create Video."""
    from comfy_api.latest import InputImpl, Types

    parts = {"images": torch.rand(frames, 64, 64, 3), "audio": audio, "frame_rate": Fraction(fps)}
    return InputImpl.VideoFromComponents(Types.VideoComponents(**parts))


def heard_after_the_first_picture(path: Path) -> float:
    """Seconds."""
    with av.open(str(path)) as file:
        first = next(file.decode(file.streams.video[0])).time
    with av.open(str(path)) as file:
        for frame in file.decode(file.streams.audio[0]):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.1)
            if len(loud):
                return float(frame.time + loud[0] / frame.sample_rate - first)
    raise AssertionError("There is nothing to hear.")


def shown(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        times = [frame.time for frame in file.decode(file.streams.video[0])]
    return [time - times[0] for time in times]


@pytest.mark.parametrize(
    ("times", "heard_at"),
    [(steady(FRAMES), 0.2), (EARLY, 0.1), (UNEVEN, 0.0), (UNEVEN, 0.15)],
    ids=["late", "early", "uneven", "uneven and late"],
)
@pytest.mark.parametrize("codec", [("aac", 48000), ("pcm_s16le", 16000)])
def test_times_and_sound_of_the_driver(
    extension: Extension, tmp_path: Path, times: list[float], heard_at: float, codec: tuple[str, int]
) -> None:
    """As in the graphs: Load Video, Video Frames, Create Video, Save Synthetic Video."""
    path = tmp_path / ("driver.mp4" if codec[0] == "aac" else "driver.mov")
    write_driver(path, times, 0.6, sound=codec, heard_at=heard_at)
    image, audio, fps = extension.run("VideoFrames", video=loaded(path))
    assert image.shape == (FRAMES, 32, 32, 3) and audio["waveform"].ndim == 3
    video = made(len(image), fps, audio)
    _, name, report = extension.run("SaveVideo", video=video, driving=loaded(path), **SAVING)
    saved = extension.base / "output" / name
    assert np.abs(np.subtract(shown(saved), [time - times[0] for time in times])).max() < 0.001
    if heard_at > times[0]:
        expected = heard_after_the_first_picture(path)
        assert abs(heard_after_the_first_picture(saved) - expected) < 0.005
        loud = torch.argmax((audio["waveform"][0, 0].abs() > 0.1).int()) / audio["sample_rate"]
        assert abs(loud - expected) < 0.005
    assert "times and sound of the driving video, declared synthetic" in report


@pytest.mark.parametrize(
    ("frames", "fps", "driven", "word"),
    [
        (FRAMES, 12.0, UNEVEN, "times and sound of the driving video,"),
        (5, 15.0, UNEVEN, "(the first 5 of its 12 frames)"),
        (2 * FRAMES, 30.0, UNEVEN, "not its times, since that has 12 frames"),
        (FRAMES // 2, 12.0, steady(FRAMES), "not its times"),
    ],
)
def test_frames_that_the_graph_cut_or_doubled(
    extension: Extension, tmp_path: Path, frames: int, fps: float, driven: list[float], word: str
) -> None:
    path = tmp_path / "driver.mp4"
    write_driver(path, driven, 0.6)
    if frames == 5:
        fps = float(probe(path).rate)
    _, name, report = extension.run("SaveVideo", video=made(frames, fps), driving=loaded(path), **SAVING)
    assert word in report
    expected = [number / fps for number in range(frames)] if "not" in word else driven[:frames]
    assert np.abs(np.subtract(shown(extension.base / "output" / name), expected)).max() < 0.001
    assert probe(extension.base / "output" / name).has_audio


def test_drivers_without_sound_or_file(extension: Extension, tmp_path: Path) -> None:
    sound = {"waveform": torch.rand(1, 1, 8000) - 0.5, "sample_rate": 16000}
    path = tmp_path / "silent.mp4"
    write_driver(path, UNEVEN)
    cases = [
        (made(FRAMES, audio=sound), loaded(path), "times and no sound", UNEVEN),
        (made(FRAMES), made(FRAMES, 24.0, sound), "times and sound", [n / 24 for n in range(FRAMES)]),
        (made(FRAMES, audio=sound), loaded(streams.BytesIO(path.read_bytes())), "no sound", UNEVEN),
    ]
    for video, driving, word, times in cases:
        _, name, report = extension.run("SaveVideo", video=video, driving=driving, **SAVING)
        saved = extension.base / "output" / name
        assert word in report and probe(saved).has_audio
        assert np.abs(np.subtract(shown(saved), times)).max() < 0.001


def test_a_file_keeps_its_own(extension: Extension, tmp_path: Path) -> None:
    path, other = tmp_path / "result.mp4", tmp_path / "driver.mp4"
    write_driver(path, UNEVEN, 0.6)
    write_driver(other, steady(FRAMES), 0.6)
    _, name, report = extension.run("SaveVideo", video=loaded(path), driving=loaded(other), **SAVING)
    assert "of its own, not of the driving video" in report
    assert np.abs(np.subtract(shown(extension.base / "output" / name), UNEVEN)).max() < 0.001


def test_trimmed_drivers(extension: Extension, tmp_path: Path) -> None:
    from comfy_api.latest import InputImpl

    if not hasattr(InputImpl.VideoFromFile, "get_active_trim_window"):
        pytest.skip("this host cannot trim, or does not say where")
    path = tmp_path / "driver.mp4"
    write_driver(path, UNEVEN, 0.3, heard_at=0.3)
    driving = loaded(path, start_time=0.12, duration=0.4)
    image, audio, fps = extension.run("VideoFrames", video=driving)
    kept = [time - 0.13 for time in UNEVEN if 0.12 < time < 0.52]
    assert len(image) == len(kept)
    loud = torch.argmax((audio["waveform"][0, 0].abs() > 0.1).int()) / audio["sample_rate"]
    assert abs(loud - 0.17) < 0.005
    _, name, report = extension.run("SaveVideo", video=made(len(image), fps), driving=driving, **SAVING)
    saved = extension.base / "output" / name
    assert "times and sound of the driving video" in report
    assert np.abs(np.subtract(shown(saved), kept)).max() < 0.001
    assert abs(heard_after_the_first_picture(saved) - 0.17) < 0.005


def test_frames_as_players_show_them(extension: Extension, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :, :20] = 200  # shown on top
    write_frames(path, frames, aspect=Fraction(1, 2))
    stamp_matrix(path, 0, 1, -1, 0)
    image, audio, fps = extension.run("VideoFrames", video=loaded(path))
    assert image.shape == (3, 32, 48, 3) and audio is None and fps == 25 and image.is_contiguous()
    assert image[:, :8].mean() > 0.7 and image[:, 12:].mean() < 0.1
    assert torch.equal(image, torch.stack(list(read_frames(path))).movedim(1, -1))
    assert frame_pace(path) == (Fraction(25), [])
    given = made(2, 24.0)
    image, audio, fps = extension.run("VideoFrames", video=given)
    assert torch.equal(image, given.get_components().images) and audio is None and fps == 24
