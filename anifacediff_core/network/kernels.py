"""Computations that torch has no fast form of; each beside its plain form, which runs everywhere."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend_over_frames(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    """Attention of every position to itself in the frames of its clip.

    Arguments:
        query, key, value: (clips * frames, positions, heads * channels), clip-major.

    Returns: the same shape.
    """
    positions = query.shape[1]
    query, key, value = (
        rearrange(x, "(b f) n (h c) -> (b n) h f c", f=frames, h=heads) for x in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    return rearrange(attended, "(b n) h f c -> (b f) n (h c)", n=positions)
