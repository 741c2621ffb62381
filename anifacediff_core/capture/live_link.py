"""Recordings of Epic's Live Link Face app to face parameters.

The app writes a CSV with a line per frame: ``Timecode`` (HH:MM:SS:FF.part), ``BlendShapeCount``, ARKit's 52
coefficients with a capital letter first, and yaw, pitch and roll of the head and of each eye in radians.
Lines may be missing, repeated, or without values.

Yaw is positive to the subject's right and pitch downward. Recordings show that for the eyes, whose angles
follow the eyeLook coefficients; for the head it is taken to be the same, and its roll to be mirrored as yaw
is. The coefficients turn the eyes here as everywhere, not the angles.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, printable
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..progress import Progress
from .arkit import from_arkit
from .detector import face_square
from .timecode import Stamp, read_stamp, times_of

HEAD = ("headYaw", "headPitch", "headRoll")
SIGNS = (-1.0, 1.0, -1.0)  # to `rotation.from_euler`: positive to the subject's left, down, counter-clockwise
GAP = 0.2  # seconds without a line after which the face counts as lost
CHUNK = 64  # frames whose heads are in memory at once
LONGEST = 4 * 3600.0  # seconds
# Seconds of pauses that are filled, at least, and for each second that has lines.
PAUSES, PAUSES_PER_SECOND = 60.0, 10.0
GREATEST = 1e6  # of a value


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
        head: a head with ARKit's expressions.
        rate: frames a second of the result.
        timecode_rate: frames a second that the timecode counts in; 0 finds it in all lines, see
            :mod:`.timecode`.
        flip: turn yaw, pitch, roll of the head the other way.

    Returns:
        Frame k at k / rate seconds after the first line; average shape, the camera of a portrait. Frames
        within gaps of the recording are interpolated and not ``valid``.

    Raises:
        InputError: the file is missing, no such recording, holds no usable line, or claims more time than
            it has lines for.
    """
    what = f"'{printable(Path(path).name)}'"
    try:
        text = decoded(Path(path).read_bytes())
        header = text[: text.find("\n") + 1] or text
        separator = max(",;\t", key=header.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        times, values, names = _read(lines, separator, what, timecode_rate)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{what} cannot be read as a recording of Live Link Face; the file is missing or damaged."
        ) from error
    return resample(times, values, names, head, rate, flip, progress)


def resample(
    times: Tensor,
    values: Tensor,
    names: Sequence[str],
    head: HeadModel,
    rate: Fraction,
    flip: tuple[bool, bool, bool] = (False, False, False),
    progress: Progress | None = None,
) -> FaceParameters:
    """A recording at an even rate; see :func:`load_live_link` for the rest.

    Args:
        times: (lines,) float64 seconds, rising from 0.
        values: (lines, columns).
        names: ARKit's, and those of `HEAD`, of the columns; others are ignored, missing ones are 0.
    """
    duration = float(times[-1])
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


def decoded(data: bytes) -> str:
    """The text of a file that is UTF-8, or UTF-16 as spreadsheets save it.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if data[1::2][:100].count(0) > 40:  # without a mark, as some programs write it
        return data.decode("utf-16-le")
    return data.decode("utf-8-sig")


def _read(
    lines: Iterator[list[str]], separator: str, what: str, timecode_rate: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Times (lines,) in seconds from the first on, rising; values (lines, columns); their names."""
    header = [name.strip() for name in next(lines, [])]
    names = [name[:1].lower() + name[1:] for name in header[2:]]
    if not header or header[0].lower() != "timecode" or not {"eyeBlinkLeft", "jawOpen"} <= set(names):
        raise InputError(
            f"{what} is no recording of Live Link Face: its first line must name Timecode, BlendShapeCount "
            "and ARKit's coefficients."
        )
    stamps: list[Stamp] = []
    values = array("f")  # a tenth of the memory of Python's numbers
    odd = 0
    for line in lines:
        row = _numbers(line[2:], len(names), separator)
        if row is None:
            odd = odd or len(line)
            continue  # the app writes lines without values when it loses the face
        stamp = read_stamp(line[0])
        if stamp is None:
            raise InputError(
                f"The timecode '{printable(line[0][:20])}' in {what} isn't of the form HH:MM:SS:FF; export "
                "the recording again."
            )
        stamps.append(stamp)
        values.extend(row)
    if not stamps and odd > len(header):
        raise InputError(
            f"The lines of {what} have {odd} values where the first one names {len(header)}; export it with "
            "points as decimal signs, or with semicolons between the values."
        )
    if not stamps:
        raise InputError(f"{what} has no line with values; record again with the face in view.")
    times = times_of(stamps, timecode_rate, what)
    order = times.argsort(stable=True)
    # Of lines with the same timecode the first counts.
    order = order[times[order].diff(prepend=times[order][:1] - 1) > 1e-6]
    if len(stamps) > 3 * len(order):
        raise InputError(
            f"The timecode of {what} is the same in most lines, {len(order)} times for {len(stamps)} lines; "
            "check its first column."
        )
    _check_duration(times[order], [stamps[i] for i in order.tolist()], what)
    return times[order] - times[order[0]], torch.tensor(values).view(len(stamps), -1)[order], names


def _check_duration(times: Tensor, stamps: list[Stamp], what: str) -> None:
    """Refuse more time than the lines can fill, before any frame of it is made."""
    gaps = times.diff()
    covered = float(gaps.clamp(max=GAP).sum())
    pauses = float(gaps[gaps > GAP].sum())
    if pauses > PAUSES + PAUSES_PER_SECOND * covered:
        before = int(gaps.argmax())
        where = " and ".join(_clock(stamp.seconds) for stamp in stamps[before : before + 2])
        raise InputError(
            f"{what} has only {len(times)} lines for {_long(float(times[-1] - times[0]))}, and none between "
            f"{where}; cut the recording there, or check its first column."
        )
    if times[-1] - times[0] > LONGEST:
        raise InputError(
            f"The timecode of {what} spans {_long(float(times[-1] - times[0]))}; cut the recording, or check "
            "its first column."
        )


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _long(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _numbers(fields: list[str], count: int, separator: str) -> list[float] | None:
    """The values of a line; None if they are missing, or no numbers that can be."""
    if len(fields) != count:
        return None
    if separator != ",":
        fields = [field.replace(",", ".") for field in fields]
    try:
        row = [float(field) for field in fields]
    except ValueError:
        return None
    return row if all(abs(value) < GREATEST for value in row) else None


def _at(wanted: Tensor, times: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values interpolated at the wanted times, and the seconds between the lines on both sides of each."""
    after = torch.searchsorted(times, wanted).clamp(max=len(times) - 1)
    before = torch.where(times[after] > wanted, after - 1, after).clamp(min=0)
    gap = times[after] - times[before]
    weight = ((wanted - times[before]) / gap.clamp(min=1e-9)).clamp(0, 1)
    return torch.lerp(values[before], values[after], weight[:, None].float()), gap
