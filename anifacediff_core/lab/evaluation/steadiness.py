"""Flicker, the weakness that the paper names (appendix A.4), measured on frames that come one by one.

Where the truth is known (same identity), the mean difference of neighboring frames over that of the truth: 1
is as lively as the truth, more is flicker, less is stiffness. In any case the warping error of Lai et al.
2018 ("Learning Blind Video Temporal Consistency"): the next frame, moved back by optical flow, against
this one.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.video import to_pixels

# Sundaram et al. 2010, as Lai et al. have it: a pixel is occluded where flow there and back do not cancel.
RELATIVE, ABSOLUTE = 0.01, 0.5


class Flicker:
    """Frame-to-frame difference of a video over that of its truth; `metrics.flicker` of frames in turn."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None
        self._moved = self._expected = 0.0
        self._count = 0

    def update(self, frame: Tensor, truth: Tensor) -> None:
        """Add a frame and its truth, (3, height, width) in [0, 1]; the truth may have another size."""
        frame = frame.double()
        if truth.shape != frame.shape:
            truth = F.interpolate(truth[None], frame.shape[-2:], mode="area")[0]
        truth = truth.double()
        if self._last is not None:
            self._moved += float((frame - self._last[0]).abs().mean())
            self._expected += float((truth - self._last[1]).abs().mean())
            self._count += 1
        self._last = (frame, truth)

    @property
    def value(self) -> float:
        """NaN for fewer than two frames."""
        if not self._count:
            return float("nan")
        return self._moved / max(self._expected, 1e-8 * self._count)


class WarpingMetric:
    """Mean of |this frame - next frame moved back|² over the pixels that both frames show.

    The square is summed over RGB in [0, 1], averaged over pixels and then over pairs of frames. Flow is
    OpenCV's DIS on the frames themselves, so no truth is needed.
    """

    def __init__(self) -> None:
        self._cv2 = load_opencv()
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._last: tuple[Tensor, np.ndarray] | None = None
        self._sum, self._count = 0.0, 0

    def update(self, frame: Tensor) -> None:
        """Add a frame (3, height, width) in [0, 1]."""
        gray = self._cv2.cvtColor(to_pixels(frame), self._cv2.COLOR_RGB2GRAY)
        if self._last is not None:
            before, before_gray = self._last
            there = self._between(before_gray, gray)
            back = self._between(gray, before_gray)
            error = warped_difference(before, frame, there, back)
            if error is not None:
                self._sum += error
                self._count += 1
        self._last = (frame, gray)

    def _between(self, start: np.ndarray, end: np.ndarray) -> Tensor:
        """(2, height, width): where each pixel of `start` has gone in `end`, x and y in pixels."""
        return torch.from_numpy(self._flow.calc(start, end, None)).permute(2, 0, 1)

    @property
    def value(self) -> float:
        """NaN for fewer than two frames."""
        return self._sum / self._count if self._count else float("nan")


def warped_difference(first: Tensor, second: Tensor, there: Tensor, back: Tensor) -> float | None:
    """Error of one pair of frames, None where no pixel is seen in both.

    Args:
        first, second: (3, height, width) in [0, 1].
        there, back: (2, height, width) flow from the first to the second and from the second to the first.
    """
    moved, inside = move(second, there)
    returned, _ = move(back, there)
    away = (there + returned).square().sum(0)
    limit = RELATIVE * (there.square().sum(0) + returned.square().sum(0)) + ABSOLUTE
    seen = inside & (away <= limit)
    if not seen.any():
        return None
    error = (first.double() - moved.double()).square().sum(0)
    return float(error[seen].mean())


def move(picture: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Take each pixel from where the flow leads.

    Args:
        picture: (channels, height, width); flow: (2, height, width) in pixels.

    Returns:
        (channels, height, width), and (height, width) bool: whether the place is inside of the picture.
    """
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = x + flow[0], y + flow[1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grid = torch.stack([(x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1], dim=-1)
    taken = F.grid_sample(
        picture[None].float(), grid[None].float(), padding_mode="border", align_corners=False
    )
    return taken[0], inside


def has_opencv() -> bool:
    """Whether an OpenCV is installed; which one is left to the user, as several cannot live side by side."""
    return importlib.util.find_spec("cv2") is not None


def load_opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise InputError(
            f"The warping error needs OpenCV ({error}): pip install opencv-python-headless."
        ) from error
