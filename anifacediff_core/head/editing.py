"""Expressions dialed by hand: named edits laid over face parameters, as the Expression Editor makes them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..claims import parse_json
from ..errors import InputError
from . import rotation
from .gaze import gaze_pose
from .model import HeadModel
from .parameters import FaceParameters

# Where the head is, by name: lowest, highest and neutral value. Degrees as in `rotation.from_euler`; zoom is
# a factor around the middle of the picture; shifts are parts of its side, to the right and up.
PLACE = {
    "headYaw": (-60.0, 60.0, 0.0),
    "headPitch": (-45.0, 45.0, 0.0),
    "headRoll": (-45.0, 45.0, 0.0),
    "zoom": (0.5, 2.0, 1.0),
    "shiftX": (-0.5, 0.5, 0.0),
    "shiftY": (-0.5, 0.5, 0.0),
}
EXPRESSION_LIMITS = (-1.0, 1.0)  # below 0 an edit takes away from what a frame has


def read_edits(text: str, head: HeadModel) -> dict[str, float]:
    """Edits from JSON such as ``{"jawOpen": 0.4, "headYaw": 10}``; an empty text holds none.

    Args:
        text: an object of numbers by the names of ``head.expression_names`` and of ``PLACE``.

    Raises:
        InputError: the text is nothing of that kind, a name is unknown, a number is out of its limits.
    """
    try:
        values = parse_json(text.strip() or "{}")
    except ValueError as error:
        raise _no_edits() from error
    return check_edits(values, head)


def check_edits(values: object, head: HeadModel) -> dict[str, float]:
    """Edits as :func:`read_edits` gives them, of a value that a JSON text held; it raises the same."""
    if not isinstance(values, dict):
        raise _no_edits()
    return {name: _checked(name, value, head) for name, value in values.items()}


def edit(
    head: HeadModel, params: FaceParameters, edits: Mapping[str, float] | Sequence[Mapping[str, float]]
) -> FaceParameters:
    """Lay edits over every frame.

    Expressions are added and clamped to [0, 1], and the eyes turn as far as the gaze has changed; the head is
    turned in its own axes, around the neck; zoom and shift change the camera.

    Args:
        head: the head that ``params`` belong to, one with ARKit's expressions.
        params: any number of frames, on any device.
        edits: values by name, as :func:`read_edits` gives them; the same for all frames, or some for each.

    Returns:
        As many frames, on the same device; shape and validity stay.

    Raises:
        InputError: the parameters belong to another head, or a value is out of its limits or no number.
    """
    head.require(params)
    each = [edits] if isinstance(edits, Mapping) else edits
    rows = [{name: _checked(name, value, head) for name, value in row.items()} for row in each]

    def table(names: Sequence[str]) -> Tensor:
        """(1 or frames, names)"""
        return params.pose.new_tensor([[row.get(name, rest_of(name)) for name in names] for row in rows])

    names = head.expression_names
    expression = (params.expression + table(names).to(params.expression)).clamp(0, 1)
    gaze = gaze_pose(expression, names) - gaze_pose(params.expression, names)
    angles = torch.deg2rad(table(["headYaw", "headPitch", "headRoll"]).float())
    pose = params.pose.float()
    neck = pose[:, 3:6]
    if angles.any():
        turn = rotation.from_euler(*angles.unbind(-1))
        neck = rotation.compose(neck, turn.expand_as(neck))
    pose = torch.cat([pose[:, :3], neck, pose[:, 6:9], pose[:, 9:] + gaze], dim=1)
    zoom, shift = table(["zoom"]).to(params.camera), table(["shiftX", "shiftY"]).to(params.camera)
    scale = params.camera[:, :1] * zoom
    camera = torch.cat([scale, params.camera[:, 1:] + 2 * shift / scale], dim=1)
    return replace(params, expression=expression, pose=pose.to(params.pose), camera=camera)


def without_motion(params: FaceParameters) -> FaceParameters:
    """The same faces in the same places, looking straight ahead without an expression."""
    return replace(params, expression=torch.zeros_like(params.expression), pose=torch.zeros_like(params.pose))


def rest_of(name: str) -> float:
    """The value at which a name changes nothing."""
    return PLACE[name][2] if name in PLACE else 0.0


def _checked(name: str, value: object, head: HeadModel) -> float:
    known = [*head.expression_names, *PLACE]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'" if near else "take a name from the node's help page"
        raise InputError(
            f"The expression has a value for '{name[:40]}', which the head doesn't know: {hint}."
        )
    low, high, _ = PLACE.get(name, (*EXPRESSION_LIMITS, 0.0))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(
            f"The expression has {json.dumps(value)[:40]} for {name}: give a number from {low:g} to {high:g}."
        )
    return float(value)


def _no_edits() -> InputError:
    return InputError(
        "The expression is not a JSON object of numbers by name: "
        'write it like {"jawOpen": 0.4, "headYaw": 10}.'
    )
