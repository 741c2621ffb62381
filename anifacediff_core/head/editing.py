"""Expressions dialed by hand: named edits laid over face parameters, as the Expression Editor makes them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
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
    if not isinstance(values, dict):
        raise _no_edits()
    return {name: _checked(name, value, head) for name, value in values.items()}


def edit(head: HeadModel, params: FaceParameters, edits: Mapping[str, float]) -> FaceParameters:
    """Lay edits over every frame.

    Expressions are added and clamped to [0, 1], and the eyes turn as far as the gaze has changed; the head is
    turned in its own axes, around the neck; zoom and shift change the camera.

    Args:
        head: the head that ``params`` belong to, one with ARKit's expressions.
        params: any number of frames, on any device.
        edits: values by name, as :func:`read_edits` gives them.

    Returns:
        As many frames, on the same device; shape and validity stay.

    Raises:
        InputError: the parameters belong to another head, or a value is out of its limits or no number.
    """
    head.require(params)
    edits = {name: _checked(name, value, head) for name, value in edits.items()}
    names = head.expression_names
    offset = params.expression.new_tensor([edits.get(name, 0.0) for name in names])
    expression = (params.expression + offset).clamp(0, 1)
    gaze = gaze_pose(expression, names) - gaze_pose(params.expression, names)
    angles = [math.radians(_place(edits, name)) for name in ("headYaw", "headPitch", "headRoll")]
    pose = params.pose.float()
    neck = pose[:, 3:6]
    if any(angles):
        turn = rotation.from_euler(*torch.tensor(angles, device=pose.device))
        neck = rotation.compose(neck, turn.expand_as(neck))
    pose = torch.cat([pose[:, :3], neck, pose[:, 6:9], pose[:, 9:] + gaze], dim=1)
    return replace(
        params, expression=expression, pose=pose.to(params.pose), camera=_moved(params.camera, edits)
    )


def without_motion(params: FaceParameters) -> FaceParameters:
    """The same faces in the same places, looking straight ahead without an expression."""
    return replace(params, expression=torch.zeros_like(params.expression), pose=torch.zeros_like(params.pose))


def _moved(camera: Tensor, edits: Mapping[str, float]) -> Tensor:
    scale = camera[:, :1] * _place(edits, "zoom")
    shift = camera.new_tensor([_place(edits, "shiftX"), _place(edits, "shiftY")])
    return torch.cat([scale, camera[:, 1:] + 2 * shift / scale], dim=1)


def _place(edits: Mapping[str, float], name: str) -> float:
    return edits.get(name, PLACE[name][2])


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
