"""Batched triangle rasterizer in plain torch: deterministic, CPU and CUDA, no compiled extension.

Every triangle's bounding box is unrolled into a flat list of (triangle, pixel) candidates; candidates whose
center is inside the triangle become fragments; a packed (depth, fragment) key and one ``scatter_reduce`` keep
the nearest per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DEPTH_BITS = 30
NOTHING = 2**62


@dataclass(frozen=True)
class Fragments:
    """The nearest surface at every pixel.

    Attributes:
        triangle: (frames, height, width) int64, index into ``faces``, -1 where nothing is hit.
        barycentric: (frames, height, width, 3), weights of the triangle's corners, 0 where nothing is hit.
        depth: (frames, height, width), interpolated z, +inf where nothing is hit.
    """

    triangle: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def covered(self) -> Tensor:
        """(frames, height, width) bool."""
        return self.triangle >= 0


def rasterize(pixels: Tensor, faces: Tensor, height: int, width: int) -> Fragments:
    """Find the nearest triangle at every pixel center.

    Args:
        pixels: (frames, vertices, 3) floating point: x, y in pixels (centers at i + 0.5), smaller z = nearer.
        faces: (triangles, 3) integer vertex indices, shared by all frames. Both windings are drawn.
        height, width: size of the picture.

    Returns:
        :class:`Fragments`. Equal depths are settled by the lower triangle index: the result is deterministic.
    """
    frames, device = pixels.shape[0], pixels.device
    pixels = pixels.float()
    triangles = pixels[:, faces].flatten(0, 1)  # (frames * triangles, 3 corners, 3)
    kept, column, row, owner = _candidates(triangles[..., :2], height, width)
    corners = triangles[kept]
    weights = _barycentric(corners, owner, column, row)
    inside = torch.nonzero((weights >= 0).all(dim=1)).squeeze(1)
    owner, column, row, weights = owner[inside], column[inside], row[inside], weights[inside]

    depth = (weights * corners[..., 2][owner]).sum(dim=1)
    triangle = kept[owner]
    frame = torch.div(triangle, len(faces), rounding_mode="floor")
    pixel = (frame * height + row) * width + column
    nearest = torch.full((frames * height * width,), NOTHING, dtype=torch.int64, device=device)
    nearest.scatter_reduce_(0, pixel, _depth_keys(depth), "amin")

    hit = torch.nonzero(nearest < NOTHING).squeeze(1)
    fragment = nearest[hit] & 0xFFFFFFFF
    result = Fragments(
        triangle=torch.full_like(nearest, -1),
        barycentric=torch.zeros(len(nearest), 3, device=device),
        depth=torch.full((len(nearest),), torch.inf, device=device),
    )
    result.triangle[hit] = triangle[fragment] % len(faces)
    result.barycentric[hit] = weights[fragment]
    result.depth[hit] = depth[fragment]
    shape = (frames, height, width)
    return Fragments(
        result.triangle.view(shape), result.barycentric.view(*shape, 3), result.depth.view(shape)
    )


def interpolate(fragments: Fragments, faces: Tensor, attributes: Tensor) -> Tensor:
    """Interpolate vertex attributes over the hit pixels.

    Args:
        attributes: (vertices, channels) or (frames, vertices, channels).

    Returns:
        (frames, height, width, channels), 0 where nothing is hit.
    """
    frame, row, column = torch.nonzero(fragments.covered, as_tuple=True)
    corners = faces[fragments.triangle[frame, row, column]]  # (hits, 3)
    values = attributes[corners] if attributes.dim() == 2 else attributes[frame[:, None], corners]
    image = attributes.new_zeros(*fragments.triangle.shape, attributes.shape[-1])
    weights = fragments.barycentric[frame, row, column].to(attributes)
    image[frame, row, column] = (values * weights[..., None]).sum(dim=1)
    return image


def _candidates(corners: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unroll the triangles' bounding boxes into pixels.

    Args:
        corners: (triangles, 3, 2) in pixels.

    Returns:
        ``kept``: triangles with a non-empty box; then per candidate its column, row (int32) and index into
        ``kept``.
    """
    limit = torch.tensor([width, height], device=corners.device)
    low = torch.ceil(corners.amin(dim=1) - 0.5).clamp(min=0)
    high = torch.minimum(torch.floor(corners.amax(dim=1) - 0.5), limit - 1)
    extent = (high - low + 1).clamp(min=0)
    extent = torch.where(torch.isfinite(extent), extent, 0).int()
    count = extent[:, 0] * extent[:, 1]
    kept = torch.nonzero(count).squeeze(1)
    low, extent, count = low[kept].int(), extent[kept], count[kept]
    owner = torch.repeat_interleave(count.long())
    start = torch.cumsum(count, 0, dtype=torch.int64) - count
    index = (torch.arange(len(owner), device=corners.device) - start[owner]).int()
    box_width = extent[:, 0][owner]
    line = torch.div(index, box_width, rounding_mode="floor")
    return kept, low[:, 0][owner] + index - line * box_width, low[:, 1][owner] + line, owner


def _barycentric(corners: Tensor, owner: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Barycentric weights (candidates, 3) of pixel centers; degenerate triangles give -1: outside."""
    origin = corners[:, 0, :2]
    edge_1, edge_2 = corners[:, 1, :2] - origin, corners[:, 2, :2] - origin
    area = edge_1[:, 0] * edge_2[:, 1] - edge_1[:, 1] * edge_2[:, 0]
    valid = area.abs() > 1e-7
    inverse = torch.where(valid, 1 / area, 0)[:, None]
    edge_1, edge_2 = edge_1 * inverse, edge_2 * inverse
    dx = column + 0.5 - origin[:, 0][owner]
    dy = row + 0.5 - origin[:, 1][owner]
    second = dx * edge_2[:, 1][owner] - dy * edge_2[:, 0][owner]
    third = edge_1[:, 0][owner] * dy - edge_1[:, 1][owner] * dx
    first = torch.where(valid[owner], 1 - second - third, -1.0)
    return torch.stack([first, second, third], dim=1)


def _depth_keys(depth: Tensor) -> Tensor:
    """Sortable int64 keys: quantized depth in the high bits, fragment index in the low 32."""
    if depth.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=depth.device)
    near, far = depth.min(), depth.max()
    quantized = ((depth - near) / (far - near).clamp(min=1e-12) * (2**DEPTH_BITS - 1)).long()
    return (quantized << 32) | torch.arange(len(depth), device=depth.device)
