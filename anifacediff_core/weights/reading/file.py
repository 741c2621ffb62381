"""An open weight file: what is in it, and each tensor when it is asked for."""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from anifacediff_core.claims import is_finite, shown
from anifacediff_core.errors import InputError

MAX_TENSORS = 100_000
MAX_NAME = 500  # characters
_MAX_AXES = 32
_MAX_LENGTHS = 2**48  # product of a shape's lengths but zeros, far beyond any file
_MAX_REPEATED = 2**20  # elements of a tensor that repeats fewer stored ones
# Bytes that all tensors of a file may take: those of the file a few times over, since tensors share storages,
# and archives and sparse matrices are packed.
_SMALLEST_BUDGET, _TIMES_SIZE = 256 * 2**20, 8

# What the libraries raise on files that are not as they should be.
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,  # also NotImplementedError and RecursionError
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFile:
    """An open weight file; a context manager.

    Attributes:
        path: the file.
        kind: "safetensors", "torch", "pickle" or "numpy".
        metadata: texts of a safetensors header, otherwise empty.
        infos: shape and type of every tensor by name; nested names are joined by dots.
        ignored: what else the file holds and nobody reads (hyper-parameters, states of a trainer), by name; a
            branch without tensors is named once.
        scaled: how many of the tensors are stored in fp8 with a scale, which is applied when they are read.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.name = path.name
        self.size = path.stat().st_size
        self.kind = ""
        self.metadata: dict[str, str] = {}
        self.infos: dict[str, TensorInfo] = {}
        self.ignored: list[str] = []
        self.scaled = 0
        self.resources = ExitStack()
        self.resources.enter_context(stream)
        self._budget = max(_SMALLEST_BUDGET, _TIMES_SIZE * self.size)
        self._loaders: dict[str, Callable[[], Tensor]] = {}
        self._open = True

    def read(self, name: str) -> Tensor:
        """One tensor from the disk: on the CPU, contiguous, finite, the caller's own.

        Raises:
            InputError: there is no such tensor, it is damaged, or not finite.
        """
        if not self._open:
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

    def close(self) -> None:
        self._open = False
        self.resources.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # For those who fill it

    def add(self, name: str, info: TensorInfo, load: Callable[[], Tensor]) -> None:
        """Enter a tensor; `load` makes it when it is asked for."""
        if len(name) > MAX_NAME or not name.isprintable():
            raise self.damaged(f"expected names of tensors, found {name[:40]!r}")
        if name in self.infos:
            raise self.damaged(f"expected each name once, found {name} twice")
        if len(self.infos) >= MAX_TENSORS:
            raise self.implausible(f"at most {MAX_TENSORS} tensors", "more")
        self._budget -= product(info.shape) * info.dtype.itemsize
        if self._budget < 0:
            raise self.implausible("numbers that fit its size", "many times as many")
        self.infos[name] = info
        self._loaders[name] = load

    def withdraw(self, name: str) -> Callable[[], Tensor]:
        """Take out a tensor that only says something about another; gives what makes it."""
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


# Where bytes lie: each knows its size and fills a memory view from a position in it.


@dataclass(frozen=True)
class Region:
    """Part of an open file."""

    stream: BinaryIO
    start: int
    size: int

    def fill(self, view: memoryview, position: int) -> None:
        self.stream.seek(self.start + position)
        while view:
            count = self.stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("the file ends early")
            view = view[count:]


@dataclass(frozen=True)
class Packed:
    """A compressed member of an archive; it is unpacked once, on the disk, however many tensors it holds."""

    archive: zipfile.ZipFile
    member: zipfile.ZipInfo
    resources: ExitStack

    @property
    def size(self) -> int:
        return self.member.file_size

    @cached_property
    def unpacked(self) -> Region:
        copy = self.resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is entered
        with self.archive.open(self.member) as stream:
            shutil.copyfileobj(stream, copy)
        return Region(copy, 0, self.size)

    def fill(self, view: memoryview, position: int) -> None:
        self.unpacked.fill(view, position)


Source = Region | Packed


def read_bytes(source: Source, position: int, count: int) -> bytearray:
    if count > source.size - position:
        raise EOFError("a part of the file ends early")
    content = bytearray(count)
    source.fill(memoryview(content), position)
    return content


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
    plausible = is_shape(shape)
    stride = _contiguous(shape) if stride is None and plausible else stride
    if not plausible or stride is None or len(shape) != len(stride) or not are_counts((*stride, offset)):
        raise file.damaged(
            f"expected shape, stride and offset of {name} to be counts, found {brief(shape)}, "
            f"{brief(stride or ())} and {brief((offset,))}"
        )
    numel, stored = product(shape), source.size // dtype.itemsize
    extent = 1 + sum((length - 1) * step for length, step in zip(shape, stride)) if numel else 0
    if offset + extent > stored or numel > max(stored, _MAX_REPEATED):
        raise file.damaged(
            f"expected {name} {brief(shape)} within the {stored} elements that are stored for it, "
            "found it larger"
        )

    def load() -> Tensor:
        # booleans come as bytes, of which every one but 0 is true
        kind = torch.uint8 if dtype == torch.bool else dtype
        if not extent:
            return torch.empty(shape, dtype=dtype)
        flat = torch.empty(extent, dtype=kind)
        source.fill(memoryview(flat.view(torch.uint8).numpy().data), offset * dtype.itemsize)
        tensor = flat.as_strided(shape, stride).contiguous()
        return tensor != 0 if dtype == torch.bool else tensor

    file.add(name, TensorInfo(shape, dtype), load)


def are_counts(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def is_shape(numbers: tuple[Any, ...]) -> bool:
    """Whether they can be the lengths of a tensor's axes; NumPy and PyTorch overflow on others."""
    if len(numbers) > _MAX_AXES or not are_counts(numbers):
        return False
    return product(tuple(length or 1 for length in numbers)) <= _MAX_LENGTHS


def product(shape: tuple[int, ...]) -> int:
    numel = 1
    for length in shape:
        numel *= length
    return numel


def brief(numbers: tuple[Any, ...]) -> str:
    """Numbers of a file in a message."""
    told = [str(n)[:20] if type(n) is int else type(n).__name__ for n in numbers[:8]]
    return "(" + ", ".join(told + ["…"] * (len(numbers) > 8)) + ")"


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(product(shape[axis + 1 :]) for axis in range(len(shape)))
