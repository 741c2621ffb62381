"""Pickles: FLAME's, PyTorch's format before 1.6, and what all of them hold by name."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import torch

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from . import arrays
from .file import MAX_NAME, Region, Source, TensorFile, add_stored, read_bytes
from .machine import unpickle
from .values import Buffer, Global, PickledArray, StandIn, Storage, StoredTensor, storage_dtype

MAX_PICKLE = 64 * 2**20  # bytes of a pickle inside an archive
_MAX_DEPTH = 64  # of dicts in dicts
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # PyTorch's number at the start of its old format

Place = Callable[[Storage], Source | None]


def open_pickle(file: TensorFile, stream: BinaryIO) -> None:
    """Enter the tensors of a pickle, or of a checkpoint in PyTorch's old format."""
    data = file.resources.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    if _LEGACY in data[:64]:
        file.kind = "torch"
        _open_legacy(file, stream, data)
    else:
        file.kind = "pickle"
        add_values(file, unpickle(data, file.name)[0], data)


def _open_legacy(file: TensorFile, stream: BinaryIO, data: Buffer) -> None:
    """Five pickles (magic number, protocol, system, values, names of storages), then the storages."""
    types: dict[str, torch.dtype] = {}

    def remember(identity: Any) -> Any:
        found = storage(identity)
        if isinstance(found, Storage) and types.setdefault(found.key, found.dtype) != found.dtype:
            raise ValueError("one storage of two types")
        return found

    position = 0
    for _ in range(2):
        _, position = unpickle(data, file.name, position)
    system, position = unpickle(data, file.name, position)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError(f"{file.name} was written on a big-endian machine: expected little-endian.")
    value, position = unpickle(data, file.name, position, remember)
    keys, position = unpickle(data, file.name, position)
    regions = dict(_legacy_regions(file, stream, keys, types, position))
    add_values(file, value, data, lambda wanted: regions.get(wanted.key))


def _legacy_regions(
    file: TensorFile, stream: BinaryIO, keys: Any, types: dict[str, torch.dtype], position: int
) -> Iterator[tuple[str, Region]]:
    """Storages follow one another in the order of `keys`, each after its number of elements."""
    if not isinstance(keys, list):
        raise file.damaged("expected a list of its storages")
    for key in keys:
        if not isinstance(key, str) or key not in types:
            raise file.damaged("it has a storage that nothing in it refers to")
        stream.seek(position)
        (numel,) = struct.unpack("<q", stream.read(8).ljust(8, b"\0"))
        start, length = position + 8, numel * types[key].itemsize
        if length < 0 or start + length > file.size:
            raise InputError(
                f"{file.name} is truncated: expected {length} bytes of storage {key[:40]!r}, found "
                f"{max(file.size - start, 0)}; fetch it again."
            )
        yield key, Region(stream, start, length)
        position = start + length


def storage(identity: Any) -> Any:
    """Value of a persistent id: ("storage", class, key, device, elements[, (view, first, elements)])."""
    kind, storage_type, key, _, numel = identity[:5]
    dtype = storage_dtype(storage_type)
    if kind != "storage" or dtype is None:
        return StandIn(Global("torch", "storage"))
    base = 0
    if len(identity) > 5 and identity[5] is not None:
        _, base, numel = identity[5]
    if not isinstance(key, str) or type(numel) is not int or type(base) is not int:
        raise ValueError("a storage without name or size")
    return Storage(key, dtype, numel, base)


def add_values(file: TensorFile, value: Any, data: Buffer, place: Place | None = None) -> None:
    """Enter every tensor under the keys that lead to it; what leads to none is ignored.

    Arguments:
        value: of a pickle.
        data: the buffer of that pickle.
        place: where a storage lies.
    """
    value = arrays.resolve(value)
    if isinstance(value, StandIn):
        raise InputError(
            f"{file.name} holds an object of class {shown(value.kind)!r}: expected weights by name, fetch "
            "the file with its state dict."
        )
    holding = _Holding(file)

    def visit(value: Any, name: str, depth: int) -> None:
        value = arrays.resolve(value)
        if depth > _MAX_DEPTH:
            raise file.implausible(f"at most {_MAX_DEPTH} levels of names", "more")
        if not holding.tensors(value):
            file.ignore(name or "everything")
        elif isinstance(value, _CONTAINERS):
            for key, child in _items(value):
                visit(child, f"{name}.{_text(key)}" if name else _text(key), depth + 1)
        elif isinstance(value, StoredTensor):
            _add_tensor(file, name or "tensor", value, place)
        elif isinstance(value, PickledArray):
            arrays.add_array(file, name or "array", value, data)
        else:
            arrays.add_sparse(file, name or "matrix", value, data)

    if isinstance(value, _CONTAINERS) and not holding.tensors(value):
        for key, _ in _items(value):  # each by its name, rather than the whole
            file.ignore(_text(key))
    else:
        visit(value, "", 0)


_CONTAINERS = (dict, list, tuple)
_LEAVES = (StoredTensor, PickledArray, arrays.Sparse)


class _Holding:
    """Which values hold tensors. Each container is looked at once, in however many places it appears."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self.known: dict[int, bool] = {}

    def tensors(self, value: Any, depth: int = 0) -> bool:
        if not isinstance(value, _CONTAINERS):
            return isinstance(value, _LEAVES)
        if depth > _MAX_DEPTH:  # also of what contains itself
            raise self.file.implausible(f"at most {_MAX_DEPTH} levels of names", "more")
        if id(value) not in self.known:
            found = False
            for _, child in _items(value):
                found |= self.tensors(arrays.resolve(child), depth + 1)
            self.known[id(value)] = found
        return self.known[id(value)]


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


def _text(key: Any) -> str:
    """A key as a part of a name."""
    if isinstance(key, StandIn):
        key = key.kind
    plain = isinstance(key, (str, bool, int, float, Global)) or key is None
    return str(key if plain else type(key).__name__)[: MAX_NAME + 1]


def _add_tensor(file: TensorFile, name: str, tensor: StoredTensor, place: Place | None) -> None:
    stored = tensor.storage
    source = place(stored) if place is not None else None
    if source is None or type(tensor.offset) is not int:
        raise file.damaged(f"expected the bytes of {name}, found none")
    if (stored.base + stored.numel) * stored.dtype.itemsize > source.size:
        raise file.damaged(
            f"expected {stored.numel} elements in the storage of {name}, found "
            f"{source.size // stored.dtype.itemsize}"
        )
    offset = stored.base + tensor.offset
    add_stored(file, name, source, tensor.dtype, tensor.shape, tensor.stride, offset)


def add_array_file(file: TensorFile, source: Source, name: str) -> None:
    """Enter a .npy file, alone or as a member of an .npz.

    An array of objects is a pickle after the header: DECA's landmark embedding is one dict of arrays.
    """
    header = arrays.read_header(source)
    if header.type != "|O":
        arrays.add_stored_array(file, source, name, header)
        return
    if source.size - header.end > MAX_PICKLE:
        raise file.implausible(f"at most {MAX_PICKLE} bytes in {name}", str(source.size))
    data = bytes(read_bytes(source, header.end, source.size - header.end))
    value, _ = unpickle(data, file.name)
    add_values(file, value if name == "array" else {name: value}, data)
