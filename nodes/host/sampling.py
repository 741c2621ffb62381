"""Sampling with the host's own samplers, schedules, previews and interruption."""

from __future__ import annotations

from collections.abc import Callable

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import numpy as np
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from PIL import Image
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.finite import require_finite
from anifacediff_core.sampling.settings import SamplingSettings
from anifacediff_core.sampling.windows import blend_previous, initial_noise

from .apply import conditioned_size, empty_latent
from .runtime import PREVIEW_SIDE, Progress
from .windows import use_windows

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS
PREVIEW_COLUMNS, PREVIEW_ROWS = 3, 2

# Called with (done, total, picture or None) after every step; raises to cancel.
Report = Callable[[int, int, Tensor | None], None]


def sample(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: dict | None = None,
    *,
    seed: int,
    steps: int = SamplingSettings.steps,
    cfg: float = SamplingSettings.cfg,
    sampler: str = SamplingSettings.sampler,
    scheduler: str = SamplingSettings.scheduler,
    denoise: float = 1.0,
    window: int = SamplingSettings.window,
    overlap: int = SamplingSettings.overlap,
    shared_noise: float = SamplingSettings.shared_noise,
    first: int = 0,
    previous_latents: Tensor | None = None,
    report: Report | None = None,
    quiet: bool = False,
) -> dict:
    """Sample the video that is applied to `model`; returns the host's LATENT.

    Args:
        latent: where to start from when `denoise` is below 1, of the video's size and length. Without it,
            sampling starts from an empty latent.
        window, overlap: frames sampled together, and shared by neighboring windows.
        shared_noise: share of the initial noise's variance that all frames have in common.
        first: number of the first frame within a longer video, for the noise.
        previous_latents: samples of the first frames made before, together with the frames
            before them; the result fades over from them.
        report: by default the bar on the node, with a preview.
        quiet: no bar on the terminal either, as for the pictures of a stream.
    """
    if denoise < 1 and latent is None:
        raise InputError(
            f"A denoise of {denoise} needs a latent to start from: connect one or set denoise to 1."
        )
    frames, height, width = conditioned_size(model)
    samples = empty_latent(model) if latent is None else latent["samples"]
    samples = comfy.sample.fix_empty_latent_channels(model, samples)
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise InputError(
            f"The latent has {samples.shape[1]} channels and the MODEL works on {channels}: encode the "
            "pictures with the VAE that belongs to the MODEL."
        )
    model = use_windows(model, window, overlap)
    if previous_latents is not None:
        _begin_with(model, previous_latents)
    samples = comfy.sample.sample(
        model,
        initial_noise(frames, samples.shape[1], height, width, seed, shared_noise, first),
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        samples,
        denoise=denoise,
        noise_mask=(latent or {}).get("noise_mask"),
        callback=_callback(model, report or Progress(steps).show, first),
        disable_pbar=quiet or not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**(latent or {}), "samples": require_finite(samples, first)}


def _begin_with(model: ModelPatcher, previous_latents: Tensor) -> None:
    """Blend every estimate of the first frames into what they have become already."""
    previous_latents = model.get_model_object("latent_format").process_in(previous_latents)

    def blend(arguments: dict) -> Tensor:
        return blend_previous(arguments["denoised"], previous_latents)

    model.set_model_sampler_post_cfg_function(blend)


def _callback(model: ModelPatcher, report: Report, first: int) -> Callable[[int, Tensor, Tensor, int], None]:
    """What the host's samplers call after every step.

    The host's own shows the first frame only. The method of previews is the user's choice; with none, or one
    of another extension that gives no picture, only the bar moves.
    """
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def after_step(step: int, denoised: Tensor, _: Tensor, total: int) -> None:
        require_finite(denoised, first)  # now, and not when hours more were spent
        report(step + 1, total, None if previewer is None else _sheet(previewer, denoised))

    return after_step


def _sheet(previewer: latent_preview.LatentPreviewer, denoised: Tensor) -> Tensor | None:
    """A few frames from all over the video, in rows: (3, height, width) in [0, 1]."""
    count = min(len(denoised), PREVIEW_COLUMNS * PREVIEW_ROWS)
    chosen = torch.linspace(0, len(denoised) - 1, count).round().long().tolist()
    images = [previewer.decode_latent_to_preview(denoised[number : number + 1]) for number in chosen]
    if not all(isinstance(image, Image.Image) for image in images):
        return None
    frames = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    columns = min(count, PREVIEW_COLUMNS)
    frames = F.pad(frames, (0, 0) * 3 + (0, -count % columns))
    sheet = rearrange(frames, "(row column) h w c -> c (row h) (column w)", column=columns)
    larger = max(PREVIEW_SIDE // max(sheet.shape[1:]), 1)
    # latents are small, and a few pixels would be a blur in JPEG's blocks
    return F.interpolate(sheet[None].float() / 255, scale_factor=larger, mode="nearest")[0]
