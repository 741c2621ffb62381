"""PyTorch3D as an optional rasterizer (paper 3.3 uses it); form and conventions of :mod:`.rasterize`.

Use it by ``render_normals(head, params, size, rasterizer=pytorch3d_rasterize.rasterize)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .rasterize import Fragments


def rasterize(pixels: Tensor, faces: Tensor, height: int, width: int) -> Fragments:
    """See :func:`.rasterize.rasterize`.

    Raises:
        InputError: PyTorch3D is not installed, or the picture is not square.
    """
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise InputError(
            "The PyTorch3D rasterizer is not installed; install pytorch3d or use the built-in one."
        ) from error
    if height != width:
        raise InputError(
            f"The PyTorch3D rasterizer draws square pictures only; {width} x {height} was asked for."
        )
    frames = len(pixels)
    # PyTorch3D's NDC has x to the left and y up, and drops what lies behind z = 0.
    ndc = 1 - 2 * pixels[..., :2] / width
    nearest = pixels[..., 2].amin()
    points = torch.cat([ndc, pixels[..., 2:] - nearest + 1], dim=-1)
    meshes = Meshes(verts=list(points), faces=[faces] * frames)
    packed, depth, barycentric, _ = rasterize_meshes(
        meshes, image_size=height, blur_radius=0.0, faces_per_pixel=1, perspective_correct=False
    )
    packed, depth, barycentric = packed[..., 0], depth[..., 0], barycentric[..., 0, :]
    hit = packed >= 0
    return Fragments(
        triangle=torch.where(hit, packed % len(faces), -1),
        barycentric=torch.where(hit[..., None], barycentric, 0),
        depth=torch.where(hit, depth + nearest - 1, torch.inf),
    )
