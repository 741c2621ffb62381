"""The weak-perspective camera, written down once for the whole project.

World axes: x right, y up, z towards the camera, in meters. A camera is ``[s, tx, ty]`` (DECA's):

    x_ndc =  s (x + tx)        y_ndc = -s (y + ty)        z_ndc = -s z

so NDC has x right, y down, z into the screen (smaller is nearer), and [-1, 1] spans the square picture. A
point lies at pixel ``(ndc + 1) / 2 * size``; the center of pixel ``i`` is at ``i + 0.5``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def project(vertices: Tensor, camera: Tensor) -> Tensor:
    """World to NDC.

    Args:
        vertices: (frames, vertices, 3), meters.
        camera: (frames, 3), ``[s, tx, ty]``.

    Returns:
        (frames, vertices, 3): NDC x, y and depth.
    """
    scale, translation = camera[:, None, :1], camera[:, None, 1:]
    xy = scale * (vertices[..., :2] + translation)
    return torch.cat([xy[..., :1], -xy[..., 1:], -scale * vertices[..., 2:]], dim=-1)


def to_pixels(ndc: Tensor, size: int) -> Tensor:
    """NDC (..., 3) to pixel coordinates of a ``size``² picture; depth is scaled alike: isotropic."""
    return torch.cat([(ndc[..., :2] + 1) * (size / 2), ndc[..., 2:] * (size / 2)], dim=-1)


def crop_camera(camera: Tensor, square: Tensor) -> Tensor:
    """The camera of a square cut out of the frame.

    Args:
        camera: (frames, 3) of the whole frame.
        square: (frames, 3) or (3,): left, top and side of the square, as fractions of the frame's side.

    Returns:
        (frames, 3): the camera that draws the same head into the square.
    """
    left, top, side = square.unbind(-1)
    center_x, center_y = 2 * left + side - 1, 2 * top + side - 1  # the square's center, in the frame's NDC
    s, tx, ty = camera.unbind(-1)
    return torch.stack([s / side, tx - center_x / s, ty + center_y / s], dim=-1)


def uncrop_camera(camera: Tensor, square: Tensor) -> Tensor:
    """Inverse of :func:`crop_camera`: from the square's camera to the whole frame's."""
    left, top, side = square.unbind(-1)
    center_x, center_y = 2 * left + side - 1, 2 * top + side - 1
    s, tx, ty = camera.unbind(-1)
    s = s * side
    return torch.stack([s, tx + center_x / s, ty - center_y / s], dim=-1)
