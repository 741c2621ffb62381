"""The host's CLIP_VISION from an image encoder of any size."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import image_encoder_json


def load_clip_vision(
    weights: dict[str, torch.Tensor], config: NetworkConfig
) -> comfy.clip_vision.ClipVisionModel:
    """Build CLIP_VISION from the weights of transformers' CLIPVisionModelWithProjection."""
    with tempfile.TemporaryDirectory() as folder:
        # the host takes a config by its file only
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(image_encoder_json(config)), encoding="utf-8")
        clip_vision = comfy.clip_vision.ClipVisionModel(str(file))
    missing, unexpected = clip_vision.load_sd(weights)
    missing = [name for name in missing if not name.endswith("position_ids")]
    unexpected = [name for name in unexpected if not name.endswith("position_ids")]
    if missing or unexpected:
        first = (missing + unexpected)[0]
        raise InputError(
            f"The image encoder doesn't fit its config (first misfit: {first}): load an intact checkpoint."
        )
    return clip_vision


def image_embedding(clip_vision: comfy.clip_vision.ClipVisionModel, image: torch.Tensor) -> torch.Tensor:
    """The projected embedding (1, D) of the host's IMAGE (1, height, width, 3)."""
    return clip_vision.encode_image(image[:1])["image_embeds"]
