"""Frames are read as players show them, whatever the file stores."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import anifacediff_core
from anifacediff_core import media
from anifacediff_core.capture.extract import CaptureModels, extract_parameters
from anifacediff_core.display import HLG, PQ, to_sdr
from anifacediff_core.errors import InputError
from anifacediff_core.provenance.container import copy_declared
from anifacediff_core.video import Part, frame_pace, frame_times, probe, read_frames, read_pixels, to_pixels
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness.videos import stamp_matrix, write_frames

ASSETS = Path(anifacediff_core.__file__).parent / "assets"
# Shown is (a x + c y, b x + d y) of what is stored: the eight ways to lay a picture.
MATRICES = {
    "upright": (1, 0, 0, 1),
    "half turn": (-1, 0, 0, -1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "quarter turn": (0, 1, -1, 0),
    "three quarters": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}


def stored_as(frames: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Frames (frames, height, width, 3) as a camera stores them that wants them shown by such a matrix."""
    height, width = frames.shape[1:3]
    stored_width, stored_height = (width, height) if a else (height, width)
    x, y = np.meshgrid(np.arange(stored_width), np.arange(stored_height))
    across, down = a * x + c * y, b * x + d * y
    return np.ascontiguousarray(frames[:, down - down.min(), across - across.min()])


@pytest.fixture(scope="module")
def driver() -> np.ndarray:
    """Frames (6, 256, 256, 3) of the bundled driver."""
    frames = list(read_frames(ASSETS / "examples" / "driving.mp4"))[:36:6]
    return np.stack([to_pixels(frame) for frame in frames])


@pytest.fixture(scope="module")
def models() -> CaptureModels:
    return load_face_models(load_checkpoint(ASSETS / "demo.safetensors"))


def read(path: Path) -> Tensor:
    return torch.stack(list(read_frames(path)))


def as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).movedim(-1, 1).float() / 255


@pytest.mark.parametrize("name", MATRICES)
def test_eight_ways_to_lay_a_picture(tmp_path: Path, name: str) -> None:
    gradient = np.zeros((3, 48, 64, 3), np.uint8)
    gradient[..., 0] = np.linspace(0, 250, 64)
    gradient[..., 1] = np.linspace(0, 250, 48)[:, None]
    path = tmp_path / "turned.mp4"
    write_frames(path, stored_as(gradient, *MATRICES[name]))
    stamp_matrix(path, *MATRICES[name])
    info = probe(path)
    assert (info.width, info.height, info.frames) == (64, 48, 3)
    assert (read(path) - as_tensor(gradient)).abs().mean() < 0.01
    copied = tmp_path / "copied.mp4"  # a copy still says how it is shown
    copy_declared(path, copied, say=pytest.fail)
    assert torch.equal(read(copied), read(path)) and probe(copied) == info


@pytest.mark.parametrize("name", ["quarter turn", "transverse", "narrow", "wide"])
def test_the_motion_is_that_of_the_upright_file(
    tmp_path: Path, driver: np.ndarray, models: CaptureModels, name: str
) -> None:
    upright, path = tmp_path / "upright.mp4", tmp_path / "other.mp4"
    write_frames(upright, driver)
    if name in MATRICES:
        write_frames(path, stored_as(driver, *MATRICES[name]))
        stamp_matrix(path, *MATRICES[name])
    else:
        size = {"narrow": (144, 256), "wide": (256, 144)}[name]
        write_frames(path, driver, size=size, aspect=Fraction(256 * size[1], 256 * size[0]))
    info = probe(path)
    assert info.width == info.height
    found, expected = (
        extract_parameters(read_frames(one), models, what="it").parameters for one in (path, upright)
    )
    assert (found.pose - expected.pose).abs().max() < torch.pi / 180
    assert (found.expression - expected.expression).abs().mean() < 0.02


@pytest.mark.parametrize("aspect", [Fraction(8, 9), Fraction(64, 45), Fraction(1, 1000), Fraction(5000)])
def test_shapes_of_pixels(tmp_path: Path, aspect: Fraction) -> None:
    path = tmp_path / "shape.mp4"
    write_frames(path, np.zeros((1, 40, 90, 3), np.uint8), aspect=aspect)
    width = {Fraction(8, 9): 80, Fraction(64, 45): 128}.get(aspect, 90)
    assert (probe(path).width, probe(path).height) == (width, 40) and read(path).shape[-2:] == (40, width)


def test_pixels_are_scaled_before_they_are_turned(tmp_path: Path) -> None:
    path = tmp_path / "both.mp4"
    write_frames(path, np.zeros((1, 40, 90, 3), np.uint8), aspect=Fraction(2))
    stamp_matrix(path, *MATRICES["quarter turn"])
    assert (probe(path).width, probe(path).height) == (40, 180) and read(path).shape[-2:] == (180, 40)


def test_frames_of_another_size_fit_the_first(tmp_path: Path) -> None:
    first, second, both = tmp_path / "1.ts", tmp_path / "2.ts", tmp_path / "both.ts"
    write_frames(first, np.full((2, 64, 64, 3), 90, np.uint8))
    write_frames(second, np.full((2, 32, 96, 3), 90, np.uint8))
    both.write_bytes(first.read_bytes() + second.read_bytes())
    frames = read(both)
    assert frames.shape[-2:] == (64, 64) and len(frames) == 4 and (frames - 90 / 255).abs().max() < 0.02


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("full", [False, True])
def test_matrices_and_ranges(tmp_path: Path, matrix: int, full: bool) -> None:
    colors = np.array([(200, 60, 30), (20, 180, 90)], np.uint8).repeat(16, 0)
    frames = colors[None, :, None].repeat(32, 2)
    path = tmp_path / "colors.mp4"
    write_frames(path, frames, matrix=matrix, full=full)
    assert (read(path) - as_tensor(frames)).abs().mean() < 0.01


def bt2020_signal(frames: np.ndarray, transfer: int) -> np.ndarray:
    """Frames of SDR as uint16 RGB of HDR whose white is SDR's, by the formulas of BT.2100 and BT.2087."""
    light = (frames / 255.0) ** 2.4
    matrix = ((0.6274, 0.3293, 0.0433), (0.0691, 0.9195, 0.0114), (0.0164, 0.0880, 0.8956))
    light = 203 * np.einsum("ij,...j->...i", np.array(matrix), light)
    if transfer == PQ:
        power = (light / 10000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        shown = light / 1000
        luminance = shown @ np.array((0.2627, 0.6780, 0.0593))
        scene = shown * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
        curve = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * np.maximum(scene, 0)), curve)
    return (signal.clip(0, 1) * 65535).round().astype(np.uint16)


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_hdr_is_near_the_sdr_that_it_was_made_of(tmp_path: Path, driver: np.ndarray, transfer: int) -> None:
    signal = bt2020_signal(driver[:2], transfer)
    shown = np.stack([to_sdr(frame, transfer, 9) for frame in signal]).astype(float)
    assert np.abs(shown - driver[:2]).mean() < 0.005 * 255
    path = tmp_path / "hdr.mkv"
    write_frames(path, signal, transfer=transfer)
    assert (read(path) - as_tensor(driver[:2])).abs().mean() < 0.02


def test_highlights_keep_their_drawing() -> None:
    steps = np.linspace(0.55, 1, 64)[:, None].repeat(3, 1)[None]
    shown = to_sdr((steps * 65535).astype(np.uint16), PQ, 9)[0, :, 0].astype(int)
    assert (np.diff(shown) >= 0).all() and shown[-1] == 255 and shown[8] > shown[0]


def test_a_part_is_that_of_the_hosts(tmp_path: Path) -> None:
    path = tmp_path / "all.mp4"
    write_frames(path, np.arange(12, dtype=np.uint8).repeat(32 * 32 * 3).reshape(12, 32, 32, 3) * 20)
    part = Part(0.2, 0.2)
    levels = [round(frame.mean() / 20) for frame in read_pixels(path, part)]
    assert levels == [5, 6, 7, 8, 9] and frame_times(path, part)[0] == Fraction(1, 5)
    assert frame_pace(path, part) == (Fraction(25), [])


# ---- what is no video


def test_titles_that_are_not_utf_8(tmp_path: Path) -> None:
    for ending in ("mkv", "mp4", "avi"):
        path, copied = tmp_path / f"old.{ending}", tmp_path / "copied.mp4"
        write_frames(path, np.zeros((3, 32, 32, 3), np.uint8), title="TITLETITLE")
        path.write_bytes(path.read_bytes().replace(b"TITLETITLE", b"\xe9t\xe9 \xff\xfe\x80TIT"))
        assert probe(path).frames == len(read(path)) == 3 and frame_pace(path)[0] == 25
        copy_declared(path, copied, say=pytest.fail)
        assert len(read(copied)) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile 'other.ts'\n",
        b"\x1b[2J" * 1000,
        b"P6 100000 100000 255\n",
        b"YUV4MPEG2 W20000 H20000 F25:1 Ip C420\nFRAME\n",
    ],
)
def test_lists_and_texts_are_no_videos(tmp_path: Path, content: bytes) -> None:
    write_frames(tmp_path / "other.ts", np.zeros((3, 32, 32, 3), np.uint8))
    for name in ("list.mp4", "list.m3u8", "list.txt"):
        (tmp_path / name).write_bytes(content)
        for reader in (probe, frame_pace, lambda path: list(read_frames(path))):
            with pytest.raises(InputError, match="could not be read"):
                reader(tmp_path / name)


def test_sound_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=16000)
        sound.codec_context.layout = "mono"
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        samples.sample_rate = 16000
        output.mux(sound.encode(samples))
        output.mux(sound.encode())
    with pytest.raises(InputError, match="no video stream"):
        probe(path)


def test_names_that_look_like_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "12:30 %03d.mp4", np.zeros((3, 32, 32, 3), np.uint8))
    assert probe("12:30 %03d.mp4").frames == 3


def test_frames_that_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.mp4"
    write_frames(path, np.zeros((3, 32, 48, 3), np.uint8))
    monkeypatch.setattr(media, "MOST_PIXELS", 1535)
    for reader in (probe, frame_pace, lambda path: list(read_frames(path))):
        with pytest.raises(InputError, match="48×32 pixels"):
            reader(path)


def test_no_more_frames_than_bytes(tmp_path: Path) -> None:
    """What a header claims never becomes a count that the file cannot hold."""
    path = tmp_path / "long.avi"
    write_frames(path, np.zeros((3, 32, 32, 3), np.uint8))
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 24), (b"strh", 40)):
        start = content.index(mark) + offset
        content[start : start + 4] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(content)
    assert probe(path).frames <= len(content)
