"""Several driving videos on one timeline: how long they go on together, at which times, with which sound."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from ..head.parameters import FaceParameters
from ..motion.retime import at_times
from ..video import frame_pace, probe
from .segments import VideoTiming

LENGTHS = ("longest", "shortest")


@dataclass(frozen=True)
class Timeline:
    """Whose frames, times and sound the result has.

    Attributes:
        lead: the driver whose frames are those of the result.
        timing: its pace; and its sound, or that of the first other one that has some.
    """

    lead: Path
    timing: VideoTiming

    @classmethod
    def of(cls, drivers: Collection[Path], length: str) -> Timeline:
        """That of some video files.

        Args:
            length: which of them leads, one of :data:`LENGTHS`.
        """
        timings = {path: VideoTiming.of(path) for path in sorted(drivers)}
        choose = max if length == "longest" else min
        lead = choose(timings, key=lambda path: _seconds(path, timings[path]))
        heard = [each.sound for each in (timings[lead], *timings.values()) if each.sound is not None]
        return cls(lead, replace(timings[lead], sound=next(iter(heard), None)))

    def fit(self, motion: FaceParameters, driver: Path, frames: int) -> FaceParameters:
        """A driver's motion at the times of the result's frames; where it has ended, it rests.

        Args:
            motion: one frame per frame of the driver.
            frames: how many the lead has.
        """
        if driver == self.lead:
            return motion
        return at_times(motion, _times(driver, len(motion)), _times(self.lead, frames))


def _seconds(path: Path, timing: VideoTiming) -> float:
    if timing.times:
        return timing.times[-1] + float(1 / timing.rate)
    return probe(path).frames / float(timing.rate)


def _times(path: Path, frames: int) -> list[float]:
    """When each frame of a video is shown, in seconds from the first."""
    rate, times = frame_pace(path)
    return times if len(times) == frames else [number / float(rate) for number in range(frames)]
