"""AniFaceDiff on the MODEL among other things that act on it, and what it refuses."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from einops import rearrange
from test_native import relative_error
from test_parity import Twin, applied, call_core, call_host, make_twin, noise_for, run_core, run_host
from torch import Tensor, nn

FRAMES = 10
WINDOW = {"window": 4, "overlap": 1}


@pytest.fixture(scope="module")
def twin(host: SimpleNamespace) -> Twin:
    return make_twin(host, "tiny", FRAMES)


def layers_of(model: Any) -> list[int]:
    unet = model.model.diffusion_model
    return [len(layers) for layers in (*unet.input_blocks, unet.middle_block, *unet.output_blocks)]


def input_error() -> Any:
    from anifacediff_core.errors import InputError

    return pytest.raises(InputError)


def test_second_application_is_refused(host: SimpleNamespace, twin: Twin) -> None:
    model, *_ = applied(host, twin)
    with input_error():
        applied(host, twin, conditions=("pose",), model=model)
    with input_error():
        host.apply.attach_expression_adapter(model, twin.adapter)


def test_other_model_is_refused(comfy: ModuleType, host: SimpleNamespace) -> None:
    other = nn.Module()
    other.diffusion_model = nn.Linear(1, 1)
    patcher = comfy.model_patcher.ModelPatcher(other, torch.device("cpu"), torch.device("cpu"))
    with input_error():
        host.apply.apply_anifacediff(patcher)


def test_parts_of_another_checkpoint_are_refused(host: SimpleNamespace, twin: Twin) -> None:
    narrow = make_twin(host, "narrow", 2)
    apply = host.apply.apply_anifacediff
    with input_error():
        apply(twin.model, reference=narrow.conditioning.reference)
    with input_error():
        apply(twin.model, motion=narrow.motion)
    with input_error():
        apply(
            host.apply.attach_expression_adapter(twin.model, narrow.adapter),
            expression=twin.expression,
        )
    adapted = host.apply.attach_expression_adapter(twin.model, twin.adapter)
    with input_error():
        apply(adapted, expression=twin.expression[:, :50])
    with input_error():
        apply(adapted, expression=twin.expression[:3], pose=twin.conditioning.pose)


@pytest.mark.parametrize("windows", [{"window": 33, "overlap": 4}, {"window": 8, "overlap": 8}])
def test_impossible_windows_are_refused(host: SimpleNamespace, twin: Twin, windows: dict[str, int]) -> None:
    with input_error():
        applied(host, twin, **windows)


@pytest.mark.parametrize("shape", [(FRAMES - 1, 4, 8, 8), (FRAMES, 4, 16, 8)], ids=["frames", "size"])
def test_latent_of_another_shape_is_refused(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, shape: tuple[int, ...]
) -> None:
    with input_error():
        run_host(comfy, *applied(host, twin), torch.zeros(shape), 1, 1.0)


def test_tiling_of_frames_is_refused(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    """What HyperTile does."""
    model, *conds = applied(host, twin)
    layers = layers_of(model)

    def tile(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(rearrange(tensor, "r (t n) c -> (r t) n c", t=2) for tensor in tensors[:3])

    model.set_model_attn1_patch(tile)
    with input_error():
        run_host(comfy, model, *conds, noise_for(twin, FRAMES), 1, 1.0)
    assert layers_of(model) == layers


def test_cancelling_leaves_nothing_behind(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    model, *conds = applied(host, twin, **WINDOW)
    layers, noise = layers_of(model), noise_for(twin, FRAMES)
    calls = []

    def cancel_in_the_second_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    cancelled = model.clone()
    cancelled.add_wrapper("diffusion_model", cancel_in_the_second_call)
    before = run_host(comfy, model, *conds, noise, 1, 2.5)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_host(comfy, cancelled, *conds, noise, 1, 2.5)
    assert len(calls) == 2
    assert layers_of(model) == layers
    assert torch.equal(run_host(comfy, model, *conds, noise, 1, 2.5), before)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_any_sampler_runs_in_windows(host: SimpleNamespace, twin: Twin, sampler: str) -> None:
    model, *conds = applied(host, twin)
    result = host.sampling.sample(model, *conds, seed=1, steps=3, cfg=1.5, sampler=sampler, **WINDOW)
    assert result["samples"].shape == (FRAMES, 4, 8, 8)
    assert result["samples"].isfinite().all()


def test_sampler_of_our_own(host: SimpleNamespace, twin: Twin) -> None:
    """The same noise as headless, a start with a denoise below 1, and entries of the LATENT that stay."""
    model, *conds = applied(host, twin)
    options = {"seed": 3, "steps": 4, "cfg": 1.5}
    found = host.sampling.sample(model, *conds, **options, **WINDOW, shared_noise=0.7)["samples"] * 0.18215
    expected = run_core(twin, None, 4, 1.5, **WINDOW, seed=3, shared_noise=0.7)
    assert relative_error(found, expected) < 1e-3

    start = {"samples": torch.ones(FRAMES, 4, 8, 8), "kept": 1}
    little = host.sampling.sample(model, *conds, start, **options, denoise=0.05, **WINDOW)
    assert little["kept"] == 1
    assert relative_error(little["samples"] * 0.18215, start["samples"] * 0.18215) < 3
    assert torch.equal(start["samples"], torch.ones(FRAMES, 4, 8, 8))
    with input_error():
        host.sampling.sample(model, *conds, **options, denoise=0.5)
    with input_error():
        host.sampling.sample(twin.model, *conds, **options)


def test_rows_in_separate_calls(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of memory, the host runs positive and negative one after the other."""
    model, *conds = applied(host, twin)
    noise = noise_for(twin, FRAMES)
    rows = record_rows(model)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    found = call_host(comfy, model, *conds, noise, 2.5)
    assert rows == [FRAMES, FRAMES]
    assert relative_error(found, call_core(twin, noise, 2.5)) < 1e-5


def record_rows(model: Any) -> list[int]:
    rows = []

    def record(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper("diffusion_model", record)
    return rows


@pytest.mark.parametrize("frames", [7, 10])
def test_rows_do_not_grow_with_the_video(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, frames: int
) -> None:
    model, *conds = applied(host, twin, frames=frames, **WINDOW)
    rows = record_rows(model)
    run_host(comfy, model, *conds, noise_for(twin, frames), 1, 2.5)
    assert set(rows) == {8}


@pytest.mark.parametrize("name", [("input", 1), ("input", 1, 0)], ids=["block", "transformer"])
def test_attention_of_another_extension_goes_on(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, name: tuple
) -> None:
    """IP-Adapter packs replace attn2 as we do."""
    noise = noise_for(twin, FRAMES)
    expected = call_host(comfy, *applied(host, twin), noise, 2.5)
    calls = []

    def other(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        calls.append(options["block"])
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

    model = twin.model.clone()
    model.set_model_attn2_replace(other, *name)
    found = call_host(comfy, *applied(host, twin, model=model), noise, 2.5)
    assert calls == [("input", 1)]
    assert relative_error(found, expected) < 1e-6


def test_controlnet_follows_the_windows(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    hints = torch.arange(FRAMES).float().view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    seen = []

    class Recorder(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy: Tensor, *_: Any) -> dict[str, list]:
            assert self.cond_hint is None
            self.cond_hint = self.cond_hint_original
            seen.append(self.cond_hint[:, 0, 0, 0].tolist())
            return {"input": [], "middle": [], "output": []}

        def get_models(self) -> list:
            return []

    control = Recorder().set_cond_hint(hints)
    model, positive, negative = applied(host, twin, **WINDOW)
    positive, negative = (
        [[conditioning[0][0], {"control": control, "control_apply_to_uncond": False}]]
        for conditioning in (positive, negative)
    )
    run_host(comfy, model, positive, negative, noise_for(twin, FRAMES), 1, 2.5)
    assert seen == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert control.cond_hint_original is hints


def test_conditioning_of_every_frame_follows_the_windows(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin
) -> None:
    """One context per frame, as prompt travel packs make it."""
    noise = noise_for(twin, FRAMES)
    model, positive, negative = applied(host, twin, **WINDOW)
    expected = run_host(comfy, model, positive, negative, noise, 1, 1.0)
    every = positive[0][0].expand(FRAMES, -1, -1)
    same = run_host(comfy, model, [[every, {}]], negative, noise, 1, 1.0)
    assert relative_error(same, expected) < 1e-6
    changed = every.clone()
    changed[-1] += 1
    other = run_host(comfy, model, [[changed, {}]], negative, noise, 1, 1.0)
    assert relative_error(other[:6], expected[:6]) < 1e-6
    assert relative_error(other[-1], expected[-1]) > 1e-3
