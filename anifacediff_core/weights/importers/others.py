"""Files that people have beside the ones that we read: what they are, so that the refusal can say so."""

from __future__ import annotations

import re

from anifacediff_core.weights.importers.recognition import Listing

# Regular expressions of a name that only such a file has, with what it is and what to do.
KNOWN = (
    (r".*(\.lora_[AB]\.|\.lora_(up|down)\.|lora_unet_|lora_te|\.hada_w1|\.lokr_w|processor\..*_lora\.)",
     "a LoRA: put it onto the MODEL with the LoRA loaders"),
    (r"(control_model\.|controlnet_|.*zero_convs\.|controlnet_cond_embedding\.)",
     "a ControlNet: load it with Load ControlNet Model"),
    (r"(adapter\.)?body\.\d+\.(in_conv|block1)\.", "a T2I-Adapter: load it with Load ControlNet Model"),
    (r"(.*\.)?(double_blocks\.0\.img_|double_stream_)", "a Flux model: expected Stable Diffusion 1.5"),
    (r"(.*\.)?(joint_blocks\.0\.|transformer_blocks\.0\.ff_context\.)",
     "a Stable Diffusion 3 or Flux model: expected Stable Diffusion 1.5"),
    (r"(conditioner\.embedders\.|.*label_emb\.0\.0\.|.*add_embedding\.linear_1\.)",
     "Stable Diffusion XL: expected Stable Diffusion 1.5"),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2: expected Stable Diffusion 1.5"),
    (r"(vision_model\.vision_model\.|concept_embeds|special_care_embeds)",
     "Stable Diffusion's safety checker: no part of this network"),
    (r"(audio_encoder\.|wav2vec2?\.|feature_extractor\.conv_layers\.)",
     "a network for sound: no part of this network"),
    (r"tex_dir$", "FLAME's texture space: it is used as it is"),
    (r"(taesd_)?(encoder|decoder)\.\d+\.conv\.", "a TAESD: load it with Load VAE"),
)  # fmt: skip
KEYS_OF = re.compile(r"(?!.*motion_modules)(.*\.)?attn2\.to_k\.weight$")
TEXT = re.compile(r"(text_model\.|transformer\.text_model\.)(embeddings|encoder)\.")
CONTEXTS = {
    1024: "Stable Diffusion 2: expected Stable Diffusion 1.5",
    1280: "a model with a context of 1280 channels: expected Stable Diffusion 1.5",
    2048: "Stable Diffusion XL: expected Stable Diffusion 1.5",
}


def describe(listing: Listing) -> str | None:
    """What a file is that we don't read; None when nothing speaks against it."""
    for pattern, what in KNOWN:
        compiled = re.compile(pattern)
        if any(compiled.match(name) for name in listing.infos):
            return what
    keys = next((name for name in listing.infos if KEYS_OF.match(name)), None)
    if keys is not None:
        return next((CONTEXTS[size] for size in listing.infos[keys].shape[-1:] if size in CONTEXTS), None)
    vision = any(name.startswith("vision_model.") for name in listing.infos)
    diffusion = any("diffusion_model." in name for name in listing.infos)
    if any(TEXT.match(name) for name in listing.infos) and not vision and not diffusion:
        return "a text encoder: no part of this network"
    return None
