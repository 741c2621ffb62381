"""Noise levels and Euler steps, windows, and the noise that videos begin from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.sampling.schedule import NoiseSchedule, euler_step, make_sigmas
from anifacediff_core.sampling.windows import context_windows, fuse_weights, initial_noise

CONFIG = NetworkConfig.tiny()


# --- schedule -------------------------------------------------------------------------------------------


def ddim(steps: int, zero_terminal_snr: bool, prediction: str) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_terminal_snr,
        set_alpha_to_one=True,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_levels_are_those_of_diffusers_and_comfyui(zero_terminal_snr: bool) -> None:
    sigmas = make_sigmas(zero_terminal_snr)
    alphas = ddim(10, zero_terminal_snr, "v_prediction").alphas_cumprod
    assert torch.allclose(1 / (1 + sigmas[:-1] ** 2), alphas[:-1], rtol=2e-3, atol=1e-6)
    # the ends as in ComfyUI's ModelSamplingDiscrete().sigmas
    assert sigmas[0].item() == pytest.approx(0.0291672, rel=1e-5)
    assert sigmas[-1].item() == pytest.approx(4518.76 if zero_terminal_snr else 14.6146, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 20, 25, 30])
def test_trailing_steps(steps: int) -> None:
    timesteps, sigmas = NoiseSchedule.of(CONFIG).trailing(steps)
    assert timesteps[0] == 999 and len(timesteps) == steps and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if 1000 % steps == 0:
        assert timesteps.tolist() == ddim(steps, True, "v_prediction").timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="from 1 to 1000"):
        NoiseSchedule.of(CONFIG).trailing(steps)


@pytest.mark.parametrize(("zero_terminal_snr", "prediction"), [(True, "v_prediction"), (False, "epsilon")])
def test_euler_is_ddim(zero_terminal_snr: bool, prediction: str) -> None:
    """DDIM takes ᾱ = 0, ours 4.9e-8: a relative difference of √ᾱ = 2e-4 in the first step."""
    schedule = NoiseSchedule(make_sigmas(zero_terminal_snr), prediction)
    scheduler = ddim(20, zero_terminal_snr, prediction)
    noise = torch.randn(2, 4, 8, 8)

    def network(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.tanh(latents * (1 + timestep / 1000)) - 0.3 * latents.roll(1, -1)

    expected = noise.clone()
    for timestep in scheduler.timesteps:
        expected = scheduler.step(network(expected, int(timestep)), timestep, expected, eta=0).prev_sample

    timesteps, sigmas = schedule.trailing(20)
    latents = schedule.noise_scaling(noise, sigmas[0])
    for step, timestep in enumerate(timesteps):
        prediction_ = network(schedule.scale_model_input(latents, sigmas[step]), int(timestep))
        denoised = schedule.pred_original_sample(prediction_, latents, sigmas[step])
        latents = euler_step(latents, denoised, sigmas[step], sigmas[step + 1])
    assert (latents - expected).norm() / expected.norm() < 2e-3


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_true_prediction_gives_back_the_clean_latents(prediction: str) -> None:
    schedule = NoiseSchedule(make_sigmas(False), prediction)
    clean, noise = torch.randn(4, 8), torch.randn(4, 8)
    for timestep in (0, 400, 999):
        alpha, sigma = schedule.alphas[timestep], schedule.sigmas[timestep]
        target = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        noisy = clean + sigma * noise
        assert torch.allclose(
            schedule.scale_model_input(noisy, sigma),
            alpha.sqrt() * clean + (1 - alpha).sqrt() * noise,
            atol=1e-4,
        )
        assert torch.allclose(schedule.pred_original_sample(target, noisy, sigma), clean, atol=1e-4)


# --- windows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "overlap"), [(24, 6), (24, 0), (16, 15), (5, 2), (1, 0)])
def test_windows_cover_every_frame(length: int, overlap: int) -> None:
    for frames in [*range(1, 60), 480]:
        windows = context_windows(frames, length, overlap)
        assert sorted({frame for window in windows for frame in window}) == list(range(frames))
        assert all(len(window) <= length for window in windows)
        assert all(window == list(range(window[0], window[-1] + 1)) for window in windows)
        starts = [window[0] for window in windows]
        assert starts == sorted(set(starts))
        for first, second in pairwise(windows):
            assert len(set(first) & set(second)) >= overlap


def test_number_of_windows_is_minimal() -> None:
    assert len(context_windows(24, 24, 6)) == 1
    assert len(context_windows(25, 24, 6)) == 2
    assert len(context_windows(42, 24, 6)) == 2
    assert len(context_windows(43, 24, 6)) == 3


def test_little_is_computed_twice() -> None:
    assert [len(window) for window in context_windows(48, 24, 6)] == [24, 18, 18]
    assert [len(window) for window in context_windows(42, 24, 6)] == [24, 24]


@pytest.mark.parametrize(("length", "overlap"), [(24, 6), (24, 0), (16, 15), (5, 4)])
def test_fuse_weights_fade_between_neighbors(length: int, overlap: int) -> None:
    weights = fuse_weights(length, overlap)
    assert weights.shape == (length,) and (weights > 0).all() and (weights <= 1).all()
    assert torch.equal(weights, weights.flip(0))
    if 2 * overlap < length:
        total = weights[:overlap] + weights[length - overlap :]
        assert torch.allclose(total, torch.ones(overlap))
        assert (weights[overlap : length - overlap] == 1).all()
    share = torch.zeros(3 * length)
    for window in context_windows(3 * length, length, overlap):
        share[window] += fuse_weights(len(window), overlap)
    assert (share > 0).all()


def test_impossible_windows_are_refused() -> None:
    for frames, length, overlap in ((0, 24, 6), (10, 4, 4), (10, 0, 0), (10, 4, -1)):
        with pytest.raises(InputError):
            context_windows(frames, length, overlap)


def test_noise_of_a_frame_does_not_depend_on_the_length() -> None:
    long, short = (initial_noise(frames, 4, 8, 8, seed=3, shared=0.5) for frames in (12, 5))
    assert torch.equal(long[:5], short)
    assert not torch.equal(long, initial_noise(12, 4, 8, 8, seed=4, shared=0.5))


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_noise_has_unit_variance_and_the_common_share(shared: float) -> None:
    noise = initial_noise(16, 4, 32, 32, seed=0, shared=shared)
    assert noise.var().item() == pytest.approx(1, abs=0.05)
    assert (noise[0] * noise[9]).mean().item() == pytest.approx(shared, abs=0.06)
    with pytest.raises(InputError):
        initial_noise(1, 4, 8, 8, seed=0, shared=1.5)
