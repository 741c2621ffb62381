"""What pickled objects of PyTorch, NumPy, SciPy and chumpy are, as tensors, without SciPy and chumpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .file import DTYPES, Source, TensorFile, TensorInfo, add_stored, brief, is_shape
from .unpickler import LazyBytes, Opaque, call

# NumPy's dtypes that become tensors
NUMBERS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "c8", "c16")
_MAX_DENSE = 2**24  # elements of a sparse matrix that is made dense
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}  # fmt: skip


@dataclass(eq=False)
class Storage:
    """The memory of one or several tensors, outside the pickle: `size` bytes of `source` from `start`."""

    key: str
    dtype: torch.dtype
    start: int
    size: int
    source: Source | None = None


def storage_of(identity: Any) -> Storage | Opaque:
    """Storage of a persistent id: ("storage", class, key, device, elements[, (view, first, elements)])."""
    kind, storage_type, key, _, numel = identity[:5]
    module, _, name = storage_type.kind.rpartition(".")
    dtype = _STORAGES.get(name.removesuffix("Storage"))
    if kind != "storage" or module not in ("torch", "torch.cuda", "torch.storage") or dtype is None:
        return Opaque("torch.storage")
    first = 0
    if len(identity) > 5 and identity[5] is not None:
        _, first, numel = identity[5]
    if not isinstance(key, str) or not is_shape((numel,)) or not is_shape((first,)):
        raise ValueError("a storage without name or size")
    return Storage(key, dtype, first * dtype.itemsize, numel * dtype.itemsize)


@dataclass(eq=False)
class StoredTensor:
    """A tensor as a view of a storage, of sizes as the file claims them."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def add(self, file: TensorFile, name: str) -> None:
        source, start, size = self.storage.source, self.storage.start, self.storage.size
        if source is None or start + size > source.size:
            raise file.damaged(f"expected the bytes of {name}, found {'none' if source is None else 'fewer'}")
        place = source.part(start, size)
        add_stored(file, name or "tensor", place, self.dtype, self.shape, self.stride, self.offset)


def _tensor(value: Opaque) -> Any:
    function, args = value.kind.rpartition(".")[2], value.args
    if function in ("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter"):
        return resolve(args[0])
    if function == "_rebuild_from_type_v2":  # (function, type, arguments, state): of a subclass of tensors
        made = call(args[0], args[2])
        return _tensor(made) if made.kind.startswith("torch._utils.") else None
    if not function.startswith("_rebuild_tensor") or not isinstance(args[0], Storage):
        return None
    storage, offset, shape, stride = args[:4]
    if function == "_rebuild_tensor_v3":  # (..., requires_grad, hooks, dtype)
        dtype = DTYPES.get(args[6].kind.removeprefix("torch."))
    else:  # (..., requires_grad, hooks, marks of conjugated tensors, which are no weights)
        dtype = None if any(args[6:7]) else storage.dtype
    return dtype and StoredTensor(storage, dtype, offset, _axes(shape), _axes(stride))


def _axes(sizes: Any) -> tuple[Any, ...]:
    if not isinstance(sizes, (tuple, list)) or len(sizes) > 32:  # not copied for each tensor that claims it
        raise ValueError("sizes of no tensor")
    return tuple(sizes)


@dataclass(eq=False)
class Array:
    """An array of NumPy: `read` gives its numbers, of which there are `size` bytes.

    PyTorch computes little with unsigned integers beyond a byte: they come as int64.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    size: int
    read: Callable[[], Any]

    @property
    def native(self) -> np.dtype[Any]:
        wide = self.dtype.kind == "u" and self.dtype.itemsize > 1
        return np.dtype(np.int64) if wide else self.dtype.newbyteorder("=")

    def numbers(self) -> np.ndarray:
        """A copy in the machine's own byte order."""
        order: Any = "F" if self.fortran else "C"
        stored = np.frombuffer(self.read(), self.dtype).reshape(self.shape, order=order)
        if self.dtype.kind == "b":  # bytes, of which every one but 0 is true
            stored = stored.view(np.uint8) != 0
        return np.array(stored, dtype=self.native, order="C")

    def add(self, file: TensorFile, name: str) -> None:
        name = name or "array"
        if not is_shape(self.shape):
            raise file.damaged(f"expected a shape of {name}, found {brief(self.shape)}")
        if math.prod(self.shape) * self.dtype.itemsize > self.size:
            raise file.damaged(f"expected {brief(self.shape)} numbers in {name}, found {self.size} bytes")
        info = TensorInfo(self.shape, torch.from_numpy(np.empty(0, self.native)).dtype)
        file.add(name, info, lambda: torch.from_numpy(self.numbers()))


def _array(value: Opaque) -> Any:
    function, state = value.kind.rpartition(".")[2], value.state
    if function == "_frombuffer":  # of protocol 5
        content, kind, shape, order = value.args
        fortran = order == "F"
    elif function == "_reconstruct" and value.args[0].kind == "numpy.ndarray" and state is not None:
        _, shape, kind, fortran, content = state
    else:
        return None
    if isinstance(content, list):  # of objects
        return resolve(content[0]) if shape == () and len(content) == 1 else content
    order, subtype, fields = (kind.state or (3, "|", None, None))[1:4]
    if order not in ("<", ">", "|", "=") or kind.args[0] not in NUMBERS or (subtype, fields) != (None, None):
        return None
    dtype = np.dtype(order + kind.args[0])
    if isinstance(content, LazyBytes):
        return Array(_axes(shape), dtype, fortran is True, content.length, content.read)
    raw = content.encode("latin1") if isinstance(content, str) else content  # a string of Python 2
    return Array(_axes(shape), dtype, fortran is True, len(raw), lambda: raw)


def _sparse(value: Opaque) -> Array | None:
    """A matrix of SciPy: columns (csc) or rows (csr) with pointers to where each begins, or indices (coo)."""
    state, layout = value.state, value.kind.rpartition(".")[2][:3]
    names = {"csc": ("indices", "indptr"), "csr": ("indices", "indptr"), "coo": ("col", "row")}.get(layout)
    if names is None or not isinstance(state, dict):
        return None
    shape, parts = state.get("_shape"), [resolve(state.get(name)) for name in ("data", *names)]
    if isinstance(coordinates := state.get("coords"), tuple):  # since SciPy 1.13
        parts[1:] = map(resolve, coordinates[1::-1])
    if len(parts) != 3 or not all(isinstance(part, Array) for part in parts):
        return None
    if (
        not isinstance(shape, tuple)
        or len(shape) != 2
        or not is_shape(shape)
        or math.prod(shape) > _MAX_DENSE
    ):
        raise ValueError("a sparse matrix of an impossible size")

    def dense() -> np.ndarray:
        values, minor, major = (part.numbers() for part in parts)
        if layout != "coo":
            fits = major.size == shape[layout == "csc"] + 1 and major[0] == 0
            if not fits or major[-1] != values.size or (major[1:] < major[:-1]).any():
                raise ValueError("pointers that do not fit")
            major = np.repeat(np.arange(major.size - 1), np.diff(major))
        rows, columns = (minor, major) if layout == "csc" else (major, minor)
        if not values.shape == rows.shape == columns.shape or (rows < 0).any() or (columns < 0).any():
            raise ValueError("indices that do not fit")
        matrix = np.zeros(shape, values.dtype)
        np.add.at(matrix, (rows, columns), values)  # what is given twice is summed
        return matrix.reshape(-1)

    dtype = parts[0].native
    return Array(shape, dtype, False, math.prod(shape) * dtype.itemsize, dense)


def _chumpy(value: Opaque) -> Any:
    return resolve(value.state["x"]) if isinstance(value.state, dict) and "x" in value.state else None


_LIBRARIES = {"torch": _tensor, "numpy": _array, "scipy": _sparse, "chumpy": _chumpy}


def resolve(value: Any) -> Any:
    """What an object is in terms of tensors, arrays and lists; everything else as it is."""
    if not isinstance(value, Opaque):
        return value
    if value.meaning is None:  # found once, in however many places the file has it
        known = _LIBRARIES.get(value.kind.partition(".")[0]) if value.args or value.state else None
        found = None if known is None else known(value)
        value.meaning = value if found is None else found
    return value.meaning
