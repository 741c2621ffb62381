"""ComfyUI's scaled fp8: weights of one byte, with scales beside them, read as the weights they stand for.

Older files have ``<layer>.scale_weight`` beside ``<layer>.weight``, and a mark ``scaled_fp8``. Newer ones
have ``<layer>.weight_scale`` and tell each layer's format, in ``<layer>.comfy_quant`` (JSON as bytes) or in
the header's ``_quantization_metadata``. The scales of inputs (``scale_input``, ``input_scale``) serve to
multiply in fp8; the weights are the same without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.claims import parse_json, shown
from anifacediff_core.errors import InputError

from .file import TensorFile, TensorInfo

_SCALES = ("scale_weight", "weight_scale")
_INPUT_SCALES = ("scale_input", "input_scale")
_FOREIGN = (".quant_state.", ".absmax")  # of bitsandbytes, which packs numbers in its own ways
_MARK, _FORMAT, _HEADER = "scaled_fp8", "comfy_quant", "_quantization_metadata"
_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_LONGEST_FORMAT = 4096  # bytes


def apply_scales(file: TensorFile) -> None:
    """Enter scaled weights as float32, in place of what is stored and of what belongs to it.

    Raises:
        InputError: a layer is quantized in another way.
    """
    if any(part in name for name in file.infos for part in _FOREIGN):
        raise InputError(
            f"{file.name} is quantized by bitsandbytes, which is not read here: fetch the same model in fp16."
        )
    formats = _formats(file)
    for name in list(file.infos):
        layer, _, kind = name.rpartition(".")
        weight = f"{layer}.weight" if layer else "weight"
        if kind == _MARK and math.prod(file.infos[name].shape) <= 2:
            file.withdraw(name)
        elif kind in _SCALES and weight in file.infos:
            info = file.infos[weight]
            _require_fitting(file, info, file.infos[name], formats.get(layer, ""))
            change = _scaling(file.withdraw(name), _FORMATS.get(formats.get(layer, "")))
            file.replace(weight, TensorInfo(info.shape, torch.float32), change)
            file.scaled += 1
        elif kind in _INPUT_SCALES and weight in file.infos:
            file.withdraw(name)


def _formats(file: TensorFile) -> dict[str, str]:
    """The format of each layer that states it, known ones only."""
    layers: dict[str, Any] = {}
    try:
        if _HEADER in file.metadata:
            layers |= parse_json(file.metadata[_HEADER])["layers"]
        for name in [name for name in file.infos if name.rpartition(".")[2] == _FORMAT]:
            if file.infos[name].dtype == torch.uint8 and math.prod(file.infos[name].shape) <= _LONGEST_FORMAT:
                layers[name.removesuffix(_FORMAT).rstrip(".")] = parse_json(
                    file.withdraw(name)().numpy().tobytes()
                )
        formats = {str(layer): str(entry["format"]) for layer, entry in layers.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise file.damaged("what it says about its fp8 layers cannot be read") from error
    for format in formats.values():
        if format not in _FORMATS:
            raise InputError(
                f"{file.name} is quantized as {shown(format, 40)}, which is not read here: "
                "fetch the same model in fp16 or fp8."
            )
    return formats


def _require_fitting(file: TensorFile, weight: TensorInfo, scale: TensorInfo, format: str) -> None:
    """Refuse whatever is not one scale for a whole layer, or one for each of its rows."""
    rows = weight.shape[0] if weight.shape else 1
    single = math.prod(scale.shape) == 1
    by_row = math.prod(scale.shape) == rows and scale.shape[:1] == (rows,)
    numbers = weight.dtype.is_floating_point or (weight.dtype == torch.uint8 and format in _FORMATS)
    if not (single or by_row) or not scale.dtype.is_floating_point or not numbers:
        raise InputError(
            f"{file.name} is quantized in a way that is not read here: fetch the same model in fp16, or in "
            "fp8 with one scale for each layer."
        )


def _scaling(scale: Callable[[], Tensor], format: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    def change(stored: Tensor) -> Tensor:
        if stored.dtype == torch.uint8 and format is not None:
            stored = stored.view(format)
        return stored.float() * scale().float().reshape(-1, *[1] * (stored.dim() - 1))

    return change
