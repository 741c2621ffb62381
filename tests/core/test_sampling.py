"""The headless pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from anifacediff_core.device import pick_dtype
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.training.graphs import GraphableForward
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import PARTS, AniFaceDiff
from anifacediff_core.network.sampling_config import SamplingConfig
from anifacediff_core.network.unet import DeepFeatures
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.schedule import NoiseSchedule, euler_step
from anifacediff_core.weights.checkpoint import save_checkpoint
from harness.weights import randomize

CONFIG = NetworkConfig.tiny()


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def pipeline(head: HeadModel) -> Pipeline:
    model = AniFaceDiff(CONFIG, motion=True)
    randomize(model, 0)
    return Pipeline(model, AutoEncoder(), head)


@pytest.fixture(scope="module")
def conditioning(pipeline: Pipeline) -> VideoConditioning:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return pipeline.model.encode_conditioning(
            torch.randn(1, 4, 8, 8, generator=generator),
            torch.randn(1, 3, 112, 112, generator=generator),
            torch.rand(9, 3, 64, 64, generator=generator),
            torch.rand(9, 52, generator=generator),
        )


@pytest.fixture
def parameters(head: HeadModel) -> FaceParameters:
    return FaceParameters.neutral(5, head.name, head.n_shape, head.n_expression)


# --- pipeline -------------------------------------------------------------------------------------------


def test_one_window_is_a_plain_sampling_loop(pipeline: Pipeline, conditioning: VideoConditioning) -> None:
    noise = torch.randn(9, 4, 8, 8)
    actual = pipeline.sample(conditioning, steps=3, cfg=2.0, noise=noise)
    model, schedule = pipeline.model, NoiseSchedule.of(pipeline.model.config)
    timesteps, sigmas = schedule.trailing(3)
    latents = schedule.noise_scaling(noise, sigmas[0])
    for step in range(3):
        with torch.no_grad():
            both = model.predict(
                schedule.scale_model_input(latents, sigmas[step]),
                timesteps[step : step + 1],
                conditioning,
                expression_scale=1.0,
                guided=True,
            )
        conditional, unconditional = both.chunk(2)
        guided = 2 * conditional - unconditional
        denoised = schedule.pred_original_sample(guided, latents, sigmas[step])
        latents = euler_step(latents, denoised, sigmas[step], sigmas[step + 1])
    assert (actual - latents).norm() / latents.norm() < 1e-4


def test_prediction_is_the_training_forward(pipeline: Pipeline) -> None:
    """Sampling and training call the network alike: conditional rows of one source, then unconditional."""
    model, frames = pipeline.model, 3
    source, pixels = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 112, 112)
    normals, expression = torch.rand(frames, 3, 64, 64), torch.rand(frames, 52)
    latents, timestep = torch.randn(frames, 4, 8, 8), torch.tensor([400])
    with torch.no_grad():
        conditioning = model.encode_conditioning(source, pixels, normals, expression)
        sampled = model.predict(latents, timestep, conditioning, expression_scale=0.7, guided=True)
        trained = GraphableForward(model, frames)(
            latents.repeat(2, 1, 1, 1),
            timestep.expand(2 * frames),
            source.repeat(2, 1, 1, 1),
            pixels.repeat(2, 1, 1, 1),
            normals.repeat(2, 1, 1, 1),
            expression.repeat(2, 1),
            torch.full((2 * frames, 1, 1), 0.7),
        )
    assert (sampled - trained).norm() / trained.norm() < 1e-5


def test_without_guidance_only_the_conditional_half_runs(
    pipeline: Pipeline, conditioning: VideoConditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    predict = pipeline.model.predict

    def spy(*args: object, guided: bool, **kwargs: object) -> torch.Tensor:
        asked.append(guided)
        return predict(*args, guided=guided, **kwargs)

    monkeypatch.setattr(pipeline.model, "predict", spy)
    pipeline.sample(conditioning, steps=1, cfg=1.0)
    pipeline.sample(conditioning, steps=1, cfg=1.5)
    assert asked == [False, True]


def test_what_nobody_asks_for_is_as_the_weights_want_it(
    pipeline: Pipeline, conditioning: VideoConditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "sampling", SamplingConfig(steps=3, cfg=2.0))
    noise = torch.randn(9, 4, 8, 8)
    wanted = pipeline.sample(conditioning, noise=noise)
    assert torch.equal(wanted, pipeline.sample(conditioning, steps=3, cfg=2.0, noise=noise))
    asked = pipeline.sample(conditioning, steps=1, noise=noise)
    assert torch.equal(asked, pipeline.sample(conditioning, steps=1, cfg=2.0, noise=noise))


def test_windows_of_independent_frames_change_nothing(
    pipeline: Pipeline, conditioning: VideoConditioning
) -> None:
    """Frames are independent then, so any windows must give the same."""
    still = Pipeline(AniFaceDiff(CONFIG), pipeline.autoencoder, pipeline.head)
    still.model.load_state_dict({k: v for k, v in pipeline.model.state_dict().items() if "motion." not in k})
    noise = torch.randn(9, 4, 8, 8)
    whole = still.sample(conditioning, steps=2, noise=noise)
    parts = still.sample(conditioning, steps=2, noise=noise, window=4, overlap=2)
    assert (whole - parts).norm() / whole.norm() < 1e-4


def test_network_never_sees_more_than_a_window(
    pipeline: Pipeline, conditioning: VideoConditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    predict = pipeline.model.predict

    def spy(latents: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        rows.append(len(latents))
        return predict(latents, *args, **kwargs)

    monkeypatch.setattr(pipeline.model, "predict", spy)
    done = []
    latents = pipeline.sample(
        conditioning, steps=2, window=4, overlap=1, progress=lambda *counts: done.append(counts)
    )
    assert rows == [4] * 6 and latents.shape == (9, 4, 8, 8)
    assert done == [(i, 6) for i in range(1, 7)]


# ---- deep features that are kept


def test_what_is_kept_gives_the_same_prediction(pipeline: Pipeline, conditioning: VideoConditioning) -> None:
    model, latents = pipeline.model, torch.randn(9, 4, 8, 8)
    given = {"expression_scale": 1.0, "guided": True}
    with torch.no_grad():
        expected = model.predict(latents, torch.tensor([500]), conditioning, **given)
        for shallow in range(1, model.depth):
            deep = DeepFeatures(shallow)
            for deep.reused in (False, True):
                found = model.predict(latents, torch.tensor([500]), conditioning, deep=deep, **given)
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_most_steps_compute_the_shallow_layers_alone(
    pipeline: Pipeline, conditioning: VideoConditioning
) -> None:
    unet, calls = pipeline.model.unet, {"deep": 0, "shallow": 0}

    def count(kind: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[kind] += 1

        return hook

    hooks = [unet.mid_block.resnets[0].register_forward_hook(count("deep"))]
    hooks += [unet.up_blocks[-1].resnets[-1].register_forward_hook(count("shallow"))]
    settings = {"steps": 5, "cfg": 1.0, "window": 6, "overlap": 2}
    try:
        found = pipeline.sample(conditioning, cache_interval=2, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == {"deep": 2 * 3, "shallow": 2 * 5}
    whole = pipeline.sample(conditioning, **settings)
    assert not torch.equal(found, whole) and torch.isfinite(found).all()


def test_every_window_keeps_its_own(pipeline: Pipeline, conditioning: VideoConditioning) -> None:
    noise = torch.randn(8, 4, 8, 8)
    frames = conditioning.window(range(8), torch.device("cpu"), torch.float32)
    settings = {"steps": 4, "cfg": 1.0, "window": 4, "overlap": 0, "cache_interval": 2}
    together = pipeline.sample(frames, noise=noise, **settings)
    for start in (0, 4):
        part = frames.window(range(start, start + 4), torch.device("cpu"), torch.float32)
        alone = pipeline.sample(part, noise=noise[start : start + 4], **settings)
        torch.testing.assert_close(together[start : start + 4], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"cache_interval": 0}, {"cache_shallow": 0}, {"cache_shallow": 99}])
def test_impossible_caches_are_refused(
    pipeline: Pipeline, conditioning: VideoConditioning, settings: dict[str, int]
) -> None:
    with pytest.raises(InputError, match="cache"):
        pipeline.sample(conditioning, **settings)


def test_seed_and_expression_scale(pipeline: Pipeline, conditioning: VideoConditioning) -> None:
    first = pipeline.sample(conditioning, steps=1, seed=1)
    assert torch.equal(first, pipeline.sample(conditioning, steps=1, seed=1))
    assert not torch.allclose(first, pipeline.sample(conditioning, steps=1, seed=2))
    assert not torch.allclose(first, pipeline.sample(conditioning, steps=1, seed=1, expression_scale=0.0))


def test_cancelled_by_the_progress_callback(pipeline: Pipeline, conditioning: VideoConditioning) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.sample(conditioning, steps=2, progress=cancel)


def test_from_file_to_frames(pipeline: Pipeline, parameters: FaceParameters, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    parts = {name: getattr(pipeline.model, name).state_dict() for name in PARTS}
    parts["vae"] = pipeline.autoencoder.state_dict()
    save_checkpoint(path, parts, CONFIG, head=pipeline.head.name)
    loaded = Pipeline.from_checkpoint(path)
    frames = list(loaded.reenact(torch.rand(1, 3, 64, 64), parameters[0], parameters, steps=1, cfg=1.0))
    video = torch.cat(frames)
    assert (
        video.shape == (5, 3, 64, 64)
        and video.min() >= 0
        and video.max() <= 1
        and torch.isfinite(video).all()
    )

    save_checkpoint(path, parts, CONFIG, head="another")
    with pytest.raises(InputError, match="'another'"):
        Pipeline.from_checkpoint(path)


def test_bad_sources_and_windows_are_refused(
    pipeline: Pipeline, conditioning: VideoConditioning, parameters: FaceParameters
) -> None:
    for shape in ((1, 3, 64, 72), (1, 4, 64, 64), (2, 3, 64, 64), (1, 3, 60, 60)):
        with pytest.raises(InputError, match="expected one RGB square"):
            pipeline.conditioning(torch.rand(shape), parameters[0], parameters)
    with pytest.raises(InputError, match="NaN"):
        pipeline.conditioning(torch.full((1, 3, 64, 64), float("nan")), parameters[0], parameters)
    with pytest.raises(InputError, match="reduce the window"):
        pipeline.sample(conditioning, window=40, overlap=6)


def test_a_precision_is_never_one_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [pick_dtype("auto", device) for device in (cpu, gpu)] == [torch.float32, torch.float16]
    assert pick_dtype("bfloat16", gpu) == torch.bfloat16
    has = {"avx512_bf16": True, "avx512_fp16": False}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has, raising=False)
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(InputError, match="float16 by itself"):
        pick_dtype("float16", cpu)
    monkeypatch.delattr("torch.cpu.get_capabilities")  # as in older releases
    with pytest.raises(InputError, match="bfloat16 by itself"):
        pick_dtype("bfloat16", cpu)


def test_compiling_needs_a_gpu(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="leave it out"):
        pipeline.compile()


@pytest.mark.slow
def test_compiled_is_one_graph_with_the_same_numbers(
    pipeline: Pipeline, conditioning: VideoConditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled as for a GPU, but by the compiler's front end alone."""
    counted = CompileCounter()

    def compile_(function: Callable[..., Tensor], mode: str, dynamic: bool) -> Callable[..., Tensor]:
        assert mode == "reduce-overhead"
        return compiler(function, backend=counted, fullgraph=True, dynamic=dynamic)

    compiler = torch.compile
    monkeypatch.setattr("anifacediff_core.sampling.pipeline.triton_works", lambda device: True)
    monkeypatch.setattr(torch, "compile", compile_)
    gpu = SimpleNamespace(device=torch.device("cuda"), model=copy.copy(pipeline.model))
    Pipeline.compile(gpu, replay=True)  # type: ignore[arg-type]
    compiled = copy.copy(pipeline)
    compiled.model = gpu.model
    settings = {"steps": 2, "cfg": 2.0, "window": 6, "overlap": 2}
    expected = pipeline.sample(conditioning, **settings)
    torch.testing.assert_close(compiled.sample(conditioning, **settings), expected, atol=1e-4, rtol=1e-4)
    assert counted.frame_count == 1, "two windows of 6 frames in two steps"


@pytest.mark.slow
def test_bfloat16_runs(pipeline: Pipeline, conditioning: VideoConditioning) -> None:
    model = AniFaceDiff(CONFIG, motion=True)
    model.load_state_dict(pipeline.model.state_dict())
    low = Pipeline(model, AutoEncoder(), pipeline.head, dtype=torch.bfloat16)
    noise = torch.randn(9, 4, 8, 8)
    expected = pipeline.sample(conditioning, steps=2, noise=noise)
    actual = low.sample(conditioning, steps=2, noise=noise)
    assert actual.dtype == torch.float32 and (actual - expected).norm() / expected.norm() < 0.2
