"""Frames that show no face for sure: what becomes of them, and how people learn of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

# Filled in from both neighbors, as the last frame with a face was, left out, or refused.
MISSING = ("interpolate", "hold", "skip", "stop")
SENTENCES = {
    "interpolate": "It was filled in from the neighbors at frame {}.",
    "hold": "It was held as last seen at frame {}.",
    "skip": "Without a face and left out: frame {}.",
}
RUNS_IN_A_SENTENCE = 8


def require_faces(valid: Tensor, missing: str, what: str) -> None:
    """Refuse frames without a face where they are to stop the run.

    Args:
        valid: (frames,) bool, where a face was found, and for sure.
        missing: one of `MISSING`.

    Raises:
        InputError: `missing` is "stop" and a frame shows no face for sure, or it is unknown.
    """
    if missing not in MISSING:
        raise InputError(f"The choice missing '{missing}' is unknown; choose one of {', '.join(MISSING)}.")
    if missing == "stop" and not valid.all():
        runs = format_ranges(invalid_frames(valid)).split(", ")
        more = ", …" if len(runs) > RUNS_IN_A_SENTENCE else ""
        raise InputError(
            f"In {what} no face was found, or none for sure, at frame "
            f"{', '.join(runs[:RUNS_IN_A_SENTENCE])}{more}: cut these frames out, or choose "
            "hold, interpolate or skip for missing."
        )


def last_valid_index(valid: Tensor) -> Tensor:
    """For each frame the number of the last one with a face (frames,); before the first, the first's."""
    frames = torch.arange(len(valid), device=valid.device)
    last = torch.where(valid, frames, -1).cummax(0).values
    return torch.where(last < 0, valid.int().argmax(), last)


def invalid_frames(valid: Tensor) -> list[int]:
    """Numbers of the frames that are not valid."""
    return torch.nonzero(~valid).squeeze(1).tolist()


def describe_frames(found: Tensor, missing: str, what: str, sure: Tensor | None = None) -> list[str]:
    """Sentences about how many frames show a face, and what became of the others.

    Args:
        found: (frames,) bool, where a face was found.
        sure: (frames,) bool, where that is sure, if that is known.
    """
    frames = len(found)
    notes = [f"A face was found in {int(found.sum())} of {frames} frames of {what}."]
    if sure is not None:
        notes.append(f"It is sure in {int(sure.sum())} of {frames} frames.")
        if not sure.any():
            notes.append("All were taken as they are: look at the result.")
        elif (found & ~sure).any():
            notes.append(f"Covered, or not clear: frame {format_ranges(invalid_frames(sure | ~found))}.")
    empty = invalid_frames(sure if sure is not None and sure.any() else found)
    return [*notes, SENTENCES[missing].format(format_ranges(empty))] if empty else notes


def format_ranges(numbers: list[int]) -> str:
    """Ascending numbers with runs shortened: "3-7, 12"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
