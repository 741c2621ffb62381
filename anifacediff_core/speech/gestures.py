"""What a face does while it talks, beside talking: blinks, raised brows, nods, turns of the head, glances.

Drawn at random, and placed where people place them: brows and nods on what is loud, turns and blinks where a
phrase begins or ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion.curves import Draw, blink, bump, minimum_jerk, sway

SPEAKING = 0.65  # loudness from which on somebody speaks
BREATH = 0.35  # seconds: a shorter pause is none
APART = 0.4  # seconds between accents
BLINK_APART = 0.7  # seconds between blinks
NOD, RAISE = 0.26, 0.34  # seconds to either side
POSTURE = (0.11, 0.045, 0.04)  # radians of yaw, pitch, roll
UNREST = (0.010, 0.007, 0.006)


@dataclass(frozen=True)
class Gestures:
    """Of each frame.

    Attributes:
        lids: (frames,) in [0, 1], 1 is shut.
        brows: (frames,) in [0, 1], how far they are raised.
        angles: (frames, 3) radians of the head's yaw, pitch and roll, as in `rotation.from_euler`.
        glances: (frames, 2) radians of the eyes' yaw and pitch away from the camera.
    """

    lids: Tensor
    brows: Tensor
    angles: Tensor
    glances: Tensor


class Prosody(NamedTuple):
    """Seconds at which phrases begin and end and at which something is stressed, and how strongly."""

    begins: Tensor
    ends: Tensor
    accents: Tensor
    strengths: Tensor


def gestures(loudness: Tensor, fps: float, time: Tensor, seed: int, blinks: float = 1.0) -> Gestures:
    """Gestures to a voice.

    Args:
        loudness: (samples,) in [0, 1], ``fps`` a second.
        time: (frames,) in seconds.
        seed: decides everything random.
        blinks: how often beside the usual; 0 is never.
    """
    draw = Draw(torch.Generator().manual_seed(seed % 2**63))
    heard = prosody(loudness, fps)
    length = float(time[-1]) + 1.0
    strong = heard.strengths * draw.uniform(0.5, 1.0, len(heard.accents))
    raised = strong * draw.chance(0.45, len(strong))
    brows = _bumps(time, heard.accents - 0.05, raised, RAISE)
    angles = _turns(draw, time, heard.begins)
    nods = _bumps(time, heard.accents + 0.02, strong, NOD) * 0.05
    angles = angles + F.pad(nods[:, None], (1, 1))
    lids = _lids(draw, time, heard, length, blinks)
    return Gestures(lids, brows, angles, _glances(draw, time, heard.begins))


def prosody(loudness: Tensor, fps: float) -> Prosody:
    """Where a voice begins, ends and stresses; of (samples,) in [0, 1], ``fps`` a second."""
    even = _smooth(loudness, round(0.12 * fps))
    gap = 2 * round(BREATH * fps / 2) + 1
    speaking = F.max_pool1d((even > SPEAKING).float()[None, None], gap, 1, gap // 2)
    speaking = -F.max_pool1d(-speaking, gap, 1, gap // 2)[0, 0]  # pauses shorter than a breath are closed
    change = F.pad(speaking, (1, 1)).diff()
    begins, ends = ((change == sign).nonzero()[:, 0] / fps for sign in (1, -1))
    around = _smooth(loudness, round(1.2 * fps))
    wide = 2 * round(APART * fps) + 1
    peak = even == F.max_pool1d(even[None, None], wide, 1, wide // 2)[0, 0]
    places = (peak & (even > SPEAKING) & (even > around)).nonzero()[:, 0]
    places = places[torch.diff(places, prepend=places.new_tensor([-wide])) >= wide // 2]
    above = (even - around)[places]
    return Prosody(begins, ends, places / fps, (above / 0.15).clamp(0.2, 1))


def _smooth(values: Tensor, wide: int) -> Tensor:
    wide = 2 * (wide // 2) + 1
    return F.avg_pool1d(values[None, None], wide, 1, wide // 2, count_include_pad=False)[0, 0]


def _bumps(time: Tensor, places: Tensor, heights: Tensor, half: float) -> Tensor:
    """The sum of bumps at rising places that are further apart than ``half``, whatever their number."""
    if not len(places):
        return torch.zeros_like(time)
    after = torch.searchsorted(places, time.contiguous()).clamp(max=len(places) - 1)
    before = (after - 1).clamp(min=0)
    values = [heights[index] * bump((time - places[index]) / half) for index in (after, before)]
    return torch.where(after == before, values[0], values[0] + values[1])


def _moves(time: Tensor, begins: Tensor, values: Tensor, duration: float) -> Tensor:
    """From value to value (1 + moves, quantities), the first before anything begins, by minimum jerk."""
    place = torch.searchsorted(begins, time.contiguous(), right=True)
    since = time - torch.cat([begins.new_tensor([-1e6]), begins])[place]
    share = minimum_jerk(since / duration)[:, None]
    return torch.lerp(values[(place - 1).clamp(min=0)], values[place], share)


def _turns(draw: Draw, time: Tensor, begins: Tensor) -> Tensor:
    """Another posture with every phrase, and an unrest that never ends (frames, 3)."""
    begins = begins[torch.diff(begins, prepend=begins.new_tensor([-9.0])) > 0.8]
    values = draw.normal(1.0, len(begins) + 1, 3).clamp(-2, 2) * torch.tensor(POSTURE)
    values[0] *= 0.3
    return _moves(time, begins - 0.15, values, 0.7) + sway(draw, 1, time, 3)[0] * torch.tensor(UNREST)


def _glances(draw: Draw, time: Tensor, begins: Tensor) -> Tensor:
    """Away from the camera with some phrases, and back again (frames, 2)."""
    chosen = begins[draw.chance(0.4, len(begins))]
    chosen = chosen[torch.diff(chosen, prepend=chosen.new_tensor([-9.0])) > 2.0]
    aims = draw.normal(1.0, len(chosen), 2).clamp(-1.5, 1.5) * torch.tensor([0.16, 0.08])
    moves = torch.stack([chosen, chosen + 0.9], dim=1).flatten()
    values = F.pad(aims[:, None], (0, 0, 0, 1)).flatten(0, 1)  # there, and back to the camera
    return _moves(time, moves, F.pad(values, (0, 0, 1, 0)), 0.06)


def _lids(draw: Draw, time: Tensor, heard: Prosody, length: float, often: float) -> Tensor:
    if often <= 0:
        return torch.zeros_like(time)
    spontaneous = draw.around(3.4 / often, 0.45, int(length * often) + 2).cumsum(0) - draw.uniform(0, 1.5, 1)
    at_ends = heard.ends[draw.chance(min(0.55 * often, 1.0), len(heard.ends))] - 0.05
    times = torch.cat([spontaneous, at_ends]).sort().values
    times = times[torch.diff(times, prepend=times.new_tensor([-9.0])) > BLINK_APART]
    place = (torch.searchsorted(times, time.contiguous(), right=True) - 1).clamp(min=0)
    depth = draw.uniform(0.85, 1.0, len(times))
    return blink(time - times[place], 0.14) * depth[place]
