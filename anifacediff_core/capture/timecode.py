"""When the lines of a recording were made, from timecode written in many hands.

Recorders agree on HH:MM:SS:FF and on little else: FF may count in any rate, or milliseconds; what follows its
point may be a part of a frame or a line counter; a rate like 23.976 may be counted within each second.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

# What timecode counts in: 1000 is milliseconds in place of frames.
RATES = (12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240, 1000)
MILLISECONDS = 5  # steps of more are no frames: no recorder leaves out four of five
DROPPING = (30, 60, 120)  # rates that leave numbers out to keep to the clock at 29.97 a second, and so on
MOST, RARE = 0.9, 0.02  # shares of the lines
DAY = 24 * 3600.0
FORM = re.compile(r"(\d{1,2})[:;](\d{1,2})[:;](\d{1,2})([:;.])(\d{1,4}(?:[.,]\d{1,9})?)", re.ASCII)


class Stamp(NamedTuple):
    """One timecode: whole seconds, frames since then, and whether it is written as drop-frame timecode."""

    seconds: int
    frames: float
    dropping: bool


def read_stamp(text: str) -> Stamp | None:
    """Of HH:MM:SS:FF, HH:MM:SS:FF.part, HH:MM:SS;FF or HH:MM:SS.milliseconds; None if it is none of them."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes, seconds = (int(found[group]) for group in (1, 2, 3))
    if hours >= 48 or minutes >= 60 or seconds >= 60:
        return None
    frames = found[5].replace(",", ".")
    if found[4] == ".":
        return Stamp(3600 * hours + 60 * minutes + seconds, 1000 * float(f"0.{frames.split('.')[0]}"), False)
    return Stamp(3600 * hours + 60 * minutes + seconds, float(frames), found[4] == ";")


def times_of(stamps: list[Stamp], rate: int, what: str) -> Tensor:
    """Seconds (lines,) float64 on one clock, in the order of the lines, which may be any.

    Args:
        rate: frames a second that the timecode counts in; 0 finds it in all lines.
        what: name of the file in messages.

    Raises:
        InputError: there are higher frame numbers than a second has.
    """
    seconds, frames = torch.tensor([stamp[:2] for stamp in stamps], dtype=torch.float64).unbind(1)
    # Midnight, also when lines are not in order.
    turned = seconds.diff(prepend=seconds[:1]) / DAY
    seconds = seconds - DAY * torch.cumsum(turned.round(), dim=0)
    whole = frames.floor()
    if rate and int(whole.amax()) >= rate:
        raise InputError(
            f"The timecode of {what} counts up to frame {int(whole.amax())}, too many for {rate} frames a "
            "second: choose auto for timecode_fps, or check the first column."
        )
    even = None if rate else _every_line(seconds, whole)
    if even is not None:
        return even
    counted = rate or _counted(seconds, whole, what)
    frames = _with_parts(seconds, frames, counted)
    number = counted * seconds + frames
    dropped = _dropped(seconds, whole, counted, any(stamp.dropping for stamp in stamps))
    if dropped:
        minutes = seconds // 60
        return (number - dropped * (minutes - minutes // 10)) / (counted * 1000 / 1001)
    return (_evened(number, counted) if torch.equal(frames, whole) else number) / counted


def _every_line(seconds: Tensor, whole: Tensor) -> Tensor | None:
    """Times (lines,) of a recording without a missing line at a rate that is no whole number, such as 12.5:
    its seconds have now 12 and now 13 lines. None if it is another.
    """
    steps, same = whole.diff(), seconds.diff() == 0
    turned = same & (steps < 0)  # some write the last number of a second as the first
    if (
        (seconds.diff() < 0).any()
        or float(turned.float().mean()) > 1 - MOST
        or (steps[same & ~turned] != 1).any()
    ):
        return None
    line = torch.arange(len(seconds), dtype=torch.float64)
    second, counts = seconds.unique(return_counts=True)
    second, first = second - second[0], counts.cumsum(0) - counts + whole[0]
    first[0] = 0
    full = first.diff()
    if not len(full) or (second.diff() != 1).any() or full.amax() - full.amin() > 1:
        return None
    usual = (
        max(int(full.amax()), int(whole.amax()) + 1) in RATES
        if len(full) == 1
        else full.amax() == full.amin()
    )
    if usual and not turned.any():
        return None
    rate = _slope(second, first, bool(seconds[0] == 0 and whole[0] <= 1), float(whole.amax()))
    return seconds[0] + line / rate


def _slope(second: Tensor, first: Tensor, zero: bool, least: float) -> float:
    """Lines a second, of the number (seconds,) of the first line in each; above `least`.

    Args:
        zero: the clock started with the recording, so that each first line is up to one after its second.
    """
    if zero:
        rate = float((second * (first - 0.5))[1:].sum() / second.square().sum())
    else:
        second = second - second.mean()
        rate = float((second * first).sum() / second.square().sum())
    for part in (2, 4, 5, 10):  # the simplest that agrees with all seconds
        simple = round(rate * part) / part
        off = first - simple * second
        agrees = off.amax() - off.amin() < 1 - 1e-6 and (not zero or off.amin() > -1e-6)
        if agrees and simple % 1 and simple > least:
            return simple
    return rate


def _counted(seconds: Tensor, whole: Tensor, what: str) -> int:
    """The rate, from where each second ends: the last number, and one step on comes the next second's first.

    Lines that are missing there make it too low, never too high: the most frequent answer counts.
    """
    second, number = _in_order(seconds, whole)
    most = int(number.amax())
    same, next_one = second.diff() == 0, second.diff() == 1
    step = float(number.diff()[same].median()) if same.any() else 1.0
    ends = (number[:-1] - number[1:] + step)[next_one]
    ends = ends[ends > 1]
    if not len(ends):
        if most == 0 or step >= MILLISECONDS:
            return 1000
        raise InputError(
            f"The lines of {what} lie within a second and don't tell how many frames a second their timecode "
            "counts; choose timecode_fps, 60 is the app's own."
        )
    usual = float(ends.mode().values)
    beyond = float((number > usual).float().mean()), float((number >= usual).float().mean())
    if 0 < beyond[0] < RARE:
        raise InputError(
            f"The timecode of {what} has frame {most} in a second of {usual:.0f} frames; check its first "
            "column."
        )
    if 0 < beyond[1] < RARE / usual:
        return round(usual)  # 59.9996 was rounded to 60
    likely = max(usual, most + 1.0)
    near = [rate for rate in RATES if rate > most and abs(rate - likely) < step]
    if near:
        return min(near, key=lambda rate: abs(rate - likely))
    if int((ends >= most).sum()) >= 2:
        return round(likely)
    return next((rate for rate in RATES if rate >= likely), round(likely))


def _in_order(seconds: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Seconds and frame numbers of all lines in the order of time, each once."""
    key = torch.unique(seconds * 10000 + whole)
    return key.div(10000, rounding_mode="floor"), key % 10000


def _with_parts(seconds: Tensor, frames: Tensor, counted: int) -> Tensor:
    """Frame numbers with what is written after their point if it is a part of a frame; it may be thousandths
    of the second instead, or count the lines.
    """
    whole = frames.floor()
    part = frames - whole
    if counted == 1000 or not part.any():
        return whole
    of_a_second = (whole + 0.5).sum() / part.sum() * part - 0.5
    if float(((of_a_second - whole).abs() <= 1).float().mean()) > MOST and float(part.max()) > 0.5:
        return counted * part
    order = (counted * seconds + whole).argsort(stable=True)
    steps, parts = (counted * seconds + whole)[order].diff(), part[order]
    counter = ((1000 * parts.diff() - steps + 500.5) % 1000 - 500.5).abs() < 0.5
    if float(parts[0]) < 0.0015 and float(counter.float().mean()) > MOST:
        return whole

    def unevenness(steps: Tensor) -> float:
        return float((steps - steps.median()).abs().clamp(max=2).sum()) if len(steps) else 0.0

    return frames if unevenness(steps + parts.diff()) <= unevenness(steps) + 0.5 else whole


def _dropped(seconds: Tensor, whole: Tensor, counted: int, written: bool) -> int:
    """How many numbers drop-frame timecode leaves out at the start of a minute, unless it is a tenth one; 0
    if this is none.
    """
    numbers = 2 * counted // 30
    if counted not in DROPPING:
        return 0
    starts = (seconds % 60 == 0) & (seconds // 60 % 10 != 0)
    if (starts & (whole < numbers)).any():
        return 0
    if written:
        return numbers
    second, number = _in_order(seconds, whole)
    begins = (second[1:] % 60 == 0) & (second[1:] // 60 % 10 != 0) & (second.diff() == 1)
    skipped = (number[:-1] == counted - 1) & (number[1:] == numbers)
    return numbers if begins.any() and skipped[begins].all() else 0


def _evened(number: Tensor, counted: int) -> Tensor:
    """Frame numbers of evenly spaced lines, where only the last number of a second is missing at times: so
    a rate like 23.976 looks that is counted anew in each second.
    """
    lines, place = number.unique(return_inverse=True)
    steps = lines.diff()
    ends = lines[1:] // counted > lines[:-1] // counted
    if len(lines) < 3 or not (steps[~ends] == 1).all() or not (steps[ends] <= 2).all() or steps.max() < 2:
        return number
    index = torch.arange(len(lines), dtype=lines.dtype)
    index = index - index.mean()
    slope = (index * (lines - lines.mean())).sum() / index.square().sum()
    return (lines.mean() + slope * index)[place]
