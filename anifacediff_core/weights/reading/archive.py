"""Zip archives: PyTorch's format since 1.6, and NumPy's .npz."""

from __future__ import annotations

import re
import struct
import zipfile
from typing import BinaryIO

from anifacediff_core.errors import InputError

from .file import Packed, Region, Source, TensorFile, read_bytes
from .machine import unpickle
from .pickled import MAX_PICKLE, add_array_file, add_values, storage
from .values import Storage

_MAX_DIRECTORY = 8 * 2**20  # bytes of the list of contents
_MAX_INFLATION = 100  # size unpacked over its own; weights hardly shrink at all


class Program(InputError):
    """A TorchScript file: code with its weights."""


def open_archive(file: TensorFile, stream: BinaryIO) -> None:
    """Enter the tensors of an archive."""
    archive = _open_zip(file, stream)
    members = [member for member in archive.infolist() if not member.is_dir()]
    names = {member.filename: member for member in members}
    if len(names) < len(members):
        raise file.damaged("expected each of its parts once, found one twice")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(MAX_PICKLE, _MAX_INFLATION * file.size):
        raise file.implausible(
            f"at most {_MAX_INFLATION} times its size when unpacked", f"{unpacked} bytes in {file.size}"
        )
    sources = {name: _source(file, stream, archive, member) for name, member in names.items()}
    pickles = [name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) == 1:
        file.kind = "torch"
        _add_checkpoint(file, sources, pickles[0].removesuffix("data.pkl"))
    elif names and all(name.endswith(".npy") for name in names):
        file.kind = "numpy"
        for name, source in sources.items():
            add_array_file(file, source, name.removesuffix(".npy"))
    else:
        raise InputError(
            f"{file.name} is an archive of other things: expected a weight file, found "
            f"{min(names, default='nothing')[:80]} in it; unpack it first."
        )


def _open_zip(file: TensorFile, stream: BinaryIO) -> zipfile.ZipFile:
    if _directory_size(stream, file.size) > _MAX_DIRECTORY:
        raise file.implausible(f"at most {_MAX_DIRECTORY} bytes of contents of an archive", "more")
    return file.resources.enter_context(zipfile.ZipFile(stream))


def _directory_size(stream: BinaryIO, size: int) -> int:
    """The largest size, in bytes, that anything like an end of the archive claims for its list of contents.

    That list is made into objects at once, ten times its size in memory.
    """
    start = max(0, size - 0xFFFF - 22 - 20 - 56)
    stream.seek(start)
    tail = stream.read(size - start)
    claims = [0]
    for found in re.finditer(rb"PK\x05\x06", tail):
        if found.start() + 22 <= len(tail):
            claims.append(struct.unpack_from("<I", tail, found.start() + 12)[0])
    for found in re.finditer(rb"PK\x06\x06", tail):  # beyond 4 GiB
        if found.start() + 48 <= len(tail):
            claims.append(struct.unpack_from("<Q", tail, found.start() + 40)[0])
    return max(claim for claim in claims if claim != 0xFFFFFFFF)  # that says: see the longer record


def _source(file: TensorFile, stream: BinaryIO, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Source:
    """Where a member's bytes lie. PyTorch stores them as they are, so that parts of them can be read."""
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{file.name} is encrypted or packed in an unknown way: expected an archive as PyTorch or NumPy "
            "writes it."
        )
    if member.compress_type == zipfile.ZIP_DEFLATED:
        return Packed(archive, member, file.resources)
    stream.seek(member.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise file.damaged(f"{member.filename[:80]!r} is not where it should be")
    start = member.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    if member.file_size != member.compress_size or start + member.file_size > file.size:
        raise file.damaged(f"{member.filename[:80]!r} is larger than the file")
    return Region(stream, start, member.file_size)


def _add_checkpoint(file: TensorFile, sources: dict[str, Source], root: str) -> None:
    """data.pkl refers to storages, each of which is a member below data/."""
    if any(name.startswith(f"{root}code/") for name in sources):
        raise Program(f"{file.name} is a TorchScript program: expected nothing but weights, fetch those.")
    order = f"{root}byteorder"
    if order in sources and _content(file, sources[order], order) != b"little":
        raise InputError(f"{file.name} was written on a big-endian machine: expected little-endian.")
    data = _content(file, sources[f"{root}data.pkl"], "data.pkl")
    value, _ = unpickle(data, file.name, persistent=storage)

    def place(wanted: Storage) -> Source | None:
        return sources.get(f"{root}data/{wanted.key}")

    add_values(file, value, data, place)


def _content(file: TensorFile, source: Source, name: str) -> bytes:
    if source.size > MAX_PICKLE:
        raise file.implausible(f"at most {MAX_PICKLE} bytes in {name}", str(source.size))
    return bytes(read_bytes(source, 0, source.size))
