"""What holds for every node: its widgets are held against its schema, which hosts do in part, and faults of
disks, files and memory are reported in a sentence.
"""

from __future__ import annotations

import inspect
from functools import wraps
from math import inf
from numbers import Integral, Real
from typing import Any

from anifacediff_core.errors import FAULTS, InputError, printable, refusal_of

from .host.api import io

LONGEST_TEXT = 2**16  # characters
# Drop-downs of files: what opens a file tells best that it isn't there, and where to put it.
FILES = {"checkpoint", "lora_name", "deca", "flame", "smirk", "head", "texture", "certificate", "private_key"}
FILES |= {"file", "folder"}


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose `execute` raises an InputError for values of widgets that its schema does not allow."""
    execute = node.__dict__["execute"].__func__
    signature = inspect.signature(execute)

    @wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        schema = node.define_schema()
        given = {**signature.bind_partial(cls, *args, **values).arguments, **values}
        for entry in schema.inputs:
            if entry.id in given:
                _require_valid(entry, given[entry.id], str(schema.display_name))
        try:
            return execute(cls, *args, **values)
        except FAULTS as error:
            raise refusal_of(error, f"{schema.display_name} could not finish") from error

    node.execute = classmethod(checked)  # type: ignore[assignment]
    return node


def _require_valid(entry: Any, value: Any, node: str) -> None:
    """Refuse what a widget cannot hold: another type, no number, out of range, no choice, no text.

    Sockets are left to the nodes. Widgets may get their values from other nodes, which nobody has checked.
    """
    good, wanted = True, ""
    if isinstance(entry, io.Combo.Input):
        good = isinstance(value, str) and _is_text(value) and (entry.id in FILES or value in entry.options)
        wanted = "choose one that the drop-down offers"
    elif isinstance(entry, io.Int.Input):
        step = entry.step or 1
        good = _is_within(entry, value, Integral) and (value - (entry.min or 0)) % step == 0
        wanted = f"give a whole number from {entry.min} to {entry.max}" + (
            f" in steps of {step}" * (step > 1)
        )
    elif isinstance(entry, io.Float.Input):
        good, wanted = _is_within(entry, value, Real), f"give a number from {entry.min} to {entry.max}"
    elif isinstance(entry, io.String.Input):
        good = isinstance(value, str) and len(value) <= LONGEST_TEXT and _is_text(value)
        wanted = f"give a text of at most {LONGEST_TEXT} characters, without NUL"
    elif isinstance(entry, io.Boolean.Input):
        good, wanted = isinstance(value, Integral), "choose true or false"
    if not good:
        name = entry.display_name or entry.id
        raise InputError(f"The {name} of {node} is {printable(repr(value), 60)}: {wanted}.")


def _is_within(entry: Any, value: Any, kind: type) -> bool:
    if not isinstance(value, kind) or value != value or value in (inf, -inf):
        return False
    return (entry.min is None or value >= entry.min) and (entry.max is None or value <= entry.max)


def _is_text(value: str) -> bool:
    """Without NUL, which ends names, and halves of surrogate pairs, which cannot be written."""
    try:
        value.encode()
    except UnicodeError:
        return False
    return "\0" not in value
