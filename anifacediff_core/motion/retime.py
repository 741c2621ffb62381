"""Time: another frame rate or speed, a part, backwards, a loop without a seam."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from ..errors import InputError
from ..head.parameters import FaceParameters
from .mix import fade

DIRECTIONS = ("forward", "reverse", "ping-pong")
NEAR = 0.005  # 29.97 is 30000/1001
LONGEST = 1_000_000  # frames
LEAST = 0.001  # rate or speed


def exact_rate(rate: float) -> Fraction:
    """The frame rate that is meant: whole, of n/1001 as in television, or what a short fraction says.

    Raises:
        InputError: it is none.
    """
    if not LEAST <= rate < 1e4:
        raise InputError(f"A frame rate of {rate} is impossible: give one above 0, such as 25 or 29.97.")
    whole = round(rate)
    television = Fraction(1000 * (whole or 1), 1001)
    if abs(rate - whole) > 1e-6 and abs(rate - television) < NEAR:
        return television
    return Fraction(rate).limit_denominator(1001)


def trim(params: FaceParameters, start: int, length: int) -> FaceParameters:
    """``length`` frames from ``start`` on; 0 takes all to the end, a negative start counts from there.

    Raises:
        InputError: nothing is left.
    """
    first = start + len(params) if start < 0 else start
    if not 0 <= first < len(params):
        raise InputError(
            f"There is no frame {start} to start from in a motion of {len(params)} frames: choose one from "
            f"{-len(params)} to {len(params) - 1}."
        )
    return params[first : first + length] if length > 0 else params[first:]


def turn_back(params: FaceParameters, direction: str) -> FaceParameters:
    """Play backwards ("reverse"), or forward and back ("ping-pong"), which repeats neither turning point."""
    forward = list(range(len(params)))
    if direction == "reverse":
        return params[forward[::-1]]
    if direction == "ping-pong":
        return params[forward + forward[-2:0:-1]]
    return params


def retime(params: FaceParameters, rate: Fraction, new_rate: Fraction, speed: float = 1.0) -> FaceParameters:
    """Another frame rate, faster or slower; values between frames are interpolated.

    Returns:
        As many frames as the duration takes at the new rate: n · new_rate / (rate · speed), rounded, one at
        least. Frame k is the motion at the time k / new_rate, exactly, however long it is.

    Raises:
        InputError: the speed is impossible, or the result would be too long.
    """
    if not LEAST <= speed < 1e4:
        raise InputError(f"A speed of {speed} is impossible: give one above 0, such as 0.5 or 2.")
    step = rate * Fraction(speed).limit_denominator(10000) / new_rate
    if step == 1:
        return params
    frames = max(1, int(len(params) / step + Fraction(1, 2)))
    if frames > LONGEST:
        raise InputError(
            f"The motion would have {frames} frames, more than {LONGEST}: choose a shorter part, a lower "
            "frame rate or a higher speed."
        )
    # Positions apart as whole and rest: float32 has too few digits for hours of 1/1001.
    places = [frame * step for frame in range(frames)]
    whole = torch.tensor([min(int(place), len(params) - 1) for place in places])
    rest = torch.tensor([float(place - int(place)) for place in places])
    return params[whole].interpolate(params[(whole + 1).clamp(max=len(params) - 1)], rest)


def at_times(params: FaceParameters, times: Sequence[float], wanted: Sequence[float]) -> FaceParameters:
    """The motion at other times; before its first frame and behind its last it stands still.

    Args:
        times: of its frames in seconds, rising, one each.
        wanted: in seconds by the same clock.

    Returns:
        One frame per wanted time.
    """
    own, at = (torch.tensor(each, dtype=torch.float64) for each in (times, wanted))
    before = (torch.searchsorted(own, at, right=True) - 1).clamp(0, len(own) - 1)
    after = (before + 1).clamp(max=len(own) - 1)
    step = (own[after] - own[before]).clamp(min=1e-9)
    return params[before].interpolate(params[after], ((at - own[before]) / step).clamp(0, 1).float())


def loop(params: FaceParameters, frames: int) -> FaceParameters:
    """A motion that starts again without a seam: its last ``frames`` fade into its first.

    Returns:
        len(params) - frames frames.

    Raises:
        InputError: fewer than twice as many frames.
    """
    if frames <= 0:
        return params
    if 2 * frames > len(params):
        raise InputError(
            f"A motion of {len(params)} frames is too short to close its loop over {frames} frames: choose "
            f"at most {len(params) // 2}."
        )
    seam = params[len(params) - frames :].interpolate(params[:frames], fade(frames))
    return FaceParameters.concatenate([seam, params[frames : len(params) - frames]])
