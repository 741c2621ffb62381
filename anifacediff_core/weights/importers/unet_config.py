"""The sizes of a UNet and of its temporal modules, read off the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

ShapeOf = Callable[[str], tuple[int, ...] | None]  # by diffusers' names

HEADS = 8  # of every level of Stable Diffusion 1.5: the one thing that shapes don't tell


def unet_sizes(shape_of: ShapeOf) -> dict[str, Any]:
    """What a UNet's tensors tell of a NetworkConfig. What is missing shows in the check after it."""
    levels, channels, attends = [], [], []
    for level in count():
        block = f"down_blocks.{level}"
        shape = shape_of(f"{block}.resnets.0.conv1.weight")
        if shape is None:
            break
        levels.append(number_of(shape_of, f"{block}.resnets.{{}}.conv1.weight"))
        channels.append(shape[0])
        attends.append(shape_of(f"{block}.attentions.0.transformer_blocks.0.attn1.to_q.weight") is not None)
    out = shape_of("conv_out.weight")
    sizes: dict[str, Any] = {
        "block_out_channels": tuple(channels),
        "attention_levels": tuple(attends),
        "attention_heads": (HEADS,) * len(channels),
        "motion_heads": (HEADS,) * len(channels),
        "layers_per_block": levels[0] if levels else 0,
        "latent_channels": out[0] if out else 4,
    }
    keys = shape_of("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    if keys is not None:
        sizes["cross_attention_dim"] = keys[-1]
    return sizes


def number_of(shape_of: ShapeOf, pattern: str, start: int = 0, step: int = 1) -> int:
    """How many names of a numbered pattern there are, from `start` on without a gap."""
    found = 0
    while shape_of(pattern.format(start + step * found)) is not None:
        found += 1
    return found
