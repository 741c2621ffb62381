"""AnimateDiff's temporal modules, v1 to v3, in its own names or diffusers'; also the Animate-Anyone family's.

A module is `….motion_modules.N.temporal_transformer.…` with 28 tensors. Its position tables are sines, which
some files leave out; it stores them once for each of its two attentions, diffusers once for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.temporal import PositionalEncoding
from anifacediff_core.weights.importers.recognition import (
    Listing,
    Origin,
    Recognition,
    leave,
    require_shape,
    take,
)
from anifacediff_core.weights.importers.unet_config import HEADS, number_of
from anifacediff_core.weights.layout import motion_layout

OWN = r"(down_blocks|mid_block|up_blocks)\.(\d+\.)?motion_modules\."
FIRST = "down_blocks.0.motion_modules.0.{}proj_in.weight"
INNER = "temporal_transformer."
# AnimateDiff's names in a transformer block, and diffusers'.
RENAMED = {
    "attention_blocks.0.": "attn1.",
    "attention_blocks.1.": "attn2.",
    "norms.0.": "norm1.",
    "norms.1.": "norm2.",
    "ff_norm.": "norm3.",
}
TABLE = "pos_embed.pe"


def recognize(listing: Listing) -> Recognition | None:
    if FIRST.format(INNER) in listing:
        return _recognize(listing, theirs=_animatediff_name)
    if FIRST.format("") in listing:
        return _recognize(listing, theirs=lambda name: name)
    return None


def _recognize(listing: Listing, theirs: Callable[[str], str]) -> Recognition:
    def shape_of(name: str) -> tuple[int, ...] | None:
        return listing.shape(theirs(name))

    levels = number_of(shape_of, "down_blocks.{}.motion_modules.0.proj_in.weight")
    channels = [shape_of(f"down_blocks.{i}.motion_modules.0.proj_in.weight") for i in range(levels)]
    middle = shape_of("mid_block.motion_modules.0.proj_in.weight") is not None
    table = shape_of(f"down_blocks.0.motion_modules.0.transformer_blocks.0.{TABLE}")
    # without tables: what the published modules with and without a middle one have at least
    frames = table[1] if table is not None and len(table) == 3 else 32 if middle else 24
    config: dict[str, Any] = {
        "block_out_channels": tuple(shape[0] for shape in channels if shape),
        "motion_heads": (HEADS,) * levels,
        "layers_per_block": number_of(shape_of, "down_blocks.0.motion_modules.{}.proj_in.weight"),
        "motion_max_frames": frames,
        "motion_mid_block": middle,
        "motion_norm": "frame",
    }
    format = f"AnimateDiff's temporal modules, layout of {_version(middle, frames, table is not None)}"
    network = NetworkConfig(**config, attention_levels=(True,) * levels, attention_heads=(HEADS,) * levels)
    layout = motion_layout(network)
    tables = [name for name in layout if name.endswith(TABLE)]
    found = take(listing, layout, theirs, format=format, absent=tables)
    origins = {name: found.get(name) or _computed(shape) for name, shape in layout.items()}
    for name in tables:
        origins[name] = _both_tables(listing, origins[name], theirs(name), format)
    left = leave(listing, {"motion": origins}, {}, own=OWN, format=format)
    return Recognition(listing.path, format, {"motion": origins}, left, config)


def _animatediff_name(name: str) -> str:
    """diffusers' name of a tensor -> AnimateDiff's."""
    name = re.sub(r"(motion_modules\.\d+\.)", rf"\1{INNER}", name)
    name = name.replace(TABLE, "attention_blocks.0.pos_encoder.pe")
    for animatediff, diffusers in RENAMED.items():
        name = name.replace(f".{diffusers}", f".{animatediff}")
    return name


def _both_tables(listing: Listing, origin: Origin, theirs: str, format: str) -> Origin:
    """The table of the second attention has to be that of the first."""
    second = theirs.replace("attention_blocks.0.", "attention_blocks.1.")
    if second == theirs or second not in listing:
        return origin
    if origin.name is None:
        raise InputError(
            f"{listing.path.name} looks like {format} but is incomplete: expected {theirs} beside {second}, "
            "found none; fetch it again."
        )
    require_shape(listing, second, origin.shape, format)
    return replace(origin, same=(listing.originals[second],))


def _computed(shape: tuple[int, ...]) -> Origin:
    """A table of sines."""

    def sines() -> Tensor:
        return PositionalEncoding(channels=shape[2], longest=shape[1]).state_dict()["pe"]

    return Origin(None, shape, torch.float32, compute=sines)


def _version(middle: bool, frames: int, stated: bool) -> str:
    if middle:
        return "v2"
    if not stated:
        return "v1 or v3"
    return "v3" if frames == 32 else "v1"
