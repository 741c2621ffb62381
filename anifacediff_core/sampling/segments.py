"""Videos of any length in bounded memory: made in segments that are finished, saved and freed one by one.

A segment is some windows long and is denoised as one video. It samples `overlap` frames more than it writes.
Their finished latents go to the next segment, which begins with the same frames: at every step its own
estimate of them is blended into the finished one, from the old to the new, as the windows of one segment are
blended. So there is no seam, and nothing but these latents, and the parameters of the driver, is carried
along.

In the work folder beside the result lie, each written whole or not at all:

    manifest.json        what the frames depend on (a fingerprint), and the pace and the sound of the result
    driving*.safetensors the face parameters of each driver, and their digest
    0000.mp4, ...        finished segments
    0000.safetensors     the state that a segment passes to the next one, and the digests of that and of its
                         mp4; it is written last and says that the segment is finished
    whole.mp4            the joined video, while it is converted into another form
    lock                 held by the run that works here

What a run that was stopped reads from there, one that was not reads as well, into memory of its own: kernels
round otherwise where numbers lie at other addresses. So both make the same file, bit by bit.

The end joins the segments packet by packet. The folder does not outlive the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import count as counting
from itertools import pairwise
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import FAULTS, InputError, is_full_disk
from ..head.parameters import FORMAT as PARAMETERS
from ..head.parameters import FaceParameters
from ..progress import Progress
from ..sound import keep_sound
from ..storage import atomic_write, file_digest, file_lock, write_tensors
from ..video import VideoWriter, codec_parameters, frame_pace, join_videos, probe
from .fingerprint import fingerprint

SEGMENT = 96  # frames
VERSION = 1
MANIFEST, DRIVING, LOCK = "manifest.json", "driving*.safetensors", "lock"
WHOLE = "whole.mp4"
OURS = (
    MANIFEST,
    DRIVING,
    WHOLE,
    "[0-9]*.mp4",
    "[0-9]*.safetensors",
    ".*.mp4.*",
    ".*.safetensors.*",
    ".*.json.*",
)

DAMAGED = (*FAULTS, ValueError, KeyError, TypeError)  # what reading a damaged file raises

SegmentState = Mapping[str, Tensor]
Say = Callable[[str], None]
Finish = Callable[[Path], None]


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` of the video.

    Attributes:
        ahead: further frames that are sampled with them, for the next segment to begin with.
    """

    number: int
    start: int
    stop: int
    ahead: int

    @property
    def sampled(self) -> slice:
        return slice(self.start, self.stop + self.ahead)

    def position(self, done: int, total: int) -> int:
        """The frame of the video that is reached when so much of the segment is done."""
        return self.start + (self.stop - self.start) * done // total


# Makes the pictures of a segment, in parts (frames, 3, height, width), from the state after the one before;
# and returns the state after this one.
SegmentFn = Callable[[Segment, SegmentState], tuple[Iterable[Tensor], SegmentState]]


def plan_segments(frames: int, length: int, overlap: int) -> list[Segment]:
    """As few segments of at most `length` frames as possible, of equal length."""
    if length < 1:
        raise InputError(f"Segments of {length} frames hold nothing: give a positive number.")
    count = ceil(frames / length)
    bounds = [frames * number // count for number in range(count + 1)]
    return [
        Segment(number, start, stop, min(overlap, frames - stop))
        for number, (start, stop) in enumerate(pairwise(bounds))
    ]


@dataclass(frozen=True)
class VideoTiming:
    """What the result takes from the driver besides its motion.

    Attributes:
        rate: frames a second; the mean where there is no constant one.
        sound: video or sound file whose sound goes along.
        times: of every frame in seconds, if they follow no constant rate.
    """

    rate: Fraction
    sound: str | None = None
    times: tuple[float, ...] = ()

    @classmethod
    def of(cls, path: str | Path, most: int | None = None) -> VideoTiming:
        """That of a video file, or of its first frames."""
        rate, times = frame_pace(path)
        sound = str(Path(path).resolve()) if probe(path).has_audio else None
        return cls(rate, sound, tuple(times[:most]))

    @classmethod
    def noted(cls, notes: Mapping[str, Any]) -> VideoTiming:
        """That of notes in JSON; a ValueError or TypeError if they are damaged."""
        rate, sound, times = notes["rate"], notes["sound"], tuple(notes["times"])
        if not re.fullmatch(r"[1-9]\d{0,18}(/[1-9]\d{0,18})?", rate) or not isinstance(sound, str | None):
            raise ValueError("no rate or no sound")
        if not all(isinstance(time, float | int) and isfinite(time) for time in times):
            raise ValueError("no times")
        return cls(Fraction(rate), sound, times)


@dataclass
class ResumableVideo:
    """An unfinished video and its folder, which is its own within the context that :meth:`begin` opens.

    Attributes:
        folder: where the segments are.
        partial: mp4 for what is finished, should the work be stopped.
        fingerprint: of what the frames depend on.
        finish: called with every joined video, also with a partial one, before it gets its name.
        convert: makes the result of the joined video, where it is to be no mp4; called with both paths.
    """

    folder: Path
    partial: Path
    fingerprint: str
    timing: VideoTiming
    say: Say
    finish: Finish | None = None
    convert: Callable[[Path, Path], None] | None = None

    @contextmanager
    def begin(self) -> Iterator[ResumableVideo]:
        """Go on with what is in the folder if it has the same fingerprint, or start anew.

        Of other settings the finished frames are kept as a video of their own, which no run removes.

        Raises:
            InputError: another run works in the folder.
        """
        name = self.folder.stem
        busy = f"The video {name} is being made by another run: wait for it or choose another file name."
        try:
            with file_lock(self.folder / LOCK, busy):
                self._prepare()
                yield self
        finally:
            with suppress(OSError):  # it is not there, or holds something
                self.folder.rmdir()

    def _prepare(self) -> None:
        found = self._former()
        if found is not None and found.fingerprint == self.fingerprint:
            return
        if found is not None:
            former = free_name(self.partial.with_name(self.partial.name.replace(".partial.", ".former.")))
            kept = found.join_finished(former)
            self.partial.unlink(missing_ok=True)
            rest = f"; its first {kept} frames are {former.name}" if kept else ""
            self.say(f"The run in {self.folder.name} had other settings or files: starting anew{rest}.")
        elif any(self.folder.glob("*.mp4")):
            self.say(f"The notes in {self.folder.name} are missing or damaged: starting anew.")
        self.clear(DRIVING)
        with _explain_full_disk(self.folder), atomic_write(self.folder / MANIFEST) as temporary:
            timing = {**asdict(self.timing), "rate": str(self.timing.rate)}
            manifest = {"version": VERSION, "fingerprint": self.fingerprint, "footage": timing}
            Path(temporary).write_text(json.dumps(manifest))

    def parameters(
        self, cache_key: str, read: Callable[[], tuple[FaceParameters, str]], driver: str = ""
    ) -> tuple[FaceParameters, str]:
        """A driver's face parameters and a note about them, read once, whatever is changed later.

        Args:
            cache_key: fingerprint of what they depend on.
            driver: which one, where there are several; a part of a file's name.
        """
        path = self.folder / DRIVING.replace("*", driver)
        with suppress(*DAMAGED):
            return _noted_parameters(path, cache_key)
        try:
            parameters, note = read()
            parameters.require_finite("The driver's motion")
        except BaseException:
            if not any(self.folder.glob("[0-9]*.mp4")):
                self.clear()
            raise
        with _explain_full_disk(self.folder):
            notes = {"note": note, "fingerprint": cache_key, "digest": fingerprint(parameters)}
            parameters.save(path, notes)
        return _noted_parameters(path, cache_key)

    def run(self, out: Path, segments: Sequence[Segment], make: SegmentFn, progress: Progress | None) -> int:
        """Make the missing segments and join all of them; returns the number of frames.

        Whatever stops it, also a progress that raises, what is finished becomes the partial video.

        Raises:
            InputError: the disk is full.
        """
        frames = segments[-1].stop
        if len(self.timing.times) != frames:  # the container says otherwise than its frames
            self.timing = replace(self.timing, times=())
        missing = self._missing(segments)
        there = frames - sum(segment.stop - segment.start for segment in missing)
        if there:
            self.say(f"{there} of {frames} frames are there already: going on with the others.")
        try:
            with _explain_full_disk(self.folder):
                for segment in missing:
                    if progress is not None:
                        progress(segment.start, frames)
                    before = self._state(segment.number - 1) if segment.number else {}
                    assert before is not None
                    self._write(segment.number, *make(segment, before))
                self._deliver(len(segments), out)
        except BaseException:
            with suppress(Exception):  # the error to report is what stopped it
                if kept := self.join_finished(self.partial):
                    self.say(
                        f"The first {kept} of {frames} frames are {self.partial}; the same run again goes on "
                        "behind them."
                    )
            raise
        self.clear()
        self.partial.unlink(missing_ok=True)
        if progress is not None:  # at the very end, since it raises when the run was canceled meanwhile
            progress(frames, frames)
        return frames

    def _deliver(self, count: int, out: Path) -> None:
        if self.convert is None:
            with atomic_write(out) as temporary:
                self._join(count, Path(temporary))
        else:
            whole = self.folder / WHOLE
            self._join(count, whole)
            self.convert(whole, out)

    def join_finished(self, path: Path) -> int:
        """Join what is finished into a video, if anything is; returns its number of frames."""
        done = 0
        while self._state(done) is not None and self._fits(done):
            done += 1
        if not done:
            return 0
        with atomic_write(path) as temporary:
            return self._join(done, Path(temporary))

    def clear(self, *keep: str) -> None:
        """Remove what is ours in the folder, but not what a pattern says is to be kept."""
        for path in (path for pattern in OURS for path in self.folder.glob(pattern)):
            if not any(map(path.match, keep)):
                path.unlink()

    def _missing(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that are not finished, or damaged, or of another encoder than the first finished one."""
        finished = [segment for segment in segments if self._state(segment.number) is not None]
        fitting = [segment for segment in finished if self._fits(segment.number, finished[0].number)]
        return [segment for segment in segments if segment not in fitting]

    def _fits(self, number: int, first: int = 0) -> bool:
        """Whether a segment can be joined to the first one."""
        return codec_parameters(self._video(number)) == codec_parameters(self._video(first))

    def _write(self, number: int, images: Iterable[Tensor], state: SegmentState) -> None:
        path = self._video(number)
        rate = self.timing.rate
        with atomic_write(path) as temporary, VideoWriter(temporary, rate, repeatable=True) as video:
            for part in images:
                video.write(part)
        digests = {"sha256": file_digest(path), "tensors": fingerprint(state)}
        write_tensors(path.with_suffix(".safetensors"), state, digests)

    def _join(self, count: int, path: Path) -> int:
        """Join the first segments."""
        timing = self.timing
        sound = timing.sound if timing.sound is not None and Path(timing.sound).is_file() else None
        parts = [self._video(number) for number in range(count)]

        def join(sound: Path | None, copied: bool) -> int:
            return join_videos(parts, path, timing.rate, timing.times, sound, copied)

        frames = keep_sound(join, sound, self.say)
        if self.finish is not None:
            self.finish(path)
        return frames

    def _video(self, number: int) -> Path:
        return self.folder / f"{number:04d}.mp4"

    def _state(self, number: int) -> SegmentState | None:
        """The state that a segment passes on; None if it is not finished or damaged."""
        path = self._video(number)
        try:
            with safe_open(str(path.with_suffix(".safetensors")), framework="pt") as file:
                digests = file.metadata()
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            whole = digests["sha256"] == file_digest(path) and digests["tensors"] == fingerprint(state)
            return state if whole else None
        except DAMAGED:
            return None

    def _former(self) -> ResumableVideo | None:
        """The video that the folder's manifest describes, if there is one that can be read."""
        try:
            found = json.loads((self.folder / MANIFEST).read_text())
            if found["version"] != VERSION:
                return None
            former = VideoTiming.noted(found["footage"])
            return replace(self, fingerprint=found["fingerprint"], timing=former)
        except DAMAGED:
            return None


def _noted_parameters(path: Path, cache_key: str) -> tuple[FaceParameters, str]:
    """Parameters that were saved and the note about them; one of DAMAGED if they are not those."""
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()[PARAMETERS])
    read = FaceParameters.load(path)
    parameters = read[torch.arange(len(read))]  # in memory of their own
    if header["fingerprint"] != cache_key or header["digest"] != fingerprint(parameters):
        raise ValueError("they are of another driver, or damaged")
    return parameters, header["note"]


def free_name(path: Path) -> Path:
    """The path, with a number where there is such a file already."""
    names = (path.with_stem(f"{path.stem}_{number}") for number in counting(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        if not is_full_disk(error):
            raise
        raise InputError(
            f"The disk of {folder.parent} is full: free some of it and run the same again, which goes on "
            "with what is finished."
        ) from error
