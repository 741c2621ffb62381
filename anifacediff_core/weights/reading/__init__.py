"""Weight files of other projects, read safely: safetensors, PyTorch, pickled models such as FLAME's, NumPy.

Its content says what a file is, never its name. Opening it reads what is in it (names, shapes, dtypes); each
tensor is read when it is asked for, so memory is bounded by the largest of them. Sizes that a file claims are
held against the bytes that it has before anything is allocated. Nothing in a file is run: see `unpickler`.
"""

from __future__ import annotations

import re
from pathlib import Path

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from .archive import TorchScriptError, open_archive
from .file import READ_ERRORS, TensorFile, TensorInfo
from .numpy_file import MAGIC, add_array_file, numbers_of
from .pickled import open_pickle
from .safetensors_file import open_safetensors
from .scaled import apply_scales

__all__ = ["READ_ERRORS", "TensorFile", "TensorInfo", "TorchScriptError", "numbers_of", "open_tensors"]

# Protocols 2 and up; a dict, list, class or instance of protocols 0 and 1.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(+[dl][p(cS]|\(+S'|[}\]][q(]|\(*[ci][\w.]+\r?\n[\w.]+\r?\n")
_UNPACK = "archive: expected weights, unpack it first."
_FOREIGN = {  # how files begin that are no weight files, and what to do about them
    rb"\Z": "is empty: fetch it again.",
    rb"version https://git-lfs": "is only a pointer of Git LFS, not the file itself: expected weights, fetch "
    "them with 'git lfs pull' or from the project's page.",
    rb"(?i)\s*<(!doctype|html|\?xml|head)": "is a saved web page: expected weights, download the file.",
    rb"\x1f\x8b": f"is a gzip {_UNPACK}",
    rb"7z\xbc\xaf": f"is a 7z {_UNPACK}",
    rb"Rar!": f"is a RAR {_UNPACK}",
    rb"BZh": f"is a bzip2 {_UNPACK}",
    rb"\xfd7zXZ": f"is a xz {_UNPACK}",
    rb"\x28\xb5\x2f\xfd": f"is a zstd {_UNPACK}",
    rb"(?s).{257}ustar": f"is a tar {_UNPACK}",
    rb"GGUF": "is a GGUF file, quantized for other programs: fetch the same model as safetensors.",
    rb"[\t\n\r\x20-\x7e]+\Z": "is a text file: expected weights, download the file itself.",
}
_BEGINNING = 2**16  # bytes that tell what a file is


def open_tensors(path: str | Path) -> TensorFile:
    """Open a weight file of any format that is read here; close it, or use it in a with statement.

    Raises:
        InputError: it is missing, damaged, of no such format, claims absurd sizes, or tries to run code.
        TorchScriptError: it is TorchScript.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}: choose another one.")
    try:
        file = TensorFile(path)
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened ({error}): choose another file.") from error
    try:
        _open(file)
        apply_scales(file)
    except BaseException as error:
        file.close()
        if isinstance(error, InputError) or not isinstance(error, READ_ERRORS):
            raise
        raise InputError(
            f"{path.name} is truncated or damaged ({shown(error)}): expected a whole file, fetch it again."
        ) from error
    return file


def _open(file: TensorFile) -> None:
    head = file.source.read_bytes(0, min(file.size, _BEGINNING))
    kinds = {
        open_archive: head.startswith(b"PK"),
        _open_array: head.startswith(MAGIC),
        open_safetensors: head[8:9] == b"{",
        open_pickle: _PICKLE.match(head) is not None,
    }
    for open_kind, fits in kinds.items():
        if fits and _has_line_ends_of_text(head):
            raise InputError(f"{file.name} is damaged, its line ends were changed: fetch it in binary.")
        if fits:
            return open_kind(file)
    raise InputError(f"{file.name} {_foreign(head)}")


def _open_array(file: TensorFile) -> None:
    file.kind = "numpy"
    add_array_file(file, file.source, "array")


def _has_line_ends_of_text(head: bytes) -> bool:
    """Whether a program took it for text and wrote CR LF for every LF, which breaks its numbers."""
    lines = head.count(b"\n")
    return lines > 1 and lines == head.count(b"\r\n")


def _foreign(head: bytes) -> str:
    for pattern, sentence in _FOREIGN.items():
        if re.match(pattern, head):
            return sentence
    return (
        "is of an unknown format or damaged: expected safetensors, PyTorch, pickle or NumPy, "
        f"found a file that starts with {head[:8].hex(' ')}."
    )
