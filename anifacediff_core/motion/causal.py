"""Smoothing frame by frame, for what is shown while it happens: :mod:`.smoothing` without the frames to come.

The One-Euro filter (Casiez, Roussel and Vogel 2012): an exponential mean whose span shrinks with the speed.
Noise, spans and limits are those of :mod:`.smoothing`. As there, no result lies farther from its reading than
noise may reach: what moves by more than that in a frame is shown within that frame. Single outliers pass,
since only the next frame tells that they are some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..head.gaze import look_along
from ..head.parameters import POSE_SIZE, FaceParameters
from .parts import require_numbers
from .smoothing import (
    APART,
    FAST_SPAN,
    LEAST_EXPRESSION,
    LEAST_SHIFT,
    LEAST_TURN,
    LEAST_ZOOM,
    MOST_COEFFICIENT,
    MOST_EXPRESSION,
    MOST_HEAD,
    QUIET,
    REST_SPAN,
    WIDENING,
    noise_std,
)

KNOWN = 48  # latest readings that tell the noise
REACH = 2  # frames over which the speed is measured
HEAD = 3 + POSE_SIZE  # quantities before the expressions: logarithm of the scale, s·t, the joints' turns
TOGETHER = (1, 2, *(3,) * (POSE_SIZE // 3))  # sizes of the things whose axes they are


class CausalSmoother:
    """Calms the tremble of one face, a frame at a time.

    Args:
        names: ARKit's, of the expressions; empty for a head like FLAME.
        strength: 0 leaves every reading as it is, 1 spans about a second when still; may be set anew at
            any time.
    """

    def __init__(self, names: Sequence[str], strength: float) -> None:
        self.names, self.strength = list(names), strength
        self._readings: deque[Tensor] = deque(maxlen=KNOWN)
        self._calm: Tensor | None = None
        # Lids and gaze get a third of what the rest of the face does.
        self._shares = torch.tensor([1 / 3 if name.startswith("eye") else 1.0 for name in names])

    def __call__(self, params: FaceParameters) -> FaceParameters:
        """The next frame, calmed; its shape is untouched.

        Args:
            params: one frame, on the CPU.

        Raises:
            InputError: the strength is NaN or infinite.
        """
        require_numbers(smoothing=self.strength)
        reading = _quantities(params)
        self._readings.append(reading)
        if self.strength <= 0 or self._calm is None:
            self._calm = reading
            return params
        self._calm = self._next(self._calm, reading)
        return look_along(_with_quantities(params, self._calm, bool(self.names)), self.names)

    def _next(self, calm: Tensor, reading: Tensor) -> Tensor:
        known = torch.stack(list(self._readings))
        noise = self._noise(known)
        change = reading - known[-1 - min(REACH, len(known) - 1)]
        speed = change.abs() / (2**0.5 * noise)  # two readings differ by sqrt 2 of the noise of one
        things = speed[:HEAD].split(TOGETHER)
        speed[:HEAD] = torch.cat([thing.square().mean().sqrt().expand(len(thing)) for thing in things])
        span = REST_SPAN / (1 + WIDENING * (speed - QUIET).clamp(min=0))
        span[:HEAD] = span[:HEAD].clamp(min=FAST_SPAN)
        span[HEAD:] *= self._shares if self.names else 1.0
        moved = torch.lerp(calm, reading, 1 / (1 + self.strength * span))
        return torch.clamp(moved, reading - APART * noise, reading + APART * noise)

    def _noise(self, known: Tensor) -> Tensor:
        """Deviation of the noise (quantities,) of the latest readings (frames, quantities)."""
        least = known.new_full((known.shape[1],), LEAST_EXPRESSION)
        least[:HEAD] = known.new_tensor([LEAST_ZOOM, LEAST_SHIFT, LEAST_SHIFT, *(LEAST_TURN,) * POSE_SIZE])
        most = known.new_full(least.shape, MOST_EXPRESSION if self.names else MOST_COEFFICIENT)
        most[:HEAD] = MOST_HEAD
        return noise_std(known, 0.0).clamp(least, most * least)


def _quantities(params: FaceParameters) -> Tensor:
    """What is smoothed, of one frame: (quantities,) float64. By x = s (x + t), s·t is the place in the
    picture.
    """
    scale, expression = params.camera[0, :1].double(), params.expression[0].double()
    return torch.cat(
        [scale.log(), scale * params.camera[0, 1:].double(), params.pose[0].double(), expression]
    )


def _with_quantities(params: FaceParameters, quantities: Tensor, limited: bool) -> FaceParameters:
    zoom, shift, pose, expression = quantities.to(params.camera).split(
        [1, 2, POSE_SIZE, len(quantities) - HEAD]
    )
    camera = torch.cat([zoom.exp(), shift / zoom.exp()])
    expression = expression.clamp(0, 1) if limited else expression
    return replace(params, expression=expression[None], pose=pose[None], camera=camera[None])
