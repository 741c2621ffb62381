"""A driver's motion made stronger, weaker or relative, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..head import rotation
from ..head.gaze import look_along
from ..head.parameters import FaceParameters
from .parts import JOINTS, per_expression, require_numbers


def rest_frame(params: FaceParameters) -> int:
    """The frame in which the face is at rest: little expression, a straight head, and rather no movement.

    Each counts in multiples of its mean over the clip; frames without a face don't count.
    """
    turn = params.pose[:, :6]
    change = torch.zeros(len(params), device=turn.device)
    if len(params) > 2:
        change[1:-1] = (params.expression[2:] - params.expression[:-2]).norm(dim=1)
        change[[0, -1]] = change.amax()
    restless = torch.zeros_like(change)
    # A mouth wide open stands still for a moment too, so stillness decides only among the neutral ones.
    for weight, amount in ((1, params.expression.norm(dim=1)), (1, turn.norm(dim=1)), (0.25, change)):
        restless = restless + weight * amount / amount.mean().clamp(min=1e-6)
    if params.valid.any():
        restless = restless.masked_fill(~params.valid, torch.inf)
    return int(restless.argmin())


def edit_motion(
    driving: FaceParameters,
    names: Sequence[str],
    gains: Mapping[str, float],
    *,
    relative: bool = False,
    rest: int | None = None,
    source: FaceParameters | None = None,
    neutralize: float = 0.0,
) -> FaceParameters:
    """base + gain · (driver - reference), part by part; rotations along the shortest arc.

    Absolute motion: base and reference are both the source's parameters, so 0 leaves the source as it is, 1
    is the driver and more exaggerates. Relative motion: the reference is the driver's rest frame, so only its
    changes are added to the source. Without a source the base is a neutral face that looks straight ahead,
    placed as the driver's in the rest frame.

    Args:
        names: ARKit's, of the expressions; empty for heads without.
        gains: of "head" (its rotation and its place in the picture) and of each of :data:`.parts.PARTS`.
        rest: number of the rest frame, by default :func:`rest_frame`.
        source: one frame, whose shape plays no part.
        neutralize: 0 to 1, how much of the source's own expression is taken away from the base.

    Returns:
        As many frames, with the driver's shape. ARKit's coefficients stay in [0, 1], the eyes follow them.

    Raises:
        InputError: the heads differ, there is no such frame, the gains cannot be separated, or a number is
            NaN or infinite.
    """
    require_numbers(neutralize=neutralize, **{f"gain_of_{part}": gain for part, gain in gains.items()})
    rest = rest_frame(driving) if rest is None else rest
    if not 0 <= rest < len(driving):
        raise InputError(
            f"There is no rest frame {rest} in a motion of {len(driving)} frames: choose 0 to "
            f"{len(driving) - 1}, or -1 to have one found."
        )
    resting = driving[rest]
    base = _base(resting, source, neutralize)
    reference = resting if relative else base
    gain = per_expression(gains, names, "gain").to(driving.expression)
    expression = base.expression + gain * (driving.expression - reference.expression)
    if names:
        expression = expression.clamp(0, 1)
    pose = driving.pose.clone()
    for part, columns in JOINTS.items():
        start, zero, turns = (
            params.pose[:, columns].unflatten(1, (-1, 3)) for params in (base, reference, driving)
        )
        pose[:, columns] = _turned(start, zero, turns, gains[part]).flatten(1)
    camera = _moved(base.camera, reference.camera, driving.camera, gains["head"])
    return look_along(replace(driving, expression=expression, pose=pose, camera=camera), names)


def _base(resting: FaceParameters, source: FaceParameters | None, neutralize: float) -> FaceParameters:
    """One frame: where the motion starts from."""
    if source is None:
        return replace(
            resting, expression=torch.zeros_like(resting.expression), pose=torch.zeros_like(resting.pose)
        )
    source.require_same_head(resting, "source and parameters")
    source = source.to(resting.shape.device, resting.shape.dtype)
    kept = 1 - neutralize
    # A turn about a fixed axis shrinks along its arc.
    pose = torch.cat([source.pose[:, :6], kept * source.pose[:, 6:]], dim=1)
    return replace(source, expression=kept * source.expression, pose=pose)


def _turned(base: Tensor, reference: Tensor, driving: Tensor, gain: float) -> Tensor:
    """The rotation that leads from the reference to the driver, times the gain, put upon the base.

    (1, joints, 3), (1, joints, 3), (frames, joints, 3) axis-angle -> (frames, joints, 3).
    """
    change = rotation.compose(driving, -reference.expand_as(driving))
    return rotation.compose(gain * change, base.expand_as(driving))


def _moved(base: Tensor, reference: Tensor, driving: Tensor, gain: float) -> Tensor:
    """Cameras (frames, 3) moved from the base's as the driver's do from the reference's (1, 3).

    The scale changes by its logarithm, the place by s·t, in heads: a smaller head moves less far.
    """
    scale = base[:, :1] * (driving[:, :1] / reference[:, :1]) ** gain
    shift = driving[:, :1] * driving[:, 1:] - reference[:, :1] * reference[:, 1:]
    place = base[:, :1] * base[:, 1:] + gain * shift * base[:, :1] / reference[:, :1]
    return torch.cat([scale, place / scale], dim=1)
