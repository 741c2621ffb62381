"""Sampling with the host's own samplers, schedules, previews and interruption."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher

from anifacediff_core.errors import InputError
from anifacediff_core.sampling.windows import initial_noise

from .apply import conditioned_size
from .windows import use_windows

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


def sample(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: dict | None = None,
    *,
    seed: int,
    steps: int = 20,
    cfg: float = 2.5,
    sampler: str = "euler",
    scheduler: str = "simple",
    denoise: float = 1.0,
    window: int = 24,
    overlap: int = 6,
    shared_noise: float = 1.0,
) -> dict:
    """Sample the video that is applied to `model`; returns the host's LATENT.

    Arguments:
        latent: where to start from when `denoise` is below 1, of the video's size and length. Without it,
            sampling starts from an empty latent.
        window, overlap: frames sampled together, and shared by neighboring windows.
        shared_noise: share of the initial noise's variance that all frames have in common.
    """
    if denoise < 1 and latent is None:
        raise InputError(
            f"A denoise of {denoise} needs a latent to start from: connect one or set denoise to 1."
        )
    frames, height, width = conditioned_size(model)
    samples = torch.zeros(frames, 4, height, width) if latent is None else latent["samples"]
    samples = comfy.sample.fix_empty_latent_channels(model, samples)
    samples = comfy.sample.sample(
        use_windows(model, window, overlap),
        initial_noise(frames, samples.shape[1], height, width, seed, shared_noise),
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        samples,
        denoise=denoise,
        noise_mask=(latent or {}).get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**(latent or {}), "samples": samples}
