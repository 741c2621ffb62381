"""A machine for the pickle language that only ever makes inert values.

Python's unpickler is a machine whose instructions import modules and call what they find there. Restricting
it (``find_class``) leaves every other instruction to it, among them those that call ``__setstate__``,
``extend`` or ``__setitem__`` of whatever was let in, and its memory use cannot be bounded. So the language,
about seventy instructions, is carried out here: nothing is imported, nothing named by the file is called, and
what a file may make is counted. A name from the file is only ever looked up in the tables of this module.

What comes out is made of None, bool, int, float, str, bytes, list, tuple, dict and the values defined below.
An object of any class that is not known here is a `StandIn`; calling a stand-in gives another. A file that
names something whose only use is to run code (``os.system``, ``builtins.eval``) is refused, although nothing
would come of it: it is not the weights that somebody thinks it is.

Long strings and bytes stay in the file, as a `Blob`; tensors stay there in any case, as a `StoredTensor`.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from anifacediff_core.errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # a Stable Diffusion checkpoint has about 50,000
_LONGEST_INLINE = 512  # bytes; longer strings stay in the file
_MOST_AXES = 32
_LONGEST_INTEGER = 64  # bytes
_LONGEST_LINE = 1024  # of a name or a number, bytes


class Buffer(Protocol):
    """What a pickle is read from: bytes or a memory map."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, /) -> int: ...


class Global(NamedTuple):
    """A class or function that the file names; not more than its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Blob(NamedTuple):
    """A long string that stays where it is.

    Arguments:
        start: position in the buffer, bytes.
        length: in the buffer, bytes; decoded it is never longer.
        encoding: of the buffer's bytes, "raw", "utf8", "raw_unicode_escape" or "string_escape".
    """

    start: int
    length: int
    encoding: str

    def read(self, data: Buffer) -> bytes:
        """The bytes that it stands for (characters are taken as latin-1, as NumPy's pickles have it)."""
        return _decode(data[self.start : self.start + self.length], self.encoding)


@dataclass(eq=False, slots=True)
class StandIn:
    """An object of a class that is not known here, or the result of a function that is not called.

    Arguments:
        kind: the class or the function.
        state: what the object would have been built from.
    """

    kind: Global
    state: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """The memory of one or several tensors, outside the pickle.

    Arguments:
        key: its name.
        dtype: of its elements.
        numel: number of elements, as the pickle claims.
        base: first element, when the file tells of a part of a storage.
    """

    key: str
    dtype: torch.dtype
    numel: int
    base: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A tensor as a view of a storage; sizes are as claimed, whoever reads it has to check them."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, slots=True)
class ArrayType:
    """A NumPy dtype: `code` such as "f8", `order` "<", ">" or "|"; plain is False for one with fields."""

    code: str
    order: str = "|"
    plain: bool = True


@dataclass(eq=False, slots=True)
class PickledArray:
    """A NumPy array; `content` is a Blob or bytes, or a list for an array of objects."""

    shape: tuple[int, ...] = ()
    type: ArrayType = field(default_factory=lambda: ArrayType("V0"))
    fortran: bool = False
    content: Any = b""


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
            f"{name} is damaged: expected a valid pickle, found an error at byte {machine.position}; "
            "fetch it again."
        ) from error


# Names that a file may not even mention.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CODE_MODULES = _words("""
    _ctypes _pickle _posixsubprocess _socket _thread asyncio bdb cloudpickle codeop commands cPickle cProfile
    ctypes dill ensurepip ftplib http httplib idlelib imp importlib joblib marshal msvcrt multiprocessing nt os
    pdb pickle pip pkgutil popen2 posix pty pydoc requests runpy shelve shutil signal smtplib socket
    socketserver subprocess sys telnetlib threading urllib urllib2 webbrowser winreg xmlrpc zipimport
""")
_CODE_SUBMODULES = _words("""
    numpy.distutils numpy.f2py numpy.testing torch._inductor torch.hub torch.package torch.serialization
    torch.utils._config_module torch.utils.bottleneck torch.utils.cpp_extension torch.utils.model_zoo
""")
_CODE_NAMES = _words("""
    _io.FileIO _io.open code.InteractiveConsole code.InteractiveInterpreter code.interact codecs.open
    io.FileIO io.open io.open_code numpy.fromfile numpy.load operator.attrgetter operator.methodcaller
    platform.popen profile.run profile.runctx timeit.main timeit.repeat timeit.timeit torch.compile torch.load
    types.CodeType types.FunctionType types.LambdaType
""")
_CODE_ATTRIBUTES = _words("""
    __builtin__ __builtins__ __class__ __dict__ __getattribute__ __globals__ __import__ __init__ __reduce__
    __subclasses__ builtins
""")
_HARMLESS_BUILTINS = _words("""
    Ellipsis NoneType NotImplemented basestring bool bytearray bytes complex dict float frozenset int list long
    object range set slice str tuple type unicode xrange
""")


def _runs_code(wanted: Global) -> bool:
    module, name = wanted
    if module in ("builtins", "__builtin__", "__builtins__"):
        return name not in _HARMLESS_BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    # a dotted name reaches through a module's own imports: "torch._utils" with "os.system"
    reached = name.split(".")
    return (
        any(part in _CODE_MODULES for part in (module.split(".")[0], *reached[:-1]))
        or not _CODE_ATTRIBUTES.isdisjoint(reached)
        or any(f"{module}.".startswith(f"{banned}.") for banned in _CODE_SUBMODULES)
        or str(wanted) in _CODE_NAMES
    )


# What is known: each function takes the arguments in the file and gives an inert value, or None when they are
# not of the expected kind; a stand-in is made then.

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_TORCH_TYPES = {
    name: getattr(torch, name)
    for name in _words("""
        bfloat16 bool complex128 complex64 float16 float32 float64 float8_e4m3fn float8_e5m2 int16 int32 int64
        int8 uint16 uint32 uint64 uint8
    """)
    if hasattr(torch, name)
}


def storage_dtype(kind: Any) -> torch.dtype | None:
    """Element type of a storage class that the file names, None if it is unknown."""
    if isinstance(kind, Global) and kind.module in ("torch", "torch.cuda", "torch.storage"):
        return _STORAGES.get(kind.name)
    return None


def _tensor(args: tuple[Any, ...]) -> StoredTensor | None:
    """(storage, offset, size, stride[, requires_grad, hooks[, metadata]])"""
    storage, offset, shape, stride = args[:4]
    marked = len(args) > 6 and args[6]  # conjugated or negated: no weights are
    if not isinstance(storage, Storage) or marked:
        return None
    return StoredTensor(storage, storage.dtype, offset, _axes(shape), _axes(stride))


def _tensor_with_dtype(args: tuple[Any, ...]) -> StoredTensor | None:
    """(storage of bytes, offset, size, stride, requires_grad, hooks, dtype[, metadata])"""
    storage, offset, shape, stride, _, _, dtype = args[:7]
    known = _TORCH_TYPES.get(dtype.name) if isinstance(dtype, Global) and dtype.module == "torch" else None
    if not isinstance(storage, Storage) or known is None:
        return None
    storage = Storage(storage.key, known, storage.numel // known.itemsize, storage.base // known.itemsize)
    return StoredTensor(storage, known, offset, _axes(shape), _axes(stride))


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


def _subclass(args: tuple[Any, ...]) -> Any:
    """(function, type, arguments, state): a tensor of a subclass is taken as a tensor."""
    build, _, arguments = args[:3]
    return _build(build, arguments)


def _dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    """OrderedDict of Python 2 comes with its pairs."""
    if len(args) > 1:
        return None
    found: dict[Any, Any] = {}
    pairs = args[0] if args else []
    for key, value in pairs:
        _set(found, key, value)
    pairs.clear()  # used once: what is written once in the file must not be made many times here
    return found


def _default_dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    return {} if len(args) <= 1 else None


def _array(args: tuple[Any, ...]) -> PickledArray | None:
    """(ndarray, (0,), b"b"): an empty array, filled by BUILD."""
    return PickledArray() if _is(args[0], "ndarray") else None


def _array_from_buffer(args: tuple[Any, ...]) -> PickledArray | None:
    """(bytes, dtype, shape, order) of protocol 5"""
    content, dtype, shape, order = args
    if not isinstance(dtype, ArrayType):
        return None
    return PickledArray(_axes(shape), dtype, order == "F", content)


def _array_type(args: tuple[Any, ...]) -> ArrayType | None:
    return ArrayType(args[0]) if isinstance(args[0], str) and len(args[0]) < 16 else None


def _encode(args: tuple[Any, ...]) -> bytes | Blob | None:
    """Bytes as Python 3 writes them in protocols 0 to 2: as a string of latin-1."""
    text = args[0]
    if len(args) != 2 or args[1] not in ("latin1", "latin-1"):
        return None
    if isinstance(text, Blob):
        return text
    return text.encode("latin1") if isinstance(text, str) else None


def _reconstructor(args: tuple[Any, ...]) -> StandIn | None:
    """(class, base, state): an object of protocols 0 and 1"""
    return StandIn(args[0]) if isinstance(args[0], Global) else None


_BUILDERS: dict[Global, Callable[[tuple[Any, ...]], Any]] = {
    Global("collections", "OrderedDict"): _dict,
    Global("collections", "defaultdict"): _default_dict,
    Global("builtins", "dict"): _dict,
    Global("__builtin__", "dict"): _dict,
    Global("torch", "Size"): _first,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    Global("torch._utils", "_rebuild_parameter"): _first,
    Global("torch._utils", "_rebuild_parameter_with_state"): _first,
    Global("torch.nn.parameter", "Parameter"): _first,
    Global("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    Global("numpy", "dtype"): _array_type,
    Global("numpy.core.multiarray", "_reconstruct"): _array,
    Global("numpy._core.multiarray", "_reconstruct"): _array,
    Global("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    Global("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    Global("_codecs", "encode"): _encode,
    Global("copy_reg", "_reconstructor"): _reconstructor,
    Global("copyreg", "_reconstructor"): _reconstructor,
}


def _axes(sizes: Any) -> tuple[Any, ...]:
    if not isinstance(sizes, (tuple, list)) or len(sizes) > _MOST_AXES:
        raise ValueError("sizes of a tensor")
    return tuple(sizes)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, Global) and value.module == "numpy" and value.name == name


def _build(kind: Any, args: Any) -> Any:
    """What a call of `kind` makes: a known value, otherwise a stand-in."""
    if not isinstance(kind, Global):
        return StandIn(kind.kind) if isinstance(kind, StandIn) else StandIn(Global("", "object"))
    builder = _BUILDERS.get(kind)
    made = builder(args) if builder is not None and isinstance(args, tuple) else None
    return StandIn(kind) if made is None else made


def _set_state(value: Any, state: Any) -> None:
    """BUILD: attributes of dicts and tensors say nothing about weights and are dropped."""
    if isinstance(value, StandIn):
        value.state = state
    elif isinstance(value, ArrayType):
        value.order = state[1]
        value.plain = state[2] is None and state[3] is None
    elif isinstance(value, PickledArray):
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, ArrayType):
            dtype = ArrayType("V0", plain=False)
        value.shape, value.type, value.fortran, value.content = _axes(shape), dtype, fortran is True, content


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    if isinstance(key, tuple) and not isinstance(key, (Global, Blob)):
        # a nested one could be deep enough to overflow the stack when it is hashed
        key = key if all(isinstance(part, _PLAIN) for part in key) else StandIn(Global("builtins", "tuple"))
    elif not isinstance(key, (*_PLAIN, Global, StandIn)):
        key = StandIn(Global("builtins", type(key).__name__))
    if key in target:
        raise ValueError("duplicate key")
    target[key] = value


_PLAIN = (type(None), bool, int, float, str, bytes)


def _decode(raw: bytes, encoding: str) -> bytes:
    if encoding == "raw":
        return raw
    if encoding == "string_escape":
        return codecs.escape_decode(raw)[0]  # type: ignore[attr-defined, no-any-return]
    return raw.decode(encoding).encode("latin1")


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
            raise ValueError("long line")
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
            value = _decode(self.data[start : start + length], encoding)
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
            raise ValueError("long integer")
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text.rstrip("L")))

    def long(self, layout: str) -> None:
        length = self.number(layout)
        if not 0 <= length <= _LONGEST_INTEGER:
            raise ValueError("long integer")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def quoted(self) -> None:
        start, length = self.line()
        ends = self.data[start : start + 1], self.data[start + length - 1 : start + length]
        if length < 2 or ends[0] != ends[1] or ends[0] not in (b"'", b'"'):
            raise ValueError("string without quotes")
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
                _set(target, key, value)

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
        self.memo[index] = self.stack[-1]

    def find(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("no name")
        wanted = Global(module, name)
        if _runs_code(wanted):
            raise InputError(
                f"{self.name} tries to run code ({wanted}) when it is loaded: expected nothing but weights, "
                "don't use it and fetch the file from its authors."
            )
        return wanted

    def global_line(self) -> Global:
        return self.find(self.short_line(), self.short_line())

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.find(module, name))

    def reduce(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.push(_build(kind, args))

    def new_object_with_keywords(self) -> None:
        self.stack.pop()
        self.reduce()

    def instance(self) -> None:
        kind = self.global_line()
        self.push(_build(kind, tuple(self.since_mark())))

    def old_object(self) -> None:
        kind, *args = self.since_mark()
        self.push(_build(kind, tuple(args)))

    def set_state(self) -> None:
        state = self.stack.pop()
        _set_state(self.stack[-1], state)

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
