"""The cache of deep features in the host: the core's numbers, and what artists do with a MODEL beside it."""

from __future__ import annotations

import logging
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_mixing import CHANGES, layers_of
from test_parity import (
    WHOLE_RUN,
    Twin,
    applied,
    make_twin,
    noise_for,
    relative_error,
    run_core,
    run_host,
)

FRAMES, STEPS, CFG = 6, 5, 2.5
WINDOWS = {"window": 4, "overlap": 2}
CACHE = {"cache_interval": 2, "cache_shallow": 2}


@pytest.fixture(scope="module")
def twin(host: SimpleNamespace) -> Twin:
    return make_twin(host, "tiny", FRAMES)


def cached(host: SimpleNamespace, twin: Twin, interval: int = 2, first: bool = False, **windows: int) -> Any:
    """MODEL with a cache, before AniFaceDiff or behind it, and the conditionings."""
    if first:
        model = host.cache.cache_deep_features(twin.model, interval, 2)
        return applied(host, twin, model=model, **windows)
    model, *conds = applied(host, twin, **windows)
    return host.cache.cache_deep_features(model, interval, 2), *conds


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("windows", [{"window": FRAMES, "overlap": 0}, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_numbers_are_the_cores(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, first: bool, windows: dict, cfg: float
) -> None:
    noise = noise_for(twin, FRAMES)
    found = run_host(comfy, *cached(host, twin, first=first, **windows), noise, STEPS, cfg)
    assert relative_error(found, run_core(twin, noise, STEPS, cfg, **windows, **CACHE)) < WHOLE_RUN
    assert relative_error(found, run_core(twin, noise, STEPS, cfg, **windows)) > 2 * WHOLE_RUN


def test_every_step_in_full_changes_nothing_and_nothing_stays(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    plain, *conds = applied(host, twin, **WINDOWS)
    layers, noise = layers_of(plain), noise_for(twin, FRAMES)
    expected = run_host(comfy, plain, *conds, noise, STEPS, CFG)
    full, *_ = cached(host, twin, 1, **WINDOWS)
    torch.testing.assert_close(
        run_host(comfy, full, *conds, noise, STEPS, CFG), expected, atol=1e-5, rtol=1e-4
    )
    model, *_ = cached(host, twin, **WINDOWS)
    with caplog.at_level(logging.INFO):
        run_host(comfy, model, *conds, noise, STEPS, CFG)
    (told,) = [record.getMessage() for record in caplog.records if "deep features" in record.getMessage()]
    assert "4 of 10 calls" in told
    assert layers_of(plain) == layers
    assert not model.model_options["transformer_options"][host.cache.KEY]._kept
    torch.testing.assert_close(
        run_host(comfy, plain, *conds, noise, STEPS, CFG), expected, atol=1e-5, rtol=1e-4
    )


def test_perturbed_attention_keeps_features_of_its_own(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    """Without guidance its call and the ordinary one are for the same rows."""
    model, *conds = cached(host, twin, 3, window=FRAMES, overlap=0)
    with caplog.at_level(logging.INFO):
        run_host(comfy, CHANGES["PAG"](model), *conds, noise_for(twin, FRAMES), 4, 1.0)
    (told,) = [record.getMessage() for record in caplog.records if "deep features" in record.getMessage()]
    assert "4 of 8 calls" in told


def test_a_failure_in_a_call_leaves_the_layers(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    model, *conds = cached(host, twin, **WINDOWS)
    layers, calls = layers_of(model), []

    def fail(hidden: torch.Tensor, options: dict) -> torch.Tensor:
        calls.append(options["block"])
        if len(calls) > 30:
            raise RuntimeError("out of luck")
        return hidden

    broken = model.clone()
    broken.set_model_input_block_patch(fail)
    with pytest.raises(RuntimeError, match="luck"):
        run_host(comfy, broken, *conds, noise_for(twin, FRAMES), 30, CFG)
    assert layers_of(model) == layers


@pytest.fixture(scope="module")
def widening(host: SimpleNamespace) -> Twin:
    """Levels of different widths, by which some nodes choose what they change."""
    return make_twin(host, "widening", FRAMES)


@pytest.mark.parametrize("name", ["FreeU_V2", "Deep Shrink", "PAG", "ToMe", "LazyCache"])
def test_other_nodes_go_with_it(comfy: ModuleType, host: SimpleNamespace, widening: Twin, name: str) -> None:
    model, *conds = cached(host, widening, **WINDOWS)
    full, *_ = applied(host, widening, **WINDOWS)
    results = []
    for given in (CHANGES[name](model), CHANGES[name](full), model):
        torch.manual_seed(0)
        results.append(run_host(comfy, given, *conds, noise_for(widening, FRAMES), STEPS, CFG))
    found, expected, without = results
    assert torch.isfinite(found).all() and not torch.equal(found, without)
    assert relative_error(found, expected) < 1.0


def test_controls_of_deep_blocks_are_left_out(host: SimpleNamespace, twin: Twin) -> None:
    """The host takes each block's part from the end of a list."""
    unet = twin.model.model.diffusion_model
    cache = host.cache.DeepCache(unet, 2, 2)
    count = len(unet.output_blocks)
    control = {
        "input": [f"in {block}" for block in reversed(range(count))],
        "middle": ["middle"],
        "output": [f"out {block}" for block in reversed(range(count))],
    }
    found = cache.without_deep_control(control)
    assert found["input"] == ["in 1", "in 0"] and found["middle"] == []
    assert found["output"] == [f"out {count - 1}", f"out {count - 2}", *[None] * (count - 2)]
    assert len(control["input"]) == count and cache.without_deep_control(None) is None
    short = cache.without_deep_control({"output": ["out 1", "out 0"]})
    assert short["output"] == [None, None]


@pytest.mark.slow
def test_compiled_are_one_graph_with_and_one_without_the_deep_blocks(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.modules.attention as attention
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(attention, name, attention.attention_pytorch)
    model, *conds = cached(host, twin, window=FRAMES, overlap=0)
    expected = run_host(comfy, model, *conds, noise_for(twin, FRAMES), STEPS, CFG)
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", dynamic=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = run_host(comfy, compiled, *conds, noise_for(twin, FRAMES), STEPS, CFG)
    counters = torch._dynamo.utils.counters
    assert relative_error(found, expected) < 1e-4
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2


def test_impossible_numbers_of_blocks_are_refused(host: SimpleNamespace, twin: Twin) -> None:
    from anifacediff_core.errors import InputError

    for shallow in (0, 99):
        with pytest.raises(InputError, match="shallow"):
            host.cache.cache_deep_features(twin.model, 2, shallow)
