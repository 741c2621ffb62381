"""Smoothing without lag: calm when still, sharp when fast.

The idea is the One-Euro filter's (Casiez, Roussel and Vogel 2012): the band that passes widens with the
speed. But a clip is known as a whole. So it is not filtered forward in time, which lags, but fitted by
Whittaker's smoother (Eilers 2003): the sequence that is nearest to the readings while it bends least. How
stiff it is changes from frame to frame with the speed. It is symmetric in time and keeps straight lines up to
the ends, which a One-Euro filter run forward and backward does not.

Speeds count in multiples of the readings' own tremble, per frame: the same strength fits every head, every
encoder and every frame rate, and readings without tremble stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..head.gaze import look_along
from ..head.parameters import FaceParameters
from .parts import require_numbers

REST_SPAN, FAST_SPAN = 24.0, 1.5  # frames that the smoother spans with a strength of 1, at rest and at speed
QUIET = 3.0  # deviations of the speed that noise alone makes
WIDENING = 4.0  # how fast the span narrows with the speed above that
APART = 2.0  # trembles that a result may lie from its reading: what is farther off is no noise
SPIKE = 6.0  # trembles by which a single frame must stick out to be no motion
# Frames on each side for measuring the speed: heads are slow, syllables last three frames.
HEAD_REACH, FACE_REACH = 3, 1
ORDER = 5  # of the differences that show the noise
# Below these nobody sees a movement: radians, logarithm of the scale, half pictures, expression.
LEAST_TURN, LEAST_ZOOM, LEAST_SHIFT, LEAST_EXPRESSION = 3e-4, 5e-4, 5e-4, 5e-3
# No reading trembles more than this many times as much: what does moves, as in frames that lie far apart.
MOST_HEAD, MOST_EXPRESSION, MOST_COEFFICIENT = 25.0, 4.0, 30.0


def noise_std(values: Tensor, least: float) -> Tensor:
    """Deviation of the noise of values (frames, quantities): (quantities,), at least ``least``.

    From fifth differences, in which even speech all but vanishes; the median does not mind blinks and turns.
    """
    if len(values) <= ORDER:
        return values.new_full(values.shape[1:], least)
    rough = values.diff(n=ORDER, dim=0).abs().median(dim=0).values
    return (rough / (0.6745 * math.comb(2 * ORDER, ORDER) ** 0.5)).clamp(min=least)


def without_spikes(values: Tensor, least: float) -> Tensor:
    """Values (frames, quantities) whose single outliers lie where the four neighbors say.

    An outlier sticks out by more than the noise does and than its neighbors are apart: neither the tip of a
    nod nor the start of a turn is one.
    """
    if len(values) < 5:
        return values
    here = values[2:-2]
    around = torch.stack([values[:-4], values[1:-3], values[3:-1], values[4:]])
    expected = (4 * (around[1] + around[2]) - around[0] - around[3]) / 6
    away, apart = (here - expected).abs(), around.amax(0) - around.amin(0)
    foremost = away >= F.max_pool1d(away.T[None], 5, stride=1, padding=2)[0].T
    outlier = foremost & (away > SPIKE * noise_std(values, least)) & (away > apart)
    return torch.cat([values[:2], torch.where(outlier, expected, here), values[-2:]])


def smooth(
    values: Tensor, strength: float, least: float, reach: int, together: bool = False, most: float = math.inf
) -> Tensor:
    """Smooth values (frames, quantities) over time.

    Args:
        strength: 0 changes nothing, 1 spans about a second when still.
        least: noise that is always smoothed away, in the values' unit.
        reach: frames on each side that tell the speed.
        together: the quantities are axes of one thing, as fast as the whole.
        most: times `least`, what counts as noise at the most.
    """
    if strength <= 0 or len(values) < 3 or torch.equal(values[1:], values[:-1]):
        return values
    wide = values.detach().double().cpu()
    slope, steadied = _slope(wide, reach)
    noise_level = noise_std(wide, least).clamp(max=most * least)
    noise = steadied * noise_level
    if together:
        noise, slope = noise.norm(dim=0, keepdim=True), slope.norm(dim=1, keepdim=True)
    # The fastest moment of the neighborhood: a movement stands still at its tip, and there it must be kept.
    around = max(2, round(REST_SPAN * strength / 4))
    speed = F.max_pool1d((slope.abs() / noise).T[None], 2 * around + 1, stride=1, padding=around)[0].T
    narrowed = REST_SPAN / (1 + WIDENING * (speed - QUIET).clamp(min=0))
    span = strength * narrowed.clamp(min=FAST_SPAN if together else 0)  # syllables are a few frames long
    fitted, limit = _whittaker(wide, span[1:-1] ** 4), APART * noise_level
    return torch.clamp(fitted, wide - limit, wide + limit).to(values)


def smooth_motion(
    params: FaceParameters, names: Sequence[str], head: float, expression: float
) -> FaceParameters:
    """Calm the tremble of a clip. Lids and gaze get a third of what the rest of the face does.

    Args:
        names: ARKit's, of the expressions; empty for a head like FLAME, whose expressions each move lids and
            mouth at once and know no limits.
        head: strength for pose and place of the head, 0 to 1.
        expression: strength for expression, jaw and gaze, 0 to 1.

    Returns:
        As many frames; the shape is untouched.

    Raises:
        InputError: a strength is NaN or infinite.
    """
    require_numbers(head_smoothing=head, expression_smoothing=expression)
    scale = params.camera[:, :1]
    # s·t is where the head is in the picture: it and the scale tremble for themselves.
    zoom = _smooth_head(scale.log(), head, LEAST_ZOOM).exp()
    shift = _smooth_head(scale * params.camera[:, 1:], head, LEAST_SHIFT)
    turns = params.pose.split(3, dim=1)
    joints = [_smooth_head(turn, head, LEAST_TURN) for turn in turns[:2]]
    joints += [
        smooth(turn, expression, LEAST_TURN, FACE_REACH, together=True, most=MOST_HEAD) for turn in turns[2:]
    ]
    quick = torch.tensor([name.startswith("eye") for name in names], device=params.expression.device)
    face = params.expression.clone()
    for columns, strength in (
        ((quick, expression / 3), (~quick, expression)) if names else ((..., expression),)
    ):
        most = MOST_EXPRESSION if names else MOST_COEFFICIENT
        face[:, columns] = smooth(face[:, columns], strength, LEAST_EXPRESSION, FACE_REACH, most=most)
    if names:
        face = face.clamp(0, 1)
    camera, pose = torch.cat([zoom, shift / zoom], dim=1), torch.cat(joints, dim=1)
    return look_along(replace(params, expression=face, pose=pose, camera=camera), names)


def _smooth_head(values: Tensor, strength: float, least: float) -> Tensor:
    if strength <= 0:
        return values
    return smooth(without_spikes(values, least), strength, least, HEAD_REACH, together=True, most=MOST_HEAD)


def _slope(values: Tensor, reach: int) -> tuple[Tensor, float]:
    """Change per frame of values (frames, quantities): slope of the line through the nearest neighbors.

    Also what a deviation of 1 becomes in it.
    """
    reach = min(reach, len(values) - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=values.dtype)
    # Turned about the end points, a line goes on beyond them.
    head = 2 * values[:1] - values[1 : reach + 1].flip(0)
    tail = 2 * values[-1:] - values[-reach - 1 : -1].flip(0)
    padded = torch.cat([head, values, tail]).T[:, None]
    energy = float(offsets.square().sum())
    return F.conv1d(padded, (offsets / energy)[None, None])[:, 0].T, energy**-0.5


def _whittaker(values: Tensor, stiffness: Tensor) -> Tensor:
    """The y that minimizes |y - values|² + the sum of stiffness · (second difference of y)², frame by frame.

    Args:
        values: (frames, quantities) float64, three frames at least.
        stiffness: (frames - 2, quantities or 1).
    """
    frames = len(values)
    weights, result = stiffness.numpy(), values.numpy().copy()
    # The diagonals of the symmetric matrix: 1, and the outer products of (1, -2, 1) by their stiffness.
    middle = np.ones((frames, weights.shape[1]))
    first, second = np.zeros_like(middle), np.zeros_like(middle)
    for offset, square in enumerate((1, 4, 1)):
        middle[offset : offset + frames - 2] += square * weights
    for offset in range(2):
        first[offset : offset + frames - 2] -= 2 * weights
    second[: frames - 2] = weights
    # L D L' and both substitutions, frame by frame: nothing reaches farther than two neighbors.
    for now in range(frames - 1):
        factor = first[now] / middle[now]
        middle[now + 1] -= factor * first[now]
        first[now + 1] -= factor * second[now]
        result[now + 1] -= factor * result[now]
        if now + 2 < frames:
            factor = second[now] / middle[now]
            middle[now + 2] -= factor * second[now]
            result[now + 2] -= factor * result[now]
    result /= middle
    for now in range(frames - 2, -1, -1):
        result[now] -= first[now] / middle[now] * result[now + 1]
        if now + 2 < frames:
            result[now] -= second[now] / middle[now] * result[now + 2]
    return torch.from_numpy(result)
