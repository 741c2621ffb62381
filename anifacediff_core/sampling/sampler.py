"""The sampling loop: Euler steps over windows of one clip, or of several clips of equal length at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.finite import require_finite
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.temporal import TemporalMemory
from anifacediff_core.network.unet import DeepFeatures
from anifacediff_core.progress import Progress
from anifacediff_core.sampling.schedule import NoiseSchedule, euler_step
from anifacediff_core.sampling.settings import CacheSettings
from anifacediff_core.sampling.windows import blend_previous, context_windows, fuse_weights


def sample(
    model: AniFaceDiff,
    conditioning: VideoConditioning,
    noise: Tensor,
    *,
    steps: int,
    cfg: float,
    window: int,
    overlap: int,
    expression_scale: float = 1.0,
    temporal: bool = True,
    memories: Sequence[TemporalMemory] | None = None,
    cache_interval: int = CacheSettings.cache_interval,
    cache_shallow: int = CacheSettings.cache_shallow,
    first: int = 0,
    previous_latents: Tensor | None = None,
    device: torch.device,
    dtype: torch.dtype | None = None,
    finite: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Sample the latents of all frames of `conditioning`.

    Args:
        noise: unit noise (clips * frames, 4, h, w), clip-major, anywhere.
        steps: Euler steps at trailing time steps.
        cfg: guidance, unconditional + cfg * (conditional - unconditional); 1 leaves out the former.
        window, overlap: frames sampled together, and shared by neighbors; memory is one window's.
        expression_scale: lambda of eq. 3.
        temporal: run the temporal modules, if the model has any.
        memories: of each step, what the temporal modules keep from call to call, where a call is one frame.
        cache_interval, cache_shallow: see `CacheSettings`.
        first: number of the first frame within its video, for messages.
        previous_latents: of a single clip, see `Pipeline.sample`.
        device, dtype: where and in which precision the model runs; as autocast has it when None.
        finite: refuse predictions with NaN or infinity.
        progress: called after every window of every step.

    Returns: (clips * frames, 4, h, w) float32, on the CPU unless one window holds the video.
    """
    if cache_interval < 1 or not 1 <= cache_shallow < model.depth:
        raise InputError(
            f"A cache over {cache_interval} steps with {cache_shallow} layers on either side is impossible: "
            f"give at least 1 step, and 1 to {model.depth - 1} layers."
        )
    clips, schedule = conditioning.clips, NoiseSchedule.of(model.config)
    windows = context_windows(len(conditioning), window, overlap)
    alone = len(windows) == 1
    weights = [fuse_weights(len(frames), 0 if alone else overlap).repeat(clips) for frames in windows]
    store = device if alone else torch.device("cpu")
    whole = conditioning.window(windows[0], device, dtype) if alone else None
    caches = [DeepFeatures(cache_shallow, None if alone else store) for _ in windows]

    def predict(
        part: VideoConditioning, latents: Tensor, step: int, sigma: Tensor, cache: DeepFeatures
    ) -> Tensor:
        """Guided estimate of the clean latents of one window, float32 on the device."""
        latents, sigma = latents.to(device), sigma.to(device)
        cache.reused = step % cache_interval != 0
        prediction = model.predict(
            schedule.scale_model_input(latents, sigma).to(
                dtype=dtype or latents.dtype, memory_format=torch.channels_last
            ),
            timesteps[step].view(1).to(device),
            part,
            expression_scale=expression_scale,
            guided=cfg != 1,
            temporal=temporal,
            memory=None if memories is None else memories[step],
            deep=None if cache_interval == 1 else cache,
        ).float()
        if cfg != 1:
            conditional, unconditional = prediction.chunk(2)
            prediction = unconditional + cfg * (conditional - unconditional)
        return schedule.pred_original_sample(prediction, latents, sigma)

    timesteps, sigmas = schedule.trailing(steps)
    latents = schedule.noise_scaling(noise.to(store), sigmas[0].to(store))
    for step in range(steps):
        sigma = sigmas[step].to(store)
        denoised, total = torch.zeros_like(latents), latents.new_zeros(len(latents), 1, 1, 1)
        for index, frames in enumerate(windows):
            rows = conditioning.rows(frames)
            part = conditioning.window(frames, device, dtype) if whole is None else whole
            prediction = predict(part, latents[rows], step, sigma, caches[index])
            if finite:
                require_finite(prediction, first + frames[0])
            weight = weights[index].view(-1, 1, 1, 1).to(store)
            denoised[rows] += weight * prediction.to(store)
            total[rows] += weight
            if progress is not None:
                progress(step * len(windows) + index + 1, steps * len(windows))
        denoised = denoised / total
        if previous_latents is not None:
            denoised = blend_previous(denoised, previous_latents)
        latents = euler_step(latents, denoised, sigma, sigmas[step + 1].to(store))
    return latents
