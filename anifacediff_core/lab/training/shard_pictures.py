"""The pictures in shards: which there may be, from pixels to bytes and back."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.lab.parsing import parse_rate
from anifacediff_core.pictures import open_picture
from anifacediff_core.video import to_pixels

LARGEST_SIDE = 8192
PICTURES = ("jpg", "png")


def require_pictures(size: int, kind: str, quality: int, fps: str) -> None:
    """Refuse settings of pictures that no shard can have.

    Raises:
        InputError: the size is no multiple of 8 or too large; no such kind, quality or frame rate.
    """
    if size % 8 or not 0 < size <= LARGEST_SIDE:
        raise InputError(f"Pictures of {size} pixels cannot be encoded; choose a multiple of 8.")
    if kind not in PICTURES or not 1 <= quality <= 100:
        raise InputError(
            f"Pictures are {' or '.join(PICTURES)} with a quality of 1 to 100, not {kind} with {quality}."
        )
    try:
        parse_rate(fps)
    except ValueError as error:
        raise InputError(f"'{fps}' frames a second are no frame rate; give one like 30000/1001.") from error


def encode_picture(image: Tensor, kind: str = "jpg", quality: int = 95) -> bytes:
    """(3, height, width) in [0, 1] to the bytes of a JPEG without subsampled color, or of a PNG."""
    file = io.BytesIO()
    picture = Image.fromarray(to_pixels(image))
    if kind == "jpg":
        picture.save(file, "JPEG", quality=quality, subsampling=0)
    else:
        picture.save(file, "PNG", compress_level=4)
    return file.getvalue()


def decode_picture(data: bytes, size: int, what: str) -> Tensor:
    """JPEG or PNG bytes of a size² picture to (3, size, size) uint8.

    Raises:
        InputError: damaged, or of another size.
    """
    try:
        with open_picture(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            width, height = picture.size
            pixels = np.array(picture.convert("RGB")) if width == height == size else None
    except InputError as error:
        raise InputError(f"A frame of {what} is damaged; prepare the shard again.") from error
    if pixels is None:
        raise InputError(
            f"A frame of {what} has {width}x{height} pixels where its description says {size}x{size}; "
            "prepare the shard again."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)
