"""A portrait back into the picture that it was cut out of: the inverse of :func:`.capture.crop_portrait`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..progress import Progress

FEATHER = 0.08
LEAST_RING = 0.04  # width of the ring whose colors are matched, as a share of the square's side
RING_FRAMES = 16  # so many frames tell the colors of a video
LARGEST_GAIN = 2.0
LOBES = 3  # of the Lanczos kernel


@torch.no_grad()
def paste_back(
    portrait: Tensor,
    original: Tensor,
    square: Tensor,
    *,
    feather: float = FEATHER,
    match_color: float = 0.0,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Put a portrait video into a picture or a video.

    One frame is worked on at a time; nothing but the result grows with the length of the video.

    Args:
        portrait: (frames, 3, size, size) in [0, 1], of any size.
        original: (frames or 1, 3, height, width) in [0, 1]; a single picture is repeated.
        square: (3,) left, top, side as fractions of the original's longer side; may reach beyond it.
        feather: width of the soft edge inside the square, as a share of its side. A side of the square that
            lies on the original's border has none: there is nothing to blend with.
        match_color: 0 leaves the portrait's colors, 1 gives the ring along its edge the mean and the
            deviation that the original has there. One correction for all frames, or it would flicker.
        mask: (frames or 1, height, width) in [0, 1]; only there the portrait shows.
        progress: called with frames (done, total).

    Returns:
        (frames, 3, height, width), equal to the original bit by bit where the mask is 0; and what shows of
        the portrait, (1, height, width), or (frames, height, width) if `mask` has several frames.

    Raises:
        InputError: sizes or numbers of frames that don't fit together.
    """
    _check(portrait, original, mask)
    frames, (height, width) = len(portrait), original.shape[-2:]
    place = _Place.of(square, height, width)
    columns, rows = (_Taps.of(place, axis, portrait) for axis in (0, 1))
    shown = _edge(place, feather).to(portrait)
    gain, offset = _match(portrait, original, place, rows, columns, feather, match_color)

    # frames, height, width, channels in memory, as pictures are kept outside: no copy to get there
    result = torch.empty(frames, height, width, 3, dtype=original.dtype, device=original.device).movedim(
        -1, 1
    )
    shows = torch.zeros(1 if mask is None else len(mask), height, width).to(portrait)
    for number, target in enumerate(shows):
        allowed = 1.0 if mask is None else place.cut(_sized(mask[number], height, width)).to(shown)
        place.cut(target).copy_(shown * allowed)
    for number in range(frames):
        result[number] = original[number % len(original)]
        pasted = rows.apply(columns.apply(portrait[number], -1), -2) * gain + offset
        behind = place.cut(result[number])
        share = place.cut(shows[number % len(shows)]).to(behind)
        behind += share * (pasted.clamp(0, 1).to(behind) - behind)
        if progress is not None:
            progress(number + 1, frames)
    return result, shows


@dataclass(frozen=True)
class _Place:
    """A square in a picture, in pixels; pixel `i` spans `i` to `i + 1`.

    Attributes:
        start, side: left and top edge, and the length of the sides.
        low, high: the pixels that it touches, as first and last + 1 of columns and rows.
        size: width and height of the picture.
    """

    start: tuple[float, float]
    side: float
    low: tuple[int, int]
    high: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, square: Tensor, height: int, width: int) -> _Place:
        left, top, side = (float(value) * max(height, width) for value in square.double())
        low = max(math.floor(left), 0), max(math.floor(top), 0)
        high = min(math.ceil(left + side), width), min(math.ceil(top + side), height)
        if not (low[0] < high[0] and low[1] < high[1]):
            raise InputError(
                f"The portrait's square lies outside of the {width}×{height} pixels of the original: give "
                "the picture that it was cut out of."
            )
        return cls((left, top), side, low, high, (width, height))

    def cut(self, picture: Tensor) -> Tensor:
        """The square's pixels (..., rows, columns) as a view of (..., height, width)."""
        return picture[..., self.low[1] : self.high[1], self.low[0] : self.high[0]]

    def centers(self, axis: int) -> Tensor:
        """Of the pixels along an axis (0 is x), in pixels from the square's edge."""
        return torch.arange(self.low[axis], self.high[axis], dtype=torch.float64) + 0.5 - self.start[axis]

    def depth(self, axis: int) -> Tensor:
        """How far inside each pixel's center is, in pixels; infinite towards an edge at the border."""
        centers = self.centers(axis)
        near, far = centers, self.side - centers
        # nearer to the border than half a pixel, an edge has nothing of the original beside it
        if self.start[axis] < 0.5:
            near = torch.full_like(centers, torch.inf)
        if self.start[axis] + self.side > self.size[axis] - 0.5:
            far = torch.full_like(centers, torch.inf)
        return torch.minimum(near, far)


@dataclass(frozen=True)
class _Taps:
    """Resampling along one axis as a weighted sum: where to read, and how much of it.

    Attributes:
        index: (taps, pixels) int64.
        weight: (taps, pixels); they sum to 1 for each pixel.
    """

    index: Tensor
    weight: Tensor

    @classmethod
    def of(cls, place: _Place, axis: int, portrait: Tensor) -> _Taps:
        """From a portrait to the pixels of a place; beyond the portrait its border repeats."""
        size = portrait.shape[-1]
        scale = size / place.side
        reach = LOBES * max(scale, 1.0)  # a portrait that is made smaller is averaged, or it would alias
        center = place.centers(axis) * scale
        first = torch.floor(center - reach + 0.5).long()
        index = first + torch.arange(math.ceil(2 * reach) + 1)[:, None]
        weight = _lanczos((index + 0.5 - center) / max(scale, 1.0))
        weight = weight / weight.sum(0)
        return cls(index.clamp(0, size - 1).to(portrait.device), weight.to(portrait))

    def apply(self, picture: Tensor, axis: int) -> Tensor:
        """One axis, -1 or -2, of (channels, height, width)."""
        result = torch.zeros((), dtype=picture.dtype, device=picture.device)
        for index, weight in zip(self.index, self.weight, strict=True):
            result = result + picture.index_select(axis, index) * (weight if axis == -1 else weight[:, None])
        return result


def _lanczos(distance: Tensor) -> Tensor:
    kernel = torch.sinc(distance) * torch.sinc(distance / LOBES)
    return torch.where(distance.abs() < LOBES, kernel, 0.0)


def _edge(place: _Place, feather: float) -> Tensor:
    """How much of the portrait shows, (rows, columns) of the place: smoothly from 0 at its edge to 1."""
    along = []
    for axis in (1, 0):
        ramp = (place.depth(axis) / (feather * place.side)) if feather > 0 else place.depth(axis) + 0.5
        ramp = ramp.clamp(0, 1)
        along.append(ramp * ramp * (3 - 2 * ramp) if feather > 0 else ramp)
    return along[0][:, None] * along[1]


def _match(
    portrait: Tensor,
    original: Tensor,
    place: _Place,
    rows: _Taps,
    columns: _Taps,
    feather: float,
    amount: float,
) -> tuple[Tensor, Tensor]:
    """Gain and offset of each channel (3, 1, 1) that carry the ring's colors over to the original's."""
    same = torch.ones(3, 1, 1).to(portrait), torch.zeros(3, 1, 1).to(portrait)
    depth = torch.minimum(place.depth(1)[:, None], place.depth(0))
    ring = ((depth >= 0) & (depth < max(feather, LEAST_RING) * place.side)).to(portrait.device)
    if amount == 0 or not ring.any():
        return same
    chosen = torch.linspace(0, len(portrait) - 1, min(len(portrait), RING_FRAMES)).round().long().tolist()
    found, wanted = [], []
    for number in chosen:
        found.append(rows.apply(columns.apply(portrait[number], -1), -2)[:, ring])
        wanted.append(place.cut(original[number % len(original)]).to(portrait)[:, ring])
    (mean, deviation), (aim, spread) = (
        (pixels.mean(1), pixels.std(1, correction=0))
        for pixels in (torch.cat(found, 1), torch.cat(wanted, 1))
    )
    gain = (spread / deviation.clamp(min=1 / 255)).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    gain = 1 + amount * (gain - 1)
    offset = mean + amount * (aim - mean) - gain * mean
    return gain[:, None, None], offset[:, None, None]


def _sized(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask of another size, scaled to (height, width)."""
    if mask.shape == (height, width):
        return mask
    sized = F.interpolate(mask[None, None].float(), (height, width), mode="bilinear", antialias=True)
    return sized[0, 0].clamp(0, 1)


def _check(portrait: Tensor, original: Tensor, mask: Tensor | None) -> None:
    frames, (height, width) = len(portrait), original.shape[-2:]
    if portrait.shape[-2] != portrait.shape[-1]:
        raise InputError(
            f"The portrait is {portrait.shape[-1]}×{portrait.shape[-2]} pixels: it has to be square, as it "
            "was cut out."
        )
    for name, value in (("original", original), ("mask", mask)):
        if value is not None and len(value) not in (1, frames):
            raise InputError(
                f"The {name} has {len(value)} frames but the portrait has {frames}: give one, or as many."
            )
    # a pixel of rounding is no other proportion
    if mask is not None and abs(mask.shape[-1] * height - mask.shape[-2] * width) > max(height, width):
        raise InputError(
            f"The mask has {mask.shape[-1]}×{mask.shape[-2]} pixels but the original {width}×{height}: give "
            "a mask of the original's proportions."
        )
