"""NumPy's .npy files, alone or as members of an .npz."""

from __future__ import annotations

import math
import tokenize
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from .file import MAX_PICKLE, Source, TensorFile, is_shape
from .objects import NUMBERS, Array
from .pickled import add_values
from .unpickler import unpickle

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # bytes, as NumPy has it, which reads a longer one before it refuses it
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def numbers_of(read: Callable[[int], bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype of an .npy file whose numbers are read next.

    Args:
        read: gives the next bytes, as many as it is asked for.

    Raises:
        ValueError: it is no such file, or holds no plain numbers.
    """
    shape, fortran, dtype = _header(read)
    if dtype.str[1:] not in NUMBERS or not is_shape(shape):
        raise ValueError("an array of no numbers")
    return shape, fortran, dtype


def _header(read: Callable[[int], bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    def bounded(count: int) -> bytes:
        if count > _MAX_HEADER:
            raise ValueError("a long header")
        return read(count)

    stream: Any = SimpleNamespace(read=bounded)
    try:
        return _HEADERS[np.lib.format.read_magic(stream)](stream)
    except (SyntaxError, tokenize.TokenError, TypeError, LookupError, MemoryError, RecursionError) as error:
        raise ValueError("a header that is none") from error


def add_array_file(file: TensorFile, source: Source, name: str) -> None:
    """Enter a .npy file; one that holds no numbers is ignored.

    An array of objects is a pickle after the header: DECA's landmark embedding is one dict of arrays.
    """
    end = 0

    def read(count: int) -> bytes:
        nonlocal end
        end += count
        return source.read_bytes(end - count, count)

    shape, fortran, dtype = _header(read)
    size, left = math.prod(shape) * dtype.itemsize, source.size - end
    if dtype.str[1:] in NUMBERS:
        Array(shape, dtype, fortran, left, lambda: source.read_bytes(end, size)).add(file, name)
    elif dtype.str != "|O":
        file.ignore(name)
    elif left > MAX_PICKLE:
        raise file.implausible(f"at most {MAX_PICKLE} bytes in {name}", str(left))
    else:
        value, _ = unpickle(file, source, end)
        add_values(file, value if name == "array" else {name: value})
