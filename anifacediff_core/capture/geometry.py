"""A face in space from MediaPipe's landmarks: its surface in the axes of the canonical face, and its pose.

MediaPipe's face geometry (https://github.com/google-ai-edge/mediapipe, Apache-2.0): a camera with an upright
opening of 63° at the origin, x right, y up, z to the camera, in centimeters of an average face. Where the
landmarks lie in depth follows from the scale at which they fit the canonical face best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .mesh import MESH_POINTS

OPENING = math.radians(63.0)
STRETCH = 10000 / 9999  # of the depth by which AniPortrait divides when it projects

# MediaPipe's points that hold still when the face moves: number, weight, and place in the canonical face.
BASIS = (
    (4, 0.070909939706326, 0.000000, -0.463170, 7.586580),
    (6, 0.032100144773722, 0.000000, 2.473255, 5.788627),
    (10, 0.008446550928056, 0.000000, 8.261778, 4.481535),
    (33, 0.058724168688059, -4.445859, 2.663991, 3.173422),
    (54, 0.007667080033571, -6.279331, 6.615427, 1.425850),
    (67, 0.009078059345484, -3.523964, 8.005976, 3.729163),
    (117, 0.009791937656701, -5.258659, 0.945811, 2.974312),
    (119, 0.014565368182957, -3.300681, 0.861641, 3.872784),
    (121, 0.018591361120343, -1.820731, 1.467954, 4.224124),
    (127, 0.005197994410992, -7.743095, 2.364999, -2.005167),
    (129, 0.120625205338001, -1.785794, -0.978284, 4.850470),
    (132, 0.005560018587857, -7.270895, -2.890917, -2.252455),
    (133, 0.05328618362546, -1.856432, 2.585245, 3.757904),
    (136, 0.066890455782413, -5.085276, -7.178590, 0.714711),
    (143, 0.014816547743976, -6.407571, 2.236021, 1.560843),
    (147, 0.014262833632529, -6.234883, -1.944430, 1.663542),
    (198, 0.025462191551924, -1.246815, 0.230297, 5.681036),
    (205, 0.047252278774977, -3.832928, -1.537326, 4.137731),
    (263, 0.058724168688059, 4.445859, 2.663991, 3.173422),
    (284, 0.007667080033571, 6.279331, 6.615427, 1.425850),
    (297, 0.009078059345484, 3.523964, 8.005976, 3.729163),
    (346, 0.009791937656701, 5.258659, 0.945811, 2.974312),
    (348, 0.014565368182957, 3.300681, 0.861641, 3.872784),
    (350, 0.018591361120343, 1.820731, 1.467954, 4.224124),
    (356, 0.005197994410992, 7.743095, 2.364999, -2.005167),
    (358, 0.120625205338001, 1.785794, -0.978284, 4.850470),
    (361, 0.005560018587857, 7.270895, -2.890917, -2.252455),
    (362, 0.05328618362546, 1.856432, 2.585245, 3.757904),
    (365, 0.066890455782413, 5.085276, -7.178590, 0.714711),
    (372, 0.014816547743976, 6.407571, 2.236021, 1.560843),
    (376, 0.014262833632529, 6.234883, -1.944430, 1.663542),
    (420, 0.025462191551924, 1.246815, 0.230297, 5.681036),
    (425, 0.047252278774977, 3.832928, -1.537326, 4.137731),
)


@dataclass(frozen=True)
class FaceGeometry:
    """The faces of successive frames.

    Attributes:
        surface: points of the mesh in the axes of the canonical face (frames, 468, 3), float64.
        turn: rotation matrices (frames, 3, 3) from those axes to the camera's.
        place: of their origin before the camera (frames, 3).
    """

    surface: Tensor
    turn: Tensor
    place: Tensor


def face_geometry(points: Tensor, size: tuple[int, int]) -> FaceGeometry:
    """Place faces before the camera.

    Args:
        points: of the mesh (frames, 468 or 478, 3) in pixels, x right, y up from the picture's top edge, z to
            the camera, as :func:`.arkit.mesh_points` gives them.
        size: height and width of the picture.
    """
    height, width = size
    unit = 2 * math.tan(OPENING / 2) / height  # of a pixel at distance 1
    screen = points[:, :MESH_POINTS].double() + torch.tensor([-width / 2, height / 2, 0.0]).double()
    screen = screen * unit
    middle = screen[..., 2].mean(1, keepdim=True)

    def unproject(scale: Tensor) -> Tensor:
        depth = (1 - screen[..., 2] + middle) / scale[:, None]
        return torch.cat([screen[..., :2] * depth[..., None], -depth[..., None]], -1)

    first = _fit(screen)[0]
    scale = first * _fit(unproject(first))[0]
    metric = unproject(scale)
    rest, turn, place = _fit(metric)
    surface = torch.einsum("fpi,fij->fpj", metric - place[:, None], turn) / rest[:, None, None]
    return FaceGeometry(surface, turn, place)


def project(surface: Tensor, turn: Tensor, place: Tensor, aspect: float = 1.0) -> Tensor:
    """Points as the camera sees them: (frames, points, 2) as fractions of the picture, from its top left.

    Args:
        surface, turn, place: see :class:`FaceGeometry`.
        aspect: width of the picture over its height.
    """
    seen = torch.einsum("fij,fpj->fpi", turn, surface) + place[:, None]
    focal = 1 / math.tan(OPENING / 2)
    depth = -seen[..., 2] * STRETCH
    x, y = focal / aspect * seen[..., 0] / depth, -focal * seen[..., 1] / depth
    return torch.stack([x + 1, y + 1], -1) / 2


def _fit(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (frames,), rotation and translation from the canonical face to points (frames, 468, 3)."""
    basis = torch.tensor(BASIS, dtype=torch.float64)
    weights, canonical = basis[:, 1] / basis[:, 1].sum(), basis[:, 2:]
    found = points[:, basis[:, 0].long()]
    canonical_center, center = weights @ canonical, torch.einsum("p,fpi->fi", weights, found)
    canonical = canonical - canonical_center
    covariance = torch.einsum("p,fpi,pj->fij", weights, found - center[:, None], canonical)
    u, values, v = torch.linalg.svd(covariance)
    sign = torch.ones_like(values)
    sign[:, 2] = torch.det(u @ v).sign()
    turn = u * sign[:, None] @ v
    scale = (values * sign).sum(1) / (weights @ canonical.square().sum(1))
    return scale, turn, center - scale[:, None] * (turn @ canonical_center)
