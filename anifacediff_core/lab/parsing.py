"""What experiment files and options say, held against limits like all claims (`anifacediff_core.claims`)."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import yaml

from anifacediff_core.claims import LARGEST_INTEGER, require_shallow, shown

MOST_PARTS = 100_000  # values of a YAML file, once its aliases are followed
LONGEST_YAML, LONGEST_SCALAR = 2**20, 10_000  # characters
SLOWEST_RATE, FASTEST_RATE = Fraction(1, 1000), 100_000  # frames a second
_RATE = re.compile(r"\d{1,9}(/\d{1,9}|\.\d{1,18})?", re.ASCII)


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
    require_shallow(value, MOST_PARTS)
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
