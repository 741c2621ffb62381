"""What artists do with a MODEL in ComfyUI, done with ours, by the host's own nodes; see docs/mixing.md.

Random weights at the bundled topology with widths of 32 to 128; latents of 8×8.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from test_native import configs, relative_error
from test_parity import Twin, applied, call_core, call_host, load_half, make_twin, noise_for, run_host
from torch import Tensor, nn

from harness.stock import extra, run_node
from harness.weights import randomize

EQUAL = 1e-4  # relative error in fp32 where two ways must come to the same
FRAMES = 4
WHOLE, WINDOWS = {"window": 4, "overlap": 1}, {"window": 3, "overlap": 2}
CFG = 2.5

Change = Callable[[Any], Any]  # what a node does to a MODEL


@pytest.fixture(scope="module")
def twin(host: SimpleNamespace) -> Twin:
    return make_twin(host, "widening", FRAMES)


def change_by(file: str, name: str, **inputs: Any) -> Change:
    def change(model: Any) -> Any:
        return run_node(extra(file, name), model=model, **inputs)[0]

    return change


def input_error(match: str) -> Any:
    from anifacediff_core.errors import InputError

    return pytest.raises(InputError, match=match)


def layers_of(model: Any) -> list[int]:
    unet = model.model.diffusion_model
    return [len(layers) for layers in (*unet.input_blocks, unet.middle_block, *unet.output_blocks)]


# --- Nodes that take a MODEL and give a MODEL ----------------------------------------------------

DOWNSCALE = {
    "block_number": 2,
    "downscale_factor": 2.0,
    "start_percent": 0.0,
    "end_percent": 0.9,
    "downscale_method": "bicubic",
    "upscale_method": "bicubic",
}
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
HYPERTILE = {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}
CHANGES: dict[str, Change] = {
    "FreeU": change_by("freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": change_by("freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "RescaleCFG": change_by("model_advanced", "RescaleCFG", multiplier=0.7),
    "v, no zsnr": change_by("model_advanced", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    "eps": change_by("model_advanced", "ModelSamplingDiscrete", sampling="eps", zsnr=False),
    "eps, zsnr": change_by("model_advanced", "ModelSamplingDiscrete", sampling="eps", zsnr=True),
    "lcm": change_by("model_advanced", "ModelSamplingDiscrete", sampling="lcm", zsnr=False),
    "Deep Shrink": change_by(
        "model_downscale", "PatchModelAddDownscale", **DOWNSCALE, downscale_after_skip=True
    ),
    "Deep Shrink before skip": change_by(
        "model_downscale", "PatchModelAddDownscale", **DOWNSCALE, downscale_after_skip=False
    ),
    "PAG": change_by("pag", "PerturbedAttentionGuidance", scale=3.0),
    "ToMe": change_by("tomesd", "TomePatchModel", ratio=0.5),
    "LazyCache": change_by("easycache", "LazyCacheNode", **CACHE),
    "TCFG": change_by("tcfg", "TCFG"),
    "Mahiro": change_by("mahiro", "Mahiro"),
    "APG": change_by("apg", "APG", eta=1.0, norm_threshold=5.0, momentum=0.1),
    "CFGNorm": change_by("cfg", "CFGNorm", strength=1.0),
    "CFGZeroStar": change_by("cfg", "CFGZeroStar"),
    "FreSca": change_by("fresca", "FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=2),
}
WHOLE_ONLY = {
    "SAG": change_by("sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "EasyCache": change_by("easycache", "EasyCacheNode", **CACHE),
}


def in_orders(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, change: Change, windows: dict, steps: int
) -> list[Tensor]:
    """Latents without the change, with it before AniFaceDiff, and behind it."""
    plain, *conds = applied(host, twin, **windows)
    before, *_ = applied(host, twin, model=change(twin.model), **windows)
    results = []
    for model in (plain, before, change(plain)):
        torch.manual_seed(0)  # some draw numbers
        results.append(run_host(comfy, model, *conds, noise_for(FRAMES), steps, CFG))
    return results


@pytest.mark.parametrize("windows", [WHOLE, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("name", CHANGES)
def test_both_orders(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, name: str, windows: dict[str, int]
) -> None:
    """Before or behind AniFaceDiff, a node does the same, and something."""
    steps = 4 if "Cache" in name else 2
    plain, before, behind = in_orders(comfy, host, twin, CHANGES[name], windows, steps)
    assert before.isfinite().all()
    assert relative_error(behind, before) < 1e-6
    assert relative_error(before, plain) > 1e-3


@pytest.mark.parametrize(("name", "told"), [("SAG", "Self-Attention Guidance"), ("EasyCache", "LazyCache")])
def test_nodes_for_the_whole_video(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, name: str, told: str
) -> None:
    """What would mix up windows works without them and is refused with them."""
    change = WHOLE_ONLY[name]
    plain, before, behind = in_orders(comfy, host, twin, change, WHOLE, 4)
    assert relative_error(behind, before) < 1e-6
    assert relative_error(before, plain) > 1e-3
    model, *conds = applied(host, twin, **WINDOWS)
    with input_error(f"{told}.*window to all {FRAMES} frames"):
        run_host(comfy, change(model), *conds, noise_for(FRAMES), 1, CFG)


@pytest.mark.parametrize("order", ["before", "behind"])
def test_hypertile_is_refused(comfy: ModuleType, host: SimpleNamespace, twin: Twin, order: str) -> None:
    change = change_by("hypertile", "HyperTile", **HYPERTILE)
    model, *conds = applied(host, twin, model=change(twin.model) if order == "before" else None)
    model = model if order == "before" else change(model)
    layers = layers_of(model)
    with input_error("HyperTile"):
        run_host(comfy, model, *conds, noise_for(FRAMES), 1, CFG)
    assert layers_of(model) == layers


def test_prediction_and_schedule_of_model_sampling_discrete(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin
) -> None:
    """The node makes of any MODEL what a checkpoint of that prediction would be."""
    from dataclasses import replace

    weights, config = twin.core.unet.state_dict(), twin.core.config
    for prediction, zsnr in (("v_prediction", True), ("v_prediction", False), ("epsilon", False)):
        native = host.model.load_model(
            weights, replace(config, prediction=prediction, zero_terminal_snr=zsnr)
        )
        sampling = {"v_prediction": "v_prediction", "epsilon": "eps"}[prediction]
        change = change_by("model_advanced", "ModelSamplingDiscrete", sampling=sampling, zsnr=zsnr)
        found, expected = (
            run_host(comfy, *applied(host, twin, model=model), noise_for(FRAMES), 2, CFG)
            for model in (change(twin.model), native)
        )
        assert torch.equal(found, expected)
