"""Inert values that a pickle is made into, and the tables of all names in it that mean anything to us.

Values are None, bool, int, float, str, bytes, list, tuple, dict and the classes below. An object of a class
that is not known here is a `StandIn`; calling a stand-in gives another. A name that no weight file has a use
for, such as ``os.system`` or ``builtins.eval``, is told by `runs_code`. Nothing would come of it here, but a
file that mentions it is not the weights that somebody thinks it is.

Long strings and bytes stay in the file, as a `Blob`; tensors stay there in any case, as a `StoredTensor`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

_MOST_AXES = 32
_LARGEST_KEY = 2**60  # beyond, integers can be chosen that all fall into one slot of a dict


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
        return decode(data[self.start : self.start + self.length], self.encoding)


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


# Names that a file may not even mention.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CODE_MODULES = _words("""
    _ctypes _pickle _posixsubprocess _socket _thread asyncio bdb cloudpickle codeop commands cPickle cProfile
    ctypes dill ensurepip ftplib http httplib idlelib imp importlib joblib marshal msvcrt multiprocessing nt
    os pdb pickle pip pkgutil popen2 posix pty pydoc requests runpy shelve shutil signal smtplib socket
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
    Ellipsis NoneType NotImplemented basestring bool bytearray bytes complex dict float frozenset int list
    long object range set slice str tuple type unicode xrange
""")


def runs_code(wanted: Global) -> bool:
    """Whether whatever has this name is of use only to run something."""
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
    function, _, arguments = args[:3]
    return build(function, arguments) if function in _TENSORS else None


def _dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    """OrderedDict of Python 2 comes with its pairs."""
    if len(args) > 1:
        return None
    found: dict[Any, Any] = {}
    pairs = args[0] if args else []
    for key, value in pairs:
        set_item(found, key, value)
    pairs.clear()  # used once: what is written once in the file must not be made many times here
    return found


def _default_dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    return {} if len(args) <= 1 else None


def _array(args: tuple[Any, ...]) -> PickledArray | None:
    """(ndarray, (0,), b"b"): an empty array, filled by BUILD."""
    return PickledArray() if args[0] == Global("numpy", "ndarray") else None


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


_TENSORS = (
    Global("torch._utils", "_rebuild_tensor_v2"),
    Global("torch._utils", "_rebuild_tensor_v3"),
    Global("torch._utils", "_rebuild_parameter"),
)
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
        raise ValueError("sizes of no tensor")
    return tuple(sizes)


def build(kind: Any, args: Any) -> Any:
    """What a call of `kind` makes: a known value, otherwise a stand-in."""
    if not isinstance(kind, Global):
        return StandIn(kind.kind) if isinstance(kind, StandIn) else StandIn(Global("", "object"))
    builder = _BUILDERS.get(kind)
    made = builder(args) if builder is not None and isinstance(args, tuple) else None
    return StandIn(kind) if made is None else made


def set_state(value: Any, state: Any) -> None:
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


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an item of a dict once; a key that could be costly to look up becomes a stand-in for it.

    So do all tuples: Python hashes them alike in every process, so a file can have thousands of one hash.
    """
    if not _is_plain(key) and not isinstance(key, (Global, StandIn)):
        key = StandIn(Global("builtins", "str" if isinstance(key, Blob) else type(key).__name__))
    if key in target:
        raise ValueError("a key twice")
    target[key] = value


def _is_plain(key: Any) -> bool:
    if isinstance(key, int):
        return abs(key) < _LARGEST_KEY
    return key is None or isinstance(key, (float, str, bytes))


def decode(raw: bytes, encoding: str) -> bytes:
    """The bytes that a string in the file stands for; see `Blob`."""
    if encoding == "raw":
        return raw
    if encoding == "string_escape":
        return codecs.escape_decode(raw)[0]  # type: ignore[attr-defined, no-any-return]
    return raw.decode(encoding).encode("latin1")
