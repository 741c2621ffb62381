"""Names and shapes of every part's tensors, from the modules themselves: importers check files by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from anifacediff_core.network.attention import transformer_block_names
from anifacediff_core.network.autoencoder import StableAutoEncoder
from anifacediff_core.network.config import UNBUILDABLE, ConfigError, NetworkConfig
from anifacediff_core.network.encoders import ExpressionAdapter, make_image_encoder, make_pose_encoder
from anifacediff_core.network.temporal import MotionModules
from anifacediff_core.network.unet import make_unet, trim_reference
from anifacediff_core.weights.fill import shapes_of

Layout = Mapping[str, tuple[int, ...]]


def unet_layout(config: NetworkConfig) -> Layout:
    return module_layout(make_unet, config)


def reference_layout(config: NetworkConfig) -> Layout:
    """The UNet's without the weights that could not influence any recorded feature."""

    def make() -> nn.Module:
        unet = make_unet(config)
        trim_reference(unet)
        return unet

    return module_layout(make)


def motion_layout(config: NetworkConfig) -> Layout:
    return module_layout(MotionModules, config)


def pose_encoder_layout(config: NetworkConfig) -> Layout:
    return module_layout(make_pose_encoder, config)


def image_encoder_layout(config: NetworkConfig) -> Layout:
    return module_layout(make_image_encoder, config)


def expression_adapter_layout(config: NetworkConfig) -> Layout:
    return module_layout(ExpressionAdapter, config, block_channels(config))


def autoencoder_layout(channels: tuple[int, ...], layers: int, latent_channels: int) -> Layout:
    """Of diffusers' AutoencoderKL.

    Args:
        channels: of each level, finest first.
        layers: residual layers of each level going down.
    """
    return module_layout(lambda: StableAutoEncoder(channels, layers, latent_channels).network)


def block_channels(config: NetworkConfig) -> dict[str, int]:
    """Channels of each transformer block by its name, in the order in which the UNet runs them."""
    with torch.device("meta"):
        unet = make_unet(config)
    return {name: unet.get_submodule(name).attn1.to_q.out_features for name in transformer_block_names(unet)}


def module_layout(make: Callable[..., nn.Module], *arguments: object) -> Layout:
    """Of any module, without memory for its weights and without time for their first values.

    Raises:
        ConfigError: it cannot be built.
    """
    try:
        with torch.device("meta"):
            module = make(*arguments)
    except UNBUILDABLE as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("Network config: the sizes do not go together.") from error
    return shapes_of(module.state_dict())
