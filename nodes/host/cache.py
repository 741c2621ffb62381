"""A cache of the UNet's deep features between steps of sampling, by the host's public hooks only.

What the deep blocks give to the shallow ones changes little from step to step: most calls of the UNet take
what the last full one of the same frames and conditioning has given. The core's `DeepFeatures` does the same
(DeepCache, Ma et al. 2024). In such a call the deep blocks have no layers, and nothing is patched there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from anifacediff_core.errors import InputError

KEY = "anifacediff_cache"
# What is kept stays on the device up to so many bytes of all windows; the rest goes to the CPU.
RESIDENT = 2**30
INPUTS, OUTPUT = ("input_block_patch", "input_block_patch_after_skip"), "output_block_patch"

Patch = Callable[..., Any]


def cache_deep_features(model: ModelPatcher, interval: int, shallow: int) -> ModelPatcher:
    """A clone of `model` that computes its deep blocks in every `interval`-th step only, once AniFaceDiff is
    applied to it, before or after this.

    Args:
        shallow: how many blocks on either side of the UNet every step computes.
    """
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        raise InputError(
            "The cache needs a MODEL of Stable Diffusion 1.5's form, "
            f"not {type(unet).__name__}: connect another."
        )
    most = len(unet.output_blocks) - 1
    if not 1 <= shallow <= most:
        raise InputError(f"{shallow} shallow blocks are impossible with this MODEL: give 1 to {most}.")
    model = model.clone()
    model.model_options["transformer_options"][KEY] = DeepCache(unet, interval, shallow)
    return model


@dataclass
class _Kept:
    """Of one window, conditioning and attention: its calls so far, and what its deep blocks gave last."""

    calls: int = 0
    hidden: Tensor | None = None


class DeepCache:
    """What is kept during one run; there is one for all clones of a MODEL, which run one after the other."""

    def __init__(self, unet: UNetModel, interval: int, shallow: int) -> None:
        self.interval = interval
        last = len(unet.output_blocks)
        self.inputs, self.outputs = range(shallow), range(last - shallow, last)
        self._kept: dict[Hashable, _Kept] = {}
        self._changes: list[Tensor] = []
        self._current: Tensor | None = None
        # Made once, since torch.compile takes other ones for another network.
        self._limited: dict[tuple[int, range], tuple[Patch, Patch]] = {}
        self._no_layers: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict) -> DeepCache:
        return self

    @contextmanager
    def around(self, unet: UNetModel, options: dict, device: torch.device) -> Iterator[bool]:
        """Prepare a call of the UNet; whether it is one without the deep blocks."""
        window = options.get("context_window")
        frames = None if window is None else tuple(window.index_list)
        # perturbed attention calls once more for the same rows, with other attention somewhere
        replaced = frozenset(
            (kind, place, id(patch))
            for kind, patches in options.get("patches_replace", {}).items()
            for place, patch in patches.items()
        )
        key = (frames, tuple(options["cond_or_uncond"]), tuple(options.get("uuids") or ()), replaced)
        kept = self._kept.setdefault(key, _Kept())
        reused = kept.hidden is not None and kept.calls % self.interval > 0
        kept.calls += 1
        patches = options.get("patches", {})
        try:
            if reused and kept.hidden is not None:
                self._current = kept.hidden.to(device)
                options["patches"] = self._without_deep(patches)
                with self._without_layers(unet):
                    yield True
            else:
                options["patches"] = {**patches, OUTPUT: [self._take, *patches.get(OUTPUT, ())]}
                yield False
                self._keep(kept)
        finally:
            options["patches"] = patches
            self._current = None

    def without_deep_control(self, control: dict[str, list] | None) -> dict[str, list] | None:
        """What ControlNets add to the shallow blocks; each block takes its part from the end of a list."""
        if control is None:
            return None
        deep = self.outputs.start
        outputs = control.get("output", [])
        return {
            **control,
            "input": control.get("input", [])[-len(self.inputs) :],
            "middle": [],
            "output": [*outputs[:-deep], *[None] * len(outputs[-deep:])],
        }

    def forget(self) -> None:
        """Free what was kept, and say what it was worth."""
        calls = sum(kept.calls for kept in self._kept.values())
        full = sum(-(-kept.calls // self.interval) for kept in self._kept.values())
        if self._changes:
            logging.info(
                "AniFaceDiff: %d of %d calls took deep features of an earlier one; from one full call to the "
                "next these changed by %.1f %%.",
                calls - full,
                calls,
                100 * float(torch.stack(self._changes).mean()),
            )
        self._kept.clear()
        self._changes.clear()

    def _keep(self, kept: _Kept) -> None:
        hidden = self._current
        if hidden is None:  # another cache has left out the whole call
            return
        if kept.hidden is not None and kept.hidden.shape == hidden.shape:
            change = (hidden - kept.hidden.to(hidden)).float().norm() / hidden.float().norm()
            self._changes.append(change.cpu())
        others = [one.hidden for one in self._kept.values() if one.hidden is not None and one is not kept]
        resident = sum(tensor.nbytes for tensor in others if tensor.device == hidden.device)
        fits = resident + hidden.nbytes <= RESIDENT
        # a copy, since a replayed graph writes over what it has given
        kept.hidden = hidden.clone() if fits else hidden.to("cpu", copy=True)

    def _take(self, hidden: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        if options["block"][1] == self.outputs.start:
            self._current = hidden
        return hidden, skip

    def _give(self, hidden: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        block = options["block"][1]
        if block in self.outputs:
            return (self._current, skip) if block == self.outputs.start else (hidden, skip)  # type: ignore[return-value]
        return hidden[:, :0], skip[:, :0]  # blocks without layers would only stack the skip connections

    def _without_deep(self, patches: dict[str, list[Patch]]) -> dict[str, list[Patch]]:
        limited = {name: self._limit(patches.get(name, ()), self.inputs) for name in INPUTS}
        outputs = self._limit(patches.get(OUTPUT, ()), self.outputs)
        return {**patches, **limited, OUTPUT: [self._give, *outputs]}

    def _limit(self, patches: Iterable[Patch], blocks: range) -> list[Patch]:
        """Patches that leave other blocks alone."""
        for patch in patches:
            self._limited.setdefault((id(patch), blocks), (patch, _limit(patch, blocks)))
        return [self._limited[id(patch), blocks][1] for patch in patches]

    @contextmanager
    def _without_layers(self, unet: UNetModel) -> Iterator[None]:
        """As `places.in_place`: tables of layers are exchanged as a whole, and come back as they were."""
        inputs, outputs = len(self.inputs), self.outputs.start
        blocks = [*unet.input_blocks[inputs:], unet.middle_block, *unet.output_blocks[:outputs]]
        tables = [block._modules for block in blocks]
        try:
            for block in blocks:
                block._modules = self._no_layers
            yield
        finally:
            for block, table in zip(blocks, tables, strict=True):
                block._modules = table


def _limit(patch: Patch, blocks: range) -> Patch:
    def limited(*arguments: Any) -> Any:
        *given, options = arguments
        if options["block"][1] in blocks:
            return patch(*arguments)
        return given[0] if len(given) == 1 else tuple(given)

    return limited
