"""Videos in other forms: frames, times, sound, transparency and words; and with another program, if there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from anifacediff_core.errors import InputError
from anifacediff_core.lab.jobs import Reenacting, ReenactJob
from anifacediff_core.provenance.container import SOURCE_TYPE, STATEMENT
from anifacediff_core.provenance.detect import detect
from anifacediff_core.provenance.export import FORMS, Footage, export, form_of
from anifacediff_core.provenance.mark import mark
from anifacediff_core.video import frame_pace, frame_times, numbered_pictures, probe, read_frames, to_pixels
from anifacediff_core.weights.checkpoint import bundled_checkpoint
from harness.extension import ROOT

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
DRIVER = EXAMPLES / "driving.mp4"
FRAMES, SIDE = 10, 256
CLEAR = [name for name, form in FORMS.items() if form.alpha]
WORKFLOW = {"prompt": '{"1": {"class_type": "A"}}', "workflow": '{"nodes": []}'}


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """Marked frames of the driver, (height, width, 3) uint8."""
    shown = (frame for _, frame in zip(range(FRAMES), read_frames(DRIVER), strict=False))
    return [to_pixels(mark(frame[None])[0]) for frame in shown]


def alpha() -> np.ndarray:
    """A disc with a soft edge."""
    y, x = np.mgrid[:SIDE, :SIDE]
    edge = (100 - np.hypot(x - 127.5, y - 127.5)) / 8 + 0.5
    return (255 * edge.clip(0, 1)).astype(np.uint8)


def footage(pixels: list[np.ndarray], clear: bool = False, **more: Any) -> Footage:
    shown = [np.dstack([frame, alpha()]) for frame in pixels] if clear else pixels
    return Footage(lambda: iter(shown), len(shown), **{"rate": Fraction(25), **more})


def saved(folder: Path, form: str, given: Footage, **options: Any) -> Path:
    path = folder / f"result{FORMS[form].suffix}"
    export(given, path, form, **options)
    assert sorted(folder.iterdir()) == [path], "nothing else is left"
    return path


def decoded(path: Path) -> np.ndarray:
    """All frames (frames, height, width, 4) uint8."""
    if path.is_dir():
        pictures: Iterator[Image.Image] = map(Image.open, numbered_pictures(path))
    elif path.suffix in (".gif", ".webp"):
        pictures = ImageSequence.Iterator(Image.open(path))
    else:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            if path.suffix == ".webm":  # FFmpeg's own decoder of VP9 leaves alpha out
                decoder = av.CodecContext.create("libvpx-vp9", "r")
                frames = [frame for packet in file.demux(stream) for frame in decoder.decode(packet)]
            else:
                frames = list(file.decode(stream))
            rgba = {"format": "rgba", "src_colorspace": 1}
            return np.stack([frame.reformat(**rgba).to_ndarray() for frame in frames])
    return np.stack([np.asarray(picture.convert("RGBA")) for picture in pictures])


@pytest.mark.parametrize("form", FORMS)
def test_frames_come_back_in_their_colors(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    found = decoded(saved(tmp_path, form, footage(pixels)))
    assert found.shape == (FRAMES, SIDE, SIDE, 4) and (found[..., 3] == 255).all()
    away = np.abs(found[..., :3].astype(float) - np.stack(pixels))
    assert away.mean() < (0.01 if form == "png" else 4.5 if form == "gif" else 2.5)
    assert np.abs(found[..., :3].mean((0, 1, 2)) - np.stack(pixels).mean((0, 1, 2))).max() < 1.5, "no cast"


@pytest.mark.parametrize("form", CLEAR)
def test_transparency(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    found = decoded(saved(tmp_path, form, footage(pixels, clear=True)))
    wanted = alpha().astype(float)
    if form == "gif":  # all or nothing
        wanted = 255.0 * (wanted >= 128)
        edge = np.abs(wanted - found[..., 3]) > 0
        assert edge.mean() < 0.01
    else:
        assert np.abs(wanted - found[..., 3]).max() <= 12
    inside = found[:, alpha() == 255, :3].astype(float)
    assert np.abs(inside - np.stack(pixels)[:, alpha() == 255]).mean() < (4.5 if form == "gif" else 2.5)


@pytest.mark.parametrize("form", FORMS)
def test_the_mark_is_found(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    found = torch.from_numpy(decoded(saved(tmp_path, form, footage(pixels)))[..., :3].copy())
    assert detect((found.movedim(-1, 1).float() / 255).split(1)).identifier == 0


@pytest.mark.parametrize("form", ["mp4", "webm", "prores"])
def test_words_rate_and_sound(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    given = footage(pixels, rate=Fraction(30000, 1001), sound=DRIVER, metadata=WORKFLOW)
    path = saved(tmp_path, form, given)
    info = probe(path)
    assert (info.width, info.height, info.has_audio) == (SIDE, SIDE, True)
    times = [float(time) for time in frame_times(path)]
    assert times == pytest.approx([number * 1001 / 30000 for number in range(FRAMES)], abs=0.001)
    with av.open(str(path)) as file:
        fields = {name.lower(): value for name, value in file.metadata.items()}
        sound = file.streams.audio[0]
        samples = sum(frame.samples for frame in file.decode(sound))
        assert abs(samples / sound.codec_context.sample_rate - FRAMES * 1001 / 30000) < 0.06
    assert fields["comment"] == STATEMENT and fields["digitalsourcetype"] == SOURCE_TYPE
    assert WORKFLOW.items() <= fields.items()


def test_words_of_pictures(tmp_path: Path, pixels: list[np.ndarray]) -> None:
    given = footage(pixels, metadata=WORKFLOW)
    for form in ("gif", "webp", "png"):
        (tmp_path / form).mkdir()
    gif = Image.open(saved(tmp_path / "gif", "gif", given))
    assert gif.info["comment"].decode() == STATEMENT and gif.info["loop"] == 0
    assert SOURCE_TYPE.encode() in Path(gif.filename).read_bytes()
    webp = Image.open(saved(tmp_path / "webp", "webp", given))
    assert SOURCE_TYPE.encode() in webp.info["xmp"] and webp.info["loop"] == 0
    # as ComfyUI writes and reads them
    assert webp.getexif()[0x0110] == f"prompt:{WORKFLOW['prompt']}"
    assert webp.getexif()[0x010F] == f"workflow:{WORKFLOW['workflow']}"
    first, second = (
        Image.open(path) for path in numbered_pictures(saved(tmp_path / "png", "png", given))[:2]
    )
    assert WORKFLOW.items() <= first.text.items() and first.text["comment"] == STATEMENT
    assert second.text["comment"] == STATEMENT and "workflow" not in second.text
    assert SOURCE_TYPE in second.text["XML:com.adobe.xmp"]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_said_where_nothing_shall_be(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    path = saved(tmp_path, form, footage(pixels[:2]), declare=False)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        content = file.read_bytes()
        assert b"AniFaceDiff" not in content and SOURCE_TYPE.encode() not in content


def test_times_without_a_constant_rate(tmp_path: Path, pixels: list[np.ndarray]) -> None:
    times = [0.0, 0.04, 0.3, 0.34, 0.5, 0.6, 0.7, 0.8, 1.2, 1.24]
    given = footage(pixels, rate=Fraction(10), times=times)
    for form in ("webm", "prores", "webp", "gif"):
        (tmp_path / form).mkdir()
        found = [float(time) for time in frame_times(saved(tmp_path / form, form, given))]
        assert [time - found[0] for time in found] == pytest.approx(times, abs=0.011)


def test_a_gif_has_fifty_frames_a_second_at_most(tmp_path: Path, pixels: list[np.ndarray]) -> None:
    said: list[str] = []
    path = saved(tmp_path, "gif", footage(pixels, rate=Fraction(60)), say=said.append)
    assert len(decoded(path)) == FRAMES // 2 and frame_pace(path)[0] == pytest.approx(30, rel=0.15)
    assert said == ["Every 2. frame is kept, since this form shows at most 50 a second."]


@pytest.mark.parametrize("form", FORMS)
def test_a_cancelled_run_leaves_nothing(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    def cancel(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(footage(pixels), tmp_path / "result", form, progress=cancel)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_progress_reaches_the_end(tmp_path: Path, pixels: list[np.ndarray], form: str) -> None:
    steps: list[tuple[int, int]] = []
    export(footage(pixels), tmp_path / "result", form, progress=lambda *step: steps.append(step))
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1] == len(steps)


def test_refusals(tmp_path: Path, pixels: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="An mp4 cannot be transparent"):
        export(footage(pixels, clear=True), tmp_path / "a.mp4", "mp4")
    for form in FORMS:
        with pytest.raises(InputError, match="no frames"):
            export(footage([]), tmp_path / "nothing", form)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        export(footage(pixels), tmp_path / "there", "png")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("name", "form"), [("a.MP4", "mp4"), ("a.webm", "webm"), ("a.mov", "prores"), ("b.c/a", "png")]
)
def test_a_name_says_the_form(name: str, form: str) -> None:
    assert form_of(Path(name)) == form


def test_a_name_of_no_form() -> None:
    with pytest.raises(InputError, match="a.avi is of no known form: end it in .mp4, .webm"):
        form_of(Path("a.avi"))


@pytest.mark.parametrize("name", ["result.webm", "result.gif", "result"])
def test_what_is_reenacted_without_a_host(tmp_path: Path, name: str) -> None:
    job = ReenactJob(
        str(EXAMPLES / "source.png"), str(DRIVER), str(tmp_path / name), size=128, max_frames=3, segment=2
    )
    job = ReenactJob(**{**vars(job), "window": 2, "overlap": 1})
    Reenacting(bundled_checkpoint(), "cpu").reenact(job)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found = torch.from_numpy(decoded(tmp_path / name)[..., :3].copy()).movedim(-1, 1).float() / 255
    assert found.shape == (3, 3, 128, 128)
    assert detect(found.split(1)).identifier == 0
    if name == "result":
        with pytest.raises(InputError, match="is there already"):
            Reenacting(bundled_checkpoint(), "cpu").reenact(job)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="FFmpeg's program is not installed")
@pytest.mark.parametrize("form", ["webm", "prores", "gif"])
def test_another_program_lays_it_over_a_checkerboard(
    tmp_path: Path, pixels: list[np.ndarray], form: str
) -> None:
    video, board, result = (tmp_path / name for name in (f"a{FORMS[form].suffix}", "board.png", "found.png"))
    export(footage(pixels, clear=True), video, form)
    y, x = np.mgrid[:SIDE, :SIDE]
    squares = np.repeat((96 + 128 * ((x // 16 + y // 16) % 2)).astype(np.uint8)[..., None], 3, 2)
    Image.fromarray(squares).save(board)
    decoder = ["-c:v", "libvpx-vp9"] if form == "webm" else []
    command = ["ffmpeg", "-v", "error", "-i", board, *decoder, "-i", video]
    command += ["-filter_complex", "[0][1]overlay=format=gbrp", "-frames:v", "1", result]
    subprocess.run(command, check=True, timeout=120)
    found = np.asarray(Image.open(result).convert("RGB")).astype(float)
    share = alpha()[..., None] / 255.0
    share = np.round(share) if form == "gif" else share
    away = np.abs(found - (share * pixels[0] + (1 - share) * squares))
    edge = (alpha() > 0) & (alpha() < 255)
    assert away[alpha() == 0].mean() < 2, "the board shows where nothing else does"
    assert away[alpha() == 255].mean() < 6
    assert away[edge].mean() < 10, "no seam"
