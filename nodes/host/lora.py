"""LoRA files in any naming onto the host's MODEL, and what the host's own loaders leave out of one.

Trainers name one layer in many ways:

- kohya: `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`;
- the host: `diffusion_model.input_blocks.1.1.proj_in.lora_down.weight`, or `.lora_A.weight`;
- PEFT: `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`, also without `unet.` or as
  `base_model.model.down_blocks...`;
- older diffusers: `down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight`.

The host's loaders know some of them and go without the layers, often all of the attention, that they don't
know. `load_lora` renames all to the host's and leaves the arithmetic to the host. `watch_loras` makes a MODEL
tell what other loaders left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.weights.reading import open_tensors

from .runtime import notify

KEY = "anifacediff_lora"
PREFIX = "diffusion_model."  # what the host calls the UNet in a MODEL

Parts = dict[str, Tensor]  # tensors of one layer by suffix

# what precedes a layer's name, dots written as underscores; several may follow one another
_PREFIXES = re.compile(
    r"((state_dict|base_model_model|model_diffusion_model|diffusion_model|lora_unet|lycoris|unet)_)*"
)
_TEXT_ENCODER = re.compile(r"(lora_)?te[12]?_|text_(encoder|model)|clip_[lg]_")
# what follows it, and what the host's adapters call that; None: the same
_SUFFIXES = [
    (re.compile(r"(\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)up\.weight$"), ".lora_up.weight"),
    (re.compile(r"(\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)down\.weight$"), ".lora_down.weight"),
    (re.compile(r"\.lora_B(\.[^.]+)?(\.weight)?$"), ".lora_up.weight"),
    (re.compile(r"\.lora_A(\.[^.]+)?(\.weight)?$"), ".lora_down.weight"),
    (re.compile(r"\.lora_magnitude_vector(\.[^.]+)?(\.weight)?$"), ".dora_scale"),
    (re.compile(r"\.(lora_mid\.weight|alpha|dora_scale|hada_\w+|lokr_\w+|oft_\w+|rescale)$"), None),
    (re.compile(r"\.([ab][12]\.weight|diff|diff_b|w_norm|b_norm|set_weight)$"), None),
]
_SDXL = "a LoRA for SDXL"
_FAMILIES = [
    (r"motion_modules|temporal_transformer", "an AnimateDiff motion LoRA"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "a LoRA for Flux"),
    (r"joint_(transformer_)?blocks|^transformer_transformer_blocks", "a LoRA for Stable Diffusion 3"),
    (r"^(lora_unet_|diffusion_model_|transformer_)?_?blocks_\d+_", "a LoRA for a video model such as Wan"),
    (r"lllite_", "a ControlNet-LLLite"),
    (r"lora_te2_|text_encoder_2_|_\d_transformer_blocks_[1-9]", _SDXL),
]
_CONTEXTS = {768: "a LoRA for Stable Diffusion 1.5", 1024: "a LoRA for Stable Diffusion 2", 2048: _SDXL}


def load_lora(model: ModelPatcher, path: Path, strength: float) -> tuple[ModelPatcher, str]:
    """A clone of `model` with the LoRA, and a line about what of the file it uses."""
    weights, metadata = _read(path)
    found = _sort_out(weights, _layers(model), path.name)
    if not found.fitting:
        raise InputError(_refusal(path.name, found))
    _add_alphas(found.fitting, metadata)
    shapes = _shapes(model)
    patches = {key: patch for key, patch in _patches(found.fitting, path.name).items() if key in shapes}
    misfits = [key for key, patch in patches.items() if not _has_shape(patch, shapes[key])]
    if misfits:
        first = f"{misfits[0]}, here {list(shapes[misfits[0]])}"
        raise InputError(
            f"{path.name} has other shapes than the MODEL in {len(misfits)} of {len(patches)} layers "
            f"(first: {first}){found.likeness}: choose a LoRA made for this MODEL."
        )
    model = model.clone()
    model.add_patches(patches, strength)
    return model, _report(path.name, {key.rpartition(".")[0] for key in patches}, found)


def _patches(fitting: dict[str, Parts], file: str) -> dict[str, Any]:
    """What the host makes of a LoRA in its own naming, by the names of the weights."""
    renamed = {layer + suffix: tensor for layer, parts in fitting.items() for suffix, tensor in parts.items()}
    keys = {layer: f"{layer}.weight" for layer in fitting}
    try:
        patches: dict[str, Any] = comfy.lora.load_lora(renamed, keys, log_missing=False)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{file} has layers that are no LoRA's ({error}): choose another file.") from error
    if not patches:
        raise InputError(f"{file} has no whole layer of a LoRA (first: {min(renamed)}): choose another file.")
    return patches


def watch_loras(model: ModelPatcher) -> None:
    """Make `model` and all its clones tell, when they are sampled, which LoRA the host applied only in part.

    A loader clones the MODEL and adds patches. A LoRA of which the host knows no layer adds none, and shows
    only in the number that the host draws anew at every addition. So every clone remembers how it came to be.
    """
    if model.get_attachment(KEY) is not None:
        return
    model.set_attachments(KEY, _birth(model, 0))
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _remember_birth)
    model.add_callback_with_key(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, KEY, _forget_hooks)
    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, _notify)


def lora_warnings(model: ModelPatcher) -> list[str]:
    """A sentence for everything that the host left out of the LoRAs on `model`."""
    warnings = []
    watched = model.get_attachment(KEY) is not None
    if (watched and _without_effect(model)) or not all(model.hook_patches.values()):
        warnings.append(
            "A LoRA reaches no layer of the MODEL and has no effect: load it with AniFaceDiff's LoRA Loader, "
            "which knows more namings and says what a file was made for."
        )
    files = _files(model)
    shapes = _shapes(model) if files else {}
    for names, patches in files:
        misfits = [key for key, patch in patches if not _has_shape(patch, shapes[key])]
        if misfits:
            warnings.append(
                f"A LoRA doesn't fit {len(misfits)} of the {len(patches)} layers that it names (first: "
                f"{misfits[0]}), which stay without it: choose a LoRA that was made for this MODEL."
            )
        if _lost_attention(names):
            warnings.append(
                f"A LoRA reaches {len(patches)} layers of the MODEL but none of its attention, whose names "
                "in the file the host doesn't know: load it with AniFaceDiff's LoRA Loader."
            )
    return warnings


# How a MODEL came to be, as an attachment: the host's number of its patches and how many there are, and how
# many LoRAs before it added nothing.
Birth = tuple[Any, int, int]


def _birth(model: ModelPatcher, without_effect: int) -> Birth:
    return model.patches_uuid, _patch_count(model), without_effect


def _without_effect(model: ModelPatcher) -> int:
    """How many LoRAs found no layer: those before, and one that `model` was asked to add since."""
    number, patches, before = model.get_attachment(KEY)
    nothing = model.patches_uuid != number and _patch_count(model) == patches
    return before + (nothing and "manual_cast_dtype" not in model.object_patches)  # that draws it anew, too


def _patch_count(model: ModelPatcher) -> int:
    """Also of wrappers, at which the host draws the number anew as well."""
    return sum(map(len, (*model.patches.values(), *model.weight_wrapper_patches.values())))


def _remember_birth(parent: ModelPatcher, child: ModelPatcher) -> None:
    child.set_attachments(KEY, _birth(child, _without_effect(parent)))


def _forget_hooks(model: ModelPatcher, *_: Any) -> None:
    """LoRAs that come with the conditioning draw the number anew as well, and stay for one run only."""
    if model.hook_patches:
        model.set_attachments(KEY, _birth(model, model.get_attachment(KEY)[2]))


def _notify(model: ModelPatcher) -> None:
    warnings = lora_warnings(model)
    if warnings:
        notify("\n".join(warnings), logging.WARNING)


def _files(model: ModelPatcher) -> list[tuple[set[str], list[tuple[str, Any]]]]:
    """Of every LoRA on `model`: the names that the host read from its file, and its patches by layer."""
    files: dict[int, tuple[set[str], list[tuple[str, Any]]]] = {}
    sources = (model.patches, *model.hook_patches.values())
    every = [
        (key, patch) for source in sources for key, patches in source.items() for _, patch, *_ in patches
    ]
    for key, patch in every:
        # the host gives all adapters of one file the same set
        names = getattr(patch, "loaded_keys", None)
        if key.startswith(PREFIX) and isinstance(names, set):
            files.setdefault(id(names), (names, []))[1].append((key, patch))
    return list(files.values())


def _lost_attention(names: Iterable[str]) -> bool:
    """Whether a file has diffusers' names with dots, of which the host ignores those of the attention."""
    dotted = [name for name in names if re.match(r"(unet\.)?(down_blocks|mid_block|up_blocks)\.", name)]
    return bool(dotted) and not any(re.search(r"\.to_(q|k|v|out)", name) for name in dotted)


@dataclass(frozen=True)
class _Contents:
    """What a file holds.

    Attributes:
        fitting: tensors by suffix, of the layers that the MODEL has too, under the host's names.
        homeless: names of the layers that it has not.
        text_encoder: number of layers of text encoders.
        unknown: names of the tensors that are no LoRA's.
        family: what the file was made for, as far as names and shapes tell.
    """

    fitting: dict[str, Parts]
    homeless: list[str]
    text_encoder: int
    unknown: list[str]
    family: str | None

    @property
    def likeness(self) -> str:
        return f"; it looks like {self.family}" if self.family else ""


def _read(path: Path) -> tuple[Parts, dict[str, str]]:
    """The file's tensors and, in safetensors, its notes; what is no LoRA's is without numbers."""
    with open_tensors(path) as file:
        weights = {
            name: file.read(name)
            if _split(name)[1]
            else torch.empty(info.shape, dtype=info.dtype, device="meta")
            for name, info in file.infos.items()
        }
        metadata = file.metadata
    if not weights:
        raise InputError(f"{path.name} holds no tensors and so no LoRA: choose another file.")
    return weights, metadata


def _layers(model: ModelPatcher) -> dict[str, str]:
    """The host's name of every layer, by its flat name in the host's naming and in diffusers'."""
    if not isinstance(model.model.diffusion_model, UNetModel):
        kind = type(model.model.diffusion_model).__name__
        raise InputError(
            f"LoRA Loader needs a MODEL of Stable Diffusion's form, not {kind}: use the host's Load LoRA."
        )
    names = [key.removesuffix(".weight") for key in _shapes(model) if key.endswith(".weight")]
    layers = {_flat(name.removeprefix(PREFIX)): name for name in names}
    for diffusers, host in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items():
        layer = layers.get(_flat(host.removesuffix(".weight")))
        if host.endswith(".weight") and layer is not None:
            layers[_flat(diffusers.removesuffix(".weight"))] = layer
    return layers


def _shapes(model: ModelPatcher) -> dict[str, torch.Size]:
    return {key: weight.shape for key, weight in model.model_state_dict(PREFIX).items()}


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _sort_out(weights: Parts, layers: dict[str, str], file: str) -> _Contents:
    fitting: dict[str, Parts] = {}
    homeless, text_encoder, unknown = [], set(), []
    for name, tensor in weights.items():
        layer, suffix = _split(name)
        # without prefixes, and without the `processor` of older diffusers
        flat = _PREFIXES.sub("", _flat(layer), count=1).replace("_processor_to_", "_to_")
        place = layers.get(flat) or layers.get(flat + "_0")  # older diffusers: to_out for to_out.0
        if _TEXT_ENCODER.match(flat):
            text_encoder.add(flat)
        elif not suffix:
            unknown.append(name)
        elif place is None:
            homeless.append(layer)
        elif suffix in fitting.setdefault(place, {}):
            raise InputError(f"{file} has the layer {layer} twice, in two namings: choose another file.")
        else:
            # PEFT has the magnitudes of DoRA in one row, the host one per row
            row = suffix == ".dora_scale" and tensor.ndim == 1
            fitting[place][suffix] = tensor.reshape(-1, 1) if row else tensor
    return _Contents(fitting, list(dict.fromkeys(homeless)), len(text_encoder), unknown, _family(weights))


def _split(name: str) -> tuple[str, str]:
    """The layer's name, and the suffix as the host knows it; none where the tensor is no LoRA's."""
    for pattern, suffix in _SUFFIXES:
        found = pattern.search(name)
        if found:
            return name[: found.start()], suffix or found[0]
    return name, ""


def _family(weights: Parts) -> str | None:
    flats = {_flat(name): tensor for name, tensor in weights.items()}
    for pattern, family in _FAMILIES:
        if any(re.search(pattern, flat) for flat in flats):
            return family
    contexts = [
        _CONTEXTS.get(tensor.shape[-1])
        for flat, tensor in flats.items()
        if re.search(r"attn2_(processor_)?to_[kv]", flat) and tensor.ndim == 2
    ]
    return next((family for family in contexts if family), None)


def _add_alphas(fitting: dict[str, Parts], metadata: dict[str, str]) -> None:
    """Add the scale, which diffusers notes in the header where others store it with every layer."""
    try:
        notes = parse_json(metadata.get("lora_adapter_metadata", "{}"))
        alpha = float(notes["unet.lora_alpha"])
    except (ValueError, TypeError, KeyError):
        return
    for parts in fitting.values():
        if ".lora_down.weight" in parts and ".alpha" not in parts:
            rank = parts[".lora_down.weight"].shape[0]
            parts[".alpha"] = torch.tensor(alpha * (rank**0.5 if notes.get("unet.use_rslora") else 1))


def _has_shape(patch: Any, shape: torch.Size) -> bool:
    """Whether a patch has as many numbers as the weight, where that shows without computing it."""
    name, weights = getattr(patch, "name", None), getattr(patch, "weights", None)
    if weights and ((name == "lora" and weights[3] is None) or (name == "loha" and weights[5] is None)):
        up, down = weights[:2]
        ranks = up.shape[1:2] == down.shape[:1] and up.ndim > 1
        return ranks and up.shape[0] * prod(down.shape[1:]) == prod(shape)
    if isinstance(patch, tuple) and patch[0] == "diff":
        return patch[1][0].shape == shape
    return True


def _refusal(file: str, found: _Contents) -> str:
    """Why no layer fits."""
    if found.homeless:
        named = f"it names {found.homeless[0]}"
        return f"{file} fits no layer of the MODEL ({named}){found.likeness}: choose another LoRA."
    if found.text_encoder:
        return f"{file} changes a text encoder only, which AniFaceDiff has not: choose a LoRA for the UNet."
    return f"{file} holds no LoRA (its first tensor is {found.unknown[0]}): choose another file."


def _report(file: str, reached: set[str], found: _Contents) -> str:
    left = found.homeless + sorted(set(found.fitting) - reached)
    report = f"{file}: {len(reached)} of {len(reached) + len(left)} layers"
    if left:
        report += f"; without a place in the MODEL: {len(left)} (first: {left[0]}){found.likeness}"
    if found.text_encoder:
        report += f"; left aside of a text encoder: {found.text_encoder} layers"
    if found.unknown:
        report += f"; left aside as no LoRA: {len(found.unknown)} tensors (first: {found.unknown[0]})"
    return report
