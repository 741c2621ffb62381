"""The host's attention, with the choices that pay off for many frames."""

from __future__ import annotations

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """Attention of (rows, tokens, heads * channels) as the host does it, or as the user has set it."""
    if k.shape[1] == 1:
        # a softmax over one token is one
        return v.expand(-1, q.shape[1], -1)
    # on the CPU the host's default saves memory that there is plenty of, and takes several times as long
    attention = attention_pytorch if q.device.type == "cpu" else optimized_attention
    return attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )
