"""Pickles: FLAME's, PyTorch's format before 1.6, and what all of them hold by name."""

from __future__ import annotations

import struct
from typing import Any

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from .file import MAX_NAME, TensorFile
from .objects import Array, Storage, StoredTensor, resolve, storage_of
from .unpickler import Opaque, unpickle

_MAX_DEPTH = 64  # of dicts in dicts
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # PyTorch's number at the start of its old format


def open_pickle(file: TensorFile) -> None:
    """Enter the tensors of a pickle, or of a checkpoint in PyTorch's old format."""
    if _LEGACY in file.source.read_bytes(0, min(64, file.size)):
        file.kind = "torch"
        _open_legacy(file)
    else:
        file.kind = "pickle"
        add_values(file, unpickle(file, file.source)[0])


def _open_legacy(file: TensorFile) -> None:
    """Five pickles (magic number, protocol, system, values, names of storages), then the storages."""
    storages: dict[str, list[Storage]] = {}

    def remember(identity: Any) -> Any:
        found = storage_of(identity)
        if isinstance(found, Storage):
            known = storages.setdefault(found.key, [])
            known.append(found)
            if known[0].dtype != found.dtype:
                raise ValueError("one storage of two types")
        return found

    _, position = unpickle(file, file.source)
    _, position = unpickle(file, file.source, position)
    system, position = unpickle(file, file.source, position)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError(f"{file.name} was written on a big-endian machine: expected little-endian.")
    value, position = unpickle(file, file.source, position, remember)
    keys, position = unpickle(file, file.source, position)
    for key in keys if isinstance(keys, list) else ():
        found = storages.pop(key, []) if isinstance(key, str) else []  # so that each comes once
        if not found:
            raise file.damaged("it has a storage that nothing in it refers to")
        (numel,) = struct.unpack("<q", file.source.read_bytes(position, 8))
        start, size = position + 8, numel * found[0].dtype.itemsize
        if not 0 <= size <= file.size - start:
            missing = f"expected {size} bytes of storage {key[:40]!r}, found {file.size - start}"
            raise InputError(f"{file.name} is truncated: {missing}; fetch it again.")
        for storage in found:
            storage.source = file.source.part(start, size)
        position = start + size
    add_values(file, value)


def add_values(file: TensorFile, value: Any) -> None:
    """Enter every tensor of a pickle's value under the keys that lead to it; the rest is ignored."""
    value = resolve(value)
    empty: set[int] = set()  # containers that are known to lead to none
    if isinstance(value, Opaque):
        raise InputError(
            f"{file.name} holds an object of class {shown(value.kind)!r}: expected weights by name, fetch "
            "the file with its state dict."
        )

    def enter(value: Any, name: str, depth: int) -> bool:
        """Whether it leads to a tensor; a container that does not is looked at once, wherever it appears."""
        value = resolve(value)
        if isinstance(value, (StoredTensor, Array)):
            value.add(file, name)
            return True
        if not isinstance(value, (dict, list, tuple)) or id(value) in empty:
            return False
        if depth > _MAX_DEPTH:  # also of what contains itself
            raise file.implausible(f"at most {_MAX_DEPTH} levels of names", "more")
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        ignored = [key for key, part in parts if not enter(part, _joined(name, key), depth + 1)]
        if len(ignored) == len(value) and depth:
            empty.add(id(value))
            return False
        for key in ignored:
            file.ignore(_joined(name, key))
        return True

    if not enter(value, "", 0):
        file.ignore("everything")


def _joined(name: str, key: Any) -> str:
    if isinstance(key, Opaque):
        key = key.kind
    return f"{name}.{key}"[: MAX_NAME + 1] if name else str(key)[: MAX_NAME + 1]
