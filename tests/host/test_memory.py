"""Memory is bounded by the window: what a long video adds is its latents.

The tests run on the CPU, so they count the bytes of all living tensors made while sampling. The whole video's
conditioning is made before: it is what stays in system memory.
"""

from __future__ import annotations

import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_parity import applied, make_twin, noise_for, on_core, run_host
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made in this context held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        known = {tensor.untyped_storage()._cdata for tensor in given}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in known:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.living:
            return
        self.living[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        if self.living.pop(key, None) is not None:
            self.now -= size


@pytest.mark.parametrize("side", ["host", "core"])
def test_a_long_video_needs_no_more_than_a_short_one(
    comfy: ModuleType, host: SimpleNamespace, side: str
) -> None:
    peaks = {}
    for frames in (48, 480):
        twin = make_twin(host, "bundled", frames=frames)
        noise = noise_for(twin, frames)
        arguments = applied(host, twin, window=24, overlap=6)
        with on_core(twin, frames) as (pipeline, conditioning), PeakMemory() as memory:
            if side == "host":
                run_host(comfy, *arguments, noise, 1, 2.5)
            else:
                pipeline.sample(conditioning, steps=1, cfg=2.5, noise=noise)
        peaks[frames] = memory.peak
    assert peaks[480] < 1.1 * peaks[48], peaks
