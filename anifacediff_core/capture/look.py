"""What a face looks like at a glance: its colors, to tell people apart who cross in a picture."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .detector import Detection

SAMPLES = 24  # on each side
LEVELS = 6  # of each color


def with_looks(frames: Tensor, faces: list[list[Detection]]) -> list[list[Detection]]:
    """The faces of pictures (frames, 3, height, width), each with its look: on the CPU."""
    squares = [face.square for each in faces for face in each]
    if not squares:
        return faces
    owners = [frame for frame, each in enumerate(faces) for _ in each]
    looks = iter(_looks(frames, torch.tensor(squares, device=frames.device), owners).cpu())
    return [[replace(face, look=next(looks)) for face in each] for each in faces]


def unlike(first: Tensor | None, second: Tensor | None) -> float:
    """0 for the same look, 1 for nothing in common (Hellinger's distance); 0 where one is not known."""
    if first is None or second is None:
        return 0.0
    return float((1 - (first * second).sum()).clamp(min=0).sqrt())


def _looks(frames: Tensor, squares: Tensor, owners: list[int]) -> Tensor:
    """Square roots of the histograms of colors (faces, colors) in the middle of squares (faces, 3)."""
    height, width = frames.shape[-2:]
    longer = max(height, width)
    # The middle two thirds: face and hair, little of what is behind.
    steps = 1 / 6 + 2 / 3 * (torch.arange(SAMPLES, device=frames.device) + 0.5) / SAMPLES
    x = (squares[:, :1] + squares[:, 2:] * steps) * longer / width * 2 - 1
    y = (squares[:, 1:2] + squares[:, 2:] * steps) * longer / height * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    parts = [
        F.grid_sample(frames[owner : owner + 1], grid[face : face + 1], align_corners=False)
        for face, owner in enumerate(owners)
    ]
    # Shared between the levels on both sides, so that a color at the edge of two does not flicker.
    places = torch.cat(parts).flatten(2)[..., None] * (LEVELS - 1)
    shares = (1 - (places - torch.arange(LEVELS, device=frames.device)).abs()).clamp(min=0)
    red, green, blue = shares.unbind(1)
    counts = torch.einsum("fnr,fng,fnb->frgb", red, green, blue).flatten(1)
    return (counts / SAMPLES**2).sqrt()
