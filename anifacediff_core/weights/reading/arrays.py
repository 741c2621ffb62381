"""NumPy's arrays, SciPy's sparse matrices and chumpy's variables, as tensors; only NumPy is needed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .file import Source, TensorFile, TensorInfo, brief, is_shape, product, read_bytes
from .values import ArrayType, Blob, Buffer, Global, PickledArray, StandIn

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # bytes, as NumPy has it
_MAX_DENSE = 2**24  # elements of a sparse matrix that is made dense

# PyTorch computes little with unsigned integers beyond a byte: they come as int64.
_TYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u8": torch.int64,
    "u4": torch.int64,
    "u2": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
}


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix of SciPy.

    Arguments:
        layout: "csc" (columns by pointers), "csr" (rows by pointers) or "coo" (both by indices).
        shape: rows and columns.
        values: (n,).
        minor: (n,) row of each value in csc, otherwise its column.
        major: pointers to where each column (csc) or row (csr) begins, or (n,) rows in coo.
    """

    layout: str
    shape: tuple[int, int]
    values: PickledArray
    minor: PickledArray
    major: PickledArray


_SPARSE_PARTS = {
    "csc": ("data", "indices", "indptr"),
    "csr": ("data", "indices", "indptr"),
    "coo": ("data", "col", "row"),
}


def resolve(value: Any) -> Any:
    """What an object of another library is in terms of arrays; everything else as it is."""
    if isinstance(value, StandIn) and isinstance(value.state, dict):
        library = value.kind.module.split(".")[0]
        if library == "scipy":
            return _sparse(value) or value
        if library == "chumpy" and isinstance(value.state.get("x"), PickledArray):
            value = value.state["x"]
    if isinstance(value, PickledArray):
        if isinstance(value.content, list):  # of objects
            single = not value.shape and len(value.content) == 1
            return value.content[0] if single else value.content
        if _numpy_type(value.type) is None:
            return StandIn(Global("numpy", "ndarray"))
    return value


def _sparse(value: StandIn) -> Sparse | None:
    state, layout = value.state, value.kind.name[:3]
    shape, coordinates = state.get("_shape"), state.get("coords")
    if layout not in _SPARSE_PARTS or not isinstance(shape, tuple) or len(shape) != 2:
        return None
    if layout == "coo" and isinstance(coordinates, tuple) and len(coordinates) == 2:  # since SciPy 1.13
        state = {"data": state.get("data"), "row": coordinates[0], "col": coordinates[1]}
    parts = [state.get(name) for name in _SPARSE_PARTS[layout]]
    if not all(isinstance(part, PickledArray) for part in parts):
        return None
    return Sparse(layout, shape, *parts)  # type: ignore[arg-type]


def add_array(file: TensorFile, name: str, array: PickledArray, data: Buffer) -> None:
    """Enter an array of a pickle in the buffer `data`."""
    info = _checked(file, name, array)
    file.add(name, info, lambda: _to_tensor(_array(array, data), info.dtype))


def add_sparse(file: TensorFile, name: str, matrix: Sparse, data: Buffer) -> None:
    """Enter a sparse matrix, dense."""
    dtype = _checked(file, name, matrix.values).dtype
    for indices in (matrix.minor, matrix.major):
        _checked(file, name, indices)
    if not is_shape(matrix.shape):
        raise file.damaged(f"expected a shape of {name}, found {brief(matrix.shape)}")
    if product(matrix.shape) > _MAX_DENSE:
        raise file.implausible(f"at most {_MAX_DENSE} elements of {name}", brief(matrix.shape))

    def load() -> Tensor:
        values, minor, major = (_array(part, data) for part in (matrix.values, matrix.minor, matrix.major))
        return _to_tensor(_dense(matrix.layout, matrix.shape, values, minor, major), dtype)

    file.add(name, TensorInfo(matrix.shape, dtype), load)


def _dense(
    layout: str, shape: tuple[int, int], values: np.ndarray, minor: np.ndarray, major: np.ndarray
) -> np.ndarray:
    """See `Sparse`."""
    if minor.dtype.kind not in "iu" or major.dtype.kind not in "iu":
        raise ValueError("indices that are no integers")
    if layout != "coo":
        pointers = major.astype(np.int64)
        steps = pointers[1:] - pointers[:-1]
        fits = len(major) == shape[layout == "csc"] + 1
        if not fits or major[0] != 0 or major[-1] != len(values):
            raise ValueError("pointers that do not fit")
        major = np.repeat(np.arange(len(steps)), steps)  # refuses negative steps
    if not values.shape == minor.shape == major.shape == (values.size,):
        raise ValueError("indices that do not fit")
    rows, columns = (minor, major) if layout == "csc" else (major, minor)
    for index, length in ((rows, shape[0]), (columns, shape[1])):
        if len(index) and (index.min() < 0 or index.max() >= length):
            raise ValueError("indices outside the matrix")
    dense = np.zeros(shape, values.dtype.newbyteorder("="))
    np.add.at(dense, (rows, columns), values)  # what is given twice is summed
    return dense


class ArrayHeader(NamedTuple):
    """Of a .npy file: `type` as NumPy writes it, `end` is where the data begin, bytes."""

    shape: tuple[int, ...]
    fortran: bool
    type: Any
    end: int


def read_header(source: Source) -> ArrayHeader:
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        position += count
        return bytes(read_bytes(source, position - count, count))

    return _header(read)


def numbers_of(read: Callable[[int], bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of an .npy file whose numbers are read next.

    Arguments:
        read: gives the next bytes, as many as it is asked for.

    Raises:
        ValueError: it is no such file, or holds no plain numbers.
    """
    header = _header(read)
    kind = header.type
    dtype = _numpy_type(ArrayType(kind[1:], kind[:1])) if isinstance(kind, str) else None
    if dtype is None or not is_shape(header.shape):
        raise ValueError("an array of no numbers")
    return header.shape, header.fortran, dtype


def _header(read: Callable[[int], bytes]) -> ArrayHeader:
    prefix = read(8)
    if prefix[:6] != MAGIC or prefix[6] not in (1, 2, 3):
        raise ValueError("a header of an unknown version")
    width = 2 if prefix[6] == 1 else 4
    length = int.from_bytes(read(width), "little")
    if length > _MAX_HEADER:
        raise ValueError("a long header")
    text = read(length).decode("latin1").strip()
    try:
        header = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text))  # Python 2 writes 3L
        shape, fortran, kind = header["shape"], header["fortran_order"], header["descr"]
    except (SyntaxError, TypeError, LookupError, MemoryError, RecursionError) as error:
        raise ValueError("a header that is none") from error
    if not isinstance(shape, tuple) or len(shape) > 32:
        raise ValueError("a header without a shape")
    return ArrayHeader(shape, fortran is True, kind, 8 + width + length)


def add_stored_array(file: TensorFile, source: Source, name: str, header: ArrayHeader) -> None:
    """Enter the array of a .npy file; one that holds no numbers is ignored."""
    kind = header.type
    dtype = _numpy_type(ArrayType(kind[1:], kind[:1])) if isinstance(kind, str) else None
    if dtype is None:
        file.ignore(name)
        return
    info = _info(file, name, header.shape, dtype, source.size - header.end)

    def load() -> Tensor:
        content = read_bytes(source, header.end, product(header.shape) * dtype.itemsize)
        return _to_tensor(_shaped(np.frombuffer(content, dtype), header.shape, header.fortran), info.dtype)

    file.add(name, info, load)


def _numpy_type(kind: ArrayType) -> np.dtype[Any] | None:
    """NumPy's type, None for one that is no tensor's."""
    if not kind.plain or kind.code not in _TYPES or kind.order not in ("<", ">", "|", "="):
        return None
    return np.dtype(f"{kind.order}{kind.code}")


def _info(
    file: TensorFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], available: int
) -> TensorInfo:
    """What becomes of an array of which `available` bytes are there."""
    if not is_shape(shape):
        raise file.damaged(f"expected a shape of {name}, found {brief(shape)}")
    if product(shape) * dtype.itemsize > available:
        raise file.damaged(f"expected {brief(shape)} numbers in {name}, found {available} bytes")
    return TensorInfo(shape, _TYPES[f"{dtype.kind}{dtype.itemsize}"])


def _checked(file: TensorFile, name: str, array: PickledArray) -> TensorInfo:
    content, dtype = array.content, _numpy_type(array.type)
    if dtype is None or not isinstance(content, (Blob, bytes, str)):
        raise file.damaged(f"expected numbers in {name}, found none")
    return _info(
        file, name, array.shape, dtype, content.length if isinstance(content, Blob) else len(content)
    )


def _array(array: PickledArray, data: Buffer) -> np.ndarray:
    dtype = _numpy_type(array.type)
    if isinstance(array.content, Blob):
        content = array.content.read(data)
    else:  # a string of Python 2, each character a byte
        content = array.content.encode("latin1") if isinstance(array.content, str) else array.content
    if dtype is None or len(content) != product(array.shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for the shape {brief(array.shape)}")
    return _shaped(np.frombuffer(content, dtype), array.shape, array.fortran)


def _shaped(numbers: np.ndarray, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    return numbers.reshape(shape, order="F" if fortran else "C")


def _to_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A copy in the machine's own byte order."""
    if dtype == torch.bool:
        return torch.from_numpy(np.array(array.view(np.uint8) != 0, order="C"))
    native = np.dtype(np.int64) if dtype == torch.int64 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=native, order="C", copy=True))
