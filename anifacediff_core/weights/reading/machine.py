"""A machine for the pickle language that only ever makes inert values.

Python's unpickler is a machine whose instructions import modules and call what they find there. Restricting
it (``find_class``) leaves every other instruction to it, among them those that call ``__setstate__``,
``extend`` or ``__setitem__`` of whatever was let in, and its memory use cannot be bounded. So the language,
about seventy instructions, is carried out here: nothing is imported, nothing named by the file is called, and
what a file may make is counted. A name from the file is only ever looked up in the tables of `values`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from .values import Blob, Buffer, Global, StandIn, build, decode, runs_code, set_item, set_state

MAX_INSTRUCTIONS = 1_000_000  # a Stable Diffusion checkpoint has about 50,000
_LONGEST_INLINE = 512  # bytes; longer strings stay in the file
_LONGEST_INTEGER = 64  # bytes
_LONGEST_LINE = 1024  # of a name or a number, bytes
_LAST_MEMO = 2**32


def unpickle(
    data: Buffer,
    name: str,
    start: int = 0,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Carry out one pickle.

    Arguments:
        data: the buffer that holds it.
        name: of the file, for messages.
        start: where it begins.
        persistent: makes a value of a persistent id; without it such an id is refused.

    Returns:
        The value, and the position after the pickle.

    Raises:
        InputError: it is truncated, damaged or too large, or it tries to run code.
    """
    machine = _Machine(data, name, start, persistent)
    try:
        return machine.run(), machine.position
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error) as error:
        raise InputError(
            f"{name} is damaged: expected a valid pickle, found an error at byte {machine.position} "
            f"({shown(error)}); fetch it again."
        ) from error


class _Machine:
    def __init__(self, data: Buffer, name: str, start: int, persistent: Callable[[Any], Any] | None) -> None:
        self.data = data
        self.name = name
        self.position = start
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            opcode = self.take(1)
            if opcode == b".":
                return self.stack.pop()
            try:
                instruction = _INSTRUCTIONS[opcode]
            except KeyError:
                raise self.foreign(opcode) from None
            instruction(self)
        raise InputError(
            f"{self.name} is not a plausible weight file: expected at most {MAX_INSTRUCTIONS} pickle "
            "instructions, found more."
        )

    # Reading

    def take(self, count: int) -> bytes:
        return self.data[self.advance(count) : self.position]

    def advance(self, count: int) -> int:
        """Step over bytes that have to be there; the position before."""
        start = self.position
        if count < 0 or count > len(self.data) - start:
            raise InputError(
                f"{self.name} is truncated: expected {count} more bytes, found {len(self.data) - start}; "
                "fetch it again."
            )
        self.position = start + count
        return start

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> tuple[int, int]:
        """Start and length of the text up to the next line break."""
        start = self.position
        end = self.data.find(b"\n", start)
        if end < 0:
            raise InputError(f"{self.name} is truncated: a line of its pickle has no end; fetch it again.")
        self.position = end + 1
        return start, end - start

    def short_line(self) -> str:
        start, length = self.line()
        if length > _LONGEST_LINE:
            raise ValueError("a long line")
        return self.data[start : start + length].decode()

    def string(self, start: int, length: int, encoding: str, text: bool) -> None:
        """Push a string, or where it lies if it is long."""
        value: Any
        if length > _LONGEST_INLINE:
            value = Blob(start, length, encoding)
        elif encoding == "utf8":
            value = self.data[start : start + length].decode("utf8", "surrogatepass")
        elif encoding == "raw_unicode_escape":
            value = self.data[start : start + length].decode(encoding)
        else:
            value = decode(self.data[start : start + length], encoding)
            value = value.decode("latin1") if text else value
        self.stack.append(value)

    def foreign(self, opcode: bytes) -> InputError:
        return InputError(
            f"{self.name} is damaged or no pickle: expected an instruction at byte {self.position - 1}, "
            f"found {opcode!r}."
        )

    # Instructions

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_mark(self) -> None:
        self.since_mark()

    def integer_line(self) -> None:
        text = self.short_line()
        if len(text) > 2 * _LONGEST_INTEGER:
            raise ValueError("a long integer")
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text.rstrip("L")))

    def long(self, layout: str) -> None:
        length = self.number(layout)
        if not 0 <= length <= _LONGEST_INTEGER:
            raise ValueError("a long integer")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def quoted(self) -> None:
        start, length = self.line()
        ends = self.data[start : start + 1], self.data[start + length - 1 : start + length]
        if length < 2 or ends[0] != ends[1] or ends[0] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        self.string(start + 1, length - 2, "string_escape", text=True)

    def counted(self, layout: str, encoding: str, text: bool) -> None:
        length = self.number(layout)
        self.string(self.advance(length), length, encoding, text)

    def take_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("empty stack")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, StandIn):
            raise TypeError("no list")

    def add(self) -> None:
        self.since_mark()
        if not isinstance(self.stack[-1], StandIn):
            raise TypeError("no set")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, (dict, StandIn)):
            raise TypeError("no dict")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2]):
                set_item(target, key, value)

    def new_dict(self) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)

    def new_set(self, name: str) -> None:
        self.push(StandIn(Global("builtins", name)))

    def frozen_set(self) -> None:
        self.since_mark()
        self.new_set("frozenset")

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        if not 0 <= index < _LAST_MEMO:
            raise ValueError("an impossible place in the memo")
        self.memo[index] = self.stack[-1]

    def find(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("no name")
        wanted = Global(module, name)
        if runs_code(wanted):
            raise InputError(
                f"{self.name} tries to run code ({shown(wanted)}) when it is loaded: expected nothing but "
                "weights, don't use it and fetch the file from its authors."
            )
        return wanted

    def global_line(self) -> Global:
        return self.find(self.short_line(), self.short_line())

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.find(module, name))

    def reduce(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.push(build(kind, args))

    def new_object_with_keywords(self) -> None:
        self.stack.pop()
        self.reduce()

    def instance(self) -> None:
        kind = self.global_line()
        self.push(build(kind, tuple(self.since_mark())))

    def old_object(self) -> None:
        kind, *args = self.since_mark()
        self.push(build(kind, tuple(args)))

    def set_state(self) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)

    def persist(self, identity: Any) -> None:
        if self.persistent is None:
            raise InputError(
                f"{self.name} refers to data outside itself: expected a whole file, found a persistent id."
            )
        self.push(self.persistent(identity))

    def protocol(self) -> None:
        version = self.number("<B")
        if version > 5:
            raise InputError(f"{self.name} has pickle protocol {version}: expected at most 5.")

    def frame(self) -> None:
        self.number("<Q")  # its length helps those who read from a stream

    def extension(self) -> None:
        raise InputError(
            f"{self.name} uses pickle's extension registry, which can name any code: expected nothing but "
            "weights, don't use it."
        )


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_mark,
    b"2": lambda m: m.push(m.stack[-1]),
    b"F": lambda m: m.push(float(m.short_line())),
    b"I": _Machine.integer_line,
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"L": _Machine.integer_line,
    b"M": lambda m: m.push(m.number("<H")),
    b"N": lambda m: m.push(None),
    b"P": lambda m: m.persist(m.short_line()),
    b"Q": lambda m: m.persist(m.stack.pop()),
    b"R": _Machine.reduce,
    b"S": _Machine.quoted,
    b"T": lambda m: m.counted("<i", "raw", text=True),
    b"U": lambda m: m.counted("<B", "raw", text=True),
    b"V": lambda m: m.string(*m.line(), "raw_unicode_escape", text=True),
    b"X": lambda m: m.counted("<I", "utf8", text=True),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"b": _Machine.set_state,
    b"c": lambda m: m.push(m.global_line()),
    b"d": _Machine.new_dict,
    b"e": lambda m: m.extend(m.since_mark()),
    b"g": lambda m: m.get(int(m.short_line())),
    b"h": lambda m: m.get(m.number("<B")),
    b"i": _Machine.instance,
    b"j": lambda m: m.get(m.number("<I")),
    b"l": lambda m: m.push(m.since_mark()),
    b"o": _Machine.old_object,
    b"p": lambda m: m.put(int(m.short_line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"u": lambda m: m.set_items(m.since_mark()),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b")": lambda m: m.push(()),
    b"G": lambda m: m.push(m.number(">d")),
    b"B": lambda m: m.counted("<I", "raw", text=False),
    b"C": lambda m: m.counted("<B", "raw", text=False),
    b"\x80": _Machine.protocol,
    b"\x81": _Machine.reduce,
    b"\x82": _Machine.extension,
    b"\x83": _Machine.extension,
    b"\x84": _Machine.extension,
    b"\x85": lambda m: m.take_tuple(1),
    b"\x86": lambda m: m.take_tuple(2),
    b"\x87": lambda m: m.take_tuple(3),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"\x8a": lambda m: m.long("<B"),
    b"\x8b": lambda m: m.long("<i"),
    b"\x8c": lambda m: m.counted("<B", "utf8", text=True),
    b"\x8d": lambda m: m.counted("<Q", "utf8", text=True),
    b"\x8e": lambda m: m.counted("<Q", "raw", text=False),
    b"\x8f": lambda m: m.new_set("set"),
    b"\x90": _Machine.add,
    b"\x91": _Machine.frozen_set,
    b"\x92": _Machine.new_object_with_keywords,
    b"\x93": _Machine.stack_global,
    b"\x94": lambda m: m.put(len(m.memo)),
    b"\x95": _Machine.frame,
    b"\x96": lambda m: m.counted("<Q", "raw", text=False),
}
