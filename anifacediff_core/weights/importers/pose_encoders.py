"""The pose encoders of the Animate-Anyone family.

Moore-AnimateAnyone's pose_guider.pth has the shape of ControlNet's small encoder. A guidance_encoder_*.pth of
Champ or MagicPortrait has spatial transformers between its convolutions, of which only the last is ever run.
AniPortrait's pose_guider.pth has normalized convolutions, with self-attention at four places.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, require_shape, take
from anifacediff_core.weights.importers.unet_config import number_of
from anifacediff_core.weights.layout import Layout, pose_encoder_layout

# The files of Champ and MagicPortrait differ in nothing but what they were trained on. Only their names tell
# the pictures that they read.
KINDS = {
    "depth": "depth",
    "normal": "normals",
    "render": "render",
    "semantic_map": "semantic_map",
    "dwpose": "skeleton",
}
UNTOLD = "normals"  # what the method of this project reads
NEVER_RUN = "never run: of its spatial transformers only the last of `attentions` is"
OWN = r"(conv_in|blocks|attentions|conv_out|conv_layers|conv_layers_\d|final_proj|cross_attn\d|scale)\b"
AVERAGES = r".*\.(running_mean|running_var|num_batches_tracked)$"
NOT_READ = "averages of training: its own code never reads them"


def recognize(listing: Listing) -> Recognition | None:
    if "conv_layers.0.weight" in listing and "final_proj.weight" in listing:
        return _multiscale(listing)
    if "conv_in.weight" not in listing or "blocks.0.weight" not in listing:
        return None
    if any(name.startswith("guidance_attention.") for name in listing.infos):
        return _attention(listing)
    return _convolution(listing)


def _convolution(listing: Listing) -> Recognition:
    format = "pose guider of Moore-AnimateAnyone"
    config = _sizes(listing) | {"pose_encoder": "convolution"}
    layout = _layout(listing, config)
    origins = {"pose_encoder": take(listing, layout, lambda name: name, format=format)}
    left = leave(listing, origins, {}, own=OWN, format=format)
    return Recognition(listing.path, format, origins, left, config)


def _attention(listing: Listing) -> Recognition:
    kind = picture_of(listing.path.stem)
    format = f"guidance encoder of Champ or MagicPortrait, for {kind}"
    config = _sizes(listing) | {"pose_encoder": "attention", "pose_inputs": (kind,)}
    last = number_of(listing.shape, "attentions.{}.norm.weight") - 1

    def theirs(name: str) -> str:
        return re.sub(r"^attention\.", f"attentions.{last}.", name.removeprefix(f"{kind}."))

    layout = _layout(listing, config)
    origins = {"pose_encoder": take(listing, layout, theirs, format=format)}
    dead = {rf"attentions\.(?!{last}\.)": NEVER_RUN, r"guidance_attention\.": NEVER_RUN}
    left = leave(listing, origins, dead, own=OWN, format=format)
    return Recognition(listing.path, format, origins, left, config)


def _multiscale(listing: Listing) -> Recognition:
    format = "pose guider of AniPortrait"
    config: dict[str, Any] = {"pose_encoder": "multiscale", "pose_inputs": ("landmarks",)}
    ends = (
        "conv_layers_1.3.weight",
        "conv_layers_2.3.weight",
        "conv_layers_3.3.weight",
        "conv_layers_4.0.weight",
    )
    channels = tuple((listing.shape(name) or (0,))[0] for name in ends)
    layout = pose_encoder_layout(NetworkConfig(**config, block_out_channels=channels))
    origins = take(listing, layout, lambda name: name, format=format)
    for name in ("final_proj.weight", "final_proj.bias"):
        require_shape(listing, "scale", (1,), format)
        origins[name] = replace(origins[name], times=listing.originals["scale"])
    left = leave(listing, {"pose_encoder": origins}, {AVERAGES: NOT_READ}, own=OWN, format=format)
    return Recognition(listing.path, format, {"pose_encoder": origins}, left, config)


def picture_of(stem: str) -> str:
    """The picture that a guidance encoder reads, by its file's name."""
    return next((kind for word, kind in KINDS.items() if word in stem.lower()), UNTOLD)


def _sizes(listing: Listing) -> dict[str, Any]:
    """Channels of the convolutions: the odd blocks widen."""
    blocks = number_of(listing.shape, "blocks.{}.weight")
    names = ["conv_in.weight", *(f"blocks.{index}.weight" for index in range(1, blocks, 2))]
    return {"pose_channels": tuple(listing.infos[name].shape[0] for name in names)}


def _layout(listing: Listing, config: dict[str, Any]) -> Layout:
    """Of an encoder that gives as many channels as the file's does."""
    features = (listing.shape("conv_out.weight") or NetworkConfig.block_out_channels)[0]
    channels = (features, *NetworkConfig.block_out_channels[1:])
    return pose_encoder_layout(NetworkConfig(**config, block_out_channels=channels))
