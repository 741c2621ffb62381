"""The host's IMAGE (frames, height, width, channels) to the core's (frames, 3, height, width), and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.capture.extract import LEAST_PIXELS, rgb
from anifacediff_core.errors import InputError


def to_core(image: Tensor | None, what: str) -> Tensor:
    """Check a picture or video and bring it into the core's form: RGB in [0, 1], float32.

    Gray is repeated, transparency is laid over middle gray. Frames stay where they are in memory if nothing
    is to be changed, since a video may fill most of it.

    Raises:
        InputError: see :func:`checked`.
    """
    frames, plain = checked(image, what)
    return frames if plain else rgb(frames)


def checked(image: Tensor | None, what: str) -> tuple[Tensor, bool]:
    """The frames of a picture or video where they are in memory (frames, 1 to 4, height, width), float32; and
    whether they are RGB in [0, 1] already. The others take :func:`.extract.rgb`, all or one by one.

    Raises:
        InputError: no frames, hardly any pixels, channels that no picture has, NaN or infinity.
    """
    if image is None or image.ndim != 4 or 0 in image.shape:
        raise InputError(
            f"The {what} has no frames or no pixels: connect a picture or a video that has some."
        )
    frames = image.movedim(-1, 1).float()
    channels, height, width = frames.shape[1:]
    if min(height, width) < LEAST_PIXELS:
        raise InputError(
            f"The {what} has only {width}×{height} pixels: give at least {LEAST_PIXELS}×{LEAST_PIXELS}."
        )
    if channels > 4:
        raise InputError(f"The {what} has {channels} channels: connect a gray, RGB or RGBA picture.")
    lowest, highest = 0.0, 1.0
    for number, frame in enumerate(frames):  # one at a time: 8K pictures leave little memory for copies
        low, high = (float(value) for value in torch.aminmax(frame))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputError(
                f"The {what} has NaN or infinite values in frame {number}: mend the node that made it."
            )
        lowest, highest = min(lowest, low), max(highest, high)
    return frames, channels == 3 and lowest >= 0 and highest <= 1


def to_host(images: Tensor) -> Tensor:
    """(frames, 3, height, width) to the host's IMAGE (frames, height, width, 3)."""
    return images.movedim(1, -1).contiguous()


def square_of(images: Tensor, size: int) -> Tensor:
    """The middle square of each picture, scaled to `size` pixels: (frames, 3, size, size)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, :, top : top + side, left : left + side]
    if side == size:
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(
        0, 1
    )
