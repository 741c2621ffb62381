"""A UNet with diffusers' names: of a diffusers folder, or of the Animate-Anyone family.

The family's denoising_unet.pth is a Stable Diffusion 1.5 UNet (686 tensors), with its temporal modules in it
in some projects. Its reference_unet.pth is one without the last layers (682 tensors): they are absent from
the class that all of these projects share, which tells the two apart.
"""

from __future__ import annotations

import re

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.weights.importers import motion_modules
from anifacediff_core.weights.importers.recognition import Listing, Origins, Recognition, leave, take
from anifacediff_core.weights.importers.unet_config import unet_sizes
from anifacediff_core.weights.layout import reference_layout, unet_layout

FIRST = "conv_in.weight"
INSIDE = "down_blocks.0.resnets.0.conv1.weight"
LAST = "conv_out.weight"
OWN = r"(conv_in|time_embedding|down_blocks|mid_block|up_blocks|conv_norm_out|conv_out)\."
PREFIXES = ("", "unet.")


def recognize(listing: Listing) -> Recognition | None:
    prefix = next((p for p in PREFIXES if p + FIRST in listing and p + INSIDE in listing), None)
    if prefix is None:
        return None
    config = unet_sizes(lambda name: listing.shape(prefix + name))
    origins: dict[str, Origins] = {}
    dead: dict[str, str] = {}
    network = NetworkConfig(**config)
    if prefix + LAST in listing:
        format = "UNet in diffusers' layout"
        origins["unet"] = take(listing, unet_layout(network), lambda name: prefix + name, format=format)
    else:
        format = "ReferenceNet of the Animate-Anyone family"
        live = reference_layout(network)
        origins["reference"] = take(listing, live, lambda name: prefix + name, format=format)
        unused = [prefix + name for name in unet_layout(network) if name not in live]
        dead = {rf"{re.escape(name)}$": "nothing depends on it" for name in unused}
    motion = motion_modules.recognize(listing)
    if motion is not None:
        config |= motion.config
        origins["motion"] = motion.origins["motion"]
        format = f"{format} with {motion.format}"
    left = leave(listing, origins, dead, own=OWN, format=format)
    return Recognition(listing.path, format, origins, left, config)
