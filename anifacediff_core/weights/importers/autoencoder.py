"""Stable Diffusion's autoencoder, with latent diffusion's names or diffusers' old or new ones."""

from __future__ import annotations

import re
from collections.abc import Callable

from anifacediff_core.errors import InputError
from anifacediff_core.weights.importers.recognition import Listing, Origins, Recognition, leave, take
from anifacediff_core.weights.importers.unet_config import number_of
from anifacediff_core.weights.layout import autoencoder_layout

FORMAT = "Stable Diffusion's autoencoder"
SCALE = 0.18215
LATENT_CHANNELS = 4
PREFIXES = ("", "first_stage_model.", "vae.")
OWN = r"({})(encoder|decoder|quant_conv|post_quant_conv)\."
REASONS = {r".*(loss|model_ema)\.": "only for training the autoencoder"}
# diffusers' names of the attention's layers, its old ones, and latent diffusion's.
ATTENTION = {
    "group_norm": ("group_norm", "norm"),
    "to_q": ("query", "q"),
    "to_k": ("key", "k"),
    "to_v": ("value", "v"),
    "to_out.0": ("proj_attn", "proj_out"),
}


def recognize(listing: Listing) -> Recognition | None:
    """The autoencoder in a file of its own."""
    for prefix in PREFIXES:
        origins = find(listing, prefix)
        if origins is not None:
            own = OWN.format(re.escape(prefix))
            left = leave(listing, {"vae": origins}, REASONS, own=own, format=FORMAT)
            config = {"latent_channels": LATENT_CHANNELS, "scaling_factor": SCALE}
            return Recognition(listing.path, FORMAT, {"vae": origins}, left, config)
    return None


def find(listing: Listing, prefix: str) -> Origins | None:
    """The tensors of an autoencoder whose names begin with `prefix`; None when there is none."""
    if f"{prefix}encoder.down.0.block.0.conv1.weight" in listing:
        levels = number_of(listing.shape, prefix + "encoder.down.{}.block.0.conv1.weight")

        def theirs(name: str) -> str:
            return prefix + _latent_diffusion_name(name, levels)

    elif f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight" in listing:
        old = f"{prefix}encoder.mid_block.attentions.0.query.weight" in listing

        def theirs(name: str) -> str:
            return prefix + (_attention_name(name, 0) if old else name)

    else:
        return None
    return _take(listing, theirs)


def _take(listing: Listing, theirs: Callable[[str], str]) -> Origins:
    def shape_of(name: str) -> tuple[int, ...] | None:
        return listing.shape(theirs(name))

    levels = number_of(shape_of, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    shapes = [shape_of(f"encoder.down_blocks.{level}.resnets.0.conv1.weight") for level in range(levels)]
    channels = tuple(shape[0] for shape in shapes if shape)
    layers = number_of(shape_of, "encoder.down_blocks.0.resnets.{}.conv1.weight")
    quant = theirs("quant_conv.weight")
    if quant not in listing:
        raise InputError(
            f"{listing.path.name} looks like {FORMAT} but is another model's: "
            f"expected {quant} [8, 8, 1, 1], found none; choose another file."
        )
    return take(listing, autoencoder_layout(channels, layers, LATENT_CHANNELS), theirs, format=FORMAT)


def _attention_name(name: str, column: int) -> str:
    for ours, others in ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid_block.attentions.0.{others[column]}.")
    return name


def _latent_diffusion_name(name: str, levels: int) -> str:
    """diffusers' name of an autoencoder's tensor -> latent diffusion's."""
    name = _attention_name(name, 1).replace("mid_block.attentions.0.", "mid.attn_1.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{levels - 1 - int(match[1])}.upsample", name
    )
    return re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{levels - 1 - int(match[1])}.block", name)
