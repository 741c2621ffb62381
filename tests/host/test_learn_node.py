"""Learn This Picture in the host: its file by the stock loader, against the core's, and what it refuses."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from anifacediff_core.sampling import learn as learning
from anifacediff_core.video import read_image
from anifacediff_core.weights.checkpoint import bundled_checkpoint, load_checkpoint, load_network
from anifacediff_core.weights.lora import merge_lora
from harness.extension import Extension
from harness.stock import run_node

SETTINGS = {"size": 32, "rank": 4, "learning_rate": 1e-2, "seed": 0}


@pytest.fixture(scope="module")
def loaded(extension: Extension) -> dict[str, Any]:
    model, _, _, _, _, face_capture = extension.run("Loader", checkpoint="bundled")
    picture = read_image(learning.EXAMPLES / "source.png").movedim(1, -1)
    return {"model": model, "face_capture": face_capture, "pictures": picture}


@pytest.fixture(scope="module")
def learned(extension: Extension, loaded: dict[str, Any]) -> tuple[Any, Path]:
    """The node's MODEL and its file."""
    with torch.inference_mode():  # as the host's executor has it
        model, name = extension.run(
            "LearnThisPicture", **loaded, **SETTINGS, steps=2, filename_prefix="loras/Ann"
        )
    return model, extension.base / "output" / name


def weights(model: Any) -> dict[str, torch.Tensor]:
    """All of the UNet's weights, LoRAs merged in."""
    importlib.import_module("comfy.model_management").load_models_gpu([model], force_patch_weights=True)
    found = {name: weight.clone() for name, weight in model.model.diffusion_model.state_dict().items()}
    model.detach()
    return found


def test_the_stock_loader_takes_every_layer_and_comes_to_the_cores_weights(
    extension: Extension,
    nodes: ModuleType,
    comfy: ModuleType,
    loaded: dict[str, Any],
    learned: tuple[Any, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, file = learned
    assert file.parent.name == "loras"
    extension.folder_paths.add_model_folder_path("loras", str(file.parent))  # as the host's main.py does
    extension.folder_paths.filename_list_cache.clear()
    with caplog.at_level(logging.WARNING):
        (stock,) = run_node(
            nodes.LoraLoaderModelOnly, model=loaded["model"], lora_name=file.name, strength_model=1.0
        )
    assert not [record for record in caplog.records if "lora" in record.getMessage().lower()]
    unet = load_network(load_checkpoint(bundled_checkpoint())).unet
    layers = merge_lora(unet, file)
    assert len(stock.patches) == len(model.patches) == layers

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    core = {names[name]: weight for name, weight in unet.state_dict().items()}
    plain, by_stock, by_node = map(weights, (loaded["model"], stock, model))
    changed = 0
    for name, wanted in core.items():
        scale = wanted.float().abs().max()
        for found in (by_stock[name], by_node[name]):
            assert (found.float() - wanted).abs().max() <= 1e-4 * scale
        changed += not torch.equal(plain[name], by_stock[name])
    assert changed == layers


def test_the_model_that_came_in_stays_as_it_was(loaded: dict[str, Any], learned: tuple[Any, Path]) -> None:
    assert not loaded["model"].patches and learned[0].patches


def test_cancelling_leaves_no_file(extension: Extension, comfy: ModuleType, loaded: dict[str, Any]) -> None:
    management = comfy.model_management
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        extension.run("LearnThisPicture", **loaded, **SETTINGS, steps=50, filename_prefix="loras/Cancelled")
    assert not list((extension.base / "output").rglob("Cancelled*"))


def test_what_it_cannot_learn_from_is_refused(
    extension: Extension, nodes: ModuleType, loaded: dict[str, Any]
) -> None:
    more = {**SETTINGS, "steps": 1, "filename_prefix": "loras/Refused"}
    assert "no face capture" in extension.refusal(
        "LearnThisPicture", **{**loaded, "face_capture": None}, **more
    )
    six = loaded["pictures"].repeat(6, 1, 1, 1)
    assert "6 pictures" in extension.refusal("LearnThisPicture", **{**loaded, "pictures": six}, **more)
    foreign = loaded["model"].clone()
    foreign.attachments = {}
    assert "no checkpoint to tune" in extension.refusal(
        "LearnThisPicture", **{**loaded, "model": foreign}, **more
    )
