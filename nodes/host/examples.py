"""The example files that the shipped workflows name, in the host's input folder, where its loaders look."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import folder_paths

from anifacediff_core.storage import atomic_write, file_digest

from .folders import ASSETS
from .runtime import notify

PREFIX = "anifacediff_"  # in front of names that a user may have as well
RECORD = ".anifacediff_examples"  # SHA-256 of each copy by its name: what has changed since is the user's


def bring_examples() -> None:
    """Copy the examples into the input folder, and renew copies of earlier versions.

    Whatever else has such a name stays as it is. Where nothing can be written a line of the log says so, and
    all but the examples works.
    """
    folder = Path(folder_paths.get_input_directory())
    before = _read_record(folder / RECORD)
    ours, problems = {}, []
    for example in sorted((ASSETS / "examples").iterdir()):
        name = PREFIX + example.name
        try:
            digest = file_digest(example)
            if _bring(example, digest, folder / name, before.get(name)):
                ours[name] = digest
        except OSError as error:
            problems.append(error)
    try:
        if ours != before:
            with atomic_write(folder / RECORD) as temporary:
                Path(temporary).write_text(json.dumps(ours), encoding="utf-8")
    except OSError as error:
        problems.append(error)
    if problems:
        notify(
            f"Not all examples of the workflows could be put into {folder} ({problems[0]}): choose files of "
            "your own there, or make the folder writable and restart ComfyUI.",
            logging.WARNING,
        )


def _bring(example: Path, digest: str, path: Path, before: Any) -> bool:
    """Make `path` a copy of the example; False where something lies there that is not a copy of ours."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return False
    there = file_digest(path) if path.exists() else None
    if there not in (None, digest, before):
        return False
    if there != digest:
        with atomic_write(path) as temporary:
            shutil.copyfile(example, temporary)
    return True


def _read_record(path: Path) -> dict[str, Any]:
    """Empty where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
