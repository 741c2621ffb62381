"""What follows from ARKit's expression coefficients: where the eyeballs look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .parameters import FaceParameters

# Turn of an eyeball, in radians, when an eyeLook coefficient is 1.
GAZE_YAW, GAZE_PITCH = 0.50, 0.38


def gaze_pose(expression: Tensor, names: Sequence[str]) -> Tensor:
    """Axis-angle (frames, 6) of the left and right eye joints from the ``eyeLook*`` coefficients.

    Args:
        expression: (frames, expressions), ARKit coefficients in [0, 1].
        names: ARKit names of the columns.

    Returns:
        (frames, 6) radians: [left eye, right eye]; left is the subject's left, +x.
    """

    def coefficient(name: str) -> Tensor:
        return expression[:, names.index(name)]

    zero = torch.zeros_like(expression[:, 0])
    angles = []
    for side, outward in (("Left", 1.0), ("Right", -1.0)):
        yaw = outward * GAZE_YAW * (coefficient(f"eyeLookOut{side}") - coefficient(f"eyeLookIn{side}"))
        pitch = GAZE_PITCH * (coefficient(f"eyeLookDown{side}") - coefficient(f"eyeLookUp{side}"))
        angles += [pitch, yaw, zero]
    return torch.stack(angles, dim=1)


def write_gaze(face: Tensor, gaze: Tensor, vergence: Tensor | float, names: Sequence[str]) -> None:
    """Set the ``eyeLook*`` coefficients in place; both eyes follow one gaze.

    Args:
        face: (..., expressions), ARKit coefficients.
        gaze: (..., 2) yaw and pitch of the eyes in the head, radians.
        vergence: radians by which both turn inwards.
        names: ARKit names of the columns.
    """
    yaw, pitch = gaze.unbind(-1)
    for side, inward, outward in (("Left", yaw - vergence, 1.0), ("Right", yaw + vergence, -1.0)):
        turn = outward * inward / GAZE_YAW
        for name, value in (
            ("Out", turn),
            ("In", -turn),
            ("Down", pitch / GAZE_PITCH),
            ("Up", -pitch / GAZE_PITCH),
        ):
            face[..., names.index(f"eyeLook{name}{side}")] = value.clamp(0, 1)


def look_along(params: FaceParameters, names: Sequence[str]) -> FaceParameters:
    """Turn the eyeballs to where the expression says that they look."""
    if "eyeLookOutLeft" not in names:
        return params
    return replace(params, pose=torch.cat([params.pose[:, :9], gaze_pose(params.expression, names)], dim=1))
