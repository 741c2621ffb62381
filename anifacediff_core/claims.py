"""What files say about themselves, held against limits before it is believed.

Headers, notes and settings come from strangers. Whatever is wrong with one of them (it is nested too deep,
names something twice, holds a number beyond all bounds, is no text at all), the functions here raise
ValueError, so that whoever reads a file has one kind of error to put into its sentence.
"""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from typing import Any

import torch
import yaml
from torch import Tensor

from .errors import printable

MOST_LEVELS = 64  # of lists in lists
MOST_PARTS = 100_000  # values of a YAML file, once its aliases are followed
LARGEST_INTEGER = 2**64
LONGEST_YAML, LONGEST_SCALAR = 2**20, 10_000  # characters
SLOWEST_RATE, FASTEST_RATE = Fraction(1, 1000), 100_000  # frames a second
_RATE = re.compile(r"\d{1,9}(/\d{1,9}|\.\d{1,18})?", re.ASCII)
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
    _require_shallow(value)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half of a character is a ValueError
    return value


def parse_yaml(text: str) -> Any:
    """What a YAML text holds: mappings, lists, texts, numbers, truths and null, nothing else.

    Raises:
        ValueError: it is no YAML, holds something else (a date, say), or is beyond all bounds.
    """
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has more than {LONGEST_YAML} characters")
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:  # tags that lie
        raise ValueError(f"it has a value that is not what it says ({shown(error)})") from error
    _require_shallow(value, MOST_PARTS)
    _require_plain(value)
    return value


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and in which line, without the piece of the text that the library quotes."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    reason = shown(problem or " ".join(str(error).split()), 160)
    return f"{reason} in line {mark.line + 1}" if mark else reason


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which would work for minutes on a number of a million digits."""

    def construct_scalar(self, node: Any) -> Any:
        if len(node.value) > LONGEST_SCALAR:
            raise yaml.constructor.ConstructorError(None, None, "found a very long value", node.start_mark)
        return super().construct_scalar(node)


_Loader.add_implicit_resolver(  # 1e-3, which is text in YAML 1.1
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_rate(value: Any) -> Fraction:
    """A frame rate as files and people write it: "30000/1001", "23.976", 25.

    Raises:
        ValueError: it is none, or none that any video has.
    """
    text = str(value).strip() if type(value) in (str, int, float, Fraction) else ""
    if not _RATE.fullmatch(text):
        raise ValueError("it is no number")
    try:
        rate = Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError("it divides by zero") from error
    if not SLOWEST_RATE <= rate <= FASTEST_RATE:
        raise ValueError(f"it is not between {SLOWEST_RATE} and {FASTEST_RATE}")
    return rate


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


def _require_shallow(value: Any, most: float = math.inf) -> None:
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


def _require_plain(value: Any) -> None:
    """Refuse what JSON would not have either: dates, bytes, sets, and numbers beyond all bounds."""
    if isinstance(value, dict):
        for key, part in value.items():
            _require_plain(key)
            _require_plain(part)
    elif isinstance(value, list):
        for part in value:
            _require_plain(part)
    elif isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        raise ValueError("it has a number of too many digits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number that is not finite")
    elif isinstance(value, str):
        value.encode()  # half of a character is a ValueError
    elif value is not None and not isinstance(value, (int, float)):
        raise ValueError(f"it has a {type(value).__name__}, which means nothing here")
