"""Picture files are read upright and in sRGB, and only those of known formats."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from anifacediff_core import media
from anifacediff_core.errors import InputError
from anifacediff_core.video import frame_pace, is_still, probe, read_frames, read_image
from harness.profiles import ADOBE, cmyk_profile, gray_profile, rgb_profile, to_srgb

HALF_PERCENT = 0.005 * 255
EXACT: dict[str, dict[str, Any]] = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
TURNS = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: shown.transpose(1, 0, 2)[::-1],
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: shown.transpose(1, 0, 2)[:, ::-1],
}
SCENE = np.zeros((24, 40, 3), np.uint8)
SCENE[:8, :, 0], SCENE[:, :10, 1], SCENE[12:, 30:, 2] = 220, 200, 240


def read(path: Path) -> np.ndarray:
    return (read_image(path)[0].movedim(0, -1) * 255).round().numpy()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{ending}"
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](SCENE)))
    stored.save(path, exif=exif, **EXACT.get(ending, {}))
    assert is_still(path) and read(path).shape == SCENE.shape and np.abs(read(path) - SCENE).mean() < 3


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_color_profiles(tmp_path: Path, ending: str, mode: str) -> None:
    if (ending, mode) == ("jpg", "RGBA"):
        pytest.skip("JPEG has no transparency")
    colors = np.random.default_rng(1).integers(40, 215, (3, 3, 3)).astype(np.uint8)
    stored = colors.repeat(16, 0).repeat(16, 1)
    expected = to_srgb((stored / 255.0) ** 2.2 @ ADOBE.T).astype(float)
    path = tmp_path / f"wide.{ending}"
    picture = Image.fromarray(stored).convert(mode)
    picture.save(path, icc_profile=rgb_profile(ADOBE, 2.2), **EXACT.get(ending, {}))
    assert np.abs(read(path) - expected).mean() < HALF_PERCENT
    assert np.abs(stored - expected).mean() > HALF_PERCENT  # it does matter


def test_profiles_of_gray_and_ink(tmp_path: Path) -> None:
    gray, ink = tmp_path / "gray.png", tmp_path / "ink.tif"
    Image.new("L", (8, 8), 128).save(gray, icc_profile=gray_profile(1.8))
    light = (128 / 255) ** 1.8 * np.array((0.9642, 1.0, 0.8249))
    assert np.abs(read(gray) - to_srgb(light)).max() <= 2
    cyan, paper = np.array((0.25, 0.2, 0.3)), np.array((0.9642, 1.0, 0.8249))
    picture = Image.new("CMYK", (8, 8))
    picture.paste((255, 0, 0, 0), (0, 0, 4, 8))
    picture.save(ink, icc_profile=cmyk_profile(paper, cyan))
    assert np.abs(read(ink)[:, :4] - to_srgb(cyan)).max() <= 2 and read(ink)[:, 4:].min() >= 254


@pytest.mark.parametrize("profile", [b"", b"nonsense", rgb_profile(ADOBE, 2.2)[:200], gray_profile(1.8)])
def test_profiles_that_do_not_fit_are_none(tmp_path: Path, profile: bytes) -> None:
    path = tmp_path / "odd.png"
    Image.fromarray(SCENE).save(path, icc_profile=profile)
    assert np.array_equal(read(path), SCENE)


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(canary) (w) file closefile\n"
)


@pytest.mark.parametrize("reader", [read_image, probe, lambda path: list(read_frames(path))])
def test_formats_that_are_not_named_are_refused(tmp_path: Path, reader: object) -> None:
    files = {"script": POSTSCRIPT, "pdf": b"%PDF-1.4", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    for kind in ("ICO", "PPM", "TGA", "SGI", "PCX", "DDS"):
        file = io.BytesIO()
        Image.fromarray(SCENE).save(file, kind)
        files[kind] = file.getvalue()
    for name, content in files.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        with pytest.raises(InputError, match="could not be read"):
            reader(path)  # type: ignore[operator]
    assert not (tmp_path / "canary").exists() and not Path("canary").exists()


def png(width: int, height: int) -> bytes:
    """A PNG that is empty but claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(13_000, 13_000), (30_000, 30_000), (10**8, 1), (1, 10**8), (70_000, 9)])
def test_sizes_are_refused_before_anything_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(*size))
    with pytest.raises(InputError, match=r"pixels"):
        read_image(path)


def test_the_limit_is_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MOST_PIXELS", 959)
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    for reader in (read_image, lambda path: list(read_frames(path))):
        with pytest.raises(InputError, match="40×24 pixels"):
            reader(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["webp", "png", "gif", "avif"])
def test_animated_pictures_are_videos(tmp_path: Path, ending: str) -> None:
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"moving.{ending}"
    levels = (20, 80, 140, 200)
    frames = [Image.new("RGB", (32, 24), (level,) * 3) for level in levels]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 40, 200, 40])
    info = probe(path)
    assert (info.width, info.height, info.frames, info.has_audio) == (32, 24, 4, False)
    found = torch.stack(list(read_frames(path)))
    assert found.shape == (4, 3, 24, 32)
    assert [round(float(frame.mean()) * 255) for frame in found] == pytest.approx(levels, abs=3)
    assert not is_still(path)
    _, times = frame_pace(path)
    assert times == pytest.approx([0, 0.04, 0.08, 0.28], abs=0.002)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    assert frame_pace(path) == (Fraction(25), [])
