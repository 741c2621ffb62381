"""The one exception for refusals that a user can act on."""

from __future__ import annotations


class InputError(ValueError):
    """One sentence: which input, what was wrong with it, what to do."""
