"""Facial Shape Alignment (paper 3.3, equation 2)."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from .parameters import FaceParameters


def source_frame(source: FaceParameters) -> FaceParameters:
    """The frame of a source whose shape is kept: the first that shows a face. One face has one shape; that of
    other frames would make it breathe.

    Raises:
        InputError: no frame shows a face.
    """
    if not source.valid.any():
        raise InputError(
            "No face was found in the source picture: extract its parameters from one that shows a face."
        )
    return source[int(source.valid.int().argmax())]


def align(source: FaceParameters, driving: FaceParameters, camera: str = "driving") -> FaceParameters:
    """The source's shape with the driver's pose, expression and camera: beta_s, theta_d, psi_d, c_d.

    Args:
        source: one frame, or as many as ``driving``.
        camera: whose camera is kept. With "source" the head stays in its place in the source picture and
            only turns, as MagicPortrait has it: beta_s, theta_d, psi_d, c_s.

    Returns:
        As many frames as ``driving``, on its device.

    Raises:
        InputError: the heads differ, or the source has another number of frames.
    """
    source.require_same_head(driving, "source and driving")
    source = source.expand(len(driving)).to(driving.shape.device, driving.shape.dtype)
    kept = driving if camera == "driving" else source
    return replace(driving, shape=source.shape, camera=kept.camera)
