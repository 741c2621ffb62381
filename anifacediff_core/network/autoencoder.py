"""A small autoencoder in the layout of TAESD, so that hosts that know TAESD load its weights as they are.

Layout and key names (`encoder.N...`, `decoder.N...`): https://github.com/madebyollin/taesd (MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 64


def conv(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, stride=stride, bias=bias)


def make_encoder(latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, WIDTH), Block(WIDTH)]
    for _ in range(3):
        layers += [conv(WIDTH, WIDTH, stride=2, bias=False), Block(WIDTH), Block(WIDTH), Block(WIDTH)]
    return nn.Sequential(*layers, conv(WIDTH, latent_channels))


def make_decoder(latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), conv(latent_channels, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [Block(WIDTH), Block(WIDTH), Block(WIDTH)]
        layers += [nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(WIDTH), conv(WIDTH, 3))


class Clamp(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents / 3) * 3


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(channels, channels), nn.ReLU(), conv(channels, channels), nn.ReLU(), conv(channels, channels)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.conv(hidden) + hidden)


class AutoEncoder(nn.Module):
    """Pictures (frames, 3, height, width) in [0, 1] ↔ latents (frames, 4, height / 8, width / 8).

    The encoder is trained to a variance of about one, so its output is what the UNet sees: a host that keeps
    Stable Diffusion 1.5's latents gets the same by its own factor (`vae_scale` 0.18215 for TAESD in ComfyUI).
    """

    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.encoder = make_encoder(latent_channels)
        self.decoder = make_decoder(latent_channels)

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """The picture as the network gives it, not clamped: training needs the gradient outside of [0, 1]."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))
