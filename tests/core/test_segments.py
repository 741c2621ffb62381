"""Long videos: segments that are saved and joined, and runs that go on where they stopped."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import TENSORS, FaceParameters
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.progress import Progress
from anifacediff_core.sampling import segments as module
from anifacediff_core.sampling.fingerprint import fingerprint
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.segments import (
    ResumableVideo,
    Segment,
    SegmentFn,
    SegmentState,
    VideoTiming,
    plan_segments,
)
from anifacediff_core.sampling.windows import blend_previous, initial_noise
from anifacediff_core.video import VideoWriter, frame_pace, join_videos, probe, read_frames
from harness.videos import RATE, SOUND_RATE, steady, write_driver
from harness.weights import narrow_config, randomize

FRAMES, LENGTH, OVERLAP = 20, 6, 2


class Made:
    """Makes segments whose pictures follow from the state after the one before.

    Attributes:
        asked: numbers of the segments that were made.
        stop_at: number of the segment in whose middle it stops.
    """

    def __init__(self, stop_at: int | None = None, side: int = 32) -> None:
        self.asked: list[int] = []
        self.stop_at, self.side = stop_at, side

    def __call__(self, segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
        self.asked.append(segment.number)
        before = float(state["level"]) if state else 0.0
        return self.pictures(segment, before), {"level": torch.tensor(before + 0.1)}

    def pictures(self, segment: Segment, before: float) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(segment.number)
        for number in range(segment.start, segment.stop):
            yield 0.1 * torch.rand(1, 3, self.side, self.side, generator=generator) + before + number / 100
            if segment.number == self.stop_at:
                raise KeyboardInterrupt


class Run:
    """One video in the making, and what was said."""

    def __init__(self, folder: Path, timing: VideoTiming | None = None) -> None:
        self.out, self.partial = folder / "out.mp4", folder / "out.partial.mp4"
        self.folder = folder / "out.mp4.work"
        self.timing = timing or VideoTiming(RATE)
        self.said: list[str] = []

    def begin(self, cache_key: str = "settings") -> AbstractContextManager[ResumableVideo]:
        return ResumableVideo(self.folder, self.partial, cache_key, self.timing, self.said.append).begin()

    def __call__(self, make: Made, cache_key: str = "settings", frames: int = FRAMES) -> int:
        return self.run(plan_segments(frames, LENGTH, OVERLAP), make, cache_key=cache_key)

    def run(
        self,
        segments: list[Segment],
        make: SegmentFn,
        progress: Progress | None = None,
        cache_key: str = "settings",
    ) -> int:
        with self.begin(cache_key) as work:
            return work.run(self.out, segments, make, progress)

    def parameters(self, driver: str, read: Any, cache_key: str = "settings") -> tuple[FaceParameters, str]:
        with self.begin(cache_key) as work:
            return work.parameters(driver, read)

    def join_finished(self) -> int:
        with self.begin() as work:
            return work.join_finished(self.partial)

    def interrupted(self, number: int) -> None:
        with pytest.raises(KeyboardInterrupt):
            self(Made(stop_at=number))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video of a run that nothing stopped."""
    run = Run(tmp_path_factory.mktemp("whole"))
    make = Made()
    assert run(make) == FRAMES and make.asked == [0, 1, 2, 3]
    assert [path.name for path in run.out.parent.iterdir()] == ["out.mp4"] and run.said == []
    return run.out


def frames_of(path: Path) -> Tensor:
    return torch.stack(list(read_frames(path)))


# ---- plan


@pytest.mark.parametrize(
    ("frames", "length", "overlap"), [(1, 8, 3), (8, 8, 3), (9, 8, 3), (100, 7, 6), (23, 1, 5)]
)
def test_segments_cover_every_frame_once_and_sample_ahead(frames: int, length: int, overlap: int) -> None:
    segments = plan_segments(frames, length, overlap)
    assert [n for s in segments for n in range(s.start, s.stop)] == list(range(frames))
    assert [segment.number for segment in segments] == list(range(len(segments)))
    lengths = [segment.stop - segment.start for segment in segments]
    assert max(lengths) <= length and max(lengths) - min(lengths) <= 1
    assert segments[-1].ahead == 0
    for first, second in pairwise(segments):
        assert first.ahead == min(overlap, frames - first.stop)
        assert range(frames)[second.sampled][: first.ahead] == range(frames)[first.sampled][-first.ahead :]


def test_a_segment_tells_its_progress_within_the_video() -> None:
    assert [Segment(1, 10, 20, 2).position(done, 2) for done in range(3)] == [10, 15, 20]


def test_segments_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="0 frames"):
        plan_segments(10, 0, 0)


# ---- going on


@pytest.mark.parametrize("number", [0, 1, 3])
def test_interrupted_and_continued_is_the_same_file(run: Run, whole: Path, number: int) -> None:
    run.interrupted(number)
    kept = 5 * number
    assert run.partial.exists() == (number > 0)
    if number:
        assert len(frames_of(run.partial)) == kept
        assert f"The first {kept} of {FRAMES} frames are {run.partial}" in run.said[-1]
    make = Made()
    assert run(make) == FRAMES
    assert make.asked == list(range(number, 4))
    assert run.out.read_bytes() == whole.read_bytes()
    assert [path.name for path in run.out.parent.iterdir()] == ["out.mp4"]


def test_a_kill_leaves_nothing_half_written(run: Run, whole: Path) -> None:
    """As a process leaves it that had no time: files of another name, and an mp4 whose record is missing."""
    run.interrupted(2)
    run.partial.unlink()
    (run.folder / ".0002.mp4.x7f3").write_bytes(b"half a vid")
    (run.folder / "0002.mp4").write_bytes(b"half a vid")
    make = Made()
    run(make)
    assert make.asked == [2, 3] and run.out.read_bytes() == whole.read_bytes() and not run.folder.exists()


@pytest.mark.parametrize("ending", ["mp4", "safetensors"])
def test_a_damaged_segment_is_made_again(run: Run, whole: Path, ending: str) -> None:
    run.interrupted(3)
    path = run.folder / f"0001.{ending}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if ending == "mp4" else 9] ^= 255
    path.write_bytes(content)
    assert run.join_finished() == 5, "what follows the damage is no beginning"
    make = Made()
    run(make)
    assert make.asked == [1, 3] and run.out.read_bytes() == whole.read_bytes()


def test_a_segment_of_another_encoder_is_made_again(
    run: Run, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.interrupted(2)
    first, second = run.folder / "0000", run.folder / "0001"
    with VideoWriter(second.with_suffix(".mp4"), RATE) as video:
        video.write(torch.rand(5, 3, 16, 16))
    digest = module.file_digest(second.with_suffix(".mp4"))
    module.write_tensors(second.with_suffix(".safetensors"), {"level": torch.tensor(0.2)}, {"sha256": digest})
    assert first.with_suffix(".mp4").exists() and run.join_finished() == 5
    make = Made()
    run(make)
    assert make.asked == [1, 2, 3] and run.out.read_bytes() == whole.read_bytes()


def test_other_settings_start_anew_and_keep_what_was_finished(run: Run) -> None:
    run.interrupted(2)
    run.partial.unlink()
    make = Made()
    run(make, "others")
    assert make.asked == [0, 1, 2, 3]
    assert "starting anew; its first 10 frames are out.former.mp4." in run.said[-1]
    run.interrupted(1)
    assert len(frames_of(run.partial)) == 5
    with run.begin("others"):
        pass
    first, second = (run.out.with_name(name) for name in ("out.former.mp4", "out.former_2.mp4"))
    assert (len(frames_of(first)), len(frames_of(second))) == (10, 5) and not run.partial.exists()
    assert sorted(path.name for path in run.folder.iterdir()) == ["manifest.json"]


def notes(**timing: Any) -> str:
    whole = {"rate": "24", "sound": None, "times": [], **timing}
    return json.dumps({"version": 1, "fingerprint": "settings", "footage": whole})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"version": 1}', '{"version": 99, "fingerprint": "settings"}', "[" * 100_000,
        notes(rate="1/0"), notes(rate="1e1000000000"), notes(rate=float("inf")), notes(rate="0"),
        notes(rate=None), notes(sound=5), notes(times=[float("nan")]), notes(times=["a"]), notes(times=None),
        "\ud800",
    ],
)  # fmt: skip
def test_damaged_notes_start_anew(run: Run, whole: Path, text: str) -> None:
    run.interrupted(2)
    (run.folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    make = Made()
    run(make)
    assert make.asked == [0, 1, 2, 3] and run.out.read_bytes() == whole.read_bytes()
    assert "missing or damaged: starting anew." in run.said[-1]


def test_a_second_run_is_refused(run: Run, whole: Path) -> None:
    """Until the other process ends, however it ends: its lock is still there, but holds nobody up."""
    run.interrupted(2)
    code = """
import sys
from pathlib import Path
from anifacediff_core.storage import file_lock
with file_lock(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(run.folder / "lock")]
    there = {path.name for path in run.folder.iterdir()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(InputError, match="out.mp4 is being made by another run: .*[.]$"):
                run(Made())
        assert {path.name for path in run.folder.iterdir()} == there | {"lock"}
        process.kill()
    assert (run.folder / "lock").exists()
    make = Made()
    run(make)
    assert make.asked == [2, 3] and run.out.read_bytes() == whole.read_bytes()
    assert [path.name for path in run.out.parent.iterdir()] == ["out.mp4"]


def test_a_second_run_in_this_process_is_refused(run: Run) -> None:
    with run.begin(), pytest.raises(InputError, match="another run"):
        run(Made())
    assert run(Made()) == FRAMES


def test_where_files_cannot_be_locked_nobody_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network shares."""

    def unknown(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", unknown)
    assert run(Made()) == FRAMES
    assert [path.name for path in run.out.parent.iterdir()] == ["out.mp4"]


def test_nothing_of_other_people_is_removed(run: Run) -> None:
    run.folder.mkdir()
    (run.folder / "holiday.mp4").write_text("mine")
    run(Made())
    assert [path.name for path in run.folder.iterdir()] == ["holiday.mp4"]


def test_the_driver_is_read_once(run: Run) -> None:
    head = HeadModel.bundled()
    driving = FaceParameters.neutral(3, head.name, head.n_shape, head.n_expression)
    reads: list[str] = []

    def read(note: str = "All faces found.") -> tuple[FaceParameters, str]:
        reads.append(note)
        return driving, note

    assert run.parameters("driver", read)[1] == "All faces found."
    found, note = run.parameters("driver", read, "other settings")
    assert len(reads) == 1 and note == "All faces found." and torch.equal(found.camera, driving.camera)
    run.parameters("another driver", read)
    assert len(reads) == 2
    path = run.folder / "driving.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    run.parameters("another driver", read)
    assert len(reads) == 3

    def fails() -> Any:
        raise InputError("There is no face.")

    with pytest.raises(InputError, match="no face"):
        run.parameters("a third", fails)
    assert not run.folder.exists(), "nothing that is worth keeping"


def moving(frames: int) -> FaceParameters:
    head = HeadModel.bundled()
    driving = FaceParameters.neutral(frames, head.name, head.n_shape, head.n_expression)
    return replace(driving, pose=0.2 * torch.randn(frames, 15, generator=torch.Generator().manual_seed(0)))


def test_where_parameters_lie_in_memory_is_the_same_in_every_run(run: Run) -> None:
    """Kernels round otherwise at other addresses: what is read goes the way of what was just captured."""
    driving = moving(7)
    strange = replace(driving, pose=torch.cat([torch.zeros(3), driving.pose.flatten()])[3:].view(7, 15))
    first, _ = run.parameters("driver", lambda: (strange, "note"))
    again, _ = run.parameters("driver", lambda: pytest.fail("read twice"))
    for found in (first, again):
        for name in TENSORS:
            tensor = getattr(found, name)
            assert torch.equal(tensor, getattr(driving, name)) and tensor.is_contiguous()
            assert tensor.data_ptr() % 64 == tensor.storage_offset() == 0


def flip(path: Path, *, behind: int) -> None:
    """Turn a bit over in a tensor of a safetensors file."""
    data = bytearray(path.read_bytes())
    data[-behind] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_parameters_is_noticed(run: Run) -> None:
    driving, reads = moving(7), []

    def read() -> tuple[FaceParameters, str]:
        reads.append(1)
        return driving, "note"

    run.parameters("driver", read)
    flip(run.folder / "driving.safetensors", behind=100)
    found, _ = run.parameters("driver", read)
    assert len(reads) == 2 and torch.equal(found.pose, driving.pose)


def test_a_flipped_bit_in_what_is_handed_on_is_noticed(run: Run, whole: Path) -> None:
    run.interrupted(2)
    flip(run.folder / "0001.safetensors", behind=3)
    make = Made()
    run(make)
    assert make.asked == [1, 2, 3] and run.out.read_bytes() == whole.read_bytes()


def test_motion_that_is_no_number_is_not_kept(run: Run) -> None:
    driving = replace(moving(3), camera=torch.full((3, 3), float("nan")))
    with pytest.raises(InputError, match="The driver's motion contains NaN"):
        run.parameters("driver", lambda: (driving, "note"))
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("frames", "length"),
    [(7, 3), (5, 1), (9, 4), (11, 5), (10, 3), (3, 2), (13, 6), (8, 2), (15, 7), (23, 9)],
)
def test_segments_of_any_length_join_and_go_on(tmp_path: Path, frames: int, length: int) -> None:
    """The encoder orders the frames of short segments otherwise than those of long ones."""
    segments = plan_segments(frames, length, OVERLAP)
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    whole.run(segments, Made())
    for number in sorted({0, len(segments) // 2, len(segments) - 1}):
        with pytest.raises(KeyboardInterrupt):
            broken.run(segments, Made(stop_at=number))
    assert broken.run(segments, Made()) == frames == len(frames_of(broken.out))
    assert broken.out.read_bytes() == whole.out.read_bytes()


@pytest.mark.parametrize(
    "full_disk",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: IoError(Os { code: 28, message: No space left on device })"
        ),
    ],
)
def test_a_full_disk_is_told_in_a_sentence(
    run: Run, whole: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Exception
) -> None:
    real = VideoWriter.write

    def full(self: VideoWriter, frames: Tensor) -> None:
        if "0002" in str(self.path):
            raise full_disk
        real(self, frames)

    with monkeypatch.context() as patched, pytest.raises(InputError, match="is full: free some of it"):
        patched.setattr(VideoWriter, "write", full)
        run(Made())
    make = Made()
    run(make)
    assert make.asked == [2, 3] and run.out.read_bytes() == whole.read_bytes()


def test_a_progress_that_raises_stops_it(run: Run) -> None:
    def cancel(done: int, total: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(plan_segments(FRAMES, LENGTH, OVERLAP), Made(), cancel)
    assert len(frames_of(run.partial)) == 10 and not run.out.exists()


def test_a_cancel_at_the_very_end_leaves_the_result_alone(run: Run, whole: Path) -> None:
    def cancel(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(plan_segments(FRAMES, LENGTH, OVERLAP), Made(), cancel)
    assert [path.name for path in run.out.parent.iterdir()] == ["out.mp4"]
    assert run.out.read_bytes() == whole.read_bytes()


# ---- the result


def facts(path: Path) -> tuple[int, Fraction, float]:
    """Frames, rate, and how much longer the sound is than the pictures, in frames."""
    info = probe(path)
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        seconds = sum(frame.samples for frame in container.decode(sound)) / sound.codec_context.sample_rate
    return info.frames, info.rate, float(seconds * info.rate) - info.frames


@pytest.mark.parametrize("seconds", [FRAMES / RATE, 3 * FRAMES / RATE])
def test_frames_rate_and_sound_are_exact(tmp_path: Path, seconds: Fraction) -> None:
    driver = tmp_path / "driver.mp4"
    write_driver(driver, steady(FRAMES), float(seconds))
    run = Run(tmp_path, VideoTiming.of(driver))
    assert (run.timing.rate, run.timing.times) == (RATE, ()), "though the file's mean is another"
    run(Made())
    frames, rate, longer = facts(run.out)
    assert (frames, rate) == (FRAMES, RATE) and abs(longer) < 2048 / SOUND_RATE * RATE
    assert len(frames_of(run.out)) == FRAMES


def test_pictures_are_those_of_one_file(tmp_path: Path) -> None:
    """Joining loses and repeats nothing: frame by frame what was made."""
    run = Run(tmp_path)
    run(Made(side=33))
    made, level = [], 0.0
    for segment in plan_segments(FRAMES, LENGTH, OVERLAP):
        made += list(Made(side=33).pictures(segment, level))
        level += 0.1
    found = frames_of(run.out)
    assert found.shape == (FRAMES, 3, 34, 34)
    expected = torch.cat(made).clamp(0, 1)
    assert (found[:, :, :33, :33].mean((1, 2, 3)) - expected.mean((1, 2, 3))).abs().max() < 0.02


def test_times_of_a_video_without_a_constant_rate_are_kept(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    times = np.concatenate([[0.0], generator.uniform(0.01, 0.2, FRAMES - 1).cumsum()])
    driver = tmp_path / "driver.mp4"
    write_driver(driver, list(times), float(times[-1]))
    assert frame_pace(driver)[1] == pytest.approx(list(times), abs=1e-4)
    run = Run(tmp_path, VideoTiming.of(driver))
    run(Made())
    assert frame_pace(run.out)[1] == pytest.approx(list(times), abs=1e-4)
    assert len(frames_of(run.out)) == FRAMES and probe(run.out).has_audio

    cut = Run(tmp_path / "cut", VideoTiming.of(driver, 12))
    cut(Made(), frames=12)
    assert frame_pace(cut.out)[1] == pytest.approx(list(times[:12]), abs=1e-4)


def test_times_of_even_videos_and_of_single_frames_follow_the_rate(tmp_path: Path) -> None:
    for frames in (2, 30):
        write_driver(tmp_path / "driver.mp4", steady(frames))
        assert frame_pace(tmp_path / "driver.mp4") == (RATE, [])
    write_driver(tmp_path / "driver.mp4", [0.0])
    assert frame_pace(tmp_path / "driver.mp4")[1] == []


def test_sound_begins_with_the_pictures(tmp_path: Path) -> None:
    """A driver whose first picture comes half a second late: the sound before it has no picture."""
    driver = tmp_path / "driver.mkv"
    late = [0.5 + time for time in steady(FRAMES)]
    write_driver(tmp_path / "late.mp4", late, 0.5 + float(FRAMES / RATE))
    (tmp_path / "late.mp4").rename(driver)
    run = Run(tmp_path, VideoTiming(RATE, str(driver)))
    run(Made())
    assert abs(facts(run.out)[2]) < 2048 / SOUND_RATE * RATE


def write_sound(path: Path, codec: str, rate: int, container: str | None = None) -> None:
    """Two seconds of a tone."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.codec_context.layout = "mono"
        tone = (8000 * np.sin(np.arange(2 * rate) / 8)).astype(np.int16)[None]
        heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        heard.sample_rate = rate
        output.mux(stream.encode(heard))
        output.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "codec", "rate", "container", "found"),
    [
        ("sound.avi", "libmp3lame", 44100, "avi", ("mp3float", 44100)),  # times in units of a packet
        ("sound.avi", "mp2", 44100, "avi", ("aac", 44100)),
        ("sound.ts", "libmp3lame", 8000, "mpegts", ("aac", 8000)),  # mp4 holds no MP3 of this rate
        ("sound.wav", "pcm_s16le", 192000, "wav", ("aac", 96000)),  # AAC has no such rate
    ],
)
def test_any_sound_goes_along(
    run: Run, name: str, codec: str, rate: int, container: str, found: tuple[str, int]
) -> None:
    write_sound(run.out.with_name(name), codec, rate, container)
    run.timing = VideoTiming(RATE, str(run.out.with_name(name)))
    run(Made())
    with av.open(str(run.out)) as result:
        coder = result.streams.audio[0].codec_context
        assert (coder.name, coder.sample_rate) == found
    assert facts(run.out)[0] == FRAMES and abs(facts(run.out)[2]) < 1 and run.said == []


def test_damaged_sound_costs_no_pictures(run: Run) -> None:
    sound = run.out.with_name("sound.wav")
    sound.write_bytes(b"no sound at all")
    run.timing = VideoTiming(RATE, str(sound))
    assert run(Made()) == len(frames_of(run.out)) == FRAMES
    assert not probe(run.out).has_audio and "sound.wav cannot be kept and is left out" in run.said[-1]


def test_the_same_frames_are_the_same_file_whatever_memory_holds(tmp_path: Path) -> None:
    """At 80 pixels x264's macroblock tree reads memory that nothing was written to."""
    code = """
import sys, torch
from fractions import Fraction
from pathlib import Path
from anifacediff_core.video import VideoWriter
coarse = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(1))
with VideoWriter(Path(sys.argv[1]), Fraction(24), repeatable=True) as video:
    video.write(torch.nn.functional.interpolate(coarse, (80, 80), mode="bicubic"))
"""
    files = [tmp_path / f"{fill}.mp4" for fill in (0, 85, 170)]
    for file in files:
        filled = {**os.environ, "MALLOC_PERTURB_": file.stem}  # what glibc fills new memory with
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=filled)
    assert len({file.read_bytes() for file in files}) == 1


def test_without_sound_and_with_a_driver_that_is_gone(tmp_path: Path) -> None:
    run = Run(tmp_path, VideoTiming(RATE, str(tmp_path / "gone.mp4")))
    run(Made())
    assert not probe(run.out).has_audio


def test_joining_copies_packets(tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.mp4" for number in range(3)]
    for part in parts:
        with VideoWriter(part, RATE) as video:
            video.write(torch.rand(7, 3, 32, 32))
    assert join_videos(parts, tmp_path / "out.mp4", RATE) == 21

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == [packet for part in parts for packet in packets(part)]


# ---- fingerprint


def test_fingerprints_change_with_everything(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    head = HeadModel.bundled()
    parameters = FaceParameters.neutral(2, head.name, 3, 3)
    values: list[Any] = [
        None, True, 1, 1.0, "1", "", "ab", ("a", "b"), {"a": 1}, {"a": 2}, {"b": 1}, file,
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).half(), torch.ones(2), parameters,
        replace(parameters, camera=parameters.camera + 1),
    ]  # fmt: skip
    found = [fingerprint(value) for value in values]
    assert len(set(found)) == len(values)
    assert found == [fingerprint(value) for value in values]
    assert fingerprint("a", "b") != fingerprint("ab") and fingerprint({"a": 1, "b": 2}) == fingerprint(
        {"b": 2, "a": 1}
    )
    file.write_text("b")
    assert fingerprint(file) != fingerprint(values[11]) or fingerprint(file) not in found


# ---- latents


def test_finished_frames_fade_into_new_ones() -> None:
    new, finished = torch.ones(6, 1, 1, 1), torch.zeros(3, 1, 1, 1)
    assert blend_previous(new, finished).flatten().tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert torch.equal(blend_previous(new, finished[:0]), new)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_noise_of_a_segment_is_that_of_its_frames(shared: float) -> None:
    long = initial_noise(9, 4, 8, 8, seed=3, shared=shared)
    assert torch.equal(initial_noise(4, 4, 8, 8, seed=3, shared=shared, first=5), long[5:])


def test_a_later_segment_begins_with_the_noise_of_its_frames() -> None:
    """Without temporal modules frames know nothing of each other but their place in the noise."""
    network = randomize(AniFaceDiff(narrow_config(2), motion=False), 0)
    single = Pipeline(network, randomize(AutoEncoder(), 1), HeadModel.bundled())
    portrait = torch.rand(1, 3, 32, 32)
    conditioning, later = (single.conditioning(portrait, moving(1), moving(6)[first:]) for first in (0, 3))
    settings: dict[str, Any] = {"steps": 2, "cfg": 1.0, "window": 6, "overlap": 0, "shared_noise": 0.5}
    whole, part = single.sample(conditioning, **settings), single.sample(later, **settings, first=3)
    torch.testing.assert_close(part, whole[3:], atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    network = randomize(AniFaceDiff(narrow_config(2), motion=True), 0)
    return Pipeline(network, randomize(AutoEncoder(), 1), HeadModel.bundled())


SegmentMaker = Callable[[Segment, SegmentState], tuple[Iterator[Tensor], SegmentState]]


def maker(pipeline: Pipeline, driving: FaceParameters, latents: dict[int, Tensor]) -> SegmentMaker:
    source, portrait = driving[0], torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))

    def make(segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
        conditioning = pipeline.conditioning(portrait, source, driving[segment.sampled])
        sampled = pipeline.sample(
            conditioning, steps=2, cfg=1.0, window=5, overlap=OVERLAP, shared_noise=0.5,
            first=segment.start, previous_latents=state.get("latents"),
        )  # fmt: skip
        written = segment.stop - segment.start
        latents[segment.number] = sampled
        return pipeline.decode(sampled[:written]), {"latents": sampled[written:]}

    return make


@pytest.mark.parametrize(("frames", "length"), [(14, 5), (7, 2), (10, 3)])
def test_latents_do_not_depend_on_where_it_was_interrupted(
    pipeline: Pipeline, tmp_path: Path, frames: int, length: int
) -> None:
    segments = plan_segments(frames, length, OVERLAP)

    def latents_of(run: Run, most: int) -> dict[int, Tensor]:
        """Of a run that makes so many segments, with parameters as they are captured or read back."""
        made: dict[int, Tensor] = {}
        with run.begin() as work:
            driving, _ = work.parameters("driver", lambda: (moving(frames), "note"))
            make = maker(pipeline, driving, made)

            def some(segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
                if len(made) == most:
                    raise KeyboardInterrupt
                return make(segment, state)

            with suppress(KeyboardInterrupt):
                work.run(run.out, segments, some, None)
        return made

    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    at_once = latents_of(whole, len(segments))
    parts = {number: latents for _ in segments for number, latents in latents_of(broken, 1).items()}
    assert parts.keys() == at_once.keys() == set(range(len(segments)))
    assert all(torch.equal(parts[number], at_once[number]) for number in parts)
    assert broken.out.read_bytes() == whole.out.read_bytes()


def test_neighboring_segments_meet_without_a_seam(pipeline: Pipeline) -> None:
    """The last frame of a segment and the first of the next differ no more than frames within a segment, and
    less than those of segments that know nothing of each other.
    """
    head = pipeline.head
    driving = FaceParameters.neutral(16, head.name, head.n_shape, head.n_expression)
    found: dict[int, Tensor] = {}
    make, state = maker(pipeline, driving, found), {}
    first, second = plan_segments(16, 8, 4)
    for segment in (first, second):
        _, state = make(segment, state)
    apart: dict[int, Tensor] = {}
    maker(pipeline, driving, apart)(second, {})
    last, ahead = found[0][first.stop - 1], found[0][first.stop]
    seam = (found[1][0] - last).norm()
    assert seam < 0.5 * (apart[1][0] - last).norm() + (ahead - last).norm()
    assert (found[1][0] - ahead).norm() < 0.35 * (apart[1][0] - ahead).norm()
