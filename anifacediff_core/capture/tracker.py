"""From faces found picture by picture to one face over a video: following, gaps, smoothing, the portrait
square.

Squares are (left, top, side) as fractions of the picture's longer side, from its top left corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head.parameters import FaceParameters
from .detector import Detection, choose

PATIENCE = 12  # frames without the face before any other face is taken for it
STEADINESS = 0.75  # share of the last crop in the next one
REACH = 0.8  # a face moves less than this share of its square from frame to frame
# The portrait square against the face square, as in the avatars that the networks are trained on.
PORTRAIT_SCALE, PORTRAIT_LIFT = 1.25, 0.12
# A square picture whose face square is this large, on average, is a portrait already.
PORTRAIT_RANGE = (0.45, 1.25)


@dataclass
class Tracker:
    """Follows one face, picture by picture.

    Attributes:
        face: 0 for the most prominent face, 1 for the first from the left, and so on.
        crowded: number of pictures so far in which there was more than one face.
        most: greatest number of faces in a picture.
    """

    face: int = 0
    crowded: int = 0
    most: int = 0
    _last: Detection | None = None
    _crop: tuple[float, float, float] | None = None
    _missing: int = 0

    def follow(self, faces: list[Detection], width: float, height: float) -> Detection | None:
        """The followed face among those of the next picture, or None.

        Args:
            faces: of the picture, in any order.
            width, height: extent of the picture as fractions of its longer side.
        """
        self.crowded += len(faces) > 1
        self.most = max(self.most, len(faces))
        found = self._same(faces) if self._last is not None else self._first(faces, width, height)
        if found is None:
            self._missing += 1
            if self._missing > PATIENCE:
                self._last = self._crop = None
            return None
        self._last, self._missing = found, 0
        return found

    def crop(self, square: tuple[float, float, float]) -> tuple[float, float, float]:
        """A steadied square for the encoder. It may lag: the camera is counted back from the very same
        square.
        """
        if self._crop is not None:
            moved = max(abs(new - old) for new, old in zip(square, self._crop, strict=True)) / square[2]
            keep = STEADINESS * max(1 - moved / 0.3, 0.0)
            left, top, side = (
                keep * old + (1 - keep) * new for new, old in zip(square, self._crop, strict=True)
            )
            square = (left, top, side)
        self._crop = square
        return square

    def _first(self, faces: list[Detection], width: float, height: float) -> Detection | None:
        if self.face == 0 or not faces:
            return choose(faces, width, height)
        ordered = sorted(faces, key=lambda face: face.center[0])
        return ordered[self.face - 1] if self.face <= len(ordered) else None

    def _same(self, faces: list[Detection]) -> Detection | None:
        last = self._last
        assert last is not None

        def distance(face: Detection) -> float:
            (x, y), (u, v) = face.center, last.center
            away = math.hypot(x - u, y - v) / last.square[2]
            return away + abs(math.log(face.square[2] / last.square[2]))

        nearest = min(faces, key=distance, default=None)
        # The longer a face was away, the farther it may come back.
        reach = REACH * (1 + 0.5 * self._missing)
        return nearest if nearest is not None and distance(nearest) < reach else None


def fill_gaps(values: Tensor, valid: Tensor) -> Tensor:
    """Values (frames, quantities), invalid frames interpolated between neighbors or held at the ends."""
    known = torch.nonzero(valid).squeeze(1)
    if len(known) == len(values):
        return values
    frames = torch.arange(len(values), device=values.device)
    after = torch.searchsorted(known, frames).clamp(max=len(known) - 1)
    before = (torch.searchsorted(known, frames, right=True) - 1).clamp(min=0)
    start, end = known[before], known[after]
    weight = ((frames - start) / (end - start).clamp(min=1)).clamp(0, 1)[:, None].to(values)
    return torch.lerp(values[start], values[end], weight)


def smooth(values: Tensor, deviation: float) -> Tensor:
    """Gaussian smoothing over time, without lag: symmetric, and straight lines stay what they are up to the
    ends.

    Args:
        values: (frames, quantities).
        deviation: of the Gaussian, in frames; 0 changes nothing.
    """
    frames = len(values)
    radius = min(math.ceil(3 * deviation), frames - 1)
    if deviation <= 0 or radius < 1:
        return values
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = kernel / kernel.sum()
    # Reflecting through the end points continues a slope, where plain reflection would bend it.
    head = 2 * values[:1] - values[1 : radius + 1].flip(0)
    tail = 2 * values[-1:] - values[-radius - 1 : -1].flip(0)
    padded = torch.cat([head, values, tail]).T[:, None]
    return F.conv1d(padded, kernel[None, None])[:, 0].T


def without_spikes(values: Tensor) -> Tensor:
    """The middle one of every three successive values (frames, quantities): single outliers vanish."""
    if len(values) < 3:
        return values
    middle = torch.stack([values[:-2], values[1:-1], values[2:]]).median(dim=0).values
    return torch.cat([values[:1], middle, values[-1:]])


def smooth_parameters(params: FaceParameters, names: list[str], amount: float) -> FaceParameters:
    """Calm the tremble of parameters read frame by frame; gaps are filled first.

    The camera and the head are slow and get most of it, the mouth less, lids and gaze hardly any: a blink
    lasts four frames. The shape does not change in a video and becomes its mean.

    Args:
        params: frames in order, ``valid`` telling which were seen.
        names: ARKit's, of the expressions; empty for a head like FLAME, whose expressions each move lids and
            mouth at once, know no limits, and come with a turning root and jaw.
        amount: 0 leaves every reading as it is, 1 is strong.
    """
    valid = params.valid
    expression, pose = fill_gaps(params.expression, valid), fill_gaps(params.pose, valid)
    camera, shape = fill_gaps(params.camera, valid), fill_gaps(params.shape, valid)
    if amount > 0 and len(params) > 1:
        # s·t is where the head is in the picture: it and the scale tremble for themselves.
        place = torch.cat([camera[:, :1].log(), camera[:, :1] * camera[:, 1:]], dim=1)
        place = smooth(without_spikes(place), 5 * amount)
        camera = torch.cat([place[:, :1].exp(), place[:, 1:] / place[:, :1].exp()], dim=1)
        if names:
            quick = torch.tensor([name.startswith("eye") for name in names], device=valid.device)
            slow = smooth(expression, 2 * amount)
            expression = torch.where(quick, smooth(expression, 0.6 * amount), slow).clamp(0, 1)
        else:
            expression = smooth(expression, amount)
        turns, jaw = smooth(pose[:, :6], 3 * amount), smooth(pose[:, 6:9], amount)
        pose = torch.cat([turns, jaw, pose[:, 9:]], dim=1)
        shape = params.shape[valid].mean(0, keepdim=True).expand_as(shape)
    return replace(params, expression=expression, pose=pose, camera=camera, shape=shape.contiguous())


def portrait_square(faces: Tensor, valid: Tensor, width: float, height: float, mode: str = "auto") -> Tensor:
    """One square for a whole clip that holds the head in all frames.

    Args:
        faces: (frames, 3) face squares, see :func:`.detector.face_square`.
        valid: (frames,) bool; the others do not count.
        width, height: extent of the picture as fractions of its longer side.
        mode: "whole" is the whole picture, made square at its right or bottom; "portrait" the square around
        the head;
            "auto" the whole picture when it is square and its face as large as in a portrait.

    Returns:
        (3,): left, top, side.
    """
    whole = faces.new_tensor([0.0, 0.0, 1.0])
    seen = faces[valid]
    side = seen[:, 2].median()
    portrait = min(width, height) > 0.98 and PORTRAIT_RANGE[0] < float(side) < PORTRAIT_RANGE[1]
    if mode == "whole" or (mode == "auto" and portrait):
        return whole
    low = seen[:, :2].quantile(0.02, dim=0)
    high = (seen[:, :2] + seen[:, 2:]).quantile(0.98, dim=0)
    wanted = torch.maximum(PORTRAIT_SCALE * seen[:, 2].quantile(0.9), (high - low).amax() * 1.1)
    # Rather a little tighter than beyond the picture, if the face still fits well.
    least, limit = float((high - low).amax()) * 1.1, min(width, height)
    size = min(float(wanted), max(limit, least))
    center_x, center_y = ((low + high) / 2).tolist()
    left, top = center_x - size / 2, center_y - PORTRAIT_LIFT * size - size / 2
    top = max(top, float(high[1]) - 0.97 * size)  # room for hair, but not at the cost of the chin
    return faces.new_tensor([_pushed_inside(left, size, width), _pushed_inside(top, size, height), size])


def _pushed_inside(start: float, size: float, extent: float) -> float:
    """Move an interval into the picture; centered where it does not fit."""
    if size >= extent:
        return (extent - size) / 2
    return min(max(start, 0.0), extent - size)
