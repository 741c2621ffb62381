"""Images to latents and back: a small autoencoder, and that of Stable Diffusion.

The small one has the layout of TAESD, so that hosts that know TAESD load its weights as they are. Layout and
names (`encoder.N...`, `decoder.N...`): https://github.com/madebyollin/taesd (MIT).
"""

from __future__ import annotations

from collections.abc import Container
from itertools import count, pairwise

import torch
from diffusers import AutoencoderKL
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
    layers: list[nn.Module] = [Clamp(), conv(latent_channels, WIDTH), nn.ReLU(inplace=True)]
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
            conv(channels, channels),
            nn.ReLU(inplace=True),
            conv(channels, channels),
            nn.ReLU(inplace=True),
            conv(channels, channels),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return (self.conv(hidden) + hidden).relu_()


class AutoEncoder(nn.Module):
    """Images (frames, 3, height, width) in [0, 1] <-> latents (frames, C, height / 8, width / 8).

    The encoder is trained to a variance of about one, so its output is what the UNet sees: a host that keeps
    Stable Diffusion 1.5's latents gets the same by its own factor (`vae_scale` 0.18215 for TAESD in ComfyUI).
    """

    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder = make_encoder(latent_channels)
        self.decoder = make_decoder(latent_channels)

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """The image as the network gives it, not clamped: training needs the gradient outside of [0, 1]."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


@torch.no_grad()
def trim(decoder: nn.Sequential) -> None:
    """Take out the channels of a TAESD decoder that are zero whatever it decodes: the same with less work.

    The finest level costs as much as all the others, and can do with fewer channels than the file's layout
    has. A level's channels are what its first convolution makes and its blocks add.

    Args:
        decoder: `AutoEncoder.decoder`, or a host's of the same layout; changed in place.
    """
    inputs: Tensor | None = None
    for place, layer in enumerate(decoder):
        found = convolutions(layer)
        if isinstance(layer, nn.Conv2d):
            inputs = _narrow(layer, inputs, _level(list(decoder)[place:]))
        elif found:  # a block, which adds what its convolutions make to what they see
            inner = inputs
            for each in found[:-1]:
                inner = _narrow(each, inner, _alive(each))
            _narrow(found[-1], inner, inputs)


@torch.no_grad()
def fold_upsampling(decoder: nn.Sequential) -> None:
    """Make one layer of every doubling of the size and the convolution behind it: the same with less work.

    Of pixels that were doubled, a kernel of three sees two: together they are a transposed convolution with a
    kernel of four and a stride of two, which takes a third of the time on a CPU.

    Args:
        decoder: `AutoEncoder.decoder`; changed in place.
    """
    for place, (doubling, layer) in enumerate(pairwise(decoder)):
        if not isinstance(doubling, nn.Upsample):
            continue
        assert isinstance(layer, nn.Conv2d) and layer.bias is None
        weight = layer.weight.transpose(0, 1)
        for axis in (2, 3):
            first, middle, last = weight.unbind(axis)
            weight = torch.stack([last, middle + last, first + middle, first], axis)
        folded = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], 4, stride=2, padding=1, bias=False)
        folded.weight = nn.Parameter(weight, layer.weight.requires_grad)
        decoder[place], decoder[place + 1] = folded, nn.Identity()


def convolutions(layer: nn.Module) -> list[nn.Conv2d]:
    """A layer's convolutions, the layer itself among them."""
    return [each for each in layer.modules() if isinstance(each, nn.Conv2d)]


def _level(layers: list[nn.Module]) -> Tensor:
    """(channels,) bool: what the first layer, a convolution, and the blocks after it leave above zero."""
    first, *others = layers
    assert isinstance(first, nn.Conv2d)
    alive = _alive(first)
    for layer in others:
        if isinstance(layer, nn.Conv2d):
            return alive
        for last in convolutions(layer)[-1:]:
            alive = alive | _alive(last)
    return torch.ones_like(alive)  # a image's channels


def _alive(layer: nn.Conv2d) -> Tensor:
    """(channels,) bool: which outputs are not always zero; the first in any case, a layer needs one."""
    alive = layer.weight.flatten(1).any(1)
    if layer.bias is not None:
        alive = alive | (layer.bias != 0)
    return alive | (torch.arange(len(alive), device=alive.device) < 1)


def _narrow(layer: nn.Conv2d, inputs: Tensor | None, outputs: Tensor | None) -> Tensor | None:
    """Keep these inputs and outputs of a convolution, None for all; returns the outputs."""
    weight = layer.weight if inputs is None else layer.weight[:, inputs]
    if outputs is not None:
        weight = weight[outputs]
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[outputs], layer.bias.requires_grad)
    layer.weight = nn.Parameter(weight.contiguous(), layer.weight.requires_grad)
    layer.out_channels, layer.in_channels = weight.shape[:2]
    return outputs


MOST_LEVELS = 16


class StableAutoEncoder(nn.Module):
    """Stable Diffusion's autoencoder for images in [0, 1]; latents are the means, as the host takes them.

    Args:
        channels: of each level, finest first.
        layers: residual layers of each level going down.
    """

    def __init__(
        self, channels: tuple[int, ...] = (128, 256, 512, 512), layers: int = 2, latent_channels: int = 4
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        if len(channels) > MOST_LEVELS or layers > MOST_LEVELS:
            raise ValueError("an autoencoder of more levels or layers than any has")
        self.network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=layers,
            latent_channels=latent_channels,
        )

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(2 * images - 1).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample / 2 + 0.5


def make_autoencoder(shapes: dict[str, tuple[int, ...]]) -> AutoEncoder | StableAutoEncoder:
    """The autoencoder that weights of these names and shapes belong to, not yet with these weights."""
    if "decoder.conv_in.weight" not in shapes:
        # TAESD's last layer of the encoder says how many channels latents have.
        last = max((name for name in shapes if name.startswith("encoder.")), default="", key=_number)
        return AutoEncoder(shapes[last][0] if last else 4)
    levels = count_numbered(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    return StableAutoEncoder(
        tuple(shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)),
        count_numbered(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        shapes["decoder.conv_in.weight"][1],
    )


def _number(name: str) -> int:
    """N of `encoder.N...`."""
    place = name.split(".")[1]
    return int(place) if place.isdigit() else -1


def count_numbered(names: Container[str], pattern: str) -> int:
    """How many of `pattern.format(0)`, `pattern.format(1)`, … there are before the first that is no name."""
    return next(number for number in count() if pattern.format(number) not in names)
