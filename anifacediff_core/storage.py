"""Atomic writing of files, locks, names, and digests."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from .errors import FAULTS, InputError, printable, refusal_of

CHUNK = 4 * 2**20  # bytes that are read at a time


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; one that is there already stays whole until the new one is complete."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(stored, temporary, metadata)


@contextmanager
def atomic_write(path: Path) -> Iterator[str]:
    """The name of a file beside `path` that takes its place at the end, safe from a loss of power; on failure
    it is removed. Its name is short, however long that of `path` is.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{cut_name(path.stem, 40)}{cut_name(path.suffix, 16)}."
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # a temporary file is its owner's alone
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync(path: str | Path) -> None:
    """Wait until a file, or which files a folder has, is on the disk itself; where a system can do that."""
    folder = os.path.isdir(path)
    if folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows nothing of it
            raise
    finally:
        os.close(handle)


# ---- names and places


def longest_name(folder: Path) -> int:
    """Bytes that the name of a file may have in a folder, which need not be there yet."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        return os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such question
        return 255


def cut_name(name: str, most: int) -> str:
    """A name's beginning of at most so many bytes, without half a character at its end."""
    encoding = sys.getfilesystemencoding()
    return name.encode(encoding, "replace")[:most].decode(encoding, "ignore")


def beside(path: Path, ending: str) -> Path:
    """The file beside `path` with another ending; of too long a name the beginning and a digest are left."""
    name = f"{path.stem}{ending}"
    most = longest_name(path.parent) - 4  # space for a number, where there is such a file already
    if len(os.fsencode(name)) > most:
        digest = hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:8]
        name = f"{cut_name(path.stem, most - len(ending) - 9)}-{digest}{ending}"
    return path.with_name(name)


def require_writable(path: Path) -> None:
    """Look, before the work, whether a file or a folder can be written there; nothing is left behind.

    Raises:
        InputError: it cannot, since the name, the folder, the disk or the permissions don't allow it.
    """
    doing = f"{printable(path, 120)} cannot be written"
    try:
        place = path.absolute()
        most = longest_name(place.parent)
        if "\0" in str(place) or any(len(os.fsencode(part)) > most for part in place.parts):
            raise InputError(f"{doing}: a name in it is impossible or too long, choose another one.")
        there = next(each for each in (place, *place.parents) if each.exists())
        folder = there.parent if there == place and there.is_file() else there
        if not folder.is_dir():
            raise InputError(f"{doing}: {printable(folder, 120)} is no folder, choose another place.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except InputError:
        raise
    except FAULTS as error:
        if isinstance(error, OSError):
            error.filename = None  # that of a file that tried it
        raise refusal_of(error, doing) from error


@contextmanager
def file_lock(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a file that nobody else can hold meanwhile, in this process or another; it is removed at the end.

    The lock ends with the process, however that dies. Where the file system has no locks, there is none.

    Args:
        otherwise: what to say when somebody else holds it.

    Raises:
        InputError: that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(otherwise) from error
    except (OSError, NotImplementedError):
        pass  # a network share without locks
    try:
        yield
    finally:
        # Windows removes no open file; elsewhere, the file may be another's once it is closed.
        if os.name == "nt":
            lock.release()
        with suppress(OSError):
            path.unlink()
        lock.release()


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(CHUNK):
            digest.update(content)
    return digest.hexdigest()
