"""The mark: unseen, found after compression, scaling and cropping, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import anifacediff_core
from anifacediff_core.errors import InputError
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.jobs import Reenacting, ReenactJob
from anifacediff_core.provenance.container import SOURCE_TYPE, STATEMENT, copy_declared
from anifacediff_core.provenance.detect import detect
from anifacediff_core.provenance.mark import draw_pattern, mark
from anifacediff_core.provenance.pattern import draw_tile, identifier_of, message_of, read_message
from anifacediff_core.video import VideoWriter, frame_pace, probe, read_frames, read_image, write_image
from anifacediff_core.weights.checkpoint import bundled_checkpoint
from harness.videos import steady, write_driver

EXAMPLES = Path(anifacediff_core.__file__).parent / "assets" / "examples"
IDENTIFIER = 51966


@pytest.fixture(scope="module")
def still() -> Tensor:
    """An avatar that doesn't move: nothing averages out."""
    return read_image(EXAMPLES / "source.png").expand(12, -1, -1, -1)


def compressed(frames: Tensor, folder: Path, crf: int) -> Tensor:
    with VideoWriter(folder / "video.mp4", Fraction(24), crf=crf) as video:
        video.write(frames)
    return torch.stack(list(read_frames(folder / "video.mp4")))


def in_bytes(frames: Tensor) -> Tensor:
    return (frames * 255).round() / 255


def middle(frames: Tensor, share: float) -> Tensor:
    height, width = (round(share * side) for side in frames.shape[-2:])
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def test_message() -> None:
    for identifier in (0, 1, IDENTIFIER, 65535):
        message = message_of(identifier)
        assert identifier_of(message) == identifier
        assert read_message(draw_tile(identifier)) == message
        for place in range(len(message)):
            broken = bytearray(message)
            broken[place] ^= 4
            assert identifier_of(bytes(broken)) is None


def test_pattern_stays_what_it_is() -> None:
    """Marks of earlier releases must be found forever."""
    tile = draw_tile(1)
    assert message_of(1).hex() == "010001498c36"
    assert "".join("+" if chip > 0 else "-" for chip in tile[0, :32]) == "+++-++-+--+-++----++++----+-++-+"


@pytest.mark.parametrize("size", [(128, 128), (256, 320), (270, 480)])
def test_unseen(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    busy, flat = torch.rand(1, 3, *size, generator=generator), torch.full((1, 3, *size), 0.4)
    noise = []
    for frame in (busy, flat):
        error = 255 * (in_bytes(mark(frame, IDENTIFIER)) - frame)
        assert 20 * torch.log10(255 / error.square().mean().sqrt()) > 42
        noise.append(float(error.square().mean().sqrt()))
        assert error.abs().max() < 8
    assert noise[0] > 1.2 * noise[1], "where there is nothing else to see the mark is fainter"


def test_strength_and_identifier() -> None:
    frame = torch.full((1, 3, 128, 128), 0.5)
    change = mark(frame) - frame
    assert torch.allclose(mark(frame, strength=2.0) - frame, 2 * change, atol=1e-6)
    assert (mark(frame, 1) - mark(frame, 2)).abs().max() > 0.004


def test_chunks_types_and_range(still: Tensor) -> None:
    frames = torch.stack([still[0], still[0].flip(2), torch.zeros(3, 256, 256), torch.ones(3, 256, 256)])
    whole = mark(frames, IDENTIFIER)
    parts = torch.cat([mark(frames[:3], IDENTIFIER), mark(frames[3:], IDENTIFIER)])
    assert torch.allclose(whole, parts, atol=1e-6)
    assert whole.min() >= 0 and whole.max() <= 1
    for dtype in (torch.float16, torch.bfloat16):
        marked = mark(frames.to(dtype), IDENTIFIER)
        assert marked.dtype == dtype
    assert detect([marked.to(torch.float32)]).identifier == IDENTIFIER


def test_repeats_with_the_shorter_side() -> None:
    pattern = draw_pattern(128, 384, 3)
    assert torch.allclose(pattern[:, :256], pattern[:, 128:], atol=1e-4)
    doubled = F.interpolate(pattern[None, None], scale_factor=2.0, mode="bicubic")[0, 0]
    assert (doubled - draw_pattern(256, 768, 3)).square().mean().sqrt() < 0.15


@pytest.mark.parametrize(
    "crf, scale, share", [(28, 1.0, 1.0), (23, 0.75, 1.0), (23, 1.5, 1.0), (23, 1.0, 0.9), (23, 1.2, 0.95)]
)
def test_survives(still: Tensor, tmp_path: Path, crf: int, scale: float, share: float) -> None:
    frames = middle(in_bytes(mark(still, IDENTIFIER)), share)
    frames = F.interpolate(frames, scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)
    found = detect(compressed(frames, tmp_path, crf).split(5))
    assert found.identifier == IDENTIFIER and found.message == message_of(IDENTIFIER)
    assert found.share == pytest.approx(share, abs=0.01) and not found.mirrored
    assert found.frames == len(still)
    assert str(IDENTIFIER) in found.note


def test_wide_and_mirrored(tmp_path: Path) -> None:
    scene = read_image(EXAMPLES / "scene.jpg").expand(4, -1, -1, -1)
    marked = mark(scene, IDENTIFIER)
    found = detect([compressed(marked.flip(3)[..., 40:], tmp_path, 23)])
    assert found.identifier == IDENTIFIER and found.mirrored


def test_not_found_without() -> None:
    generator = torch.Generator().manual_seed(1)
    scene = read_image(EXAMPLES / "scene.jpg")
    ramp = torch.linspace(0, 1, 200).expand(2, 3, 150, 200)
    for frames in (scene, torch.rand(3, 3, 140, 140, generator=generator), ramp, torch.zeros(1, 3, 128, 128)):
        found = detect([frames])
        assert not found.found and found.identifier is None and "No mark" in found.note


def test_wrong_checksum_is_no_mark(still: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anifacediff_core.provenance.pattern.message_of", lambda _: b"\1\0\0abc")
    marked = mark(still[:2])
    monkeypatch.undo()
    found = detect([marked])
    assert not found.found and found.message == b"\1\0\0abc" and "cannot be read" in found.note


def test_progress_and_cancelling(still: Tensor) -> None:
    done = []
    mark(still[:3], progress=lambda *state: done.append(state))
    detect([still[:2], still[2:3]], total=3, progress=lambda *state: done.append(state))
    assert done == 2 * [(1, 3), (2, 3), (3, 3)]

    def cancel(*_: int) -> None:
        raise KeyboardInterrupt

    for work in (lambda: mark(still, progress=cancel), lambda: detect([still], progress=cancel)):
        with pytest.raises(KeyboardInterrupt):
            work()


def test_refusals(still: Tensor) -> None:
    for frames in (still[:0], still[:, :2], still[..., :100], still[0]):
        with pytest.raises(InputError):
            mark(frames)
        with pytest.raises(InputError):
            detect([frames])
    for values in ({"identifier": -1}, {"identifier": 65536}, {"strength": 0.0}, {"strength": 9.0}):
        with pytest.raises(InputError):
            mark(still, **values)
    with pytest.raises(InputError, match="size"):
        detect([still, still[..., :200]])
    with pytest.raises(InputError, match="no frames"):
        detect([])


def test_commands(still: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = tmp_path / "given.mp4", tmp_path / "marked" / "out.mp4"
    with VideoWriter(given, Fraction(30000, 1001), EXAMPLES / "driving.mp4", cut_sound=True) as writer:
        writer.write(still[:4])
    assert main(["mark", "--input", str(given), "--out", str(out), "--identifier", "321"]) == 0
    assert probe(out) == probe(given)
    assert list(out.parent.iterdir()) == [out]
    assert main(["detect", str(out)]) == 0
    assert "identifier 321" in capsys.readouterr().out
    write_image(tmp_path / "plain.png", still[0])
    with pytest.raises(SystemExit) as end:
        main(["detect", str(tmp_path / "plain.png")])
    assert end.value.code == 1 and "No mark" in capsys.readouterr().out
    assert main(["detect", str(tmp_path / "missing.mp4")]) == 2


def test_the_command_keeps_times_that_follow_no_rate(tmp_path: Path) -> None:
    """Or pictures and sound would drift apart."""
    given, out = tmp_path / "given.mp4", tmp_path / "out.mp4"
    times = [0.0, 0.02, 0.04, 0.06, 0.3, 0.5]
    write_driver(given, times, 0.6, side=128)
    assert main(["mark", "--input", str(given), "--out", str(out)]) == 0
    assert frame_pace(out)[1] == pytest.approx(times, abs=1e-4)
    assert probe(out).has_audio and sorted(tmp_path.iterdir()) == [given, out]


@pytest.mark.parametrize("command", [True, False])
@pytest.mark.parametrize("steady_rate", [True, False])
def test_sound_that_cannot_be_copied_is_encoded(tmp_path: Path, command: bool, steady_rate: bool) -> None:
    """MP4 holds no MP3 of 8000 Hz."""
    given, out = tmp_path / "given.ts", tmp_path / "out.mp4"
    times = steady(12) if steady_rate else [0.0, 0.02, 0.04, 0.06, 0.3, 0.5]
    write_driver(given, times, 0.8, side=128, sound=("libmp3lame", 8000))
    if command:
        assert main(["mark", "--input", str(given), "--out", str(out)]) == 0
    else:
        copy_declared(given, out, say=pytest.fail)
    before, after = heard(given), heard(out)
    assert after.codec == "aac" and after.frames == before.frames == len(times)
    delay = 1024 / 8000  # of AAC, which begins with a packet of nothing
    assert after.lag == pytest.approx(before.lag, abs=delay)
    assert after.seconds == pytest.approx(before.seconds, abs=2 * delay)


def test_sound_that_players_do_not_find_in_mp4_is_encoded(tmp_path: Path) -> None:
    """As the uncompressed one of cameras."""
    given, out = tmp_path / "given.mov", tmp_path / "out.mp4"
    write_driver(given, steady(12), 0.4, sound=("pcm_s16le", 48000))
    copy_declared(given, out, say=pytest.fail)
    assert heard(given).codec == "pcm_s16le" and heard(out).codec == "aac"


@dataclass(frozen=True)
class Heard:
    codec: str
    frames: int
    lag: float  # of the sound behind the pictures, in seconds
    seconds: float


def shown(file: Path) -> list[float]:
    """When each frame is, in seconds."""
    with av.open(str(file)) as opened:
        return [float(frame.time) for frame in opened.decode(video=0)]


def heard(file: Path) -> Heard:
    frames = shown(file)
    with av.open(str(file)) as opened:
        sound = list(opened.decode(audio=0))
        codec = opened.streams.audio[0].codec_context.codec.canonical_name
    seconds = sum(frame.samples / frame.sample_rate for frame in sound)
    return Heard(codec, len(frames), float(sound[0].time) - frames[0], seconds)


@pytest.mark.parametrize("frames", [1, 2, 3, 12])
def test_copying_leaves_out_no_frame(tmp_path: Path, frames: int) -> None:
    """In Matroska the first frames have no time of decoding, and in short videos none has."""
    given, out = tmp_path / "given.mkv", tmp_path / "out.mp4"
    write_driver(given, steady(frames), 0.4)
    copy_declared(given, out, say=pytest.fail)
    for before, after in zip(read_frames(given), read_frames(out), strict=True):
        assert torch.equal(before, after)
    assert shown(out) == pytest.approx(shown(given), abs=1e-3)


# ---- headless results

JOB = {
    "source": str(EXAMPLES / "source.png"),
    "driving": str(EXAMPLES / "driving.mp4"),
    "steps": 1,
    "cfg": 1.0,
}


def fields_of(file: Path) -> dict[str, str]:
    with av.open(str(file)) as opened:
        return dict(opened.metadata)


def test_what_is_reenacted_without_a_host_says_so_also_when_it_was_interrupted(tmp_path: Path) -> None:
    def stops(name: str) -> Any:
        def progress(done: int, total: int) -> None:
            if name == "frames" and done >= 4:
                raise KeyboardInterrupt

        return progress

    said: list[str] = []
    whole, broken, partial = (tmp_path / name for name in ("whole.mp4", "broken.mp4", "broken.partial.mp4"))
    settings: dict[str, Any] = {**JOB, "size": 128, "max_frames": 6, "segment": 3, "overlap": 1}
    work = Reenacting(bundled_checkpoint(), "cpu", say=said.append)
    work.reenact(ReenactJob(**settings, out=str(whole)))
    work.bars = stops
    with pytest.raises(KeyboardInterrupt):
        work.reenact(ReenactJob(**settings, out=str(broken)))
    for file in (whole, partial):
        assert fields_of(file)["comment"] == STATEMENT and SOURCE_TYPE.encode() in file.read_bytes()
        assert detect(frame[None] for frame in read_frames(file)).identifier == 0
    work.bars = lambda name: None
    work.reenact(ReenactJob(**settings, out=str(broken)))
    assert broken.read_bytes() == whole.read_bytes() and sorted(tmp_path.iterdir()) == [broken, whole]
    assert probe(whole).has_audio and not any("mark" in text for text in said)


@pytest.mark.parametrize(
    ("options", "declared"), [(["--no-mark", "--size", "128"], False), (["--size", "64"], True)]
)
def test_the_mark_can_be_left_out_and_small_results_have_the_metadata_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], declared: bool
) -> None:
    out = tmp_path / "out.mp4"
    files = ["--source", JOB["source"], "--driving", JOB["driving"], "--out", str(out), "--max-frames", "2"]
    assert main(["reenact", *map(str, files), *options, "--steps", "1", "--cfg", "1", "--device", "cpu"]) == 0
    assert ("A mark needs 128 pixels" in capsys.readouterr().out) == declared
    assert (
        (fields_of(out).get("comment") == STATEMENT) == declared == (SOURCE_TYPE.encode() in out.read_bytes())
    )
    assert declared or not detect(frame[None] for frame in read_frames(out)).found
