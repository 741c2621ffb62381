"""Expressions that change over time: keyframes of the Expression Editor, and what lies between them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from anifacediff_core.claims import parse_json, shown
from anifacediff_core.errors import InputError
from anifacediff_core.head.editing import check_edits, edit, read_edits, rest_of
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters

MOST_FRAMES = 10_000
# How far the way from one keyframe to the next is gone, 0 to 1, at a share of the time between them.
EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda time: time,
    "ease-in": lambda time: time**2,
    "ease-out": lambda time: 1 - (1 - time) ** 2,
    "ease-in-out": lambda time: time**2 * (3 - 2 * time),
    "hold": lambda time: 0.0,
}


@dataclass(frozen=True)
class Keyframe:
    """What is dialed at a frame.

    Attributes:
        frame: its number, from 0.
        edits: values by name, see `head.editing`.
        easing: one of `EASINGS`, by which the edits change from here to the next keyframe.
    """

    frame: int
    edits: Mapping[str, float]
    easing: str = "linear"


def read_keyframes(text: str, head: HeadModel) -> list[Keyframe]:
    """Keyframes from the Expression Editor's JSON, in the order of their frames.

    Args:
        text: edits that hold all the time, as `head.editing.read_edits` takes them, or
            ``{"keyframes": [{"frame": 0, "easing": "ease-in-out", "expression": {"jawOpen": 0.4}}, ...]}``
            with ascending frames; ``easing`` is linear where it is missing.

    Raises:
        InputError: the text is nothing of that kind, or holds edits that are refused.
    """
    try:
        values = parse_json(text.strip() or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict) or "keyframes" not in values:
        return [Keyframe(0, read_edits(text, head))]
    entries = values["keyframes"]
    if len(values) > 1 or not isinstance(entries, list) or not entries:
        raise InputError(
            "The keyframes of the expression are no list, or not all there is: write it like "
            '{"keyframes": [{"frame": 0, "expression": {"jawOpen": 0.4}}]}.'
        )
    keyframes = [_keyframe(entry, number + 1, head) for number, entry in enumerate(entries)]
    for before, after in pairwise(keyframes):
        if after.frame <= before.frame:
            raise InputError(
                f"In the expression a keyframe at {after.frame} follows one at {before.frame}: order them by "
                "frame, one for each."
            )
    return keyframes


def edits_at(keyframes: Sequence[Keyframe], frame: int) -> dict[str, float]:
    """The edits at a frame; before the first keyframe they are its own, after the last one that one's."""
    if frame <= keyframes[0].frame:
        return dict(keyframes[0].edits)
    place = bisect_right(keyframes, frame, key=lambda keyframe: keyframe.frame)
    if place == len(keyframes):
        return dict(keyframes[-1].edits)
    before, after = keyframes[place - 1 : place + 1]
    way = EASINGS[before.easing]((frame - before.frame) / (after.frame - before.frame))
    names = before.edits.keys() | after.edits.keys()
    return {name: _between(before.edits, after.edits, name, way) for name in names}


def animate(head: HeadModel, params: FaceParameters, keyframes: Sequence[Keyframe]) -> FaceParameters:
    """Lay keyframes over face parameters, see `head.editing.edit`.

    Args:
        head: the head that ``params`` belong to.
        params: any number of frames; a single one is repeated up to the last keyframe.

    Returns:
        As many frames as ``params``, or up to the last keyframe of a single one.

    Raises:
        InputError: as `head.editing.edit` does.
    """
    if len(params) == 1:
        params = params.expand(keyframes[-1].frame + 1)
    if len(keyframes) == 1:
        return edit(head, params, keyframes[0].edits)
    return edit(head, params, [edits_at(keyframes, frame) for frame in range(len(params))])


def _between(before: Mapping[str, float], after: Mapping[str, float], name: str, way: float) -> float:
    start, end = (edits.get(name, rest_of(name)) for edits in (before, after))
    return start + way * (end - start)


def _keyframe(entry: object, number: int, head: HeadModel) -> Keyframe:
    if not isinstance(entry, dict) or not entry.keys() <= {"frame", "easing", "expression"}:
        raise InputError(
            f"Keyframe {number} of the expression is {shown(entry)}: give it a frame, an expression and, if "
            "it is not linear, an easing."
        )
    frame, easing = entry.get("frame"), entry.get("easing", "linear")
    if type(frame) is not int or not 0 <= frame < MOST_FRAMES:
        raise InputError(
            f"Keyframe {number} of the expression has the frame {shown(frame)}: give a whole number from 0 "
            f"to {MOST_FRAMES - 1}."
        )
    if not isinstance(easing, str) or easing not in EASINGS:
        raise InputError(
            f"Keyframe {number} of the expression has the easing {shown(easing)}: choose one of "
            f"{', '.join(EASINGS)}."
        )
    return Keyframe(frame, check_edits(entry.get("expression", {}), head), easing)
