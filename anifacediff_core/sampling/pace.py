"""Keeping up with what comes while it comes: the newest frame counts, and pictures are timed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition
from typing import Generic, TypeVar

Item = TypeVar("Item")
Clock = Callable[[], float]
MEASURED = 300  # latest pictures that the figures are of


@dataclass(frozen=True)
class Timed(Generic[Item]):
    """Something that came in, and when: in seconds of the clock of what it came through."""

    item: Item
    time: float


class Newest(Generic[Item]):
    """What one thread hands to another: only the newest is kept, older ones are dropped and counted.

    Args:
        clock: seconds that never go back.

    Attributes:
        dropped: how many were never taken.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock, self.dropped = clock, 0
        self._changed = Condition()
        self._waiting: Timed[Item] | None = None
        self._closed = False

    def put(self, item: Item) -> None:
        with self._changed:
            self.dropped += self._waiting is not None
            self._waiting = Timed(item, self.clock())
            self._changed.notify()

    def close(self) -> None:
        """Nothing more will come; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it was closed and nothing waits."""
        with self._changed:
            return self._closed and self._waiting is None

    def take(self, timeout: float) -> Timed[Item] | None:
        """The newest one; None if there is none within so many seconds, or it was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed, timeout)
            taken, self._waiting = self._waiting, None
            return taken


class Meter:
    """Pictures a second, and how long each took from its frame's coming to its being shown.

    Args:
        clock: the one that frames were timed by.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock, self.shown = clock, 0
        self._latest: deque[tuple[float, float]] = deque(maxlen=MEASURED)

    def show(self, came: float) -> None:
        """Note that the picture of a frame that came then is shown now."""
        now = self.clock()
        self._latest.append((now, now - came))
        self.shown += 1

    @property
    def rate(self) -> float:
        """Pictures a second, over the latest ones; 0 before there are two."""
        spent = self._latest[-1][0] - self._latest[0][0] if self._latest else 0.0
        return (len(self._latest) - 1) / spent if spent > 0 else 0.0

    def latency(self, share: float) -> float:
        """Seconds that this share of the latest pictures took at most: 0.5 is the median."""
        late = sorted(latency for _, latency in self._latest)
        return late[min(int(share * len(late)), len(late) - 1)] if late else 0.0

    def describe(self, dropped: int) -> str:
        """One line for people."""
        p50, p95 = (1000 * self.latency(share) for share in (0.5, 0.95))
        return f"{self.rate:.1f} FPS, latency {p50:.0f} ms (95 %: {p95:.0f} ms), {dropped} frames dropped"
