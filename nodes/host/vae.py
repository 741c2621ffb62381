"""The host's VAE from a checkpoint's autoencoder."""

from __future__ import annotations

import comfy.sd
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig

# Factor from the host's LATENT to what the UNet sees.
SD15_LATENT_SCALE = 0.18215


def load_vae(weights: dict[str, torch.Tensor], network: NetworkConfig) -> comfy.sd.VAE:
    """Build the VAE.

    Arguments:
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
    host["vae_scale"] = torch.tensor(SD15_LATENT_SCALE / network.latent_scale)
    host["vae_shift"] = torch.tensor(0.0)
    # it is small, and half precision shows as banding
    vae = comfy.sd.VAE(sd=host, dtype=torch.float32)
    vae.throw_exception_if_invalid()
    return vae
