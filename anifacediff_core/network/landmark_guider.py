"""AniPortrait's pose guider: a drawing of the face's landmarks to features for five places of the UNet.

Architecture and names: https://github.com/Zejun-Yang/AniPortrait (Apache-2.0). What its code does:

- The pixels 0 … 255 enter as 2 p - 1, from -1 to 509.
- Its batch normalizations run in training mode: they normalize by the given frames and not by what training
  has averaged. So do these, over the whole video.
- Its "cross attention" never looks at the drawing of the source: it is self-attention within each frame. The
  features depend on the driving drawings alone.

Weights have the names of `pose_guider.pth` but for its averages and `scale`; `weights.importers` brings them
into this form:

    conv_layers.{0,3,…,21}, conv_layers_{1,2,3}.{0,3}, conv_layers_4.0    convolutions
    conv_layers.{1,4,…,22}, conv_layers_{1,2,3}.{1,4}, conv_layers_4.1    affine part of their normalization,
                                                                          .weight (C, 1, 1, 1), .bias (C,)
    final_proj                                                            convolution, times `scale`
    cross_attn{1,2,3,4}      norm, proj_in, transformer_blocks.0.{norm1,attn1,norm3,ff}, proj_out
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

CHANNELS = (3, 16, 16, 32, 32, 64, 64, 128)  # of the convolutions at the finest level
STRIDED = (1, 3, 5)  # which of them halve the resolution
HEADS, HEAD_DIM = 16, 88
EPS = 1e-5
SAMPLE = 16  # frames of a long video that tell its statistics; as many as AniPortrait's windows have

Statistics = list[tuple[Tensor, Tensor]]  # mean and variance (C,) of what enters each normalization


class LandmarkGuider(nn.Module):
    """Drawings (frames, 3, H, W) in [0, 1] -> features (frames, C, H / 8, W / 8) and four smaller ones.

    Args:
        block_out_channels: of the UNet; the last two are equal.
        norm_num_groups: of the attention's normalization.
    """

    def __init__(
        self, block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280), norm_num_groups: int = 32
    ) -> None:
        super().__init__()
        first, *_ = block_out_channels
        layers: list[nn.Module] = []
        channels = 3
        for index, out in enumerate(CHANNELS):
            strided = index in STRIDED
            layers += _layer(nn.Conv2d(channels, out, 4 if strided else 3, 2 if strided else 1, 1))
            channels = out
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = nn.Conv2d(channels, first, 1)
        self.levels = len(block_out_channels)
        channels = first
        for level, out in enumerate(block_out_channels, 1):
            layers = _layer(nn.Conv2d(channels, channels, 3, 1, 1))
            if level < self.levels:
                layers += _layer(nn.Conv2d(channels, out, 3, 2, 1))
                channels = out
            setattr(self, f"conv_layers_{level}", nn.Sequential(*layers))
            attention = Transformer2DModel(HEADS, HEAD_DIM, channels, norm_num_groups=norm_num_groups)
            setattr(self, f"cross_attn{level}", attention)

    def forward(self, images: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, ...]:
        """Features for `run_unet`, one more than the UNet has levels.

        Args:
            images: (frames, 3, H, W) in [0, 1].
            statistics: of the video that the frames are from; by default those of the frames themselves.
        """
        return self._run(images, statistics)[0]

    def measure(self, images: Tensor) -> Statistics:
        """Statistics by which to normalize all frames of a video, from some of its images."""
        return self._run(images, None)[1]

    def _run(self, images: Tensor, statistics: Statistics | None) -> tuple[tuple[Tensor, ...], Statistics]:
        used: Statistics = []

        def convolve(stage: nn.Module, hidden: Tensor) -> Tensor:
            convolutions = iter(stage)  # type: ignore[call-overload]
            for convolution, affine, _ in zip(convolutions, convolutions, convolutions, strict=True):
                hidden = convolution(hidden)
                if statistics is None:
                    variance, mean = torch.var_mean(hidden.float(), (0, 2, 3), correction=0)
                else:
                    mean, variance = statistics[len(used)]
                used.append((mean, variance))
                normalized = F.batch_norm(hidden.float(), mean, variance, eps=EPS)
                hidden = F.relu(affine(normalized.to(hidden)))
            return hidden

        hidden = self.final_proj(convolve(self.conv_layers, images * 510 - 1))
        features = [hidden]
        for level in range(1, self.levels + 1):
            hidden = convolve(self.get_submodule(f"conv_layers_{level}"), hidden)
            hidden = self.get_submodule(f"cross_attn{level}")(hidden, return_dict=False)[0]
            features.append(hidden)
        return tuple(features), used


def _layer(convolution: nn.Conv2d) -> list[nn.Module]:
    """A convolution, the affine part of its normalization and what follows."""
    channels = convolution.out_channels
    affine = nn.Conv2d(channels, channels, 1, groups=channels)
    nn.init.ones_(affine.weight)
    nn.init.zeros_(affine.bias)  # type: ignore[arg-type]
    return [convolution, affine, nn.ReLU()]
