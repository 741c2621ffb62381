"""Weights in fp8, with and without ComfyUI's scales, come out as the numbers that they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.lab.assembly import convert
from anifacediff_core.lab.inspection import describe
from anifacediff_core.weights.checkpoint import bundled_checkpoint, load_checkpoint, load_network
from anifacediff_core.weights.importers import recognize_file
from anifacediff_core.weights.reading import open_tensors
from harness import layouts


@pytest.fixture(scope="module")
def unet() -> dict[str, Tensor]:
    """A small UNet of Stable Diffusion as people have it, in half precision."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    made = UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64), cross_attention_dim=768, attention_head_dim=8
    )
    plain = layouts.latent_diffusion_unet(made.state_dict())
    return {f"model.diffusion_model.{name}": weight.half().contiguous() for name, weight in plain.items()}


def scaled(weights: dict[str, Tensor], kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As ComfyUI writes it: `kind` is "old", or where newer files tell the format, "tensor" or "header"."""
    stored, layers = dict(weights), {}
    for name, weight in weights.items():
        if weight.ndim != 2 or not name.endswith(".weight"):
            continue
        layer = name.removesuffix(".weight")
        scale = weight.float().abs().max() / 448
        stored[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        layers[layer] = {"format": "float8_e4m3fn"}
        if kind == "old":
            stored |= {f"{layer}.scale_weight": scale.reshape(1), f"{layer}.scale_input": torch.ones(1)}
            continue
        stored |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.tensor(2.0)}
        if kind == "tensor":
            note = json.dumps(layers[layer]).encode()
            stored[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        else:
            stored[name] = stored[name].view(torch.uint8)
    if kind == "old":
        stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    note = json.dumps({"format_version": "1.0", "layers": layers})
    return stored, {"_quantization_metadata": note} if kind == "header" else {}


@pytest.mark.parametrize("kind", ["old", "tensor", "header"])
def test_scales_of_fp8_are_applied(tmp_path: Path, unet: dict[str, Tensor], kind: str) -> None:
    stored, metadata = scaled(unet, kind)
    path = tmp_path / "sd_fp8_scaled.safetensors"
    save_file(stored, path, metadata)
    with open_tensors(path) as file:
        assert set(file.infos) == set(unet) and file.scaled > 10
        for name, weight in unet.items():
            found = file.read(name)
            assert file.infos[name] == (tuple(found.shape), found.dtype)
            torch.testing.assert_close(
                found.float(), weight.float(), rtol=0.07, atol=weight.abs().max().item() / 448
            )
    assert any("scale, which is applied" in line for line in describe(path))
    convert(path, tmp_path / "out.safetensors")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    theirs = unet["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].float()
    torch.testing.assert_close(
        load_file(tmp_path / "out.safetensors")[name].float(), theirs, rtol=0.07, atol=1e-3
    )


def test_other_ways_to_quantize_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    note = torch.frombuffer(bytearray(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file({"a.weight": torch.ones(4, 2, dtype=torch.uint8), "a.comfy_quant": note}, path)
    with pytest.raises(InputError, match="quantized as nvfp4"):
        open_tensors(path)
    save_file(
        {"a.weight": torch.ones(4, 2).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(2, 2)}, path
    )
    with pytest.raises(InputError, match="one scale for each layer"):
        open_tensors(path)
    save_file({"a.weight": torch.ones(4, 2), "a.comfy_quant": torch.ones(3, dtype=torch.uint8)}, path)
    with pytest.raises(InputError, match="fp8 layers cannot be read"):
        open_tensors(path)
    path.write_bytes(b"GGUF" + bytes(2000))
    with pytest.raises(InputError, match="GGUF"):
        open_tensors(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_checkpoints_in_fp8(tmp_path: Path, dtype: torch.dtype) -> None:
    with safe_open(bundled_checkpoint(), "pt") as file:
        header = json.loads(file.metadata()["anifacediff"])
    weights = load_file(bundled_checkpoint())
    path = tmp_path / "demo.safetensors"
    kept = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
    save_file(kept, path, {"anifacediff": json.dumps(header)})
    model = load_network(load_checkpoint(path))
    name = next(name for name in weights if name.startswith("unet.") and weights[name].ndim == 4)
    assert torch.equal(model.state_dict()[name], kept[name].float())
    assert recognize_file(path).head == header["head"]
