"""Weight files of other projects, read safely: safetensors, PyTorch, pickled models such as FLAME's, NumPy.

A file is told by its content, never by its name. Opening it reads what is in it (names, shapes, types); each
tensor is read when it is asked for, so memory is bounded by the largest of them. Sizes that a file claims are
held against the bytes that it has before anything is allocated. Nothing in a file is ever run: see
`unpickling`.
"""

from __future__ import annotations

import ast
import json
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.weights.unpickling import (
    ArrayType,
    Blob,
    Buffer,
    Global,
    PickledArray,
    StandIn,
    Storage,
    StoredTensor,
    storage_dtype,
    unpickle,
)

MAX_TENSORS = 100_000
_MAX_DEPTH = 64  # of dicts in dicts
_MAX_NAME = 500  # characters
_MAX_PICKLE = 64 * 2**20  # bytes of the pickle inside an archive, which holds no tensors
_MAX_DIRECTORY = 8 * 2**20  # bytes of an archive's list of contents
_MAX_SPARSE = 2**24  # elements of a sparse matrix that is made dense
_MAX_EXPANDED = 2**20  # elements of a tensor that repeats fewer stored ones
_MAX_INFLATION = 100  # an archive's size unpacked over its own; weights hardly shrink at all
_CHUNK = 4 * 2**20  # bytes that are unpacked, or elements that are looked at, at a time


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Entry:
    info: TensorInfo
    load: Callable[[], Tensor]


@dataclass
class TensorFile:
    """An open weight file; a context manager.

    Attributes:
        path: the file.
        kind: "safetensors", "torch", "pickle" or "numpy".
        metadata: texts of a safetensors header, otherwise empty.
        ignored: what else the file holds and nobody reads (hyper-parameters, states of a trainer), by name; a
            branch without tensors is named once.
    """

    path: Path
    kind: str
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    _entries: dict[str, _Entry] = field(default_factory=dict, repr=False)
    _resources: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Shape and type of every tensor by name; nested names are joined by dots."""
        return {name: entry.info for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """One tensor from the disk: on the CPU, contiguous, finite, the caller's own.

        Raises:
            InputError: there is no such tensor, it is damaged, or not finite.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise InputError(
                f"{self.path.name} has no tensor {name}: expected it among {len(self._entries)}."
            )
        try:
            tensor = entry.load()
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.path.name} is damaged: {name} cannot be read ({error}); fetch the file again."
            ) from error
        if not _is_finite(tensor):
            raise InputError(
                f"{self.path.name} is damaged: expected finite weights, found NaN or infinity in {name}."
            )
        return tensor

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tensors(path: str | Path) -> TensorFile:
    """Open a weight file of any format that is read here.

    Raises:
        InputError: it is missing, damaged, of no such format, claims absurd sizes, or tries to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}: choose another one.")
    file = path.open("rb")
    opened = TensorFile(path, "")
    opened._resources.enter_context(file)
    try:
        _open(opened, file)
    except BaseException:
        opened.close()
        raise
    return opened


def _open(opened: TensorFile, file: BinaryIO) -> None:
    head, size = file.read(1024), opened.path.stat().st_size
    if head.startswith(b"PK"):
        _open_archive(opened, file, size)
    elif head.startswith(np.lib.format.MAGIC_PREFIX):
        opened.kind = "numpy"
        _add_array_file(opened, _Region(file, 0, size), "array")
    elif re.match(_PICKLE, head):
        _open_pickle(opened, file)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        _open_safetensors(opened, file)
    else:
        raise InputError(f"{opened.path.name} {_foreign(head)}")


# Protocols 2 and up; a dict, list, class or instance of protocols 0 and 1.
_PICKLE = re.compile(
    rb"\x80[\x02-\x05]|\((dp|lp)\d|[}\]]q|c[\w.]+\r?\n[\w.]+\r?\n|\((i|c)[\w.]+\r?\n|[}\]](\(|\.$)"
)
_MAX_HEADER = 100_000_000  # as safetensors has it
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def _foreign(head: bytes) -> str:
    """What a file is that is no weight file, and what to do about it."""
    if not head:
        return "is empty: fetch it again."
    if head.startswith(b"version https://git-lfs"):
        return (
            "is only a pointer of Git LFS, not the file itself: expected weights, fetch them with 'git lfs pull' "
            "or from the project's page."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a saved web page: expected weights, download the file itself."
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"is a {name} archive: expected weights, unpack it first."
    if head[257:262] == b"ustar":
        return "is a tar archive: expected weights, unpack it first."
    if head.isascii() and not re.search(rb"[^\t\n\r\x20-\x7e]", head):
        return "is a text file: expected weights, download the file itself."
    return (
        "is of an unknown format or damaged: expected safetensors, PyTorch, pickle or NumPy, "
        f"found a file that starts with {head[:8].hex(' ')}."
    )


# Bytes of a tensor: each knows its size and fills a memory view from a position in it.


@dataclass(frozen=True)
class _Region:
    """Part of an open file."""

    file: BinaryIO
    start: int
    size: int

    def fill(self, view: memoryview, position: int) -> None:
        self.file.seek(self.start + position)
        while view:
            count = self.file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("the file ends early")
            view = view[count:]


@dataclass(frozen=True)
class _Packed:
    """A compressed member of an archive."""

    archive: zipfile.ZipFile
    member: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return self.member.file_size

    def fill(self, view: memoryview, position: int) -> None:
        with self.archive.open(self.member) as stream:
            while position:
                skipped = len(stream.read(min(position, _CHUNK)))
                if not skipped:
                    raise EOFError("the archive's member ends early")
                position -= skipped
            while view:
                part = stream.read(min(len(view), _CHUNK))
                if not part:
                    raise EOFError("the archive's member ends early")
                view[: len(part)] = part
                view = view[len(part) :]


_Bytes = _Region | _Packed


def _read(source: _Bytes, position: int, count: int) -> bytearray:
    if count > source.size - position:
        raise EOFError("a member ends early")
    content = bytearray(count)
    source.fill(memoryview(content), position)
    return content


# safetensors

_SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "C64": "complex64",
}


def _open_safetensors(opened: TensorFile, file: BinaryIO) -> None:
    """The library holds offsets against each other and the file; tensors are read without its memory map,
    whose pages would count as memory in use."""
    opened.kind = "safetensors"
    try:
        with safe_open(opened.path, "pt") as checked:
            opened.metadata = dict(checked.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{opened.path.name} is truncated or damaged ({error}): expected a whole safetensors file, "
            "fetch it again."
        ) from error
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(opened, pairs))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = getattr(torch, _SAFETENSORS_TYPES.get(entry["dtype"], ""), None)
        if dtype is None:
            opened.ignored.append(name)
            continue
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        _add_stored(opened, name, _Region(file, 8 + length + start, end - start), dtype, shape)


def _unique(opened: TensorFile, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(f"{opened.path.name} is damaged: expected each name once, found one twice.")
    return found


# Tensors as views of stored bytes


def _add(opened: TensorFile, name: str, info: TensorInfo, load: Callable[[], Tensor]) -> None:
    if len(name) > _MAX_NAME or not name.isprintable():
        raise InputError(f"{opened.path.name} is damaged: expected names of tensors, found {name[:40]!r}.")
    if name in opened._entries:
        raise InputError(f"{opened.path.name} is damaged: expected each name once, found {name} twice.")
    if len(opened._entries) >= MAX_TENSORS:
        raise InputError(f"{opened.path.name} has more than {MAX_TENSORS} tensors: expected a weight file.")
    opened._entries[name] = _Entry(info, load)


def _add_stored(
    opened: TensorFile,
    name: str,
    source: _Bytes,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
) -> None:
    """A tensor by its shape, stride and offset (elements) in `source`; contiguous without a stride."""
    stride = _contiguous(shape) if stride is None else stride
    numbers = (*shape, *stride, offset)
    if len(shape) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise InputError(
            f"{opened.path.name} is damaged: expected shape, stride and offset of {name} to be counts, "
            f"found {_brief(shape)}, {_brief(stride)} and {_brief((offset,))}."
        )
    numel = _product(shape)
    stored = source.size // dtype.itemsize
    extent = 1 + sum((length - 1) * step for length, step in zip(shape, stride)) if numel else 0
    if offset + extent > stored or numel > max(stored, _MAX_EXPANDED):
        raise InputError(
            f"{opened.path.name} is damaged: expected {name} {_brief(shape)} within the {stored} elements "
            "that are stored for it, found it larger."
        )

    def load() -> Tensor:
        # booleans come as bytes, of which every one but 0 is true
        flat = torch.empty(extent, dtype=torch.uint8 if dtype == torch.bool else dtype)
        if extent:
            source.fill(memoryview(flat.view(torch.uint8).numpy()), offset * dtype.itemsize)
        tensor = flat.as_strided(shape, stride).contiguous()
        return tensor != 0 if dtype == torch.bool else tensor

    _add(opened, name, TensorInfo(shape, dtype), load)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride, step = [], 1
    for length in reversed(shape):
        stride.append(step)
        step *= max(length, 1)
    return tuple(reversed(stride))


def _product(shape: tuple[int, ...]) -> int:
    numel = 1
    for length in shape:
        numel *= length
    return numel


def _brief(numbers: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(n)[:20] if type(n) is int else type(n).__name__ for n in numbers) + ")"


def _is_finite(tensor: Tensor) -> bool:
    """Looks at one part after the other, since the answer for all elements would be a second tensor."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    parts = tensor.reshape(-1).split(_CHUNK)
    return all(bool(torch.isfinite(part.float() if part.itemsize == 1 else part).all()) for part in parts)


# Archives: PyTorch's since 1.6, and NumPy's


def _open_archive(opened: TensorFile, file: BinaryIO, size: int) -> None:
    name = opened.path.name
    if _directory_size(file, size) > _MAX_DIRECTORY:
        raise InputError(f"{name} is not a plausible weight file: its list of contents is too long.")
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise InputError(
            f"{name} is truncated or damaged ({error}): expected a whole archive, fetch it again."
        ) from error
    opened._resources.enter_context(archive)
    members = [member for member in archive.infolist() if not member.is_dir()]
    names = {member.filename: member for member in members}
    if len(names) < len(members):
        raise InputError(f"{name} is damaged: expected each of its parts once, found one twice.")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_MAX_PICKLE, _MAX_INFLATION * size):
        raise InputError(
            f"{name} is not a plausible weight file: expected at most {_MAX_INFLATION} times its own size when "
            f"unpacked, found {unpacked} bytes in {size}."
        )
    pickles = [found for found in names if re.fullmatch(r"([^/]+/)?data\.pkl", found)]
    if len(pickles) == 1:
        opened.kind = "torch"
        _open_torch_archive(opened, file, archive, names, pickles[0].removesuffix("data.pkl"))
    elif names and all(found.endswith(".npy") for found in names):
        opened.kind = "numpy"
        for found, member in names.items():
            _add_array_file(opened, _member(opened, file, archive, member), found.removesuffix(".npy"))
    else:
        first = min(names, default="nothing")
        raise InputError(
            f"{name} is an archive of other things: expected a weight file, found {first[:80]} in it; unpack it "
            "first."
        )


def _directory_size(file: BinaryIO, size: int) -> int:
    """Bytes of the list of contents as the end of the archive claims them, 0 if there is no end."""
    start = max(0, size - 22 - 0xFFFF - 20)
    file.seek(start)
    tail = file.read(size - start)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        return 0
    found = struct.unpack_from("<I", tail, end + 12)[0]
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\x06\x07":
        # of an archive beyond 4 GiB: all before its record that is no member belongs to it
        file.seek(struct.unpack_from("<Q", tail, end - 12)[0])
        record = file.read(56)
        if len(record) == 56:
            found = struct.unpack_from("<Q", record, 40)[0]
    return int(found)


def _member(opened: TensorFile, file: BinaryIO, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Bytes:
    """Where a member's bytes lie. PyTorch stores them as they are, so that parts of them can be read."""
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{opened.path.name} is encrypted or packed in an unknown way: expected an archive as PyTorch or "
            "NumPy writes it."
        )
    if member.compress_type == zipfile.ZIP_DEFLATED:
        return _Packed(archive, member)
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise InputError(f"{opened.path.name} is damaged: {member.filename[:80]} is not where it should be.")
    start = member.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    if member.file_size != member.compress_size or start + member.file_size > opened.path.stat().st_size:
        raise InputError(f"{opened.path.name} is damaged: {member.filename[:80]} is larger than the file.")
    return _Region(file, start, member.file_size)


def _open_torch_archive(
    opened: TensorFile,
    file: BinaryIO,
    archive: zipfile.ZipFile,
    names: dict[str, zipfile.ZipInfo],
    root: str,
) -> None:
    if any(name.startswith(f"{root}code/") for name in names):
        raise InputError(
            f"{opened.path.name} is a TorchScript program: expected nothing but weights, fetch those."
        )

    def content(name: str, limit: int) -> bytes:
        source = _member(opened, file, archive, names[name])
        if source.size > limit:
            raise InputError(
                f"{opened.path.name} is not a plausible weight file: expected at most {limit} bytes in {name}, "
                f"found {source.size}."
            )
        try:
            return bytes(_read(source, 0, source.size))
        except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{opened.path.name} is damaged: {name} cannot be read ({error}); fetch it again."
            ) from error

    if f"{root}byteorder" in names and content(f"{root}byteorder", 16) != b"little":
        raise InputError(f"{opened.path.name} was written on a big-endian machine: expected little-endian.")
    data = content(f"{root}data.pkl", _MAX_PICKLE)
    value, _ = unpickle(data, opened.path.name, persistent=_storage)

    def region(storage: Storage) -> _Bytes:
        member = names.get(f"{root}data/{storage.key}")
        if member is None:
            raise InputError(
                f"{opened.path.name} is damaged: expected the storage {storage.key[:40]}, found none."
            )
        return _member(opened, file, archive, member)

    _add_values(opened, value, data, region)


def _storage(identity: Any) -> Any:
    """("storage", class, key, device, elements[, (view, first element, elements)])"""
    kind, storage_type, key, _, numel = identity[:5]
    dtype = storage_dtype(storage_type)
    if kind != "storage" or dtype is None:
        return StandIn(Global("torch", "storage"))
    if not isinstance(key, str) or type(numel) is not int:
        raise ValueError("storage without a name or a size")
    base = 0
    if len(identity) > 5 and identity[5] is not None:
        _, base, numel = identity[5]
    return Storage(key, dtype, numel, base)


# Pickles: FLAME's, and PyTorch's before 1.6

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _open_pickle(opened: TensorFile, file: BinaryIO) -> None:
    data = opened._resources.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    name = opened.path.name
    legacy = _LEGACY_MAGIC.to_bytes(10, "little") in data[:64]
    opened.kind = "torch" if legacy else "pickle"
    if not legacy:
        value, _ = unpickle(data, name)
        _add_values(opened, value, data, None)
        return
    position = 0
    for _ in range(2):  # the magic number and the protocol
        _, position = unpickle(data, name, position)
    system, position = unpickle(data, name, position)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError(f"{name} was written on a big-endian machine: expected little-endian.")
    storages: dict[str, torch.dtype] = {}

    def remember(identity: Any) -> Any:
        storage = _storage(identity)
        if isinstance(storage, Storage) and storages.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise ValueError("one storage of two types")
        return storage

    value, position = unpickle(data, name, position, remember)
    keys, position = unpickle(data, name, position)
    regions = dict(_legacy_regions(opened, file, keys, storages, position))

    def region(storage: Storage) -> _Bytes:
        if storage.key not in regions:
            raise InputError(f"{name} is damaged: expected the storage {storage.key[:40]}, found none.")
        return regions[storage.key]

    _add_values(opened, value, data, region)


def _legacy_regions(
    opened: TensorFile, file: BinaryIO, keys: Any, storages: dict[str, torch.dtype], position: int
) -> Iterator[tuple[str, _Region]]:
    """Storages follow one another, each after its number of elements, in the order of `keys`."""
    size = opened.path.stat().st_size
    if not isinstance(keys, list):
        raise InputError(f"{opened.path.name} is damaged: expected a list of its storages.")
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise InputError(f"{opened.path.name} is damaged: it has a storage that nothing in it refers to.")
        file.seek(position)
        (numel,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        start, length = position + 8, numel * storages[key].itemsize
        if numel < 0 or start + length > size:
            raise InputError(
                f"{opened.path.name} is truncated: expected {length} bytes of storage {key[:40]}, found "
                f"{max(size - start, 0)}; fetch it again."
            )
        yield key, _Region(file, start, length)
        position = start + length


# What a pickle holds, by name

_Regions = Callable[[Storage], _Bytes] | None


def _add_values(opened: TensorFile, value: Any, data: Buffer, region: _Regions) -> None:
    """Name every tensor by the keys that lead to it, and what leads to none as ignored."""
    value = _resolve(value)
    if isinstance(value, (StandIn, Global)):
        raise InputError(
            f"{opened.path.name} holds an object of class {str(value.kind)[:80]}: expected weights by name, "
            "fetch the file with its state dict."
            if isinstance(value, StandIn)
            else f"{opened.path.name} holds the name of a class: expected weights by name."
        )
    holding: dict[int, bool] = {}

    def holds(value: Any, depth: int) -> bool:
        """Whether there is a tensor in it; each container is looked at once."""
        if isinstance(value, _LEAVES):
            return True
        if not isinstance(value, (dict, list, tuple)) or not value:
            return False
        if id(value) not in holding:
            if depth > _MAX_DEPTH:
                raise InputError(
                    f"{opened.path.name} is not a plausible weight file: expected at most {_MAX_DEPTH} levels of "
                    "names, found more."
                )
            children = value.values() if isinstance(value, dict) else value
            # all of them, since a list that refers to itself must not be found harmless half way
            holding[id(value)] = any([holds(_resolve(child), depth + 1) for child in children])
        return holding[id(value)]

    def visit(value: Any, name: str) -> None:
        value = _resolve(value)
        if not holds(value, 0):
            if len(opened.ignored) >= MAX_TENSORS:
                raise InputError(f"{opened.path.name} holds more than {MAX_TENSORS} other values.")
            opened.ignored.append(name[:_MAX_NAME])
        elif isinstance(value, (dict, list, tuple)):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, child in pairs:
                visit(child, f"{name}.{_key(key)}" if name else _key(key))
        elif isinstance(value, StoredTensor):
            _add_tensor(opened, name or "tensor", value, region)
        elif isinstance(value, PickledArray):
            _add_array(opened, name or "array", value, data)
        elif isinstance(value, _Sparse):
            _add_sparse(opened, name or "matrix", value, data)

    holds(value, 0)
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            visit(child, _key(key))
    else:
        visit(value, "")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key if len(key) <= _MAX_NAME else key[:_MAX_NAME] + "…"
    if isinstance(key, (bool, int, float, type(None))):
        return str(key)
    return str(
        key.kind if isinstance(key, StandIn) else key if isinstance(key, Global) else type(key).__name__
    )


@dataclass(frozen=True, eq=False)
class _Sparse:
    """A SciPy matrix: csc and csr with `rows` or `columns` as pointers, coo with both as indices."""

    layout: str
    shape: tuple[int, int]
    values: PickledArray
    indices: PickledArray
    pointers: PickledArray


_LEAVES = (StoredTensor, PickledArray, _Sparse)


def _resolve(value: Any) -> Any:
    """Objects of other libraries that are arrays in another form."""
    if isinstance(value, StandIn) and isinstance(value.state, dict):
        library = value.kind.module.split(".")[0]
        if library == "chumpy" and isinstance(value.state.get("x"), PickledArray):
            value = value.state["x"]
        elif library == "scipy":
            return _sparse(value) or value
    if isinstance(value, PickledArray):
        if isinstance(value.content, list):  # an array of objects
            single = value.shape == () and len(value.content) == 1
            return value.content[0] if single else value.content
        if _array_type(value.type) is None:
            return StandIn(Global("numpy", "ndarray"))
    return value


def _sparse(value: StandIn) -> _Sparse | None:
    state, layout = value.state, value.kind.name[:3]
    names = {
        "csc": ("data", "indices", "indptr"),
        "csr": ("data", "indices", "indptr"),
        "coo": ("data", "col", "row"),
    }
    shape = state.get("_shape")
    if layout not in names or not isinstance(shape, tuple) or len(shape) != 2:
        return None
    coordinates = state.get("coords")  # of newer versions: (row, col)
    if layout == "coo" and isinstance(coordinates, tuple) and len(coordinates) == 2:
        state = {"data": state.get("data"), "row": coordinates[0], "col": coordinates[1]}
    parts = [state.get(name) for name in names[layout]]
    if not all(isinstance(part, PickledArray) and _array_type(part.type) for part in parts):
        return None
    return _Sparse(layout, shape, *parts)  # type: ignore[arg-type]


def _add_tensor(opened: TensorFile, name: str, tensor: StoredTensor, region: _Regions) -> None:
    storage = tensor.storage
    source = region(storage) if region is not None else None
    if source is None or type(tensor.offset) is not int or type(storage.base) is not int:
        raise InputError(f"{opened.path.name} is damaged: {name} has no place in the file.")
    if storage.numel * storage.dtype.itemsize > source.size:
        raise InputError(
            f"{opened.path.name} is damaged: expected {storage.numel} elements in the storage of {name}, found "
            f"{source.size // storage.dtype.itemsize}."
        )
    offset = storage.base + tensor.offset
    _add_stored(opened, name, source, tensor.dtype, tensor.shape, tensor.stride, offset)


# Arrays of NumPy

# PyTorch computes little with unsigned integers beyond a byte: they come as int64.
_ARRAY_TYPES = {
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


def _array_type(kind: ArrayType) -> np.dtype | None:
    """NumPy's type, None for one that is no tensor's."""
    if not kind.plain or kind.code not in _ARRAY_TYPES or kind.order not in ("<", ">", "|", "="):
        return None
    return np.dtype(kind.code).newbyteorder(kind.order)


def _array_info(
    opened: TensorFile, name: str, shape: tuple[int, ...], dtype: np.dtype, available: int
) -> TensorInfo:
    """What becomes of an array of which `available` bytes are there."""
    if any(type(length) is not int or length < 0 for length in shape):
        raise InputError(f"{opened.path.name} is damaged: expected a shape of {name}, found {_brief(shape)}.")
    if _product(shape) * dtype.itemsize > available:
        raise InputError(
            f"{opened.path.name} is damaged: expected {_brief(shape)} elements of {name}, found {available} bytes."
        )
    return TensorInfo(shape, _ARRAY_TYPES[f"{dtype.kind}{dtype.itemsize}"])


def _to_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return torch.from_numpy(array.view(np.uint8) != 0)
    native = array.dtype.newbyteorder("=") if dtype != torch.int64 else np.dtype(np.int64)
    return torch.from_numpy(np.array(array, dtype=native, order="C", copy=True))


def _array_bytes(content: Any, data: Buffer) -> bytes:
    if isinstance(content, Blob):
        return content.read(data)
    return content.encode("latin1") if isinstance(content, str) else bytes(content)


def _array(array: PickledArray, data: Buffer) -> np.ndarray:
    content, dtype = _array_bytes(array.content, data), _array_type(array.type)
    assert dtype is not None
    if len(content) != _product(array.shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for the shape {_brief(array.shape)}")
    return np.frombuffer(content, dtype).reshape(array.shape, order="F" if array.fortran else "C")


def _checked_info(opened: TensorFile, name: str, array: PickledArray) -> TensorInfo:
    content, dtype = array.content, _array_type(array.type)
    if dtype is None or not isinstance(content, (Blob, bytes, str)):
        raise InputError(f"{opened.path.name} is damaged: expected numbers in {name}, found none.")
    available = content.length if isinstance(content, Blob) else len(content)
    return _array_info(opened, name, array.shape, dtype, available)


def _add_array(opened: TensorFile, name: str, array: PickledArray, data: Buffer) -> None:
    info = _checked_info(opened, name, array)
    _add(opened, name, info, lambda: _to_tensor(_array(array, data), info.dtype))


def _add_sparse(opened: TensorFile, name: str, matrix: _Sparse, data: Buffer) -> None:
    """A sparse matrix, dense."""
    info = _checked_info(opened, name, matrix.values)
    _checked_info(opened, name, matrix.indices)
    _checked_info(opened, name, matrix.pointers)
    if any(type(length) is not int or length < 0 for length in matrix.shape):
        raise InputError(f"{opened.path.name} is damaged: {name} has no shape.")
    if _product(matrix.shape) > _MAX_SPARSE:
        raise InputError(
            f"{opened.path.name} has a sparse matrix {name} {_brief(matrix.shape)}: expected at most {_MAX_SPARSE} "
            "elements."
        )

    def load() -> Tensor:
        values, minor, major = (
            _array(part, data) for part in (matrix.values, matrix.indices, matrix.pointers)
        )
        if minor.dtype.kind not in "iu" or major.dtype.kind not in "iu" or values.ndim != 1:
            raise ValueError("indices that are no integers")
        if matrix.layout != "coo":
            lines = matrix.shape[matrix.layout == "csc"]
            steps = np.diff(major.astype(np.int64))
            if len(major) != lines + 1 or (steps < 0).any() or major[0] != 0 or major[-1] != len(values):
                raise ValueError("pointers that don't fit")
            major = np.repeat(np.arange(lines), steps)
        rows, columns = (minor, major) if matrix.layout == "csc" else (major, minor)
        if not len(rows) == len(columns) == len(values):
            raise ValueError("indices that don't fit")
        for index, length in zip((rows, columns), matrix.shape):
            if len(index) and (index.min() < 0 or index.max() >= length):
                raise ValueError("indices outside the matrix")
        dense = np.zeros(matrix.shape, values.dtype.newbyteorder("="))
        np.add.at(dense, (rows, columns), values)
        return _to_tensor(dense, info.dtype)

    _add(opened, name, TensorInfo(matrix.shape, info.dtype), load)


def _add_array_file(opened: TensorFile, source: _Bytes, name: str) -> None:
    """A .npy file, alone or as a member of an .npz; an array of objects is a pickle after the header."""
    try:
        shape, fortran, dtype, start = _array_header(source)
    except (
        EOFError,
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        KeyError,
        MemoryError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{opened.path.name} is truncated or damaged: {name} has no valid header ({error}); fetch it again."
        ) from error
    if dtype == "|O":
        _add_objects(opened, source, start, name)
        return
    kind = _array_type(ArrayType(dtype[1:], dtype[:1])) if isinstance(dtype, str) else None
    if kind is None:
        opened.ignored.append(name)
        return
    info = _array_info(opened, name, shape, kind, source.size - start)

    def load() -> Tensor:
        content = _read(source, start, _product(shape) * kind.itemsize)
        return _to_tensor(
            np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C"), info.dtype
        )

    _add(opened, name, info, load)


def _array_header(source: _Bytes) -> tuple[tuple[int, ...], bool, Any, int]:
    """Shape, whether it is in Fortran's order, type as NumPy writes it, and where the data begin."""
    prefix = _read(source, 0, 8)
    width = 2 if prefix[6] == 1 else 4
    if prefix[:6] != np.lib.format.MAGIC_PREFIX or prefix[6] not in (1, 2, 3):
        raise ValueError("unknown version")
    length = int.from_bytes(_read(source, 8, width), "little")
    if length > 10_000:
        raise ValueError("header too long")
    header = ast.literal_eval(_read(source, 8 + width, length).decode("latin1").strip())
    shape = header["shape"]
    if not isinstance(shape, tuple) or len(shape) > 32:
        raise ValueError("no shape")
    return shape, header["fortran_order"] is True, header["descr"], 8 + width + length


def _add_objects(opened: TensorFile, source: _Bytes, start: int, name: str) -> None:
    """DECA's landmark embedding comes so: an array of one dict of arrays."""
    if source.size - start > _MAX_PICKLE:
        raise InputError(
            f"{opened.path.name} is not a plausible weight file: {name} is a pickle of too many bytes."
        )
    data = bytes(_read(source, start, source.size - start))
    value, _ = unpickle(data, opened.path.name)
    _add_values(opened, value if name == "array" else {name: value}, data, None)
