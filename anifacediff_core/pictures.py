"""Opening picture files: as the formats that are named here and no others, upright, and in sRGB."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from .errors import InputError
from .media import require_affordable

# Pillow's names. It knows more, some of which run programs: PostScript does.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000")
MOVING = ("WEBP", "GIF", "PNG", "AVIF")
MOST_SIDE = 65_535
STILL = 0.1  # seconds that a frame is shown whose file says less than SHORTEST, as browsers do
SHORTEST = 0.011
GRAY = (128, 128, 128, 255)  # what transparency is laid over


@contextmanager
def open_picture(file: str | Path | IO[bytes], formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """A picture file of which only the header is read.

    Raises:
        InputError: none of these formats, too large, or damaged, also where that shows within the context.
    """
    name = file if isinstance(file, (str, Path)) else "The picture"
    try:
        with Image.open(file, formats=_readable(formats)) as picture:
            require_affordable(name, *picture.size)
            if max(picture.size) > MOST_SIDE:
                raise InputError(f"{name} is {max(picture.size)} pixels long: give a common picture.")
            yield picture
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} could not be read as a picture: give PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF or JPEG 2000."
        ) from error
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} could not be read as a picture ({error}).") from error


def _readable(formats: Sequence[str]) -> list[str]:
    """Those that this Pillow has."""
    Image.init()
    return [one for one in formats if one in Image.OPEN]


def is_picture(path: str | Path) -> bool:
    """Whether a file is one of these formats by its content, whatever its name."""
    try:
        with Image.open(path, formats=_readable(FORMATS)):
            return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def is_moving(path: str | Path) -> bool:
    """Whether a file is an animated picture."""
    try:
        with open_picture(path) as picture:
            return _count(picture) > 1
    except InputError:
        return False


def _count(picture: Image.Image) -> int:
    return int(getattr(picture, "n_frames", 1)) if picture.format in MOVING else 1


def shown(picture: Image.Image) -> np.ndarray:
    """A picture, or the current frame of one, as (height, width, 3) uint8: upright, in sRGB, with
    transparency laid over middle gray.
    """
    profile = picture.info.get("icc_profile")
    with suppress(OSError, ValueError, SyntaxError, TypeError):  # a damaged orientation is none
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits: Pillow's own conversion cuts them off at 255
        picture = Image.fromarray((np.array(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        layer = _in_srgb(picture.convert("RGB"), profile)
        layer.putalpha(picture.getchannel("A"))
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, GRAY), layer)
        return np.array(picture.convert("RGB"))
    if picture.mode in ("1", "P", "RGBX", "HSV", "YCbCr"):
        picture = picture.convert("RGB")
    return np.array(_in_srgb(picture, profile))


def moving_frames(path: str | Path) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of an animated picture one after the other, and for how many seconds each is shown."""
    with open_picture(path) as picture:
        first = int(getattr(picture, "default_image", False))  # of a PNG: for who can't show the others
        for number in range(first, max(_count(picture), first + 1)):
            if number:
                picture.seek(number)
            picture.load()
            seconds = float(picture.info.get("duration", 0)) / 1000
            yield shown(picture), seconds if seconds >= SHORTEST else STILL


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the color profile; without one, or with a damaged one, as it is."""
    if profile and features.check("littlecms2"):
        from PIL import ImageCms

        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if given.profile.xcolor_space.strip() == "RGB" and picture.mode == "L":
                picture = picture.convert("RGB")
            if not (given.profile.profile_description or "").startswith("sRGB"):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(picture, given, target, outputMode="RGB")
                assert converted is not None
                return converted
    return picture.convert("RGB")
