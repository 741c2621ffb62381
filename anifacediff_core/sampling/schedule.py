"""Noise levels and the Euler step, in ComfyUI's parametrization, so that both samplers agree step by step.

A noisy latent is z + sigma n, with sigma² = (1 - alpha_bar) / alpha_bar; the UNet gets it scaled to unit
variance. Euler's method in sigma is DDIM with eta = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
# ComfyUI's stand-in for alpha_bar = 0 of the last time step, which keeps sigma finite (4518.8).
TERMINAL_ALPHA = 4.8973451890853435e-08


def make_sigmas(zero_terminal_snr: bool, beta_schedule: str = "scaled_linear") -> Tensor:
    """sigma of every time step, (1000,) float32, rising.

    The betas are "scaled_linear" as in Stable Diffusion ("linear" in ComfyUI), whose roots grow evenly, or
    "linear" ("sqrt_linear" in ComfyUI), which grow evenly themselves.

    With `zero_terminal_snr` the signal is rescaled to vanish at the last step (Lin et al. 2023, algorithm 1).
    """
    power = 2 if beta_schedule == "scaled_linear" else 1
    ends = BETA_START ** (1 / power), BETA_END ** (1 / power)
    betas = torch.linspace(*ends, TIMESTEPS, dtype=torch.float64) ** power
    alphas = torch.cumprod(1 - betas, 0)
    if zero_terminal_snr:
        signal = alphas.sqrt()
        first, last = signal[0].clone(), signal[-1].clone()
        alphas = ((signal - last) * first / (first - last)) ** 2
        alphas[-1] = TERMINAL_ALPHA
    return ((1 - alphas) / alphas).sqrt().float()


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of a trained network and the meaning of its prediction.

    Args:
        sigmas: (1000,) sigma of every time step.
        prediction_type: "v_prediction" or "epsilon".
    """

    sigmas: Tensor
    prediction_type: str

    @classmethod
    def of(cls, config: NetworkConfig) -> NoiseSchedule:
        return cls(make_sigmas(config.zero_terminal_snr, config.beta_schedule), config.prediction_type)

    @property
    def alphas(self) -> Tensor:
        """alpha_bar of every time step, (1000,): z_t = alpha_bar^½ z_0 + (1 - alpha_bar)^½ noise (eq. 4)."""
        return 1 / (1 + self.sigmas**2)

    def trailing(self, steps: int) -> tuple[Tensor, Tensor]:
        """Time steps (steps,) falling from 999, and their sigma and a 0 (steps + 1,); "simple" in ComfyUI."""
        if not 1 <= steps <= TIMESTEPS:
            raise InputError(f"The number of steps is {steps}: give a number from 1 to {TIMESTEPS}.")
        stride = TIMESTEPS / steps
        timesteps = torch.tensor([TIMESTEPS - 1 - int(step * stride) for step in range(steps)])
        return timesteps, torch.cat([self.sigmas[timesteps], torch.zeros(1)])

    def noise_scaling(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Unit noise to the start of sampling at sigma; at the highest level with the data's variance."""
        highest = torch.isclose(sigma, self.sigmas[-1], rtol=1e-5)
        return noise * torch.where(highest, (1 + sigma**2).sqrt(), sigma)

    def scale_model_input(self, latents: Tensor, sigma: Tensor) -> Tensor:
        return latents / (sigma**2 + 1).sqrt()

    def pred_original_sample(self, prediction: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents that a prediction of the UNet means, for noisy `latents` at sigma."""
        if self.prediction_type == "epsilon":
            return latents - prediction * sigma
        return latents / (sigma**2 + 1) - prediction * sigma / (sigma**2 + 1).sqrt()


def euler_step(latents: Tensor, denoised: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    return latents + (latents - denoised) / sigma * (next_sigma - sigma)
