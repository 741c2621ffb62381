"""A portrait back into the picture that it was cut out of: the inverse of :func:`.extract.crop_portrait`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..progress import Progress
from .extract import remaining, rgb

FEATHER = 0.08
LEAST_RING = 0.04  # width of the ring whose colors are matched, as a share of the square's side
RING_FRAMES = 16  # so many frames tell the colors of a video
LARGEST_GAIN = 2.0
LOBES = 3  # of the Lanczos kernel
SHAPES = ("square", "ellipse")
ELLIPSE = 0.85  # its width over its height, with room for the hair


@torch.no_grad()
def paste_back(
    portrait: Tensor,
    original: Tensor,
    square: Tensor,
    *,
    skipped: Sequence[int] = (),
    feather: float = FEATHER,
    match_color: float = 0.0,
    colors: Tensor | None = None,
    shape: str = "square",
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Put a portrait video into a picture or a video.

    One frame is worked on at a time; nothing but the result grows with the length of the video.

    Args:
        portrait: (frames, 1 to 4, size, size) in [0, 1], of any size; of any channels, see
            :func:`.extract.rgb`.
        original: (frames or 1, 1 to 4, height, width) in [0, 1]; a single picture is repeated. It may also be
            the whole video that frames were left out of, which then stay as they are.
        square: (3,) or (frames, 3), left, top, side as fractions of the original's longer side; may reach
            beyond it.
        skipped: numbers of the frames that were left out when the portrait was cut out of a video.
        feather: width of the soft edge inside the square, as a share of its side. A side of the square that
            lies on the original's border has none: there is nothing to blend with.
        match_color: 0 leaves the portrait's colors, 1 gives the ring along its edge the mean and the
            deviation that the original has there. One correction for all frames, or it would flicker.
        colors: correction of :func:`measure_colors` in place of one by `match_color`, where these frames are
            a part of a video.
        shape: "square" shows all of the square, "ellipse" the upright one within it, without the corners.
        mask: (frames or 1, height, width) in [0, 1]; only there the portrait shows.

    Returns:
        (frames, 3, height, width), equal to the original bit by bit where the mask is 0; and what shows of
        the portrait, (1, height, width), or (frames, height, width) if it differs between frames.

    Raises:
        InputError: sizes or numbers of frames that don't fit together.
    """
    if shape not in SHAPES:
        raise InputError(f"The shape '{shape}' is unknown; choose one of {', '.join(SHAPES)}.")
    numbers = _numbers(portrait, original, square, skipped, mask)
    height, width = original.shape[-2:]
    still = _Fit.of(square, original, portrait, feather, shape) if square.ndim == 1 else None

    def fit(number: int) -> _Fit:
        return still or _Fit.of(square[number], original, portrait, feather, shape)

    gain, offset = (
        _match(portrait, original, fit, numbers, feather, match_color)
        if colors is None
        else colors.to(portrait)
    )
    # frames, height, width, channels in memory, as pictures are kept outside: no copy to get there
    result = torch.empty(
        len(numbers), height, width, 3, dtype=original.dtype, device=original.device
    ).movedim(-1, 1)
    alike = still is not None and None not in numbers and (mask is None or len(mask) == 1)
    shows = torch.zeros(1 if alike else len(numbers), height, width).to(portrait)
    for done, number in enumerate(numbers):
        result[done] = rgb(original[done % len(original), None])[0]
        if number is not None:
            here, shown = fit(number), shows[done % len(shows)]
            if done < len(shows):
                allowed = None if mask is None else _sized(mask[done % len(mask)], height, width)
                share = here.edge if allowed is None else here.edge * here.place.cut(allowed).to(here.edge)
                here.place.cut(shown).copy_(share)
            pasted = here.apply(rgb(portrait[number, None])[0]) * gain + offset
            behind = here.place.cut(result[done])
            behind += here.place.cut(shown).to(behind) * (pasted.clamp(0, 1).to(behind) - behind)
        if progress is not None:
            progress(done + 1, len(numbers))
    return result, shows


def measure_colors(
    portrait: Tensor, original: Tensor, square: Tensor, feather: float, match_color: float
) -> Tensor:
    """Gain and offset (2, 3, 1, 1) that bring a video's colors to the original's, from some of its frames.

    Args:
        portrait, original, square, feather, match_color: see :func:`paste_back`; one square.
    """
    fit = _Fit.of(square, original, portrait, feather, "square")
    numbers: list[int | None] = list(range(len(portrait)))
    return torch.stack(_match(portrait, original, lambda _: fit, numbers, feather, match_color))


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

    def cut(self, image: Tensor) -> Tensor:
        """The square's pixels (..., rows, columns) as a view of (..., height, width)."""
        return image[..., self.low[1] : self.high[1], self.low[0] : self.high[0]]

    def centers(self, axis: int) -> Tensor:
        """Of the pixels along an axis (0 is x), in pixels from the square's edge."""
        return torch.arange(self.low[axis], self.high[axis], dtype=torch.float64) + 0.5 - self.start[axis]

    def sides(self, axis: int) -> list[tuple[Tensor, float]]:
        """Of the edge before and the edge behind: how far inside each pixel's center is, and how much of the
        original lies beyond it, in pixels.
        """
        centers, start = self.centers(axis), self.start[axis]
        return [(centers, start), (self.side - centers, self.size[axis] - start - self.side)]

    def ring(self, width: float) -> Tensor:
        """The pixels within `width`, a share of the side, of an edge that has the original beside it."""

        def depth(axis: int) -> Tensor:
            # nearer to the border than half a pixel, an edge has nothing beside it
            beside = [depth for depth, room in self.sides(axis) if room >= 0.5]
            return torch.stack(beside or [torch.full_like(self.centers(axis), torch.inf)]).amin(0)

        nearest = torch.minimum(depth(1)[:, None], depth(0))
        return (nearest >= 0) & (nearest < width * self.side)

    def ramp(self, axis: int, width: float) -> Tensor:
        """From 0 at the edges to 1 at `width` pixels inside, for each pixel along an axis.

        Towards the picture's border, where there is less and less to blend with, it narrows down to a pixel:
        an edge that moves over the border fades out there, where it would else vanish at once.
        """
        ramps = []
        for depth, room in self.sides(axis):
            reach = max(min(width, room), 1.0)
            covered = 0.5 * min(max(2.0 - reach, 0.0), 1.0)  # within a pixel, the part that is inside counts
            ramps.append(((depth + covered) / reach).clamp(0, 1))
        return torch.minimum(*ramps)


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

    def apply(self, image: Tensor, axis: int) -> Tensor:
        """One axis, -1 or -2, of (channels, height, width)."""
        result = torch.zeros((), dtype=image.dtype, device=image.device)
        for index, weight in zip(self.index, self.weight, strict=True):
            result = result + image.index_select(axis, index) * (weight if axis == -1 else weight[:, None])
        return result


@dataclass(frozen=True)
class _Fit:
    """How a portrait of one size gets to its place.

    Attributes:
        rows, columns: resampling to the place's pixels.
        edge: how much of the portrait shows there (rows, columns).
    """

    place: _Place
    rows: _Taps
    columns: _Taps
    edge: Tensor

    @classmethod
    def of(cls, square: Tensor, original: Tensor, portrait: Tensor, feather: float, shape: str) -> _Fit:
        place = _Place.of(square, *original.shape[-2:])
        columns, rows = (_Taps.of(place, axis, portrait) for axis in (0, 1))
        return cls(place, rows, columns, _edge(place, feather, shape).to(portrait))

    def apply(self, image: Tensor) -> Tensor:
        """A frame of the portrait (3, size, size) at the place's pixels (3, rows, columns)."""
        return self.rows.apply(self.columns.apply(image, -1), -2)


def _lanczos(distance: Tensor) -> Tensor:
    kernel = torch.sinc(distance) * torch.sinc(distance / LOBES)
    return torch.where(distance.abs() < LOBES, kernel, 0.0)


def _edge(place: _Place, feather: float, shape: str) -> Tensor:
    """How much of the portrait shows, (rows, columns) of the place: smoothly from 0 at its edge to 1."""
    width = feather * place.side
    rows, columns = (_eased(place.ramp(axis, width), width) for axis in (1, 0))
    edge = rows[:, None] * columns
    if shape == "square":
        return edge
    radius = place.side / 2
    x, y = (place.centers(axis) - radius for axis in (0, 1))
    inside = radius - torch.hypot(x / ELLIPSE, y[:, None])
    return edge * _eased((inside / width if width > 0 else inside + 0.5).clamp(0, 1), width)


def _eased(ramp: Tensor, width: float) -> Tensor:
    return ramp * ramp * (3 - 2 * ramp) if width > 0 else ramp


def _match(
    portrait: Tensor,
    original: Tensor,
    fit: Callable[[int], _Fit],
    numbers: list[int | None],
    feather: float,
    amount: float,
) -> tuple[Tensor, Tensor]:
    """Gain and offset of each channel (3, 1, 1) that carry the ring's colors over to the original's."""
    gain, offset = torch.ones(3, 1, 1).to(portrait), torch.zeros(3, 1, 1).to(portrait)
    pasted = [(place, number) for place, number in enumerate(numbers) if number is not None]
    chosen = torch.linspace(0, len(pasted) - 1, min(len(pasted), RING_FRAMES)).round().long().tolist()
    found, wanted = [], []
    for frame, number in (pasted[index] for index in chosen if amount > 0):
        here = fit(number)
        ring = here.place.ring(max(feather, LEAST_RING)).to(portrait.device)
        found.append(here.apply(rgb(portrait[number, None])[0])[:, ring])
        behind = rgb(original[frame % len(original), None])[0]
        wanted.append(here.place.cut(behind).to(portrait)[:, ring])
    if not sum(pixels.shape[1] for pixels in found):
        return gain, offset
    (mean, deviation), (aim, spread) = (
        (pixels.mean(1), pixels.std(1, correction=0))
        for pixels in (torch.cat(found, 1), torch.cat(wanted, 1))
    )
    scale = (spread / deviation.clamp(min=1 / 255)).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    scale = 1 + amount * (scale - 1)
    shift = mean + amount * (aim - mean) - scale * mean
    return gain * scale[:, None, None], offset + shift[:, None, None]


def _sized(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask in [0, 1], scaled to (height, width) if it has another size."""
    if mask.shape != (height, width):
        mask = F.interpolate(mask[None, None].float(), (height, width), mode="bilinear", antialias=True)[0, 0]
    return mask.clamp(0, 1)


def _numbers(
    portrait: Tensor, original: Tensor, square: Tensor, skipped: Sequence[int], mask: Tensor | None
) -> list[int | None]:
    """For each frame of the result the portrait's that goes there; None where the original stays.

    Raises:
        InputError: sizes or numbers of frames that don't fit together.
    """
    frames, (height, width) = len(portrait), original.shape[-2:]
    if portrait.shape[-2] != portrait.shape[-1]:
        raise InputError(
            f"The portrait is {portrait.shape[-1]}×{portrait.shape[-2]} pixels: it has to be square, as it "
            "was cut out."
        )
    if square.ndim == 2 and len(square) != frames:
        raise InputError(
            f"The crop follows the face through {len(square)} frames but the portrait has {frames}: give "
            "what was made of these frames, or crop with a still square."
        )
    complete = len(skipped) > 0 and len(original) == frames + len(skipped)
    if len(original) not in (1, frames) and not complete:
        all_of_them = f", or the {frames + len(skipped)} that it was cut out of" if skipped else ""
        raise InputError(
            f"The original has {len(original)} frames but the portrait has {frames}: give one, or as "
            f"many{all_of_them}."
        )
    numbers: list[int | None] = list(range(frames))
    if complete:
        numbers = [None] * len(original)
        for number, frame in enumerate(remaining(frames, skipped)):
            numbers[frame] = number
    if mask is not None and (0 in mask.shape or not torch.isfinite(mask).all()):
        raise InputError("The mask has no pixels, or NaN or infinite ones: mend the node that made it.")
    if mask is not None and len(mask) not in (1, len(numbers)):
        raise InputError(
            f"The mask has {len(mask)} frames but the result has {len(numbers)}: give one, or as many."
        )
    # a pixel of rounding is no other proportion
    if mask is not None and abs(mask.shape[-1] * height - mask.shape[-2] * width) > max(height, width):
        raise InputError(
            f"The mask has {mask.shape[-1]}×{mask.shape[-2]} pixels but the original {width}×{height}: give "
            "a mask of the original's proportions."
        )
    return numbers
