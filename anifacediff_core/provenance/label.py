"""A label that everybody sees: "AI", in a corner of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError

WORDINGS = ("AI", "AI GENERATED", "AI MODIFIED")
PLACES = ("top left", "top right", "bottom left", "bottom right")
SIZE = 0.07
LEAST_HEIGHT = 14  # pixels: smaller letters cannot be read
FINER = 4  # times as large as it is shown, for smooth edges
# Of the label's height: that of the letters, the space beside them, the corners' radius, the border's width.
LETTERS, SPACE, RADIUS, BORDER = 0.62, 0.34, 0.26, 0.06
MARGIN = 0.6  # space to the picture's edges, of the label's height
DARK, LIGHT = 16, 255  # gray levels of its ground, and of its letters and border
GROUND = 0.85  # how opaque the ground is: over any picture, letters have a contrast of 12 to 1


@dataclass(frozen=True)
class Label:
    """What is written, where, and how large.

    Attributes:
        words: one of :data:`WORDINGS`.
        place: one of :data:`PLACES`.
        size: its height as a share of the picture's shorter side.
    """

    words: str = WORDINGS[0]
    place: str = PLACES[-1]
    size: float = SIZE

    def __post_init__(self) -> None:
        if self.words not in WORDINGS:
            raise InputError(f"The label '{self.words}' is unknown; choose one of {', '.join(WORDINGS)}.")
        if self.place not in PLACES:
            raise InputError(f"The place '{self.place}' is unknown; choose one of {', '.join(PLACES)}.")
        if not 0 < self.size <= 1:
            raise InputError(f"The label's size is {self.size}: give a share above 0, up to 1.")


def put_label(frames: Tensor, label: Label, count: int | None = None) -> Tensor:
    """Frames with a label. What a frame becomes depends on that frame alone.

    Args:
        frames: (frames, 3 or 4, height, width) in [0, 1], of any type and on any device; the label makes them
            opaque.
        count: so many frames get it, the first ones; by default all.

    Returns:
        A new tensor like `frames`, equal to it bit by bit beside the label.
    """
    shown, opacity, rows, columns = draw_label(label, *frames.shape[-2:])
    result = frames.clone()
    part = result[:count, :, rows, columns]
    shown, opacity = shown.to(part), opacity.to(part)
    part[:, :3] += opacity * (shown - part[:, :3])
    part[:, 3:] += opacity * (1 - part[:, 3:])
    return result


def draw_label(label: Label, height: int, width: int) -> tuple[Tensor, Tensor, slice, slice]:
    """The label for a picture of so many pixels.

    Returns:
        its gray levels and its opacity (rows, columns), both in [0, 1], and which rows and columns of the
        picture it covers.
    """
    tall = max(round(label.size * min(height, width)), LEAST_HEIGHT)
    picture = _drawn(label.words, tall * FINER)
    # whatever the picture's size is, all of the label lies in it
    fit = min(1.0, width / (picture.width / FINER), height / tall)
    wide, tall = max(1, int(picture.width / FINER * fit)), max(1, int(tall * fit))
    gray, opacity = (
        torch.from_numpy(np.asarray(band.resize((wide, tall), Image.Resampling.BOX)).copy()).float() / 255
        for band in picture.split()
    )
    rows, columns = (
        _interval(length, extent, first in label.place, round(MARGIN * tall))
        for length, extent, first in ((tall, height, "top"), (wide, width, "left"))
    )
    return gray, opacity, rows, columns


def _interval(length: int, extent: int, first: bool, margin: int) -> slice:
    """Where it begins and ends along an axis; the margin is what there is space for."""
    margin = min(margin, (extent - length) // 2)
    start = margin if first else extent - margin - length
    return slice(start, start + length)


def _drawn(words: str, height: int) -> Image.Image:
    """Gray and opacity of a label of such a height; as wide as its words are."""
    font = ImageFont.load_default(size=LETTERS * height / 0.72)  # capitals have 0.72 of a font's size
    left, top, right, bottom = font.getbbox(words)
    width = round(right - left + 2 * SPACE * height)
    picture = Image.new("LA", (width, height), (DARK, 0))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle(
        (0, 0, width - 1, height - 1),
        radius=RADIUS * height,
        fill=(DARK, round(255 * GROUND)),
        outline=(LIGHT, 255),
        width=max(FINER, round(BORDER * height)),
    )
    place = SPACE * height - left, (height - bottom - top) / 2
    draw.text(place, words, font=font, fill=(LIGHT, 255), stroke_width=height // 80, stroke_fill=(LIGHT, 255))
    return picture
