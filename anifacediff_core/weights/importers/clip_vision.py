"""CLIP's vision transformer with its projection, with transformers' or OpenCLIP's names.

Stable Diffusion Image Variations' image encoder is one, and so is what ComfyUI's CLIP Vision loader reads. A
whole CLIP (text and vision) serves as well; its text half is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from typing import Any

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.weights.importers.recognition import (
    Listing,
    Origins,
    Recognition,
    leave,
    require_shape,
    take,
)
from anifacediff_core.weights.importers.unet_config import number_of
from anifacediff_core.weights.layout import Layout, image_encoder_layout

FORMAT = "CLIP's image encoder"
PROJECTION = "visual_projection.weight"
CLASS = "vision_model.embeddings.class_embedding"
PATCH = "vision_model.embeddings.patch_embedding.weight"
PLACES = "vision_model.embeddings.position_embedding.weight"
BLOCK = "vision_model.encoder.layers.{}.mlp.fc1.weight"
OWN = r"(vision_model|visual_projection|visual)\."
TEXT = "text encoder: no part of this network"
REASONS = {
    r"(text_model|text_projection|transformer|token_embedding|positional_embedding|ln_final)": TEXT,
    r"logit_scale": "only for training CLIP",
    r"vision_model\.embeddings\.position_ids": "0, 1, 2, …: they are computed",
}
OPENCLIP = {
    CLASS: "class_embedding",
    PATCH: "conv1.weight",
    PLACES: "positional_embedding",
    PROJECTION: "proj",
}
OPENCLIP_MODULES = {
    "vision_model.pre_layrnorm": "ln_pre",
    "vision_model.post_layernorm": "ln_post",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
FUSED = ("q", "k", "v")  # OpenCLIP's order in one tensor
HEAD_CHANNELS = 64
QUICK_GELU, GELU = "quick_gelu", "gelu"


def recognize(listing: Listing) -> Recognition | None:
    if CLASS in listing and PATCH in listing:
        config = _config(listing, lambda name: name, listing.shape(PROJECTION))
        layout = image_encoder_layout(NetworkConfig(**config))
        origins = take(listing, layout, lambda name: name, format=FORMAT)
    elif "visual.class_embedding" in listing and "visual.proj" in listing:
        projection = listing.shape("visual.proj") or ()
        config = _config(listing, _openclip_name, projection[::-1])
        origins = _take_openclip(listing, image_encoder_layout(NetworkConfig(**config)))
    else:
        return None
    left = leave(listing, {"image_encoder": origins}, REASONS, own=OWN, format=FORMAT)
    width, patch = config["image_hidden"], config["image_patch"]
    name = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H", 1664: "ViT-bigG"}.get(width)
    format = f"{FORMAT}, {name}/{patch}" if name else FORMAT
    return Recognition(listing.path, format, {"image_encoder": origins}, left, config)


def _config(
    listing: Listing, theirs: Callable[[str], str], projection: tuple[int, ...] | None
) -> dict[str, Any]:
    """The sizes that the tensors tell."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = listing.shape(theirs(name))
        if found is None or len(found) != axes:
            require_shape(listing, theirs(name), (0,) * axes, FORMAT)
        assert found is not None
        return found

    hidden, _, patch, _ = shape(PATCH, 4)
    places = shape(PLACES, 2)[0]
    return {
        "image_hidden": hidden,
        "image_patch": patch,
        "image_size": patch * isqrt(places - 1),
        "image_layers": number_of(lambda name: listing.shape(theirs(name)), BLOCK),
        "image_heads": 16 if hidden > 1024 else max(1, hidden // HEAD_CHANNELS),
        "image_intermediate": shape(BLOCK.format(0), 2)[0],
        # shapes don't tell: as OpenAI trained theirs, and others the larger ones
        "image_activation": QUICK_GELU if hidden <= 1024 else GELU,
        "cross_attention_dim": projection[0] if projection else 768,
    }


def _openclip_name(name: str) -> str:
    """transformers' name -> OpenCLIP's; q, k and v have one name there."""
    if name in OPENCLIP:
        return f"visual.{OPENCLIP[name]}"
    name = re.sub(r"self_attn\.[qkv]_proj\.", "attn.in_proj_", name)
    for ours, others in OPENCLIP_MODULES.items():
        name = name.replace(f"{ours}.", f"{others}.")
    return "visual." + name.replace("vision_model.encoder.layers.", "transformer.resblocks.")


def _take_openclip(listing: Listing, layout: Layout) -> Origins:
    """Its q, k and v are one tensor, and its projection is the other way round."""
    fused = {name: match for name in layout if (match := re.search(r"self_attn\.([qkv])_proj\.", name))}
    wide = {name: (3 * shape[0], *shape[1:]) if name in fused else shape for name, shape in layout.items()}
    wide[PROJECTION] = layout[PROJECTION][::-1]
    origins = take(listing, wide, _openclip_name, format=FORMAT)
    for name, match in fused.items():
        rows = layout[name][0]
        first = rows * FUSED.index(match[1])
        origins[name] = replace(origins[name], shape=layout[name], rows=(first, first + rows))
    origins[PROJECTION] = replace(origins[PROJECTION], shape=layout[PROJECTION], transposed=True)
    return origins
