"""What belongs to which part of a face: names of ARKit's expressions, and joints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..head.model import HeadModel
from ..head.parameters import FaceParameters

# Parts of the expression, by how ARKit's names begin. mouthClose closes the lips over an open jaw, and goes
# with it.
BEGINNINGS = {
    "jaw": ("jaw", "mouthClose"),
    "brows": ("brow",),
    "eyes": ("eyeBlink", "eyeSquint", "eyeWide"),
    "gaze": ("eyeLook",),
    "mouth": ("mouth", "tongue", "cheek", "nose"),
}
PARTS = tuple(BEGINNINGS)
# Parts that a joint moves as well, or alone: columns of the pose.
JOINTS = {"head": slice(0, 6), "jaw": slice(6, 9), "gaze": slice(9, 15)}
# Without names, each expression moves all of these.
MIXED = ("brows", "eyes", "mouth")


def expression_names(params: FaceParameters) -> list[str]:
    """ARKit's names of the expressions; none for a head like FLAME, whose expressions have none.

    Raises:
        InputError: the parameters say they are of the bundled head, but are of another size.
    """
    head = HeadModel.bundled()
    if params.head != head.name:
        return []
    head.require(params)
    return head.expression_names


def part_of(name: str) -> str:
    """The part that an ARKit expression belongs to."""
    return next(part for part, starts in BEGINNINGS.items() if name.startswith(starts))


def per_expression(values: Mapping[str, float], names: Sequence[str], what: str) -> Tensor:
    """A number of each part, such as a gain, for each expression: (expressions,), or (1,) without names.

    Args:
        what: what the numbers are, for messages: "gains".

    Raises:
        InputError: without names the parts that cannot be separated have different numbers.
    """
    if names:
        return torch.tensor([float(values[part_of(name)]) for name in names])
    if len({values[part] for part in MIXED}) > 1:
        raise InputError(
            "This head's expressions move brows, eyes and mouth at once: give these three the same "
            f"{what}, or read the motion with the bundled head."
        )
    return torch.tensor([float(values["mouth"])])


def require_numbers(**values: float) -> None:
    """Refuse NaN and infinity, of which any limit lets NaN pass.

    Args:
        values: by the names that people know them by; `_` is written as a blank.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"The {name.replace('_', ' ')} is {value}: give a number.")


def require_motion(params: FaceParameters, what: str) -> FaceParameters:
    """Refuse what cannot be worked with: no frame, NaN or infinity, a camera that sees nothing."""
    if not len(params):
        raise InputError(f"There is no frame in {what}: connect face parameters that have some.")
    params.require_finite(f"The input {what}")
    if (params.camera[:, 0] <= 0).any():
        raise InputError(
            f"The camera of {what} has a scale that isn't above 0: extract the parameters again."
        )
    return params
