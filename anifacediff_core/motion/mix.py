"""Two motions into one: parts of each, a mixture, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..head.gaze import look_along
from ..head.parameters import FaceParameters
from .parts import JOINTS, PARTS, per_expression, require_numbers

LENGTHS = ("first", "shorter", "loop shorter")


def matched(
    first: FaceParameters, second: FaceParameters, length: str
) -> tuple[FaceParameters, FaceParameters]:
    """Two motions of the same length, both with the first's shape.

    Args:
        length: "first" as long as the first, where the second's last frame is held if it is shorter;
            "shorter" cuts the longer one; "loop shorter" repeats the shorter one.

    Raises:
        InputError: the heads differ.
    """
    first.require_same_head(second, "the two motions")
    frames = torch.arange(len(first))
    if length == "shorter":
        frames = frames[: len(second)]
    elif length == "loop shorter":
        frames = torch.arange(max(len(first), len(second)))
    place = frames % len(second) if length == "loop shorter" else frames.clamp(max=len(second) - 1)
    first, second = first[frames % len(first)], second[place].to(first.shape.device, first.shape.dtype)
    return first, replace(second, shape=first.shape)


def combine(
    first: FaceParameters,
    second: FaceParameters,
    names: Sequence[str],
    from_second: Mapping[str, bool],
    length: str = "first",
) -> FaceParameters:
    """Some parts of one motion, the others of another.

    Args:
        names: ARKit's, of the expressions; empty for heads without.
        from_second: for "head" (its rotation), "place" (the camera) and each of :data:`.parts.PARTS`, whether
            it is the second's.
        length: see :func:`matched`.

    Raises:
        InputError: the heads differ, or parts that cannot be separated are to come from both.
    """
    first, second = matched(first, second, length)
    chosen = per_expression({part: float(from_second[part]) for part in PARTS}, names, "driver").bool()
    expression = torch.where(chosen.to(first.shape.device), second.expression, first.expression)
    pose = first.pose.clone()
    for part, columns in JOINTS.items():
        if from_second[part]:
            pose[:, columns] = second.pose[:, columns]
    camera = (second if from_second["place"] else first).camera
    mixed = replace(first, expression=expression, pose=pose, camera=camera)
    return look_along(mixed.no_surer_than(second), names)


def mix(
    first: FaceParameters, second: FaceParameters, weight: float | Tensor, length: str = "first"
) -> FaceParameters:
    """Between two motions: 0 is the first, 1 the second; see :func:`matched` for the length.

    Raises:
        InputError: the heads differ, or a weight is NaN or infinite.
    """
    require_numbers(weight=float(torch.as_tensor(weight).sum()))
    first, second = matched(first, second, length)
    return first.interpolate(second, weight)


def join(first: FaceParameters, second: FaceParameters, overlap: int) -> FaceParameters:
    """One motion after the other, faded into each other over ``overlap`` frames.

    Returns:
        len(first) + len(second) - overlap frames, with the first's shape.

    Raises:
        InputError: the heads differ, or a motion is shorter than the overlap.
    """
    first.require_same_head(second, "the two motions")
    if overlap > min(len(first), len(second)):
        raise InputError(
            f"The motions have {len(first)} and {len(second)} frames, too few to overlap in {overlap}: "
            "choose a smaller overlap."
        )
    shape = first.shape[-1:].expand(len(second), -1)
    second = replace(second.to(first.shape.device, first.shape.dtype), shape=shape)
    keep = len(first) - overlap
    faded = first[keep:].interpolate(second[:overlap], fade(overlap)) if overlap else first[:0]
    return FaceParameters.concatenate([first[:keep], faded, second[overlap:]])


def fade(frames: int) -> Tensor:
    """Weights (frames,) that rise from almost 0 to almost 1, softly at both ends."""
    x = torch.arange(1, frames + 1) / (frames + 1)
    return x * x * (3 - 2 * x)
