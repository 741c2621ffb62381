"""The one exception for refusals that a user can act on."""

from __future__ import annotations


class InputError(ValueError):
    """One sentence: which input, what was wrong with it, what to do."""


def printable(text: str) -> str:
    """Text of a file, a name or a widget as it may stand in a message: what is no visible character is
    escaped, so that it cannot steer a terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
