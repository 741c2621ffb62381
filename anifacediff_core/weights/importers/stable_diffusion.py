"""Stable Diffusion 1.5 in one file, with the names of latent diffusion: UNet and autoencoder."""

from __future__ import annotations

import re

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.weights.importers import autoencoder
from anifacediff_core.weights.importers.recognition import Listing, Origins, Recognition, leave, take
from anifacediff_core.weights.importers.unet_config import number_of, unet_sizes
from anifacediff_core.weights.layout import unet_layout

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
FIRST = "input_blocks.0.0.weight"
INSIDE = "input_blocks.1.0.in_layers.2.weight"
REASONS = {
    r"cond_stage_model\.": "text encoder: no part of this network",
    r"model_ema\.": "a second, averaged copy of the UNet",
    r"(betas|alphas_|sqrt_|log_one_minus_|posterior_|logvar|lvlb_weights)": "noise schedule: it is computed",
    r"first_stage_model\.(loss|model_ema)\.": "only for training the autoencoder",
}
BLOCKS = r"(input_blocks|middle_block|output_blocks|time_embed|out)\."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def recognize(listing: Listing) -> Recognition | None:
    prefix = next((p for p in PREFIXES if p + FIRST in listing and p + INSIDE in listing), None)
    if prefix is None:
        return None
    layers = number_of(listing.shape, prefix + "input_blocks.{}.0.in_layers.2.weight", start=1)
    levels = 1 + number_of(
        listing.shape, prefix + "input_blocks.{}.0.op.weight", start=layers + 1, step=layers + 1
    )
    attends = tuple(
        f"{prefix}input_blocks.{1 + level * (layers + 1)}.1.norm.weight" in listing for level in range(levels)
    )

    def theirs(name: str) -> str:
        return prefix + latent_diffusion_name(name, layers, attends)

    config = unet_sizes(lambda name: listing.shape(theirs(name)))
    format = "Stable Diffusion 1.5" if prefix == PREFIXES[0] else "UNet in latent diffusion's layout"
    origins: dict[str, Origins] = {
        "unet": take(listing, unet_layout(NetworkConfig(**config)), theirs, format=format)
    }
    vae = autoencoder.find(listing, "first_stage_model.")
    if vae is not None:
        origins["vae"] = vae
        config["scaling_factor"] = autoencoder.SCALE
    own = (
        rf"{re.escape(prefix)}(input_blocks|middle_block|output_blocks|time_embed|out)\.|first_stage_model\."
    )
    left = leave(listing, origins, REASONS, own=own, format=format)
    return Recognition(listing.path, format, origins, left, config)


def latent_diffusion_name(name: str, layers: int, attends: tuple[bool, ...]) -> str:
    """diffusers' name of a UNet's tensor -> latent diffusion's.

    Args:
        layers: residual layers of each level going down.
        attends: whether each level has spatial transformers, finest first.
    """
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{_inner(match[1], match[3])}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if match is None:
        return name
    side, level, group, rest = match[1], int(match[2]), match[3], match[5]
    number = level * (layers + 1) + int(match[4])
    if group == "downsamplers":
        return f"input_blocks.{number + layers + 1}.0.op.{kind}"
    if group == "upsamplers":
        return f"output_blocks.{number + layers}.{1 + attends[-1 - level]}.{rest}"
    block = f"input_blocks.{1 + number}" if side == "down" else f"output_blocks.{number}"
    return f"{block}.{int(group == 'attentions')}.{_inner(group, rest)}"


def _inner(group: str, rest: str) -> str:
    if group == "attentions":
        return rest
    module, _, kind = rest.rpartition(".")
    return f"{RESNET.get(module, module)}.{kind}"
