"""Zip archives: PyTorch's format since 1.6, and NumPy's .npz."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import tempfile
import zipfile
from typing import Any, BinaryIO

from anifacediff_core.errors import InputError

from .file import MAX_PICKLE, Source, TensorFile
from .numpy_file import add_array_file
from .objects import Storage, storage_of
from .pickled import add_values
from .unpickler import unpickle

_MAX_DIRECTORY = 8 * 2**20  # bytes of the list of contents
_MAX_INFLATION = 100  # size unpacked over its own; weights hardly shrink at all


class TorchScriptError(InputError):
    """A TorchScript file: code with its weights."""


def open_archive(file: TensorFile) -> None:
    """Enter the tensors of an archive."""
    if _directory_size(file) > _MAX_DIRECTORY:
        raise file.implausible(f"at most {_MAX_DIRECTORY} bytes of contents of an archive", "more")
    archive = file.enter_context(zipfile.ZipFile(file.stream))
    members = [member for member in archive.infolist() if not member.is_dir()]
    sources = {member.filename: _source(file, archive, member) for member in members}
    if len(sources) < len(members):
        raise file.damaged("expected each of its parts once, found one twice")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(MAX_PICKLE, _MAX_INFLATION * file.size):
        raise file.implausible(
            f"at most {_MAX_INFLATION} times its size when unpacked", f"{unpacked} bytes in {file.size}"
        )
    pickles = [name for name in sources if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) == 1:
        file.kind = "torch"
        _add_checkpoint(file, sources, pickles[0].removesuffix("data.pkl"))
    elif sources and all(name.endswith(".npy") for name in sources):
        file.kind = "numpy"
        for name, source in sources.items():
            add_array_file(file, source, name.removesuffix(".npy"))
    else:
        raise InputError(
            f"{file.name} is an archive of other things: expected a weight file, found "
            f"{min(sources, default='nothing')[:80]} in it; unpack it first."
        )


def _directory_size(file: TensorFile) -> int:
    """The largest size, in bytes, that anything like an end of the archive claims for its list of contents.

    That list is made into objects at once, ten times its size in memory.
    """
    start = max(0, file.size - 0xFFFF - 22 - 20 - 56)
    tail, claims = file.source.read_bytes(start, file.size - start), [0]
    for mark, place, width in ((rb"PK\x05\x06", 12, 4), (rb"PK\x06\x06", 40, 8)):  # the second beyond 4 GiB
        for found in re.finditer(mark, tail):
            at = found.start() + place
            claims.append(int.from_bytes(tail[at : at + width], "little"))
    return max(claim for claim in claims if claim != 0xFFFFFFFF)  # that says: see the longer record


def _source(file: TensorFile, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Source:
    """Where a member's bytes lie. PyTorch stores them as they are, so that parts of them can be read."""
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{file.name} is encrypted or packed in an unknown way: expected an archive as PyTorch or NumPy "
            "writes it."
        )
    if member.compress_type == zipfile.ZIP_STORED:
        header = file.source.read_bytes(member.header_offset, 30)
        start = member.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        if header[:4] != b"PK\x03\x04" or not member.file_size == member.compress_size <= file.size - start:
            raise file.damaged(f"{member.filename[:80]!r} is not where it should be, or larger than the file")
        return file.source.part(start, member.file_size)

    @functools.cache
    def unpacked() -> BinaryIO:
        """On the disk, once for all tensors that lie in it."""
        copy = file.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is entered
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, copy)
        return copy

    return Source(unpacked, 0, member.file_size)


def _add_checkpoint(file: TensorFile, sources: dict[str, Source], root: str) -> None:
    """data.pkl refers to storages, each of which is a member below data/."""
    if any(name.startswith(f"{root}code/") for name in sources):
        raise TorchScriptError(
            f"{file.name} is a TorchScript program: expected nothing but weights, fetch those."
        )
    order = sources.get(f"{root}byteorder")
    if order is not None and order.read_bytes(0, min(order.size, 8)) != b"little":
        raise InputError(f"{file.name} was written on a big-endian machine: expected little-endian.")

    def stored(identity: Any) -> Any:
        found = storage_of(identity)
        if isinstance(found, Storage):
            found.source = sources.get(f"{root}data/{found.key}")
        return found

    data = sources[f"{root}data.pkl"]
    if data.size > MAX_PICKLE:
        raise file.implausible(f"at most {MAX_PICKLE} bytes in data.pkl", str(data.size))
    add_values(file, unpickle(file, data, persistent=stored)[0])
