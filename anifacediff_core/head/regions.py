"""What the head model tells about a picture: where eyes, mouth and head lie in it."""

from __future__ import annotations

import torch
from torch import Tensor

from .camera import project, to_pixels
from .model import HeadModel
from .parameters import FaceParameters

SPOTS = ("left_eye", "right_eye", "mouth", "head")
# Radii in units of the distance between the eyes.
RADII = {"left_eye": 0.36, "right_eye": 0.36, "mouth": 0.55, "head": 1.9}


@torch.no_grad()
def face_spots(head: HeadModel, params: FaceParameters, size: int, batch: int = 256) -> Tensor:
    """Disks that hold the parts of a face.

    The distance between the eyes is taken in space, so that the disks keep their size when the head turns.

    Returns:
        (frames, spots, 3): x, y and radius in pixels of a `size`² picture, in the order of `SPOTS`.
    """
    regions = {name: head.regions[name] for name in ("left_eye", "right_eye", "lips", "head_skin")}
    return torch.cat(
        [_spots(head, regions, params[start : start + batch], size) for start in range(0, len(params), batch)]
    )


def _spots(head: HeadModel, regions: dict[str, Tensor], params: FaceParameters, size: int) -> Tensor:
    vertices = head(params)
    pixels = to_pixels(project(vertices, params.camera), size)[..., :2]
    centers = {name: pixels[:, index].mean(1) for name, index in regions.items()}
    eyes = vertices[:, regions["left_eye"]].mean(1) - vertices[:, regions["right_eye"]].mean(1)
    distance = eyes.norm(dim=-1) * params.camera[:, 0] * size / 2
    middle = 0.425 * (centers["left_eye"] + centers["right_eye"]) + 0.15 * centers["lips"]
    places = {**centers, "mouth": centers["lips"], "head": middle}
    spots = [torch.cat([places[name], RADII[name] * distance[:, None]], dim=-1) for name in SPOTS]
    return torch.stack(spots, dim=1)


def disks(spots: Tensor, origin: Tensor, size: int, step: float = 1.0) -> Tensor:
    """Draw disks with an edge that is one pixel soft.

    Args:
        spots: (frames, spots, 3) as `face_spots` gives them.
        origin: (frames, 2) x, y of the drawn window's upper left corner, in the pixels of `spots`.
        size: side of the window, in drawn pixels.
        step: how many pixels of `spots` one drawn pixel spans (8 for latents).

    Returns:
        (frames, spots, size, size) in [0, 1].
    """
    grid = (torch.arange(size, device=spots.device) + 0.5) * step
    x = origin[:, None, 0:1] + grid - spots[..., 0:1]
    y = origin[:, None, 1:2] + grid - spots[..., 1:2]
    distance = (x[..., None, :].square() + y[..., :, None].square()).sqrt()
    return ((spots[..., 2, None, None] - distance) / step + 0.5).clamp(0, 1)


def region_masks(spots: Tensor, size: int, step: float = 1.0) -> dict[str, Tensor]:
    """Masks (frames, 1, size, size) of the eyes, the mouth and the head's surroundings in whole pictures."""
    drawn = disks(spots, spots.new_zeros(len(spots), 2), size, step)
    return {
        "head": drawn[:, 3:4],
        "eyes": drawn[:, 0:2].amax(1, keepdim=True),
        "mouth": drawn[:, 2:3],
    }


def emphasis(spots: Tensor, origin: Tensor, size: int, step: float, head: float, details: float) -> Tensor:
    """Weights of a loss: 1 everywhere, `head` on the head and `details` on eyes and mouth.

    Returns:
        (frames, 1, size, size).
    """
    drawn = disks(spots, origin, size, step)
    weight = 1 + (head - 1) * drawn[:, 3:4]
    return torch.maximum(weight, 1 + (details - 1) * drawn[:, :3].amax(1, keepdim=True))
