"""An open weight file: what is in it, and each tensor when it is asked for."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from anifacediff_core.claims import is_finite, shown
from anifacediff_core.errors import InputError

MAX_PICKLE = 64 * 2**20  # bytes of a pickle inside an archive
MAX_TENSORS = 100_000
MAX_NAME = 500  # characters
_MAX_AXES, _MAX_LENGTHS = 32, 2**48  # of a shape; the product of its lengths but zeros, far beyond any file
_MAX_REPEATED = 2**20  # elements of a tensor that repeats fewer stored ones
# Bytes that all tensors of a file may take: those of the file a few times over, since tensors share storages,
# and archives and sparse matrices are packed.
_SMALLEST_BUDGET, _TIMES_SIZE = 256 * 2**20, 8

# What the libraries raise on damaged files; RuntimeError is also RecursionError and NotImplementedError.
READ_ERRORS = (OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
               MemoryError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip
_NAMES = """
    float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint64 uint32 uint16
    uint8 bool complex64 complex128
"""
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name)
}


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFile(ExitStack):
    """An open weight file; a context manager, which closes it.

    Attributes:
        kind: "safetensors", "torch", "pickle" or "numpy".
        metadata: texts of a safetensors header, otherwise empty.
        infos: shape and dtype of every tensor by name; nested names are joined by dots.
        ignored: names of what else the file holds and nobody reads (hyper-parameters, states of a trainer); a
            branch without tensors is named once.
        scaled: how many tensors are stored in fp8 with a scale, which is applied when they are read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.name, self.size = path, path.name, path.stat().st_size
        self.kind, self.scaled = "", 0
        self.metadata: dict[str, str] = {}
        self.infos: dict[str, TensorInfo] = {}
        self.ignored: list[str] = []
        self.stream = stream = self.enter_context(path.open("rb"))
        self.source = Source(lambda: stream, 0, self.size)
        self._budget = max(_SMALLEST_BUDGET, _TIMES_SIZE * self.size)
        self._loaders: dict[str, Callable[[], Tensor]] = {}

    def read(self, name: str) -> Tensor:
        """One tensor from the disk: on the CPU, contiguous, finite, the caller's own.

        Raises:
            InputError: there is no such tensor, it is damaged, or not finite.
        """
        if self.stream.closed:
            raise RuntimeError(f"{self.name} is closed")
        if name not in self._loaders:
            raise InputError(f"{self.name} has no tensor {name}: expected one of its {len(self._loaders)}.")
        try:
            tensor = self._loaders[name]()
        except InputError:
            raise
        except READ_ERRORS as error:
            raise self.damaged(f"{name} cannot be read ({shown(error)})") from error
        if not is_finite(tensor):
            raise self.damaged(f"expected finite weights, found NaN or infinity in {name}")
        return tensor

    # For those who fill it

    def add(self, name: str, info: TensorInfo, load: Callable[[], Tensor]) -> None:
        """Enter a tensor; `load` makes it when it is asked for."""
        if len(name) > MAX_NAME or not name.isprintable():
            raise self.damaged(f"expected names of tensors, found {name[:40]!r}")
        if name in self.infos:
            raise self.damaged(f"expected each name once, found {name} twice")
        if len(self.infos) >= MAX_TENSORS:
            raise self.implausible(f"at most {MAX_TENSORS} tensors", "more")
        self._budget -= math.prod(info.shape) * info.dtype.itemsize
        if self._budget < 0:
            raise self.implausible("numbers that fit its size", "many times as many")
        self.infos[name], self._loaders[name] = info, load

    def withdraw(self, name: str) -> Callable[[], Tensor]:
        """Take out a tensor that only says something about another; returns what loads it."""
        del self.infos[name]
        return self._loaders.pop(name)

    def replace(self, name: str, info: TensorInfo, change: Callable[[Tensor], Tensor]) -> None:
        """Enter a tensor, in its place, as what `change` makes of it."""
        load = self._loaders[name]
        self.infos[name], self._loaders[name] = info, lambda: change(load())

    def ignore(self, name: str) -> None:
        if len(self.ignored) >= MAX_TENSORS:
            raise self.implausible(f"at most {MAX_TENSORS} values that are no tensors", "more")
        self.ignored.append(shown(name, MAX_NAME))

    def damaged(self, what: str) -> InputError:
        return InputError(f"{self.name} is damaged: {what}; fetch it again.")

    def implausible(self, expected: str, found: str) -> InputError:
        return InputError(f"{self.name} is not a plausible weight file: expected {expected}, found {found}.")


@dataclass(frozen=True)
class Source:
    """Bytes of an open file, `size` of them from `start`; `stream` gives the file when they are needed."""

    stream: Callable[[], BinaryIO]
    start: int
    size: int

    def part(self, start: int, size: int) -> Source:
        return Source(self.stream, self.start + start, size)

    def read(self, position: int, count: int) -> Tensor:
        """(count,) uint8, the caller's own."""
        if not 0 <= count <= self.size - position:
            raise EOFError("a part of the file ends early")
        content, stream = torch.empty(count, dtype=torch.uint8), self.stream()
        stream.seek(self.start + position)
        if stream.readinto(content.numpy()) < count:  # type: ignore[attr-defined]
            raise EOFError("the file ends early")
        return content

    def read_bytes(self, position: int, count: int) -> bytes:
        return self.read(position, count).numpy().tobytes()


def add_stored(
    file: TensorFile,
    name: str,
    source: Source,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
) -> None:
    """Enter a tensor by its shape, stride and offset (elements) in `source`; contiguous without a stride."""
    if stride is None and is_shape(shape):
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if not is_shape(shape) or len(shape) != len(stride or ()) or not _are_counts((*(stride or ()), offset)):
        raise file.damaged(f"expected shape, stride and offset of {name}, found {brief(shape)}")
    strides, numel, stored = stride or (), math.prod(shape), source.size // dtype.itemsize
    extent = 1 + sum((length - 1) * step for length, step in zip(shape, strides)) if numel else 0
    if offset + extent > stored or numel > max(stored, _MAX_REPEATED):
        raise file.damaged(
            f"expected {name} {brief(shape)} within its {stored} stored elements, found it larger"
        )

    def load() -> Tensor:
        if not extent:
            return torch.empty(shape, dtype=dtype)
        content = source.read(offset * dtype.itemsize, extent * dtype.itemsize)
        if dtype == torch.bool:  # bytes, of which every one but 0 is true
            content = content != 0
        return content.view(dtype).as_strided(shape, strides).contiguous()

    file.add(name, TensorInfo(shape, dtype), load)


def is_shape(numbers: tuple[Any, ...]) -> bool:
    """Whether they can be the lengths of a tensor's axes; NumPy and PyTorch overflow on others."""
    if len(numbers) > _MAX_AXES or not _are_counts(numbers):
        return False
    return math.prod(length or 1 for length in numbers) <= _MAX_LENGTHS


def _are_counts(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def brief(numbers: tuple[Any, ...]) -> str:
    """Numbers of a file in a message."""
    shortened = [str(n)[:20] if type(n) is int else type(n).__name__ for n in numbers[:8]]
    return "(" + ", ".join(shortened + ["…"] * (len(numbers) > 8)) + ")"
