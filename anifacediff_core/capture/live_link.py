"""Recordings of Epic's Live Link Face app to face parameters.

The app writes a CSV with a line per frame: ``Timecode`` (HH:MM:SS:FF.part), ``BlendShapeCount``, ARKit's 52
coefficients with a capital letter first, and yaw, pitch and roll of the head and of each eye in radians.
Lines may be missing, repeated, or without values.

Yaw is positive to the subject's right and pitch downward. Recordings show that for the eyes, whose angles
follow the eyeLook coefficients; for the head it is taken to be the same, and its roll to be mirrored as yaw
is. The coefficients turn the eyes here as everywhere, not the angles.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..progress import Progress
from .arkit import from_arkit
from .detector import face_square

TIMECODE_RATES = (24, 25, 30, 48, 50, 60)
HEAD = ("headYaw", "headPitch", "headRoll")
SIGNS = (-1.0, 1.0, -1.0)  # to `rotation.from_euler`: positive to the subject's left, down, counter-clockwise
GAP = 0.2  # seconds without a line after which the face counts as lost
DAY = 24 * 3600.0
CHUNK = 64  # frames whose heads are in memory at once
LONGEST = 4 * 3600.0  # seconds


def load_live_link(
    path: str | Path,
    head: HeadModel,
    rate: Fraction = Fraction(30),
    *,
    timecode_rate: int = 0,
    flip: tuple[bool, bool, bool] = (False, False, False),
    progress: Progress | None = None,
) -> FaceParameters:
    """Read a recording and resample it by its timecode.

    Args:
        path: of the CSV file.
        head: a head with ARKit's expressions.
        rate: frames a second of the result.
        timecode_rate: frames a second that the timecode counts in; 0 takes the lowest usual one that its
            frame numbers fit into, or 60 for a recording of less than two seconds.
        flip: turn yaw, pitch, roll of the head the other way.
        progress: called with frames (done, total).

    Returns:
        Frame k at k / rate seconds after the first line; average shape, the camera of a portrait. Frames
        within gaps of the recording are interpolated and not ``valid``.

    Raises:
        InputError: the file is missing, no such recording, or holds no usable line.
    """
    what = f"'{Path(path).name}'"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            times, values, names = _read(csv.reader(file), what, timecode_rate)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{what} cannot be read as a recording of Live Link Face; the file is missing or damaged."
        ) from error
    duration = float(times[-1])
    if duration > LONGEST:
        raise InputError(
            f"The timecode of {what} spans {duration / 3600:.0f} hours; cut the recording, or check its "
            "first column."
        )
    frames = math.floor(Fraction(duration).limit_denominator(100000) * rate) + 1
    wanted = torch.arange(frames, dtype=torch.float64) / float(rate)
    values, gap = _at(wanted, times, values)
    columns = dict(zip(names, values.unbind(1), strict=True))
    absent = torch.zeros(frames)
    signs = [-sign if flipped else sign for sign, flipped in zip(SIGNS, flip, strict=True)]
    turn = torch.stack([sign * columns.get(name, absent) for name, sign in zip(HEAD, signs, strict=True)], 1)
    expression = torch.stack([columns.get(name, absent) for name in head.expression_names], dim=1)
    neutral = head.neutral(1).to("cpu")
    square, parts = face_square(head, neutral).cpu(), []
    for start in range(0, frames, CHUNK):
        part = slice(start, start + CHUNK)
        parts.append(from_arkit(expression[part], turn[part], square, head, valid=gap[part] < GAP))
        if progress is not None:
            progress(min(start + CHUNK, frames), frames)
    # The recording says nothing of the place: the neck stays where it is, and the head turns upon it.
    params = FaceParameters.concatenate(parts)
    return replace(params, camera=neutral.camera.expand(frames, 3).clone())


def _read(lines: Iterator[list[str]], what: str, timecode_rate: int) -> tuple[Tensor, Tensor, list[str]]:
    """Times (lines,) in seconds from the first on, rising; values (lines, columns); their names."""
    header = [name.strip() for name in next(lines, [])]
    names = [name[:1].lower() + name[1:] for name in header[2:]]
    if not header or header[0].lower() != "timecode" or not {"eyeBlinkLeft", "jawOpen"} <= set(names):
        raise InputError(
            f"{what} is no recording of Live Link Face: its first line must name Timecode, BlendShapeCount "
            "and ARKit's coefficients."
        )
    stamps: list[tuple[float, float]] = []
    rows: list[list[float]] = []
    for line in lines:
        row = _numbers(line[2:], len(names))
        if row is None:
            continue  # the app writes lines without values when it loses the face
        stamps.append(_stamp(line[0], what))
        rows.append(row)
    if not rows:
        raise InputError(f"{what} has no line with values; record again with the face in view.")
    seconds, numbers = torch.tensor(stamps, dtype=torch.float64).unbind(1)
    whole = seconds.amax() - seconds.amin() >= 2
    fitting = (rate for rate in TIMECODE_RATES if numbers.amax() < rate)
    counted = timecode_rate or (next(fitting, 60) if whole else 60)
    last = int(numbers.amax())
    if last >= counted:
        raise InputError(
            f"The timecode of {what} counts up to frame {last}, too many for {counted} frames a second: "
            "choose auto for timecode_fps, or check the first column."
        )
    times = seconds + numbers / counted
    times = times + DAY * torch.cumsum(times.diff(prepend=times[:1]) < -DAY / 2, dim=0)
    # What does not come after everything before it is a repetition.
    later = times > torch.cat([times[:1] - 1, times.cummax(0).values[:-1]])
    times = times[later]
    return times - times[0], torch.tensor(rows)[later], names


def _numbers(fields: list[str], count: int) -> list[float] | None:
    """The values of a line; None if they are missing, or no finite numbers."""
    if len(fields) != count:
        return None
    try:
        row = [float(field) for field in fields]
    except ValueError:
        return None
    return row if all(map(math.isfinite, row)) else None


def _stamp(timecode: str, what: str) -> tuple[float, float]:
    """Whole seconds, and frames since then, of HH:MM:SS:FF.part; drop-frame timecode has a semicolon."""
    try:
        hours, minutes, seconds, frames = (float(part) for part in timecode.replace(";", ":").split(":"))
        stamp = 3600 * hours + 60 * minutes + seconds
        if not (0 <= stamp < 2 * DAY and 0 <= frames < 1000):
            raise ValueError
    except ValueError:
        raise InputError(
            f"The timecode '{timecode[:20]}' in {what} isn't of the form HH:MM:SS:FF; export the recording "
            "again."
        ) from None
    return stamp, frames


def _at(wanted: Tensor, times: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values interpolated at the wanted times, and the seconds between the lines on both sides of each."""
    after = torch.searchsorted(times, wanted).clamp(max=len(times) - 1)
    before = torch.where(times[after] > wanted, after - 1, after).clamp(min=0)
    gap = times[after] - times[before]
    weight = ((wanted - times[before]) / gap.clamp(min=1e-9)).clamp(0, 1)
    return torch.lerp(values[before], values[after], weight[:, None].float()), gap
