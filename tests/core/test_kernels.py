"""The kernels in Triton against their plain forms: on a GPU, or in its interpreter where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.network import kernels

HALF = 1e-3  # relative error of results that are stored in half precision


@pytest.fixture(scope="module")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def fast(device: str) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when kernels are defined, and when they run
        pytest.importorskip("triton", reason="Triton is not installed (optional)")
        from anifacediff_core.network import kernels_triton

        yield kernels_triton


def random(device: str, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().to(device)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("clips", "frames", "positions", "heads", "width"),
    [(2, 24, 6, 8, 40), (1, 7, 5, 3, 32), (2, 32, 4, 8, 80)],
)
def test_attention_over_frames(
    fast: ModuleType, device: str, clips: int, frames: int, positions: int, heads: int, width: int
) -> None:
    shape = (clips * frames, positions, heads * width)
    given = [random(device, *shape, seed=seed) for seed in range(3)]
    expected = kernels.attend_over_frames(*(x.float() for x in given), frames, heads)
    assert relative_error(fast.attend_over_frames(*given, frames, heads), expected) < HALF


def test_gated_gelu(fast: ModuleType, device: str) -> None:
    hidden = random(device, 5, 7, 160)
    value, gate = hidden.float().chunk(2, -1)
    assert relative_error(fast.gated_gelu(hidden), value * F.gelu(gate)) < HALF


@pytest.mark.parametrize("shape", [(2, 320, 8, 8), (3, 96, 5, 7), (2, 960, 4, 4), (2, 64, 40, 13)])
def test_group_norm(fast: ModuleType, device: str, shape: tuple[int, ...]) -> None:
    """Of numbers far from zero, whose variance is easily lost."""
    hidden = (random(device, *shape) + 20).to(memory_format=torch.channels_last)
    weight, bias = (random(device, shape[1], seed=seed) for seed in (1, 2))
    expected = F.group_norm(hidden.float(), 32, weight.float(), bias.float(), 1e-5)
    found = fast.group_norm(hidden, 32, weight, bias, 1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(found, expected) < HALF
    statistics = kernels.group_statistics(hidden.float(), 32, 1e-5)
    torch.testing.assert_close(fast.group_statistics(hidden, 32, 1e-5), statistics, rtol=1e-4, atol=1e-5)
