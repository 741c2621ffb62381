"""Mark: a pattern of about one gray level, the same in every frame, that says "made by AniFaceDiff"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..progress import Progress
from .pattern import CHIPS, IDENTIFIERS, draw_tile, weights

STRENGTH = 1.0  # the tested one
MOST_STRENGTH = 4.0
LEAST_SIDE = 128  # below, a chip has less than two pixels
LEVEL = 1 / 255
# Rms of the pattern where the picture is flat, and where it is busy.
FAINT, STRONG = 1.15 * LEVEL, 1.9 * LEVEL
FAINTEST = 0.7 * LEVEL  # where a large picture is flat: less would be lost when it is rounded to bytes
SMALL = 256  # shorter side in pixels up to which FAINT is needed
NEIGHBORS = 5  # chips whose mean is taken away, since large spots are what one sees first
BUSY = 8 * LEVEL  # deviation of the brightness within a chip above which a picture hides the most


def mark(
    frames: Tensor, identifier: int = 0, strength: float = STRENGTH, progress: Progress | None = None
) -> Tensor:
    """Marked frames. What a frame becomes depends on that frame alone: a video can be marked in chunks.

    Args:
        frames: (frames, 3, height, width) in [0, 1], of any type and on any device.
        identifier: whose or which video it is, 0 to 65535.
        strength: a multiple of the tested one.

    Returns:
        A new tensor like `frames`.

    Raises:
        InputError: no frames, frames that are too small, an identifier or a strength out of range.
    """
    require_frames(frames)
    if not 0 <= identifier < IDENTIFIERS:
        raise InputError(f"The identifier is {identifier}: choose one from 0 to {IDENTIFIERS - 1}.")
    if not 0 < strength <= MOST_STRENGTH:
        raise InputError(f"The strength is {strength}: choose one above 0, up to {MOST_STRENGTH:g}.")
    height, width = frames.shape[-2:]
    pattern = strength * draw_pattern(height, width, identifier).to(frames.device)
    marked = torch.empty_like(frames, memory_format=torch.contiguous_format)
    for number, frame in enumerate(frames):
        torch.add(frame, _amplitude(frame).mul_(pattern), out=marked[number]).clamp_(0, 1)
        if progress is not None:
            progress(number + 1, len(frames))
    return marked


def require_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or len(frames) == 0:
        raise InputError("The video has no frames or no colors: give RGB frames.")
    require_size(*frames.shape[-2:])


def require_size(height: int, width: int) -> None:
    if min(height, width) < LEAST_SIDE:
        raise InputError(
            f"The video has only {width}×{height} pixels: a mark needs at least {LEAST_SIDE}×{LEAST_SIDE}."
        )


def draw_pattern(height: int, width: int, identifier: int) -> Tensor:
    """The pattern over a whole picture (height, width), of mean square 1."""
    chips_per_pixel = CHIPS / min(height, width)
    down, across = (weights(length, chips_per_pixel) for length in (height, width))
    tile = draw_tile(identifier)
    around = F.pad(tile[None, None], [NEIGHBORS // 2] * 4, mode="circular")
    pattern = down @ (tile - F.avg_pool2d(around, NEIGHBORS, 1)[0, 0]) @ across.T
    return pattern / pattern.square().mean().sqrt()


def luma_of(frame: Tensor) -> Tensor:
    """Brightness (height, width), float32, of an RGB frame (3, height, width)."""
    red, green, blue = frame.float()
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _amplitude(frame: Tensor) -> Tensor:
    """How strong the pattern may be at each pixel of a frame (3, height, width): (height, width)."""
    height, width = frame.shape[-2:]
    chip = min(height, width) // CHIPS
    luma = luma_of(frame)[None, None]
    mean, square = (F.avg_pool2d(values, chip, ceil_mode=True) for values in (luma, luma * luma))
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    faint = max(FAINT * min(SMALL / min(height, width), 1) ** 0.5, FAINTEST)
    amplitude = faint + (STRONG - faint) * (deviation / BUSY).clamp(max=1)
    return F.interpolate(amplitude, (height, width), mode="bilinear")[0, 0]
