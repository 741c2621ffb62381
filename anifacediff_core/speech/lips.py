"""Lips that meet: what closing the mouth makes of the opening that vowels give it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..motion.curves import columns

# While the lips are closed for a consonant these shrink with the opening.
OPENINGS = ("jawOpen", "mouthLowerDown", "mouthUpperUp", "mouthFunnel")
JAW_KEPT = 0.28  # of the jaw's opening, when the lips are shut


def close_lips(face: Tensor, closure: Tensor, names: Sequence[str]) -> Tensor:
    """A mouth closed by so much, whatever it was open before.

    Args:
        face: (..., expressions) in [0, 1].
        closure: (..., 1) from 0, as open as before, to 1, shut.
        names: ARKit's, of the expressions.

    Returns:
        as ``face``.
    """
    names, face = list(names), face.clone()
    jaw, openings = columns(names, "jawOpen"), columns(names, *OPENINGS)
    free_jaw = face[..., jaw]
    face[..., openings] = face[..., openings] * (1 - closure)
    # The lips meet before the jaw is shut: ARKit calls that mouthClose.
    face[..., jaw] = free_jaw * (1 - (1 - JAW_KEPT) * closure)
    # Full closure cancels the jaw's opening; a half-closed mouth keeps its lips apart.
    face[..., columns(names, "mouthClose")] = face[..., jaw] * (closure * 1.6 - 0.6).clamp(min=0)
    return face
