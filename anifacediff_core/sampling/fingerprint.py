"""A hash of everything that decides a result, the same in every process and on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..storage import file_digest


def fingerprint(*values: Any) -> str:
    """64 hexadecimal digits that change when any of the values does.

    Args:
        values: numbers, texts, tensors, files by their `Path` (which are read), and dataclasses, mappings
            and sequences of these. Of any other object its class counts, and its `weights` if it has some.
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Every value with its kind and length before it, so that neighbors cannot run together."""

    def mark(*parts: object) -> None:
        digest.update(repr(parts).encode())

    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        mark(value)
    elif isinstance(value, Tensor):
        mark("tensor", str(value.dtype), tuple(value.shape))
        stored = value.detach().to("cpu").contiguous()
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Path):
        mark("file", file_digest(value))
    elif isinstance(value, Mapping):
        mark("mapping", len(value))
        for key in sorted(value, key=repr):
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, Sequence):
        mark("sequence", len(value))
        for item in value:
            _add(digest, item)
    elif is_dataclass(value):
        mark("dataclass", type(value).__name__)
        for field in fields(value):
            _add(digest, getattr(value, field.name))
    else:
        mark("object", type(value).__name__)
        _add(digest, getattr(value, "weights", None))
