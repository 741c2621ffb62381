"""Weight files of other projects, read safely: safetensors, PyTorch, pickled models such as FLAME's, NumPy.

A file is told by its content, never by its name. Opening it reads what is in it (names, shapes, types); each
tensor is read when it is asked for, so memory is bounded by the largest of them. Sizes that a file claims are
held against the bytes that it has before anything is allocated. Nothing in a file is ever run: see `machine`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from . import archive, arrays, pickled, safetensors_file
from .archive import Program
from .arrays import numbers_of
from .file import READ_ERRORS, Region, TensorFile, TensorInfo
from .scaled import apply_scales

__all__ = ["READ_ERRORS", "Program", "TensorFile", "TensorInfo", "numbers_of", "open_tensors"]

# Protocols 2 and up; a dict, list, class or instance of protocols 0 and 1.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(+[dl][p(cS]|\(+S'|[}\]][q(]|\(*[ci][\w.]+\r?\n[\w.]+\r?\n")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BEGINNING = 2**16  # bytes that tell what a file is


def open_tensors(path: str | Path) -> TensorFile:
    """Open a weight file of any format that is read here; close it, or use it in a with statement.

    Raises:
        InputError: it is missing, damaged, of no such format, claims absurd sizes, or tries to run code.
        Program: it is TorchScript.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}: choose another one.")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened ({error}): choose another file.") from error
    file = TensorFile(path, stream)
    try:
        _open(file, stream)
        apply_scales(file)
    except BaseException as error:
        file.close()
        if isinstance(error, InputError) or not isinstance(error, READ_ERRORS):
            raise
        raise InputError(
            f"{path.name} is truncated or damaged ({shown(error)}): expected a whole file, fetch it again."
        ) from error
    return file


def _open(file: TensorFile, stream: BinaryIO) -> None:
    head = stream.read(_BEGINNING)
    if _is_weights(head) and _has_line_ends_of_text(head):
        raise InputError(f"{file.name} is damaged, its line ends were changed: fetch it in binary.")
    if head.startswith(b"PK"):
        archive.open_archive(file, stream)
    elif head.startswith(arrays.MAGIC):
        file.kind = "numpy"
        pickled.add_array_file(file, Region(stream, 0, file.size), "array")
    elif head[8:9] == b"{":
        safetensors_file.open_safetensors(file, stream)
    elif _PICKLE.match(head):
        pickled.open_pickle(file, stream)
    else:
        raise InputError(f"{file.name} {_foreign(head)}")


def _is_weights(head: bytes) -> bool:
    known = head.startswith((b"PK", arrays.MAGIC)) or head[8:9] == b"{"
    return known or _PICKLE.match(head) is not None


def _has_line_ends_of_text(head: bytes) -> bool:
    """Whether a program took it for text and wrote CR LF for every LF, which breaks its numbers."""
    lines = head.count(b"\n")
    return lines > 1 and lines == head.count(b"\r\n")


def _foreign(head: bytes) -> str:
    """What a file is that is no weight file, and what to do about it."""
    if not head:
        return "is empty: fetch it again."
    if head.startswith(b"version https://git-lfs"):
        return (
            "is only a pointer of Git LFS, not the file itself: expected weights, fetch them with "
            "'git lfs pull' or from the project's page."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a saved web page: expected weights, download the file itself."
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"is a {name} archive: expected weights, unpack it first."
    if head.startswith(b"GGUF"):
        return "is a GGUF file, quantized for other programs: fetch the same model as safetensors."
    if head[257:262] == b"ustar":
        return "is a tar archive: expected weights, unpack it first."
    if not re.search(rb"[^\t\n\r\x20-\x7e]", head):
        return "is a text file: expected weights, download the file itself."
    return (
        "is of an unknown format or damaged: expected safetensors, PyTorch, pickle or NumPy, "
        f"found a file that starts with {head[:8].hex(' ')}."
    )
