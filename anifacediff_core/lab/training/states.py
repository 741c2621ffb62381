"""States of a training run, from which it goes on exactly: weights, optimizer, average, randomness, data.

A state is a folder `step_<number>` as accelerate writes it, with a file of each process beside:
`process_<rank>.pt`. It takes its name when it is complete, so whatever has that name is usable.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - what the safe reader raises
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from anifacediff_core.errors import InputError

PREFIX = "step_"
# Whatever the writers make of a full disk, and the readers of a damaged or foreign file.
UNWRITTEN = (OSError, RuntimeError, SafetensorError, CheckpointException)
UNREADABLE = (*UNWRITTEN, ValueError, KeyError, EOFError, UnpicklingError)


def newest_state(folder: Path) -> Path | None:
    """The last complete state in a folder, None without any."""
    states = _states(folder)
    return states[-1] if states else None


def save_state(accelerator: Accelerator, folder: Path, step: int, own: dict[str, Any], keep: int) -> str:
    """Write a state with what every process has of its `own`; keep the last `keep` of them.

    Called by all processes. A failure, as of a full disk, leaves the states that are there as they are.

    Args:
        own: nested dicts and lists of tensors, numbers and text.

    Returns:
        why it could not be written, "" when all went well; the same on all processes.
    """
    target, temporary = folder / f"{PREFIX}{step:09d}", folder / f".{PREFIX}{step:09d}"
    problem = _worst(accelerator, _make_folder(temporary) if accelerator.is_main_process else "")
    if not problem:
        problem = _worst(accelerator, _write(accelerator, temporary, own))
    if not problem:
        problem = _worst(
            accelerator, _publish(temporary, target, keep) if accelerator.is_main_process else ""
        )
    if problem and accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    return problem


def load_own(state: Path, process: int) -> dict[str, Any]:
    """What a process had of its own in a state; empty where there was no such process."""
    path = state / f"process_{process}.pt"
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises many kinds
        raise InputError(
            f"The training state {state} is damaged; delete that folder to go on from the one before it."
        ) from error
    return found


def describe_error(error: BaseException) -> str:
    """The most informative line of an error's text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, CheckpointException) else 0]  # that one quotes a stack first


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _make_folder(folder: Path) -> str:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        return _reason(error, folder.parent)
    return ""


def _write(accelerator: Accelerator, folder: Path, own: dict[str, Any]) -> str:
    try:
        accelerator.save_state(str(folder))
        torch.save(own, folder / f"process_{accelerator.process_index}.pt")
    except UNWRITTEN as error:
        return _reason(error, folder)
    return ""


def _publish(temporary: Path, target: Path, keep: int) -> str:
    """Give a complete state its name and remove the oldest."""
    try:
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        return _reason(error, target)
    for old in _states(target.parent)[: -max(keep, 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return ""


def _reason(error: BaseException, folder: Path) -> str:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or shutil.disk_usage(existing).free < 2**24:
        return f"the disk that holds {existing} is full"
    return describe_error(error)


def _worst(accelerator: Accelerator, problem: str) -> str:
    """A problem that any process has, for all of them."""
    failed = torch.tensor(float(bool(problem)), device=accelerator.device)
    if accelerator.num_processes > 1:
        failed = accelerator.reduce(failed, "sum")
    if not failed:
        return ""
    return problem or "another process could not write its part"
