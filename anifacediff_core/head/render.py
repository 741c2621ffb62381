"""Surface normal snapshots of the head: the spatial condition (paper 3.3, equation 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..progress import Progress
from .camera import project, to_pixels
from .model import HeadModel
from .parameters import FaceParameters
from .rasterize import Fragments, interpolate, rasterize

Rasterizer = Callable[[Tensor, Tensor, int, int], Fragments]


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted vertex normals, unit length.

    Args:
        vertices: (frames, vertices, 3).
        faces: (triangles, 3).

    Returns:
        (frames, vertices, 3) in the axes of ``vertices`` (+y up, +z to the camera).
    """
    corners = vertices[:, faces]  # (frames, triangles, 3 corners, 3)
    cross = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals.index_add_(1, faces[:, corner], cross)
    # Areas are around 1e-6 m², so the usual epsilon would shrink the normals of small triangles.
    return F.normalize(normals, dim=-1, eps=1e-20)


@torch.no_grad()
def draw_normals(
    head: HeadModel, params: FaceParameters, size: int, rasterizer: Rasterizer = rasterize
) -> Tensor:
    """All frames at once, on the head's device, where ``params`` lie too; see :func:`render_normals`."""
    vertices = head(params)
    fragments = rasterizer(to_pixels(project(vertices, params.camera), size), head.faces, size, size)
    normals = interpolate(fragments, head.faces, vertex_normals(vertices, head.faces))
    image = (F.normalize(normals, dim=-1) * 0.5 + 0.5) * fragments.covered[..., None]
    return rearrange(image, "f h w c -> f c h w")


@torch.no_grad()
def render_normals(
    head: HeadModel,
    params: FaceParameters,
    size: int,
    *,
    batch: int = 8,
    rasterizer: Rasterizer = rasterize,
    progress: Progress | None = None,
) -> Tensor:
    """Draw the head's surface normals.

    Args:
        head: the head model that ``params`` belong to, on any device.
        params: frames of parameters, on any device; moved to the head's device batch by batch.
        size: side of the square picture in pixels.
        batch: frames drawn at once; bounds the memory.
        rasterizer: :func:`.rasterize.rasterize` or another of the same form (:mod:`.pytorch3d_rasterize`).

    Returns:
        (frames, 3, size, size) float32 on the CPU: (n · 0.5 + 0.5) on the head, 0 elsewhere.
    """
    head.require(params)
    image = torch.empty(len(params), 3, size, size)
    for start in range(0, len(params), batch):
        part = params[start : start + batch].to(head.template.device, torch.float32)
        image[start : start + batch] = draw_normals(head, part, size, rasterizer).cpu()
        if progress is not None:
            progress(min(start + batch, len(params)), len(params))
    return image
