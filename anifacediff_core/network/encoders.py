"""The small networks around the UNet: pose encoder, expression adapter, image encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from anifacediff_core.network.attention import KeysValues
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.guidance import make_guidance_encoder
from anifacediff_core.network.landmark_guider import SAMPLE, LandmarkGuider, Statistics

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def make_pose_encoder(config: NetworkConfig) -> nn.Module:
    """Normals (frames, 3, H, W) in [0, 1] -> features (frames, C, H / 8, W / 8) for after the UNet's conv_in.

    The paper concatenates the encoded normals with the noisy latents; convolving that concatenation equals
    adding a convolution of the encoding, which is this encoder's last layer. It starts at zero.

    Relatives of the paper read other images (`config.pose_inputs`); `encode_pose` runs all of them.
    """
    if config.pose_encoder == "attention":
        return make_guidance_encoder(config)
    if config.pose_encoder == "multiscale":
        return LandmarkGuider(config.block_out_channels, config.norm_num_groups)
    return ControlNetConditioningEmbedding(config.block_out_channels[0], 3, config.pose_channels)


def pose_sample(encoder: nn.Module, images: Tensor, chunk: int) -> Tensor | None:
    """Images of which an encoder must know the statistics, by `measure`, to encode a video in chunks.

    None where it needs none: most encoders treat each frame by itself, and a single chunk is the whole video.
    """
    if not isinstance(encoder, LandmarkGuider) or len(images) <= chunk:
        return None
    count = min(SAMPLE, len(images))
    return images[torch.linspace(0, len(images) - 1, count).round().long()]


def encode_pose(
    encoder: nn.Module, images: Tensor, statistics: Statistics | None = None
) -> tuple[Tensor, ...]:
    """Features of all levels of any pose encoder, for `network.unet.run_unet`.

    Args:
        images: (frames, 3 * pose inputs, H, W) in [0, 1].
        statistics: of the video that the frames are a part of.
    """
    features = encoder(images) if statistics is None else encoder(images, statistics)
    return features if isinstance(features, tuple) else (features,)


def image_encoder_json(config: NetworkConfig) -> dict[str, object]:
    """The image encoder's configuration in Hugging Face's form, which ComfyUI's ClipVisionModel reads too."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": config.image_hidden,
        "intermediate_size": config.image_intermediate,
        "num_hidden_layers": config.image_layers,
        "num_attention_heads": config.image_heads,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.image_patch,
        "hidden_act": config.image_activation,
        "projection_dim": config.cross_attention_dim,
    }


def make_image_encoder(config: NetworkConfig) -> CLIPVisionModelWithProjection:
    """CLIP's vision transformer; its projected embedding is the one context token of the UNets."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**image_encoder_json(config)))


def clip_preprocess(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] -> CLIP-normalized (N, 3, size, size), as ComfyUI does it.

    The shorter side is scaled to `size` and the center is cropped; the result passes through 8 bits.
    """
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        scaled = (round(scale * height), round(scale * width))
        images = F.interpolate(images, size=scaled, mode="bicubic", antialias=True)
        top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        images = images[:, :, top : top + size, left : left + size]
    images = (images * 255).clamp(0, 255).round() / 255
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


class ExpressionAdapter(nn.Module):
    """Expression psi -> tokens p_psi -> keys and values p_psi W_k, p_psi W_v of every block (eq. 3).

    Args:
        blocks: channels of each transformer block by its name, in the UNet's order; W_k and W_v of block i
            are stored as `to_k.i` and `to_v.i`.
    """

    def __init__(self, config: NetworkConfig, blocks: dict[str, int]) -> None:
        super().__init__()
        dim = config.cross_attention_dim
        self.tokens = config.expression_tokens
        self.names = list(blocks)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_expression, config.expression_hidden),
            nn.SiLU(),
            nn.Linear(config.expression_hidden, self.tokens * dim),
        )
        self.norm = nn.LayerNorm(dim)
        self.to_k = nn.ModuleList(nn.Linear(dim, channels, bias=False) for channels in blocks.values())
        self.to_v = nn.ModuleList(nn.Linear(dim, channels, bias=False) for channels in blocks.values())
        for weight in self.to_v.parameters():
            # Near silence, so that a trained UNet is hardly disturbed, but with a gradient for every weight.
            nn.init.normal_(weight, std=0.1 * dim**-0.5)

    def forward(self, expression: Tensor) -> Tensor:
        """psi (frames, n_expression) -> tokens (frames, tokens, cross_attention_dim)."""
        return self.norm(rearrange(self.mlp(expression), "f (t d) -> f t d", t=self.tokens))

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Tokens (frames, tokens, cross_attention_dim) -> keys and values of every block."""
        layers = zip(self.names, self.to_k, self.to_v, strict=True)
        return {name: (to_k(tokens), to_v(tokens)) for name, to_k, to_v in layers}
