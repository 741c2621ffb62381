"""Facial Shape Alignment (paper 3.3, equation 2)."""

from __future__ import annotations

from dataclasses import replace

from .parameters import FaceParameters


def align(source: FaceParameters, driving: FaceParameters) -> FaceParameters:
    """The source's shape with the driver's pose, expression and camera: β_s, θ_d, ψ_d, c_d.

    Args:
        source: one frame, or as many as ``driving``.
        driving: the driver's frames.

    Returns:
        As many frames as ``driving``, on its device.

    Raises:
        InputError: the heads differ, or the source has another number of frames.
    """
    source.require_same_head(driving, "source and driving")
    shape = source.expand(len(driving)).shape
    return replace(driving, shape=shape.to(driving.shape))
