"""The host's VAE from a checkpoint's autoencoder."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import comfy.taesd.taesd
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.network.autoencoder import trim
from anifacediff_core.network.config import NetworkConfig

# Factor from the host's LATENT to what the UNet sees.
SD15_LATENT_SCALE = 0.18215


def load_vae(weights: dict[str, torch.Tensor], network: NetworkConfig) -> comfy.sd.VAE:
    """Build the VAE.

    Args:
        weights: TAESD's, keys `encoder.N...` and `decoder.N...`, as the bundled one is; or those of Stable
            Diffusion's in diffusers' naming.
    """
    if not any(name.startswith("decoder.") for name in weights):
        raise InputError(
            "The checkpoint has no autoencoder: connect the VAE of Stable Diffusion 1.5 instead."
        )
    if "decoder.conv_in.weight" in weights:
        vae = comfy.sd.VAE(sd=weights)
        vae.throw_exception_if_invalid()
        return vae
    host = {f"taesd_{name}": weight for name, weight in weights.items()}
    host["vae_scale"] = torch.tensor(SD15_LATENT_SCALE / network.scaling_factor)
    host["vae_shift"] = torch.tensor(0.0)
    # it is small, and half precision shows as banding
    vae = comfy.sd.VAE(sd=host, dtype=torch.float32)
    vae.throw_exception_if_invalid()
    trim(vae.first_stage_model.taesd_decoder)
    vae.first_stage_model.__class__ = _FrameByFrame
    vae.first_stage_model.to(memory_format=torch.channels_last)  # see `model.load_model`
    return vae


class _FrameByFrame(comfy.taesd.taesd.TAESD):
    """TAESD that a CPU runs frame by frame: what lies between two layers then stays in its cache."""

    def decode(self, latents: Tensor) -> Tensor:
        if latents.device.type != "cpu" or len(latents) < 2:
            return super().decode(latents)
        frames = []
        for latent in latents.split(1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            frames.append(super().decode(latent))
        return torch.cat(frames)


def has_latents_of_its_own(network: NetworkConfig) -> bool:
    """Whether the UNet works on other latents than Stable Diffusion's."""
    return network.scaling_factor != SD15_LATENT_SCALE


def fit_preview(model: ModelPatcher, vae: comfy.sd.VAE, image: Tensor) -> None:
    """Teach the host's previews the colors of a MODEL's own latents.

    The host maps latents to colors linearly, for this MODEL as for Stable Diffusion's. Here the map is the
    least squares fit between one picture and its latents.

    Args:
        image: the host's IMAGE (1, height, width, 3).
    """
    latent_format = model.model.latent_format
    latents = latent_format.process_in(vae.encode(image)).float().cpu()
    colors = F.interpolate(image.movedim(-1, 1), latents.shape[-2:], mode="area") * 2 - 1
    known = F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0).flatten(2)[0].T  # a last column for the bias
    fitted = torch.linalg.lstsq(known, colors.flatten(2)[0].T, driver="gelsd").solution.tolist()
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = fitted[:-1], fitted[-1]
    latent_format.taesd_decoder_name = None  # that one is Stable Diffusion's
