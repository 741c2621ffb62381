"""What files say about themselves, held against limits before it is believed.

Headers, notes and settings come from strangers. Whatever is wrong with one of them (it is nested too deep,
names something twice, holds a number beyond all bounds, is no text at all), the functions here raise
ValueError, so that whoever reads a file has one kind of error to put into its sentence.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from .errors import printable

MOST_LEVELS = 64  # of lists in lists
LARGEST_INTEGER = 2**64
_CHUNK = 4 * 2**20  # numbers that are looked at together


def parse_json(text: str | bytes | bytearray) -> Any:
    """What a JSON text of any origin holds.

    Raises:
        ValueError: it is no JSON, or none that anybody would have written: nested deeper than `MOST_LEVELS`,
            with a name twice in one object, a number that is not finite or beyond `LARGEST_INTEGER`, or half
            of a character.
    """
    if not isinstance(text, str):
        text = bytes(text).decode("utf-8")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    require_shallow(value)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half of a character is a ValueError
    return value


def shown(value: object, most: int = 80) -> str:
    """A stranger's text as a part of a message: on one line and not long, see :func:`.errors.printable`."""
    return printable(value, most)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of any type holds neither NaN nor infinity.

    It is looked at in parts, since the answer for all numbers would be a second tensor. Of types of one byte
    PyTorch can tell it once they are float32; of float8_e4m3fn it cannot as they are.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    parts = tensor.reshape(-1).split(_CHUNK)
    return all(bool(torch.isfinite(part.float() if part.itemsize == 1 else part).all()) for part in parts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a name twice")
    return found


def _integer(text: str) -> int:
    number = int(text) if len(text) <= 20 else LARGEST_INTEGER
    if abs(number) >= LARGEST_INTEGER:
        raise ValueError("it has a number of too many digits")
    return number


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it has a number that is not finite")
    return number


def require_shallow(value: Any, most: float = math.inf) -> None:
    """Refuse more than `MOST_LEVELS` of lists and mappings, endless ones too, or more than `most` values."""
    level = [part for part in (value,) if isinstance(part, (dict, list))]
    parts = 0
    for _ in range(MOST_LEVELS):
        parts += sum(map(len, level))
        if not level:
            return
        if parts > most:
            raise ValueError("it refers to its own parts too often")
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [child for part in inner for child in part if isinstance(child, (dict, list))]
    raise ValueError("it is nested too deep")
