"""LoRA files of every naming by the host's loader and by ours, against weights merged by hand.

A narrow copy of Stable Diffusion 1.5 with random weights, latents of 8×8.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from test_native import relative_error
from test_parity import Twin, applied, call_host, make_twin, noise_for, run_host
from torch import Tensor, nn

from harness.stock import extra, run_node

EQUAL = 1e-4  # relative error in fp32 where two ways must come to the same
RANK, ALPHA, STRENGTH = 3, 2.0, 0.7


@pytest.fixture(scope="module")
def twin(host: SimpleNamespace) -> Twin:
    return make_twin(host, "narrow", 3)


def input_error(match: str = "") -> Any:
    from anifacediff_core.errors import InputError

    return pytest.raises(InputError, match=match)


def sampled(comfy: ModuleType, host: SimpleNamespace, twin: Twin, model: Any = None) -> Tensor:
    """Latents of the video on `model`, at one noise level, guided."""
    return call_host(comfy, *applied(host, twin, frames=3, model=model), noise_for(twin, 3), 2.5)


# --- Files ---------------------------------------------------------------------------------------

Naming = Callable[[str, str], tuple[str, str, str]]


def kohya(layer: str, _: str) -> tuple[str, str, str]:
    name = "lora_unet_" + layer.replace(".", "_")
    return f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha"


def kohya_host(_: str, layer: str) -> tuple[str, str, str]:
    return kohya(layer, "")


def host_up_down(_: str, layer: str) -> tuple[str, str, str]:
    name = f"diffusion_model.{layer}"
    return f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha"


def host_peft(_: str, layer: str) -> tuple[str, str, str]:
    name = f"diffusion_model.{layer}"
    return f"{name}.lora_B.weight", f"{name}.lora_A.weight", f"{name}.alpha"


def old_diffusers(layer: str, _: str) -> tuple[str, str, str]:
    name = "unet." + layer
    if ".to_" in name:
        name = name.replace(".to_", ".processor.to_").removesuffix(".0")
        return f"{name}_lora.up.weight", f"{name}_lora.down.weight", f"{name}.alpha"
    return f"{name}.lora.up.weight", f"{name}.lora.down.weight", f"{name}.alpha"


def peft(prefix: str, suffix: str = "") -> Naming:
    def name_of(layer: str, _: str) -> tuple[str, str, str]:
        name = prefix + layer
        return f"{name}.lora_B{suffix}.weight", f"{name}.lora_A{suffix}.weight", f"{name}.alpha"

    return name_of


def peft_of_host(_: str, layer: str) -> tuple[str, str, str]:
    return peft("base_model.model.")(layer, "")


ALL_BY_STOCK: dict[str, Naming] = {
    "kohya": kohya,
    "kohya, host's names": kohya_host,
    "host, up and down": host_up_down,
    "host, A and B": host_peft,
    "old diffusers": old_diffusers,
}
IN_PART_BY_STOCK: dict[str, Naming] = {
    "unet.": peft("unet."),
    "bare": peft(""),
}
NOT_BY_STOCK: dict[str, Naming] = {
    "base_model": peft("base_model.model.", ".default"),
    "base_model, host's names": peft_of_host,
    "unet.base_model": peft("unet.base_model.model."),
    "diffusion_model, diffusers' names": peft("diffusion_model."),
}
NAMINGS = ALL_BY_STOCK | IN_PART_BY_STOCK | NOT_BY_STOCK


@pytest.fixture(scope="module")
def layers(comfy: ModuleType, twin: Twin) -> dict[str, tuple[str, nn.Module]]:
    """All layers of the UNet that a LoRA can change: diffusers' name → the host's name, and the layer."""
    names = comfy.utils.unet_to_diffusers(twin.model.model.model_config.unet_config)
    return {
        name: (names[f"{name}.weight"].removesuffix(".weight"), layer)
        for name, layer in twin.core.unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


@pytest.fixture(scope="module")
def changes(layers: dict[str, tuple[str, nn.Module]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors (out, rank, ...) and (rank, in, ...) for every layer."""
    generator = torch.Generator().manual_seed(21)
    factors = {}
    for name, (_, layer) in layers.items():
        out, *rest = layer.weight.shape
        up = 0.3 * torch.randn(out, RANK, *(1 for _ in rest[1:]), generator=generator)
        down = torch.randn(RANK, *rest, generator=generator) / layer.weight[0].numel() ** 0.5
        factors[name] = up, down
    return factors


def lora_file(naming: Naming, layers: dict, changes: dict, alpha: bool = True) -> dict[str, Tensor]:
    file = {}
    for name, (up, down) in changes.items():
        names = naming(name, layers[name][0])
        file |= (
            dict(zip(names, (up, down, torch.tensor(ALPHA)))) if alpha else dict(zip(names[:2], (up, down)))
        )
    return file


@pytest.fixture(scope="module")
def merged(comfy: ModuleType, host: SimpleNamespace, twin: Twin, changes: dict) -> Tensor:
    """What the hand-merged weights sample."""
    weights = dict(twin.core.unet.state_dict())
    for name, (up, down) in changes.items():
        change = (up.flatten(1) @ down.flatten(1)).view_as(weights[f"{name}.weight"])
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + STRENGTH * ALPHA / RANK * change
    return sampled(comfy, host, twin, host.model.load_model(weights, twin.core.config))


@pytest.fixture
def loras(comfy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file into a folder for LoRAs of its own and tells its name."""
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"})
    )

    def write(weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
        weights = {name: tensor.contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(weights, tmp_path / "lora.safetensors", metadata)
        return "lora.safetensors"

    return write


def stock_lora(nodes: ModuleType, model: Any, name: str, strength: float = STRENGTH) -> Any:
    (patched,) = run_node(nodes.LoraLoaderModelOnly, model=model, lora_name=name, strength_model=strength)
    return patched


def our_lora(host: SimpleNamespace, model: Any, name: str, strength: float = STRENGTH) -> tuple[Any, str]:
    return host.lora.load_lora(model, host.folders.file_path("loras", name), strength)


# --- Loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ALL_BY_STOCK)
def test_stock_lora_loader(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, layers: dict, changes: dict,
    merged: Tensor, loras: Callable, naming: str,
) -> None:  # fmt: skip
    """Every layer is patched, and the result is that of weights merged by hand."""
    watched = twin.model.clone()
    host.lora.watch_loras(watched)
    name = loras(lora_file(NAMINGS[naming], layers, changes))
    patched = stock_lora(nodes, watched, name)
    assert len(patched.patches) == len(changes) > 200
    assert relative_error(sampled(comfy, host, twin, patched), merged) < EQUAL
    assert host.lora.lora_warnings(patched) == []


@pytest.mark.parametrize("naming", NAMINGS)
def test_our_lora_loader(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, layers: dict, changes: dict,
    merged: Tensor, loras: Callable, naming: str,
) -> None:  # fmt: skip
    watched = twin.model.clone()
    host.lora.watch_loras(watched)
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(4, 1)}
    name = loras(lora_file(NAMINGS[naming], layers, changes) | text)
    patched, report = our_lora(host, watched, name)
    assert len(patched.patches) == len(changes)
    assert f"{len(changes)} of {len(changes)} layers; left aside of a text encoder: 1 layers" in report
    assert relative_error(sampled(comfy, host, twin, patched), merged) < EQUAL
    assert host.lora.lora_warnings(patched) == []
    assert not watched.patches and relative_error(sampled(comfy, host, twin), merged) > 1e-2


# --- What the stock loader leaves out ------------------------------------------------------------


def told(comfy: ModuleType, host: SimpleNamespace, twin: Twin, caplog: Any, prepare: Callable) -> list[str]:
    """Warnings of a sampling run of `prepare(MODEL of Load AniFaceDiff)`, applied."""
    loaded = twin.model.clone()
    host.lora.watch_loras(loaded)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model, *conds = prepare(loaded)
        caplog.clear()
        run_host(comfy, model, *conds, noise_for(twin, 3), 1, 1.0)
    return [record.getMessage() for record in caplog.records if "LoRA" in record.getMessage()]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("naming", [*IN_PART_BY_STOCK, *NOT_BY_STOCK])
def test_what_the_stock_loader_leaves_out_is_told(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, layers: dict, changes: dict,
    loras: Callable, caplog: Any, naming: str, order: str,
) -> None:  # fmt: skip
    name = loras(lora_file(NAMINGS[naming], layers, changes))

    def prepare(model: Any) -> tuple[Any, list, list]:
        if order == "before":
            return applied(host, twin, frames=3, model=stock_lora(nodes, model, name))
        model, *conds = applied(host, twin, frames=3, model=model)
        return stock_lora(nodes, model, name), *conds

    (warning,) = told(comfy, host, twin, caplog, prepare)
    assert ("none of its attention" if naming in IN_PART_BY_STOCK else "no layer of the MODEL") in warning


def test_only_what_is_left_out_is_told(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, layers: dict, changes: dict,
    loras: Callable, caplog: Any,
) -> None:  # fmt: skip
    """Other nodes that change how a MODEL's weights are used, and LoRAs without attention, cause no word."""
    compute_type = extra("model_advanced", "ModelComputeDtype")
    convolutions = {name: factors for name, factors in changes.items() if "conv" in name}
    host_named = lora_file(host_peft, layers, convolutions)

    def prepare(model: Any) -> tuple[Any, list, list]:
        name = loras(lora_file(kohya, layers, changes))
        model = stock_lora(nodes, stock_lora(nodes, model, name), name)
        model = stock_lora(nodes, model.clone(), loras(host_named))
        (model,) = run_node(compute_type, model=model, dtype="fp32")
        (model,) = run_node(compute_type, model=model, dtype="fp32")
        model = model.clone()
        model.add_weight_wrapper("diffusion_model.input_blocks.0.0.weight", lambda weight: weight)
        model, *conds = applied(host, twin, frames=3, model=model)
        return *run_node(extra("freelunch", "FreeU_V2"), model=model, b1=1, b2=1, s1=1, s2=1), *conds

    assert told(comfy, host, twin, caplog, prepare) == []


def test_a_lora_without_effect_between_others_is_told(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, layers: dict, changes: dict,
    loras: Callable, caplog: Any,
) -> None:  # fmt: skip
    def prepare(model: Any) -> tuple[Any, list, list]:
        for naming in ("kohya", "base_model", "kohya"):
            model = stock_lora(nodes, model, loras(lora_file(NAMINGS[naming], layers, changes)))
        return applied(host, twin, frames=3, model=model)

    (warning,) = told(comfy, host, twin, caplog, prepare)
    assert "no layer of the MODEL" in warning


@pytest.mark.parametrize("naming", ["kohya", "unet.", "base_model"])
def test_loras_that_come_with_the_conditioning(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, layers: dict, changes: dict, loras: Callable,
    caplog: Any, naming: str,
) -> None:  # fmt: skip
    """As hooks. What the host leaves out of one is told in its run, and in no other of the same MODEL."""
    name = loras(lora_file(NAMINGS[naming], layers, changes))
    create, set_properties = (
        extra("hooks", "CreateHookLoraModelOnly"),
        extra("hooks", "ConditioningSetProperties"),
    )
    (hooks,) = run_node(create, lora_name=name, strength_model=1.0)
    models = []

    def with_hooks(model: Any) -> tuple[Any, list, list]:
        model, *conds = applied(host, twin, frames=3, model=model)
        models.append(model)
        values = {"strength": 1.0, "set_cond_area": "default", "hooks": hooks}
        return model, *(run_node(set_properties, cond_NEW=cond, **values)[0] for cond in conds)

    def without_hooks(_: Any) -> tuple[Any, list, list]:
        _, *conds = applied(host, twin, frames=3)
        return models[0], *conds

    first = told(comfy, host, twin, caplog, with_hooks)
    assert len(first) == (naming != "kohya")
    assert told(comfy, host, twin, caplog, without_hooks) == []


def test_other_shapes_of_the_stock_loader_are_told(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, layers: dict, changes: dict,
    loras: Callable, caplog: Any,
) -> None:  # fmt: skip
    wide = {name: (torch.ones(320, 1), torch.ones(1, 320)) for name in list(changes)[:5]}

    def prepare(model: Any) -> tuple[Any, list, list]:
        model = stock_lora(nodes, model, loras(lora_file(kohya, layers, changes | wide)))
        return applied(host, twin, frames=3, model=model)

    found = told(comfy, host, twin, caplog, prepare)
    assert f"doesn't fit 5 of the {len(changes)} layers" in found[0]


# --- Refusals and reports ------------------------------------------------------------------------

ATTENTION = "lora_unet_{}_transformer_blocks_{}_attn2_to_k.lora_{}.weight"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"], "looks like a LoRA for Flux"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "looks like a LoRA for Flux"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA for Stable Diffusion 3"),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "a video model such as Wan"),
        (
            ["down_blocks.0.motion_modules.0.temporal_transformer.proj_in.lora_A.weight"],
            "an AnimateDiff motion LoRA",
        ),
        ([ATTENTION.format("input_blocks_7_1", 5, side) for side in ("up", "down")], "a LoRA for SDXL"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], "a text encoder only"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "holds no LoRA"),
    ],
)  # fmt: skip
def test_a_lora_that_fits_nothing_is_refused(
    host: SimpleNamespace, twin: Twin, loras: Callable, names: list[str], told: str
) -> None:
    name = loras({key: torch.zeros(2, 2) for key in names})
    with input_error(told) as error:
        our_lora(host, twin.model, name)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(("context", "family"), [(768, "1.5"), (1024, "2"), (2048, "SDXL")])
def test_a_lora_of_other_widths_is_refused(
    host: SimpleNamespace, twin: Twin, loras: Callable, context: int, family: str
) -> None:
    name = ATTENTION.format("down_blocks_0_attentions_0", 0, "{}")
    file = {name.format("up"): torch.zeros(320, 4), name.format("down"): torch.zeros(4, context)}
    with input_error(f"looks like a LoRA for .*{family}: choose"):
        our_lora(host, twin.model, loras(file))


@pytest.mark.parametrize(
    "parts",
    [
        {".lora_up.weight": (96, 4), ".lora_down.weight": (4, 96), ".alpha": (2,)},
        {".lora_up.weight": (96, 4), ".lora_down.weight": (8, 128)},
        {".lora_up.weight": (), ".lora_down.weight": (4, 96)},
        {".lora_up.weight": (96, 4), ".lora_down.weight": ()},
        {".diff": ()},
        {".hada_w1_a": (), ".hada_w1_b": (), ".hada_w2_a": (), ".hada_w2_b": ()},
        {".lora_up.weight": (96, 4)},
        {".lora_down.weight": (4, 96), ".alpha": ()},
    ],
)
def test_a_lora_of_odd_tensors_is_refused(
    host: SimpleNamespace, twin: Twin, loras: Callable, parts: dict[str, tuple[int, ...]]
) -> None:
    layer = ATTENTION.format("down_blocks_0_attentions_0", 0, "up").removesuffix(".lora_up.weight")
    name = loras({layer + suffix: torch.zeros(shape) for suffix, shape in parts.items()})
    with input_error("lora.safetensors "):
        our_lora(host, twin.model, name)


def test_a_lora_that_fits_in_part_is_told(
    host: SimpleNamespace, twin: Twin, layers: dict, changes: dict, loras: Callable
) -> None:
    file = lora_file(kohya, layers, changes)
    more = {
        f"lora_unet_down_blocks_7_resnets_0_conv1.lora_{side}.weight": torch.zeros(2, 2)
        for side in ("up", "down")
    }
    alone = {"lora_unet_conv_norm_out.alpha": torch.tensor(1.0), "notes": torch.zeros(1)}
    patched, report = our_lora(host, twin.model, loras(file | more | alone))
    assert len(patched.patches) == len(changes)
    assert f"{len(changes)} of {len(changes) + 2} layers; without a place in the MODEL: 2" in report
    assert "left aside as no LoRA: 1 tensors (first: notes)" in report


def test_other_weights_are_not_read(
    host: SimpleNamespace, twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole checkpoint, chosen by mistake."""
    path = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file({"unet.weight": torch.zeros(2)}, path)
    monkeypatch.setattr("anifacediff_core.weights.reading.TensorFile.read", pytest.fail)
    with input_error("holds no LoRA .*unet.weight"):
        host.lora.load_lora(twin.model, path, 1.0)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", None], ids=["empty", "text", "pickle"])
def test_a_damaged_or_dangerous_lora_is_refused(
    host: SimpleNamespace, twin: Twin, tmp_path: Path, content: bytes | None
) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harm",))

    path = tmp_path / ("lora.safetensors" if content is not None else "lora.pt")
    if content is None:
        torch.save({"lora_unet_conv_in.lora_up.weight": Harm()}, path)
    else:
        path.write_bytes(content)
    with input_error(f"^{path.name} "):
        host.lora.load_lora(twin.model, path, 1.0)
    assert not (tmp_path / "harm").exists()


def test_a_lora_of_the_days_before_safetensors(
    host: SimpleNamespace, twin: Twin, layers: dict, changes: dict, tmp_path: Path
) -> None:
    torch.save({"state_dict": lora_file(kohya, layers, changes)}, tmp_path / "lora.pt")
    patched, _ = host.lora.load_lora(twin.model, tmp_path / "lora.pt", 1.0)
    assert len(patched.patches) == len(changes)


def test_scale_of_diffusers_header(
    host: SimpleNamespace, twin: Twin, layers: dict, changes: dict, loras: Callable
) -> None:
    """Files without alphas, whose scale stands in the header."""
    file = lora_file(peft("unet."), layers, changes, alpha=False)
    for rslora, scale in ((False, ALPHA), (True, ALPHA * RANK**0.5)):
        notes = {"unet.lora_alpha": ALPHA, "unet.r": RANK, "unet.use_rslora": rslora}
        patched, _ = our_lora(host, twin.model, loras(file, {"lora_adapter_metadata": json.dumps(notes)}))
        (patch,) = patched.patches["diffusion_model.input_blocks.0.0.weight"]
        assert patch[1].weights[2] == pytest.approx(scale)
    patched, _ = our_lora(host, twin.model, loras(file))
    assert patched.patches["diffusion_model.input_blocks.0.0.weight"][0][1].weights[2] is None


def test_dora_of_peft(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, layers: dict, changes: dict, loras: Callable
) -> None:
    """Rows of the given lengths in the direction of weight plus change."""
    linear = {name: changes[name] for name in changes if isinstance(layers[name][1], nn.Linear)}
    file = lora_file(peft("unet."), layers, linear, alpha=False)
    magnitudes = {name: 1 + torch.arange(len(up)) / len(up) for name, (up, _) in linear.items()}
    file |= {f"unet.{name}.lora_magnitude_vector": lengths for name, lengths in magnitudes.items()}
    patched, _ = our_lora(host, twin.model, loras(file), 1.0)
    assert len(patched.patches) == len(linear)
    for name, (up, down) in linear.items():
        key = f"diffusion_model.{layers[name][0]}.weight"
        weight = layers[name][1].weight.detach()
        found = comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key)
        # the host divides by the lengths before the change
        expected = (weight + up @ down) * (magnitudes[name] / weight.norm(dim=1))[:, None]
        assert relative_error(found, expected) < 1e-5
