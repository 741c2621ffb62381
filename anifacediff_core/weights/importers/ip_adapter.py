"""An IP-Adapter for Stable Diffusion 1.5, as an initializer of the expression adapter's keys and values.

Its layers are numbered in diffusers' order of attention processors, down, up, middle, with the odd numbers
for cross-attention; ours are in the order in which the UNet runs them: down, middle, up. Its projection of an
image embedding has no counterpart here.
"""

from __future__ import annotations

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, take
from anifacediff_core.weights.layout import Layout, block_channels

FORMAT = "IP-Adapter for Stable Diffusion 1.5"
REASONS = {r"image_proj\.": "projection of an image embedding: the expression has one of its own"}


def recognize(listing: Listing) -> Recognition | None:
    if not any(name.startswith("ip_adapter.") and name.endswith("to_k_ip.weight") for name in listing.infos):
        return None
    config = NetworkConfig()
    blocks = block_channels(config)
    layout: Layout = {
        f"{kind}.{index}.weight": (channels, config.cross_attention_dim)
        for kind in ("to_k", "to_v")
        for index, channels in enumerate(blocks.values())
    }
    numbers = processor_numbers(list(blocks))

    def theirs(name: str) -> str:
        kind, index, _ = name.split(".")
        return f"ip_adapter.{numbers[int(index)]}.{kind}_ip.weight"

    origins = {"expression_adapter": take(listing, layout, theirs, format=FORMAT)}
    left = leave(listing, origins, REASONS, own=r"ip_adapter\.", format=FORMAT)
    partial = frozenset({"expression_adapter"})
    return Recognition(listing.path, FORMAT, origins, left, partial=partial)


def processor_numbers(blocks: list[str]) -> list[int]:
    """IP-Adapter's number of each of our transformer blocks."""
    order = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
    theirs = sorted(blocks, key=lambda name: order[name.split(".")[0]])  # stable: the order within stays
    return [2 * theirs.index(name) + 1 for name in blocks]
