"""NaN and infinity between sampling and file: refused, since pictures of them are black."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError


def require_finite(frames: Tensor, first: int = 0) -> Tensor:
    """Latents or pictures as they are.

    Args:
        frames: (frames, ...) of any shape.
        first: number of the first of them in the video.

    Raises:
        InputError: some are NaN or infinite.
    """
    bad = ~torch.isfinite(frames).flatten(1).all(dim=1)
    if bad.any():
        number = first + int(bad.nonzero()[0])
        raise InputError(
            f"Frame {number} came out of the networks as NaN or infinity: compute in float32, or use other "
            "weights, a lower cfg or weaker LoRAs."
        )
    return frames
