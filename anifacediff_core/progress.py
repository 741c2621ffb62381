"""How long loops tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total). To cancel, it raises: nothing is left half written.
Progress = Callable[[int, int], None]
