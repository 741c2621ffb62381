"""The host's MODEL from a UNet in diffusers' naming, at any topology of Stable Diffusion 1.5's form.

The host finds the topology of a foreign UNet by comparing it with those it knows, which a small UNet is not
among. So the topology is read off the weights here and passed to the host's own classes. What comes out is an
ordinary SD1.5 MODEL: LoRA loaders, samplers, low-VRAM loading and compilation treat it as such.
"""

from __future__ import annotations

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.network.autoencoder import count_numbered
from anifacediff_core.network.config import NetworkConfig

from .operations import fast_operations

Weights = dict[str, torch.Tensor]

_BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear"}  # diffusers' words to the host's


def load_model(
    weights: Weights, network: NetworkConfig, dtype: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    """Build the MODEL from diffusers-named UNet weights (no prefix).

    `network` tells what weights cannot: the number of heads, what is predicted, and the noise schedule.
    `dtype` is that of the stored weights, by default the host's own choice.
    """
    config = _ModelConfig(unet_config(weights), network)
    weights = to_host_names(weights, config.unet_config)
    load_device = comfy.model_management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=sum(weight.numel() for weight in weights.values()),
            supported_dtypes=supported,
            weight_dtype=next(iter(weights.values())).dtype,
        )
    manual_cast = comfy.model_management.unet_manual_cast(dtype, load_device, supported)
    config.set_inference_dtype(dtype, manual_cast)
    config.custom_operations = fast_operations(comfy.ops.pick_operations(dtype, manual_cast))
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model(weights, "").to(offload_device)
    _check_shapes(weights, model.diffusion_model.state_dict())
    model.load_model_weights(weights, "")
    # convolutions and the tokens of attention have the same order then: nothing is copied between them
    model.diffusion_model.to(memory_format=torch.channels_last)
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def unet_config(weights: Weights) -> dict:
    """Read the host's `unet_config` (widths, depths, attention, context) off diffusers-named weights."""
    if "conv_in.weight" not in weights or "conv_out.weight" not in weights:
        raise InputError(
            "The UNet weights lack conv_in and conv_out: load a denoising UNet in diffusers' naming."
        )
    levels = count_numbered(weights, "down_blocks.{}.resnets.0.conv1.weight")
    layers = [
        count_numbered(weights, f"down_blocks.{level}.resnets.{{}}.conv1.weight") for level in range(levels)
    ]
    widths = [weights[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)]
    if not levels or any(width % widths[0] for width in widths):
        raise InputError(
            f"The UNet has widths {widths}, but the host needs multiples of the first: choose another UNet."
        )

    def depth(block: str) -> int:
        return count_numbered(weights, block + ".transformer_blocks.{}.norm1.weight")

    # the host takes the output's depths from the end of the list
    down = [
        depth(f"down_blocks.{level}.attentions.{i}") for level in range(levels) for i in range(layers[level])
    ]
    up = [
        depth(f"up_blocks.{levels - 1 - level}.attentions.{layers[level] - i}")
        for level in range(levels)
        for i in range(layers[level] + 1)
    ]
    attentions = [name for name in weights if name.endswith("attn2.to_k.weight")]
    projections = [name for name in weights if name.endswith(".proj_in.weight")]
    return {
        "image_size": 32,
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": weights["conv_out.weight"].shape[0],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": layers,
        "transformer_depth": down,
        "transformer_depth_output": up,
        "transformer_depth_middle": depth("mid_block.attentions.0"),
        "context_dim": weights[attentions[0]].shape[1] if attentions else None,
        "use_linear_in_transformer": bool(projections) and weights[projections[0]].ndim == 2,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "num_classes": None,
        "adm_in_channels": None,
        "legacy": False,
    }


def to_host_names(weights: Weights, config: dict) -> Weights:
    """Rename diffusers' keys to the host's; a key without a place is an error, never dropped silently."""
    names = comfy.utils.unet_to_diffusers(config)
    homeless = [name for name in weights if name not in names]
    if homeless:
        raise InputError(
            f"The UNet has {len(homeless)} weights that Stable Diffusion 1.5 has not (first: {homeless[0]}): "
            "load a denoising UNet of that form."
        )
    return {names[name]: weight for name, weight in weights.items()}


class _ModelConfig(comfy.supported_models.SD15):
    """SD1.5's model config for a topology and a prediction of our own; the host's detection never sees it."""

    def __init__(self, config: dict, network: NetworkConfig) -> None:
        # the host takes either one number of heads or one width of a head for all levels
        heads = network.attention_heads
        one_number = len(set(heads)) == 1
        widths = {
            channels // count for channels, count in zip(network.block_out_channels, heads, strict=True)
        }
        if not one_number and len(widths) > 1:
            raise InputError(
                f"The host can't run {heads} heads at widths {network.block_out_channels}: "
                "the levels must share the number of heads or the width of a head."
            )
        self.unet_extra_config = {
            "num_heads": heads[0] if one_number else -1,
            "num_head_channels": -1 if one_number else widths.pop(),
        }
        super().__init__(config)
        self.latent_format.latent_channels = config["out_channels"]
        self.v_prediction = network.prediction_type == "v_prediction"
        self.sampling_settings["beta_schedule"] = _BETAS[network.beta_schedule]
        if network.zero_terminal_snr:
            self.sampling_settings["zsnr"] = True

    def inpaint_model(self) -> bool:
        # the host takes more than four channels for those of a mask and a masked picture
        return bool(self.unet_config["in_channels"] > self.unet_config["out_channels"])

    def model_type(self, state_dict: Weights, prefix: str = "") -> comfy.model_base.ModelType:
        types = comfy.model_base.ModelType
        return types.V_PREDICTION if self.v_prediction else types.EPS


def _check_shapes(weights: Weights, expected: Weights) -> None:
    """The host only logs missing weights and would sample with uninitialized ones: refuse instead."""
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise InputError(
            f"The UNet lacks {len(missing)} weights (first: {missing[0]}): load an intact file of that kind."
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            shapes = list(weight.shape), list(expected[name].shape)
            raise InputError(
                f"The UNet's weight {name} has shape {shapes[0]}, expected {shapes[1]}: "
                "load a UNet of Stable Diffusion 1.5's form."
            )
