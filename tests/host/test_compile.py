"""Compiling what AniFaceDiff makes of a MODEL: one graph, the same numbers, and a sentence where it can't."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_parity import Twin, applied, make_twin, noise_for, relative_error, run_host
from torch import nn

from anifacediff_core.errors import InputError
from anifacediff_core.network import kernels
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.temporal import MotionModules
from harness.weights import randomize


@pytest.fixture(scope="module")
def twin(host: SimpleNamespace) -> Twin:
    return make_twin(host, "tiny", frames=4)


@pytest.mark.parametrize("first", ["compiled", "applied"])
def test_the_whole_call_is_one_graph(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # the host's default attention on the CPU reads the free memory, which no graph can hold
    monkeypatch.setattr("comfy.ldm.modules.attention.optimized_attention", attention())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = twin.model.clone()
    if first == "compiled":
        set_torch_compile_wrapper(model, backend="eager", fullgraph=True, dynamic=False)
    model, positive, negative = applied(host, twin, model=model)
    if first == "applied":
        set_torch_compile_wrapper(model, backend="eager", fullgraph=True, dynamic=False)
    found = run_host(comfy, model, positive, negative, noise_for(twin, 4), 3, 2.5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "compiled once, not for every step"
    expected = run_host(comfy, *applied(host, twin), noise_for(twin, 4), 3, 2.5)
    assert relative_error(found, expected) < 1e-5


def attention() -> object:
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch


def test_without_a_gpu_it_says_what_to_do(host: SimpleNamespace, twin: Twin) -> None:
    from anifacediff_host.compile import compile_model

    with pytest.raises(InputError, match="bypass the node"):
        compile_model(twin.model, replay=True)


def test_group_norm_in_a_graph_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler sees instead of torch's own norm, which the GPU alone would run otherwise."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 96, 5, 7, generator=generator) * 3 + 20
    norm = randomize(nn.GroupNorm(32, 96), 2)
    mean, scale = torch.ops.anifacediff.group_statistics(hidden, 32, norm.eps)
    assert mean.shape == scale.shape == (2, 32)
    found = kernels.apply_statistics(hidden, mean, scale, norm.weight, norm.bias)
    assert relative_error(found, norm(hidden)) < 1e-5
    last = hidden.to(memory_format=torch.channels_last)
    given = kernels.apply_statistics(last, mean, scale, norm.weight, norm.bias)
    assert given.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("span", ["clip", "frame"])
def test_temporal_modules_see_what_their_norm_spans(span: str) -> None:
    """Over a clip, one frame's brightness changes the others' norm; per frame it doesn't."""
    config = NetworkConfig(
        block_out_channels=(32, 32),
        attention_levels=(True, False),
        attention_heads=(2, 2),
        motion_heads=(2, 2),
        layers_per_block=1,
        motion_norm=span,
    )
    module = randomize(MotionModules(config), 3).down_blocks[0].motion_modules[0]
    for block in module.transformer_blocks:  # without attention, only the norm joins frames
        for attention_ in (block.attn1, block.attn2):
            attention_.to_out[0].weight.zero_()
    hidden = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(4))
    changed = hidden.clone()
    changed[1] *= 5
    before, after = module(hidden, 3), module(changed, 3)
    assert torch.allclose(before[0], after[0], atol=1e-6) == (span == "frame")
