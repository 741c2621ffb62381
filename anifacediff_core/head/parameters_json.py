"""Face parameters as JSON, for people and for other programs; each value comes back as the same float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..claims import parse_json

VERSION = 1


def to_json(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """A JSON object: the header, then each tensor, frame by frame, one line per frame.

    Args:
        tensors: (frames, quantities) float, or (frames,) float or bool.
        header: what stands before them; ``version`` is added.
    """
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in header.items()]
    lines.append(f'  "version": {VERSION}')
    for name, tensor in tensors.items():
        rows = [f"    {json.dumps(_plain(row))}" for row in tensor.detach().cpu()]
        lines.append(f"  {json.dumps(name)}: [\n" + ",\n".join(rows) + "\n  ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_json(
    text: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of these names, of the optional ones those that are there, and everything else.

    Raises:
        ValueError: it is no such JSON, or of a later version.
    """
    try:
        content = parse_json(text)
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"the version is not {VERSION}")
        header = {name: value for name, value in content.items() if name not in names + optional}
        wanted = [*names, *(name for name in optional if name in content)]
        tensors = {name: _tensor(content[name], one_each=name in optional) for name in wanted}
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError("it is of another form") from error
    return tensors, header


def _plain(row: Tensor) -> Any:
    """Numbers with the fewest digits that give the same float32."""
    if row.dtype == torch.bool:
        return row.tolist()
    if row.dim() == 0:
        return float(str(row.float().numpy()))
    return [float(str(value)) for value in row.float().numpy()]


def _tensor(rows: Any, one_each: bool) -> Tensor:
    """Rows of numbers, with `one_each` a number in place of a row, or a row of truths; nothing else that
    PyTorch would take for one.
    """
    if not isinstance(rows, list):
        raise TypeError
    if all(isinstance(row, bool) for row in rows):
        return torch.tensor(rows, dtype=torch.bool)
    table = [rows] if one_each else rows
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for row in table for value in row):
        raise TypeError
    values = torch.tensor([[float(value) for value in row] for row in table], dtype=torch.float32)
    return values[0] if one_each else values
