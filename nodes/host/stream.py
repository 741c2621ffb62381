"""What temporal modules keep from frame to frame of a stream, by the host's calls of the UNet."""

from __future__ import annotations

from collections.abc import Sequence

from anifacediff_core.network.temporal import TemporalMemory


class StreamMemory:
    """The `TemporalMemory` of each call of the UNet that one frame takes.

    A frame takes a call for each step, or more: some samplers look twice, and where memory is short the host
    runs the halves of guidance one after the other. So calls are known by their number and their halves.

    Args:
        frames: how many before the present one are kept, at most.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._number = 0
        self._memories: dict[tuple[int, ...], TemporalMemory] = {}

    def begin(self) -> None:
        """The calls that follow are another frame's."""
        self._number = 0

    def of_call(self, halves: Sequence[int]) -> TemporalMemory:
        """Of the next call.

        Args:
            halves: the host's `cond_or_uncond`, which names the groups of rows of the call.
        """
        key = (self._number, *halves)
        self._number += 1
        return self._memories.setdefault(key, TemporalMemory(self.frames))
