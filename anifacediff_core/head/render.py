"""Pictures of the head: surface normals, the spatial condition (paper 3.3, equation 2); depth and shading.

Depth and shading, and normals of a form of their own, are what MagicPortrait is guided by: see
:func:`iterate_guidance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..progress import Progress
from .camera import project, to_pixels
from .model import HeadModel
from .parameters import FaceParameters
from .rasterize import Fragments, interpolate, rasterize
from .texture import Appearance, TextureModel

Rasterizer = Callable[[Tensor, Tensor, int, int], Fragments]

GUIDANCE = ("depth", "normals", "render")
GRAY = 180 / 255  # skin without a texture
# Lengths of the spherical harmonics 1, x, y, z, xy, xz, yz, x² - y², 3 z² - 1, convolved with the cosine of
# Lambert's law (Ramamoorthi and Hanrahan 2001). DECA's lights are coefficients of exactly these.
HARMONICS = (
    math.sqrt(1 / (4 * math.pi)),
    *[2 * math.pi / 3 * math.sqrt(3 / (4 * math.pi))] * 3,
    *[math.pi / 4 * 3 * math.sqrt(5 / (12 * math.pi))] * 3,
    math.pi / 4 * 3 / 2 * math.sqrt(5 / (12 * math.pi)),
    math.pi / 4 / 2 * math.sqrt(5 / (4 * math.pi)),
)
DAYLIGHT = (3.2, 0.0, 0.1, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0)  # even, a little more from camera and above


def vertex_normals(vertices: Tensor, faces: Tensor, least: float = 1e-20) -> Tensor:
    """Area-weighted vertex normals, unit length.

    Args:
        vertices: (frames, vertices, 3).
        faces: (triangles, 3).
        least: a sum of the triangles' cross products, in m², is divided by no less than this. Areas are
            around 1e-6 m², so the usual epsilon would shrink the normals of small triangles.

    Returns:
        (frames, vertices, 3) in the axes of ``vertices`` (+y up, +z to the camera).
    """
    corners = vertices[:, faces]  # (frames, triangles, 3 corners, 3)
    cross = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals.index_add_(1, faces[:, corner], cross)
    return F.normalize(normals, dim=-1, eps=least)


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
    image, done = torch.empty(len(params), 3, size, size), 0
    for part in iterate_normals(head, params, size, batch=batch, rasterizer=rasterizer, progress=progress):
        image[done : done + len(part)] = part
        done += len(part)
    return image


def iterate_normals(
    head: HeadModel,
    params: FaceParameters,
    size: int,
    *,
    batch: int = 8,
    rasterizer: Rasterizer = rasterize,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """:func:`render_normals` in parts of ``batch`` frames, for those who don't need all of them at once."""
    return _in_batches(head, params, batch, progress, lambda part: draw_normals(head, part, size, rasterizer))


def _in_batches(
    head: HeadModel,
    params: FaceParameters,
    batch: int,
    progress: Progress | None,
    draw: Callable[[FaceParameters], Tensor],
) -> Iterator[Tensor]:
    head.require(params)

    @torch.no_grad()
    def parts() -> Iterator[Tensor]:
        for start in range(0, len(params), batch):
            yield draw(params[start : start + batch].to(head.template.device, torch.float32)).cpu()
            if progress is not None:
                progress(min(start + batch, len(params)), len(params))

    return parts()


def shade(normals: Tensor, light: Tensor) -> Tensor:
    """Light that a surface receives.

    Args:
        normals: (frames, 3, height, width).
        light: (frames or 1, 9, 3), coefficients of the spherical harmonics for red, green and blue.

    Returns:
        (frames, 3, height, width), a factor for the surface's own color.
    """
    x, y, z = normals.unbind(1)
    bands = [torch.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1]
    harmonics = torch.stack([band * length for band, length in zip(bands, HARMONICS, strict=True)], 1)
    return torch.einsum("fbhw,fbc->fchw", harmonics, light.to(normals).expand(len(normals), -1, -1))


def albedo_of(fragments: Fragments, texture: TextureModel, codes: Tensor) -> Tensor:
    """The skin's own color at every pixel (frames, 3, height, width); meaningless where nothing is hit.

    Args:
        codes: (1, codes) of the texture model.
    """
    frame, row, column = torch.nonzero(fragments.covered, as_tuple=True)
    corners = texture.corners[fragments.triangle[frame, row, column]]  # (hits, 3, 2)
    weights = fragments.barycentric[frame, row, column]
    grid = corners.new_zeros(*fragments.triangle.shape, 2)
    grid[frame, row, column] = (corners * weights[..., None]).sum(dim=1)
    albedo = texture.albedo(codes).expand(len(grid), -1, -1, -1)
    return F.grid_sample(albedo, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@torch.no_grad()
def draw_guidance(
    head: HeadModel,
    params: FaceParameters,
    size: int,
    appearance: Appearance | None = None,
    texture: TextureModel | None = None,
    rasterizer: Rasterizer = rasterize,
) -> Tensor:
    """All frames at once, on the head's device, where all arguments lie too; see :func:`iterate_guidance`."""
    vertices = head(params)
    fragments = rasterizer(to_pixels(project(vertices, params.camera), size), head.faces, size, size)
    # Their code divides short sums by 1e-6 and leaves the interpolated normals as short as they are.
    normals = vertex_normals(vertices, head.faces, least=1e-6)
    height = vertices[..., 2:]  # towards the camera; its scale does not matter
    lowest, highest = height.amin(1, keepdim=True), height.amax(1, keepdim=True)
    nearness = (height - lowest) / (highest - lowest)
    values = interpolate(fragments, head.faces, torch.cat([nearness, normals], dim=-1))
    depth, normals = rearrange(values, "f h w c -> f c h w").split([1, 3], dim=1)

    light = normals.new_tensor(DAYLIGHT)[None, :, None].expand(-1, -1, 3)
    codes = normals.new_zeros(1, 1)
    if appearance is not None:
        light, codes = appearance.light, appearance.texture
    albedo = GRAY if texture is None else albedo_of(fragments, texture, codes)
    render = albedo * shade(normals, light) * fragments.covered[:, None]
    return torch.cat([depth.expand(-1, 3, -1, -1), normals, render], dim=1).clamp(0, 1)


def iterate_guidance(
    head: HeadModel,
    params: FaceParameters,
    size: int,
    *,
    appearance: Appearance | None = None,
    texture: TextureModel | None = None,
    batch: int = 8,
    rasterizer: Rasterizer = rasterize,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Draw what MagicPortrait is guided by, as its own scripts do, but for the rounding to 8 bits.

    - depth: 1 at the nearest and 0 at the farthest vertex of the head, visible or not, in every frame; gray;
    - normals: x right, y up, z to the camera, what is negative is black: the pictures pass through files;
    - render: the skin's own color times the light of a spherical harmonics model of 9 coefficients.

    Args:
        head: the head model that ``params`` belong to, on any device.
        params: the source's shape and camera with the driver's pose and expression: see :func:`.align`.
        size: side of the square picture in pixels.
        appearance: of the source, of which the first frame is taken; by default average skin in even light.
        texture: by default the skin is gray.
        batch, rasterizer, progress: as in :func:`render_normals`.

    Returns:
        Parts (frames, 9, size, size) float32 in [0, 1] on the CPU, 0 beside the head: three channels for each
        of ``GUIDANCE``.
    """
    device = head.template.device
    one = None if appearance is None else appearance[0].to(device)
    skin = None if texture is None else texture.to(device)
    return _in_batches(
        head, params, batch, progress, lambda part: draw_guidance(head, part, size, one, skin, rasterizer)
    )


def split_guidance(parts: Iterable[Tensor]) -> dict[str, Tensor]:
    """All frames of :func:`iterate_guidance`, of each of ``GUIDANCE`` (frames, 3, size, size)."""
    kinds = zip(*(part.split(3, dim=1) for part in parts), strict=True)
    return dict(zip(GUIDANCE, map(torch.cat, kinds), strict=True))
