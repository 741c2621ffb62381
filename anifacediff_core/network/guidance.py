"""The pose encoder of Champ and MagicPortrait: one small network for each kind of image, summed.

Names of the tensors, each under the name of its image (`depth.`, `normals.`, `render.`):

    conv_in, blocks.0 … blocks.5, conv_out     convolutions, the odd blocks halve the resolution
    attention.norm, .proj_in, .proj_out        spatial transformer on what leaves the last block
    attention.transformer_blocks.0             norm1, attn1, norm3, ff: no cross-attention

The files of both projects hold one transformer for each block, `attentions.0` … `attentions.5`, and one more,
`guidance_attention`. Only the last of the first, `attentions.5`, is ever run: it is our `attention`.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig

HEADS = 8


def make_guidance_encoder(config: NetworkConfig) -> GuidanceEncoders:
    """The pose encoder of a config whose `pose_encoder` is "attention"; it starts at zero."""
    return GuidanceEncoders(config.pose_inputs, config.block_out_channels[0], config.pose_channels)


class GuidanceEncoder(nn.Module):
    """Images of one kind (frames, 3, H, W) in [0, 1] -> features (frames, features, H / 8, W / 8).

    Every frame by itself. With four entries in `channels` the resolution falls to an eighth, at which the
    positions of a frame attend to each other.

    Args:
        features: channels of the UNet's conv_in.
        channels: of the convolutions, full resolution first; the last is a multiple of 32.
    """

    def __init__(self, features: int, channels: tuple[int, ...] = (16, 32, 96, 256)) -> None:
        super().__init__()
        if channels[-1] % 32:
            raise InputError(
                f"Network config: pose_channels ends with {channels[-1]}, expected a multiple of 32."
            )
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(channels):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.attention = Transformer2DModel(
            num_attention_heads=HEADS, attention_head_dim=channels[-1] // HEADS, in_channels=channels[-1]
        )
        self.conv_out = nn.Conv2d(channels[-1], features, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.silu(self.conv_in(images))
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        return self.conv_out(self.attention(hidden, return_dict=False)[0])


class GuidanceEncoders(nn.ModuleDict):
    """Images of several kinds (frames, 3 * kinds, H, W) in [0, 1] -> the sum of their features.

    Args:
        kinds: names of the images in the order of their channels.
        features, channels: see `GuidanceEncoder`.
    """

    def __init__(self, kinds: tuple[str, ...], features: int, channels: tuple[int, ...]) -> None:
        super().__init__({kind: GuidanceEncoder(features, channels) for kind in kinds})

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self)

    def forward(self, images: Tensor) -> Tensor:
        parts = images.split(3, dim=1)
        if len(parts) != len(self) or images.shape[1] != 3 * len(self):
            raise InputError(
                f"The pose encoder reads {', '.join(self)}: expected {3 * len(self)} channels, "
                f"found {images.shape[1]}."
            )
        return sum(encoder(part) for encoder, part in zip(self.values(), parts, strict=True))  # type: ignore[return-value]
