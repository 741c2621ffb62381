"""Pickles, read without running anything: whatever they name becomes an `Opaque` object.

This is Python's own unpickler, the one written in Python: that in C would fill the memory for one large index
of its memo, or overflow the stack with a deep key, before any method of ours is asked. Replaced are the
instructions that import, call, set attributes, hash keys or make long strings. So it also reads what
``torch.load(weights_only=True)`` refuses (Lightning's checkpoints, FLAME's pickles, Python 2), and other than
there no function of PyTorch is called with what a file says.
"""

from __future__ import annotations

import codecs
import pickle  # noqa: TID251 - restricted as described above
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from .code_names import runs_code
from .file import READ_ERRORS, Source, TensorFile

_MAX_READS = 1_000_000  # of instructions and their arguments; a Stable Diffusion checkpoint has about 100,000
_LONGEST_INLINE = 512  # bytes; longer strings stay in the file
_LONGEST_INTEGER, _LONGEST_LINE = 64, 1024  # bytes; of a line that is a name or a number
_LARGEST_KEY = 2**60  # beyond, integers can be chosen that all fall into one slot of a dict
_LAST_MEMO = 2**32
_MOST_ARGS = 8  # of a call that is carried out


def unpickle(
    file: TensorFile, source: Source, start: int = 0, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    """Read the pickle at a position of `source`; `persistent` makes a value of a persistent id.

    Returns:
        Its value, made of None, bool, int, float, str, bytes, list, tuple and the classes below; and the
        position after the pickle.

    Raises:
        InputError: it is truncated, damaged or too large, or it tries to run code.
    """
    reader = _Reader(file, source, start)
    try:
        return _Unpickler(reader, persistent).load(), reader.position
    except InputError:
        raise
    except (*READ_ERRORS, pickle.PickleError) as error:
        found = f"an error at byte {reader.position} ({shown(error)})"
        raise file.damaged(f"expected a valid pickle, found {found}") from error


class Opaque:
    """What a file says about a class, a function, an object or the result of a call; none of them exists.

    Attributes:
        kind: name of the class or function, with its module.
        state: what the object would have been built from.
        meaning: what `objects.resolve` has found it to be.
    """

    __slots__ = ("args", "kind", "meaning", "state")

    def __init__(self, kind: str, args: tuple[Any, ...] = ()) -> None:
        self.kind, self.args = kind, args
        self.state: Any = None
        self.meaning: Any = None

    def append(self, *_: Any) -> None:
        """Nothing: what is put into an object is of no use."""

    extend = add = __setitem__ = append


class Items(dict[Any, Any]):
    """A dict that takes each key once. A key that could be costly to look up is replaced by its type.

    So are all tuples: Python hashes them alike in every process, so a file can have thousands of one hash.
    """

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        plain = key is None or isinstance(key, (int, float, str, bytes, Opaque))
        if not plain or (isinstance(key, int) and abs(key) >= _LARGEST_KEY):
            key = Opaque(f"builtins.{type(key).__name__}")
        if key in self:
            raise ValueError("a key twice")
        super().__setitem__(key, value)


@dataclass(frozen=True, eq=False)
class LazyBytes:
    """A long string that stays in the file; decoded it has no more than its `length` bytes."""

    source: Source
    position: int
    length: int
    encoding: str = ""  # of characters, which stand for bytes as NumPy's pickles have it

    def read(self) -> bytes:
        raw = self.source.read_bytes(self.position, self.length)
        return raw if self.encoding in ("", "latin1") else _decoded(raw, self.encoding).encode("latin1")


def _decoded(raw: bytes, encoding: str) -> str:
    if encoding == "string_escape":
        raw, encoding = codecs.escape_decode(raw)[0], "latin1"  # type: ignore[attr-defined]
    return raw.decode(encoding, "surrogatepass")


def _dict(pairs: Any = None) -> Items:
    """A dict, of Python 2 with its pairs; what is written once in the file must not be copied many times."""
    found = Items()
    if pairs is not None:
        for key, value in pairs:
            found[key] = value
        pairs.clear()
    return found


# The only calls that are carried out, since later instructions work on what they return.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: Items(),
    "builtins.dict": _dict,
    "__builtin__.dict": _dict,
    "copy_reg._reconstructor": lambda kind, *_: call(kind, ()),  # an object of protocols 0 and 1
    "copyreg._reconstructor": lambda kind, *_: call(kind, ()),
    "torch.Size": lambda sizes: sizes,
    # bytes as Python 3 writes them in protocols 0 to 2: as a string of latin-1
    "_codecs.encode": lambda text, _: text.encode("latin1") if isinstance(text, str) else text,
}


def call(function: Any, args: Any) -> Any:
    """What a call returns, mostly an `Opaque`, which shares the arguments: a file has one for many calls."""
    if not isinstance(function, Opaque) or not isinstance(args, tuple):
        raise TypeError("a call of no function")
    known = _CALLS.get(function.kind) if len(args) <= _MOST_ARGS else None
    return Opaque(function.kind, args) if known is None else known(*args)


class _Reader:
    """What the unpickler reads from: few bytes at a time, all of them there, and not for ever."""

    def __init__(self, file: TensorFile, source: Source, position: int) -> None:
        self.file, self.source, self.position, self.reads = file, source, position, 0
        self.stream = source.stream()
        self.seek(position)

    def seek(self, position: int) -> None:
        self.position = position
        self.stream.seek(self.source.start + position)

    def advance(self, count: int) -> int:
        """Step over bytes; the position before."""
        self.reads += 1
        if self.reads > _MAX_READS:
            raise self.file.implausible(f"at most {_MAX_READS} pickle instructions", "more")
        start, left = self.position, self.source.size - self.position
        if not 0 <= count <= left:
            found = f"expected {count} more bytes, found {left}"
            raise InputError(f"{self.file.name} is truncated: {found}; fetch it again.")
        self.position += count
        return start

    def read(self, count: int) -> bytes:
        self.advance(count)
        if count > _LONGEST_INTEGER:
            raise ValueError("a long integer")
        return self.stream.read(count)

    def readline(self) -> bytes:
        line = self.stream.readline(_LONGEST_LINE)
        self.advance(len(line) or 1)
        if not line.endswith(b"\n"):
            raise ValueError("a line without an end")
        return line

    def string(self, length: int, encoding: str) -> bytes | str | LazyBytes:
        start = self.advance(length)
        if length > _LONGEST_INLINE:
            self.seek(self.position)
            return LazyBytes(self.source, start, length, encoding)
        content = self.stream.read(length)
        return _decoded(content, encoding) if encoding else content

    def line(self, quotes: int, encoding: str) -> bytes | str | LazyBytes:
        """A line of any length but so many characters at both ends."""
        start, line = self.position, b""
        while not line.endswith(b"\n"):
            line = self.stream.readline(2**16)
            self.advance(len(line) or 1)
        end = self.position
        self.seek(start + quotes)
        found = self.string(end - 1 - start - 2 * quotes, encoding)
        self.seek(end)
        return found


def _string(layout: str, encoding: str) -> Callable[[_Unpickler], None]:
    """An instruction that pushes a string after its length."""

    def load(self: _Unpickler) -> None:
        (length,) = struct.unpack(layout, self.reader.read(struct.calcsize(layout)))
        self.append(self.reader.string(length, encoding))

    return load


_Python: Any = pickle._Unpickler  # typeshed takes it for the one in C


class _Unpickler(_Python):
    def __init__(self, reader: _Reader, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(reader)
        self.reader, self.persistent, self.name = reader, persistent, reader.file.name

    def find_class(self, module: str, name: str) -> Opaque:
        if runs_code(module, name):
            raise InputError(
                f"{self.name} tries to run code ({shown(f'{module}.{name}')}) when it is loaded: expected "
                "nothing but weights, don't use it and fetch the file from its authors."
            )
        return Opaque(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> Any:
        if self.persistent is None:
            raise InputError(
                f"{self.name} refers to data outside itself: expected a whole file, found a persistent id."
            )
        return self.persistent(identity)

    def get_extension(self, code: int) -> None:
        raise InputError(
            f"{self.name} uses pickle's extension registry, which can name any code: expected nothing but "
            "weights, don't use it."
        )

    def load_dict(self) -> None:
        items, found = self.pop_mark(), Items()
        for key, value in zip(items[::2], items[1::2]):
            found[key] = value
        self.append(found)

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Opaque("builtins.frozenset"))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keywords
        self.load_reduce()

    def _instantiate(self, function: Any, args: list[Any]) -> None:
        self.append(call(function, tuple(args)))

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Opaque):  # attributes of a dict say nothing about weights
            self.stack[-1].state = state

    def load_put(self) -> None:
        index = int(self.reader.readline())
        if not 0 <= index < _LAST_MEMO:
            raise ValueError("an impossible place in the memo")
        self.memo[index] = self.stack[-1]

    dispatch: ClassVar[dict[int, Any]] = {
        **_Python.dispatch,
        pickle.FRAME[0]: lambda self: self.reader.read(8),  # a frame would be read as a whole
        pickle.BINSTRING[0]: _string("<i", "latin1"),
        pickle.SHORT_BINSTRING[0]: _string("<B", "latin1"),
        pickle.BINUNICODE[0]: _string("<I", "utf-8"),
        pickle.SHORT_BINUNICODE[0]: _string("<B", "utf-8"),
        pickle.BINUNICODE8[0]: _string("<Q", "utf-8"),
        pickle.BINBYTES[0]: _string("<I", ""),
        pickle.SHORT_BINBYTES[0]: _string("<B", ""),
        pickle.BINBYTES8[0]: _string("<Q", ""),
        pickle.BYTEARRAY8[0]: _string("<Q", ""),
        pickle.STRING[0]: lambda self: self.append(self.reader.line(1, "string_escape")),
        pickle.UNICODE[0]: lambda self: self.append(self.reader.line(0, "raw-unicode-escape")),
        pickle.EMPTY_DICT[0]: lambda self: self.append(Items()),
        pickle.EMPTY_SET[0]: lambda self: self.append(Opaque("builtins.set")),
        pickle.FROZENSET[0]: load_frozenset,
        pickle.DICT[0]: load_dict,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.PUT[0]: load_put,
    }
