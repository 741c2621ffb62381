"""Files of ARKit's coefficients over time, as programs write them that make a face talk, to face parameters.

Read are
- CSV of Audio2Face-3D's clients: a line a frame with ``timeCode`` in seconds and ``blendShapes.JawOpen`` and
  so on; that of Live Link Face, see :mod:`.live_link`; and others with a column per coefficient;
- JSON of Audio2Face: ``exportFps``, ``facsNames`` and ``weightMat``, a list for each frame;
- JSON of LAM-A2E: ``names``, ``metadata`` with ``fps``, and ``frames``, each with ``weights`` and, at times,
  a ``time`` in seconds.

Rotations of joints, which Audio2Face has by names of its own, are left out: such files move the face alone.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..claims import parse_json
from ..errors import InputError, printable
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..progress import Progress
from .live_link import (
    GAP,
    GREATEST,
    LONGEST,
    PAUSES,
    PAUSES_PER_SECOND,
    decoded,
    load_live_link,
    resample,
)

MOST_BYTES = 64 * 2**20
MOST_COLUMNS = 1000
TIMES = ("timecode", "time")  # names of a CSV's column of seconds


@dataclass(frozen=True)
class Curves:
    """What a file says: names of the columns, values of the frames, and their times or rate."""

    names: list[str]
    rows: Sequence[Sequence[Any]]
    times: Sequence[Any] | None = None
    fps: Any = None


def load_arkit_curves(
    path: str | Path,
    head: HeadModel,
    rate: Fraction = Fraction(30),
    *,
    file_fps: float = 0.0,
    progress: Progress | None = None,
) -> FaceParameters:
    """Read a file of any of the forms above and resample it.

    Args:
        head: a head with ARKit's expressions.
        rate: frames a second of the result.
        file_fps: frames a second of the file; 0 takes what it says itself.

    Returns:
        Frame k at k / rate seconds after the file's first; average shape, the camera of a portrait.

    Raises:
        InputError: the file is missing, too large or of none of these forms, has no frame, no rate or no
            coefficient of ARKit's, a value in it is no number, or it claims more time than it has frames for.
    """
    path = Path(path)
    what = f"'{printable(path.name)}'"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{what} is larger than {MOST_BYTES >> 20} MiB: cut it into parts.")
        text = decoded(path.read_bytes())
        if path.suffix.lower() != ".json" and re.match(r"\W*timecode[,;\t]blendshapecount", text, re.I):
            return load_live_link(path, head, rate, progress=progress)
        found = _of_json(parse_json(text)) if path.suffix.lower() == ".json" else _of_csv(text)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        why = printable(str(error), 160) or "it is damaged"
        raise InputError(f"{what} cannot be read as ARKit curves ({why}): export it again.") from error
    names = [_name(name) for name in found.names]
    if "jawOpen" not in names:
        raise InputError(
            f"{what} has no ARKit coefficient jawOpen: export it with the 52 blend shapes of ARKit."
        )
    values = _numbers(found.rows, len(names), what)
    return resample(_times(found, len(values), file_fps, what), values, names, head, rate, progress=progress)


def _name(text: object) -> str:
    """ARKit's own name of "blendShapes.JawOpen", "JawOpen", "eyeBlink_L"."""
    name = str(text).strip().rpartition(".")[2]
    name = re.sub(r"_([LR])$", lambda side: {"L": "Left", "R": "Right"}[side[1]], name)
    return name[:1].lower() + name[1:]


# ---- forms


def _of_json(value: Any) -> Curves:
    if not isinstance(value, Mapping):
        raise ValueError("it is no object with names and frames")
    if "weightMat" in value:
        return Curves(_listed(value, "facsNames"), _listed(value, "weightMat"), fps=value.get("exportFps"))
    notes = value.get("metadata")
    notes = notes if isinstance(notes, Mapping) else {}
    names = _listed(value if "names" in value else notes, "names" if "names" in value else "blendshape_names")
    frames = _listed(value, "frames")
    if not all(isinstance(frame, Mapping) for frame in frames):
        raise ValueError("a frame is no object with weights")
    times = [frame.get("time") for frame in frames]
    known = not any(time is None for time in times)
    rows = [_listed(frame, "weights") for frame in frames]
    return Curves(names, rows, times if known else None, notes.get("fps"))


def _listed(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, list):
        raise ValueError(f"it has no list {name}")
    return found


def _of_csv(text: str) -> Curves:
    header = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    names = [name.strip() for name in next(lines, [])]
    if not names or len(names) > MOST_COLUMNS:
        raise ValueError("its first line names no columns, or too many")
    rows = [line for line in lines if line]
    columns = [number for number, name in enumerate(names) if name and name.lower() not in TIMES]
    clock = next((number for number, name in enumerate(names) if name.lower() in TIMES), None)
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise ValueError(f"line {number} has {len(row)} values where the first one names {len(names)}")
    return Curves(
        [names[column] for column in columns],
        [[row[column] for column in columns] for row in rows],
        None if clock is None else [row[clock] for row in rows],
    )


# ---- numbers


def _numbers(rows: Sequence[Sequence[Any]], columns: int, what: str) -> Tensor:
    """(frames, columns); strings are of a CSV."""
    if not rows:
        raise InputError(f"{what} has no frame: export it again.")
    values = []
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != columns:
            raise InputError(f"Frame {number} of {what} has not one value for each of the {columns} names.")
        values.append([_number(value, f"Frame {number} of {what}") for value in row])
    return torch.tensor(values)


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) < GREATEST:
        raise InputError(f"{where} has '{printable(str(value), 40)}' for a number: export the file again.")
    return number


def _times(found: Curves, frames: int, file_fps: float, what: str) -> Tensor:
    """Seconds (frames,) from 0 on, rising."""
    if found.times is not None and not file_fps:
        times = torch.tensor([_number(time, f"The time in {what}") for time in found.times]).double()
        if (times.diff() <= 0).any():
            raise InputError(
                f"The times in {what} don't rise from frame to frame: give its file_fps instead."
            )
        times = times - times[0]
    else:
        fps = _number(file_fps or found.fps, f"The rate of {what}") if file_fps or found.fps else 0.0
        if not 1 <= fps <= 1000:
            raise InputError(f"{what} doesn't say how many frames a second it has: give its file_fps.")
        times = torch.arange(frames, dtype=torch.float64) / fps
    _check_duration(times, what)
    return times


def _check_duration(times: Tensor, what: str) -> None:
    """Refuse more time than the frames can fill, before any frame of it is made."""
    gaps = times.diff()
    pauses, covered = float(gaps[gaps > GAP].sum()), float(gaps.clamp(max=GAP).sum())
    if times[-1] > LONGEST or pauses > PAUSES + PAUSES_PER_SECOND * covered:
        raise InputError(
            f"{what} claims {float(times[-1]):.0f} seconds for {len(times)} frames: cut it, or give its "
            "file_fps."
        )
