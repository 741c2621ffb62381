"""From videos to shards: names, splits, what is skipped, interruptions, and every clip exactly once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from anifacediff_core.capture.deca import DecaEncoder
from anifacediff_core.capture.extract import extract_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.regions import emphasis
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.scale import Scale
from anifacediff_core.lab.training import prepare as module
from anifacediff_core.lab.training import shard_chunks
from anifacediff_core.lab.training.avatar_shards import AvatarShardsConfig, prepare_avatars
from anifacediff_core.lab.training.clips import Clip, PrepareConfig, find_clips
from anifacediff_core.lab.training.data import NormalsNoise
from anifacediff_core.lab.training.prepare import Encoders, prepare
from anifacediff_core.lab.training.shard_chunks import SplitRatios, write_chunk
from anifacediff_core.lab.training.shard_format import Segment, find_shards, read_shard
from anifacediff_core.lab.training.shard_pictures import decode_picture
from anifacediff_core.lab.training.shards import ShardSource
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.video import VideoWriter, read_frames, write_image
from anifacediff_core.weights import faces
from anifacediff_core.weights.faces import load_head
from harness.flame import make_fields, write_pickle
from harness.shards import make_segment, write_set
from harness.weights import randomize

REPOSITORY = Path(__file__).resolve().parents[2]
ASSETS = REPOSITORY / "anifacediff_core" / "assets"
ENCODERS = Encoders(str(ASSETS / "demo.safetensors"), device="cpu")
SMALL = PrepareConfig(size=64, chunk=2, segment=4, picture="png")
FRAMES = 6


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """The first frames of the bundled driving video, small."""
    frames = torch.stack(list(islice(read_frames(ASSETS / "examples" / "driving.mp4"), FRAMES)))
    return F.interpolate(frames, size=(64, 64), mode="area")


@pytest.fixture(scope="module")
def video(pictures: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    with VideoWriter(path, Fraction(30000, 1001)) as writer:
        writer.write(pictures)
    return path


@pytest.fixture
def copies(video: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with copies of the video under the given names."""

    def make(*names: str, folder: str = "videos") -> Path:
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, tmp_path / folder / name)
        return tmp_path / folder

    return make


def segments(folder: Path) -> list[Segment]:
    """Of all shards that lie in a folder, listed or not."""
    return [segment for path in sorted(folder.glob("*.tar")) for segment in read_shard(str(path))]


def assert_each_once(folder: Path, clips: int, per_clip: int = 2) -> None:
    found = Counter((segment.info.clip, segment.info.first) for segment in segments(folder))
    assert set(found.values()) == {1} and len(found) == clips * per_clip
    listed = find_shards(folder, None).shards
    assert sorted(Path(shard.url).name for shard in listed) == sorted(p.name for p in folder.glob("*.tar"))
    assert sum(len(shard.segments or ()) for shard in listed) == clips * per_clip
    assert not list(folder.rglob(".*")), "unfinished files are left"


def skipped(folder: Path) -> dict[str, str]:
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {entry["clip"]: entry["reason"] for entry in map(json.loads, lines)}


# ---- which clips, whose, in which split


@pytest.mark.parametrize(
    ("path", "identity", "split"),
    [
        ("train/id10280#NXjT3732Ekg#001093#001192.mp4", "id10280", "train"),
        ("test/id10271#AbC-_d#000001#000100.mp4", "id10271", "test"),
        ("val/speaker/one.mp4", "speaker", "val"),
        ("id10280/NXjT3732Ekg/00001.mp4", "id10280", None),
        ("anna/one.mp4", "anna", None),
        ("one.mp4", "one", None),
    ],
)
def test_names_tell_identity_and_split(tmp_path: Path, path: str, identity: str, split: str | None) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    expected = split or SplitRatios().split(identity)
    assert find_clips(tmp_path, PrepareConfig()) == [Clip(path, identity, expected)]


def test_an_expression_of_ones_own_tells_the_identity(tmp_path: Path) -> None:
    for name in ("a_take1_x.mp4", "a_take2_x.mp4"):
        (tmp_path / name).touch()
    clips = find_clips(tmp_path, PrepareConfig(identity=r"^([a-z]+)_take"))
    assert {clip.identity for clip in clips} == {"a"} and len(clips) == 2
    with pytest.raises(InputError, match="finds no identity in a_take1_x.mp4"):
        find_clips(tmp_path, PrepareConfig(identity=r"(\d{5})"))
    with pytest.raises(InputError, match="no regular expression"):
        PrepareConfig(identity="(")
    for fps in ("0", "1/0", "fast"):
        with pytest.raises(InputError, match="are no frame rate"):
            PrepareConfig(fps=fps)


def test_a_folder_of_pictures_is_one_clip_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "id10280#NXjT3732Ekg#001093#001192.mp4"
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f"{index:07d}.png").touch()
    assert [clip.path for clip in find_clips(tmp_path, PrepareConfig())] == [f"train/{folder.name}"]


def test_splits_share_no_identity_and_stay_as_they_are(tmp_path: Path) -> None:
    for person in range(60):
        for take in range(2):
            (tmp_path / f"person{person}").mkdir(exist_ok=True)
            (tmp_path / f"person{person}" / f"{take}.mp4").touch()
    config = PrepareConfig(shares=SplitRatios(0.6, 0.2, 0.2))
    clips = find_clips(tmp_path, config)
    of = {name: {c.identity for c in clips if c.split == name} for name in ("train", "val", "test")}
    assert sum(map(len, of.values())) == 60
    assert len(of["train"]) > len(of["val"]) > 3 and len(of["test"]) > 3
    shutil.rmtree(tmp_path / "person0")
    again = {clip.identity: clip.split for clip in find_clips(tmp_path, config)}
    assert all(again[clip.identity] == clip.split for clip in clips if clip.identity in again)
    with pytest.raises(InputError, match="must add up to 1"):
        SplitRatios(0.5, 0.1, 0.1)


def test_an_identity_in_the_folders_of_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "anna").mkdir(parents=True)
        (tmp_path / split / "anna" / "one.mp4").touch()
    with pytest.raises(InputError, match="'anna' lies in the folders of two splits"):
        find_clips(tmp_path, PrepareConfig())
    assert len({clip.split for clip in find_clips(tmp_path, PrepareConfig(split_folders=False))}) == 1


def test_folders_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no videos and no folders of pictures"):
        find_clips(tmp_path, PrepareConfig())
    with pytest.raises(InputError, match="There is no folder"):
        find_clips(tmp_path / "gone", PrepareConfig())


# ---- what is written


def test_videos_become_segments_with_what_capture_reads(
    copies: Callable[..., Path], video: Path, tmp_path: Path
) -> None:
    root = copies("train/id10001#a#0#6.mp4", "test/id10002#b#0#6.mp4")
    told: list[tuple[int, int]] = []
    done = prepare(
        root, tmp_path / "out", ENCODERS, SMALL, progress=lambda done, total: told.append((done, total))
    )
    assert done.clips == {"train": 1, "val": 0, "test": 1} and told == [(1, 2), (2, 2)]
    assert_each_once(tmp_path / "out", clips=2)
    first, second = (s for s in segments(tmp_path / "out") if s.info.split == "train")
    assert first.info.identity == "id10001" and first.info.clip == "train/id10001#a#0#6.mp4"
    assert (first.info.first, first.info.frames, second.info.first, second.info.frames) == (0, 4, 4, 2)
    assert first.info.fps == Fraction(30000, 1001)
    expected = list(read_frames(video))
    for index, data in enumerate([*first.pictures, *second.pictures]):
        assert torch.equal(decode_picture(data, 64, "it"), (expected[index] * 255).round().to(torch.uint8))
    read = extract_parameters(torch.stack(expected), ENCODERS.load()).parameters
    for name in ("shape", "expression", "pose", "camera", "valid"):
        assert torch.allclose(getattr(first.parameters, name), getattr(read, name)[:4], atol=1e-5)


def test_a_folder_of_pictures_is_read_in_the_order_of_its_numbers(pictures: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "anna" / "clip"
    for index, picture in enumerate(pictures):
        write_image(folder / f"{index + 7}.png", picture)  # 7, 8, 9, 10: not in the order of letters
    prepare(tmp_path / "videos", tmp_path / "out", ENCODERS, replace(SMALL, segment=96, fps="30000/1001"))
    (segment,) = segments(tmp_path / "out")
    assert segment.info.fps == Fraction(30000, 1001) and segment.info.identity == "anna"
    for data, picture in zip(segment.pictures, pictures, strict=True):
        assert torch.equal(decode_picture(data, 64, "it"), (picture * 255).round().to(torch.uint8))


def test_names_may_be_long(copies: Callable[..., Path], tmp_path: Path) -> None:
    prepare(copies("n" * 120 + ".mp4"), tmp_path / "out", ENCODERS, SMALL)
    assert {segment.info.clip for segment in segments(tmp_path / "out")} == {"n" * 120 + ".mp4"}


def test_a_portrait_is_cut_out_of_a_larger_picture(pictures: Tensor, tmp_path: Path) -> None:
    wide = F.pad(F.interpolate(pictures, size=(160, 160)), (20, 140, 10, 30), value=0.2)
    with VideoWriter(tmp_path / "videos" / "wide.mp4", Fraction(24)) as writer:
        writer.write(wide)
    prepare(tmp_path / "videos", tmp_path / "out", ENCODERS, SMALL)
    segment = segments(tmp_path / "out")[0]
    head = HeadModel.bundled()
    covered = render_normals(head, segment.parameters[:1], 64).amax(1) > 0
    assert 0.2 < covered.float().mean() < 0.8
    assert decode_picture(segment.pictures[0], 64, "it").shape == (3, 64, 64)


def test_normals_are_stored_when_wanted(copies: Callable[..., Path], tmp_path: Path) -> None:
    prepare(copies("a.mp4"), tmp_path / "out", ENCODERS, replace(SMALL, normals=True))
    segment = segments(tmp_path / "out")[0]
    drawn = render_normals(HeadModel.bundled(), segment.parameters, 64)
    stored = torch.stack([decode_picture(data, 64, "it") for data in segment.normals]) / 255
    assert (stored - drawn).abs().max() < 0.51 / 255
    assert find_shards(tmp_path / "out", None).normals


def test_broken_videos_and_such_without_a_face_are_listed_and_the_others_prepared(
    copies: Callable[..., Path], video: Path, tmp_path: Path
) -> None:
    root = copies("good/a.mp4", "also/b.mp4")
    (root / "bad").mkdir()
    (root / "bad" / "empty.mp4").touch()
    (root / "bad" / "text.mp4").write_text("this is no video")
    data = video.read_bytes()
    (root / "bad" / "cut.mp4").write_bytes(data[: len(data) // 2])
    with VideoWriter(root / "bad" / "gray.mp4", Fraction(24)) as writer:
        writer.write(torch.full((4, 3, 64, 64), 0.5))
    (root / "bad" / "frames").mkdir()
    (root / "bad" / "frames" / "0.png").write_bytes(b"\x89PNG\r\n")
    done = prepare(root, tmp_path / "out", ENCODERS, SMALL)
    assert sum(done.clips.values()) == 2
    assert_each_once(tmp_path / "out", clips=2)
    reasons = skipped(tmp_path / "out")
    assert reasons.keys() == {
        f"bad/{name}" for name in ("empty.mp4", "text.mp4", "cut.mp4", "gray.mp4", "frames")
    }
    assert "no face was found" in reasons["bad/gray.mp4"] and "\n" not in "".join(reasons.values())


def test_a_full_disk_is_no_broken_video(
    copies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "encode_picture", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(copies("a.mp4"), tmp_path / "out", ENCODERS, SMALL)
    assert list((tmp_path / "out").glob("*.tar")) == []


def test_when_nothing_can_be_used_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    with pytest.raises(InputError, match="No clip of .* could be used; the first one, a.mp4"):
        prepare(tmp_path / "videos", tmp_path / "out", ENCODERS, SMALL)


def test_files_of_flame_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DECA and SMIRK need FLAME"):
        Encoders("x", deca="y")
    with pytest.raises(InputError, match="There is no file gone"):
        prepare(tmp_path, tmp_path / "out", Encoders("gone"))


def test_deca_and_flame_read_the_faces_when_their_files_are_given(
    copies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pickle(tmp_path / "generic_model.pkl", make_fields())
    encoder = DecaEncoder()
    randomize(encoder, 0)
    save_file(encoder.state_dict(), tmp_path / "deca.safetensors")
    # whatever detectors are installed here: these are pictures of avatars
    monkeypatch.setattr(faces, "FacesAtHand", lambda last: last)
    encoders = replace(
        ENCODERS, deca=str(tmp_path / "deca.safetensors"), flame=str(tmp_path / "generic_model.pkl")
    )
    prepare(copies("a.mp4"), tmp_path / "out", encoders, SMALL)
    first = segments(tmp_path / "out")[0]
    assert first.info.head == first.parameters.head == "flame"
    assert (first.parameters.shape.shape[1], first.parameters.expression.shape[1]) == (300, 50)
    assert find_shards(tmp_path / "out", None).head == "flame"
    with pytest.raises(InputError, match="was begun with encoders"):
        prepare(copies("a.mp4"), tmp_path / "out", ENCODERS, SMALL)
    with pytest.raises(InputError, match="'anifacediff-head-1', not FLAME"):
        replace(encoders, flame=str(ASSETS / "head.safetensors")).load()


def test_a_trainer_draws_flame_shards_with_flame_and_counts_all_pixels_alike(tmp_path: Path) -> None:
    write_pickle(tmp_path / "generic_model.pkl", make_fields())
    head = load_head(tmp_path / "generic_model.pkl")
    write_set(tmp_path / "set", [[make_segment(head, 0)]])
    settings: dict[str, Any] = {"autoencoder": AutoEncoder(), "image_size": 28, "noise": NormalsNoise(0, 0)}
    settings |= {"frames": 2, "rows": 2, "dtype": torch.float32, "seed": 0, "workers": 0}
    pairs = ShardSource(tmp_path / "set", head=head, **settings).draw(2)
    assert pairs.expression.shape == (4, 50) and pairs.normals.amax() > 0.5
    assert torch.equal(emphasis(pairs.spots, torch.zeros(4, 2), 4, 8, 2.0, 3.0), torch.ones(4, 1, 4, 4))
    with pytest.raises(InputError, match="belong to the head 'flame'"):
        ShardSource(tmp_path / "set", head=HeadModel.bundled(), **settings)


# ---- going on


def names(count: int) -> list[str]:
    return [f"train/id{10000 + number}#a#0#6.mp4" for number in range(count)]


def watch_captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options["what"])
        return extract_parameters(*args, **options)

    monkeypatch.setattr(module, "extract_parameters", watched)
    return seen


def test_a_second_run_has_nothing_to_do_and_new_clips_are_added(
    copies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_captures(monkeypatch)
    prepare(copies(*names(3)), tmp_path / "out", ENCODERS, SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(seen) == 3 and len(before) == 2
    prepare(copies(*names(3)), tmp_path / "out", ENCODERS, SMALL)
    assert len(seen) == 3
    prepare(copies(*names(5)), tmp_path / "out", ENCODERS, SMALL)
    assert sorted(seen[3:]) == names(5)[3:]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert_each_once(tmp_path / "out", clips=5)


def test_other_settings_are_refused(copies: Callable[..., Path], tmp_path: Path) -> None:
    root = copies("a.mp4")
    prepare(root, tmp_path / "out", ENCODERS, SMALL)
    with pytest.raises(InputError, match="was begun with size 64 and not 128"):
        prepare(root, tmp_path / "out", ENCODERS, replace(SMALL, size=128))
    (tmp_path / "out" / "plan.json").write_text("{")
    with pytest.raises(InputError, match="plan.json is damaged"):
        prepare(root, tmp_path / "out", ENCODERS, SMALL)


def test_a_worker_lost_between_shards_and_record_leaves_nothing_twice(
    copies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = copies(*names(3)), tmp_path / "out"
    seen = watch_captures(monkeypatch)
    real = shard_chunks.atomic_write

    def dies_at_the_record(path: Path) -> Any:
        if path.parent.name == "chunks":
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as broken:
        broken.setattr(shard_chunks, "atomic_write", dies_at_the_record)
        with pytest.raises(KeyboardInterrupt):
            prepare(root, out, ENCODERS, SMALL)
    assert len(list(out.glob("*.tar"))) == 1, "the shards of the first chunk are there, unlisted"
    shutil.copyfile(next(out.glob("*.tar")), out / "train-00000-007.tar")  # that attempt had got further
    captured = len(seen)
    prepare(root, out, ENCODERS, SMALL)
    assert_each_once(out, clips=3)
    assert captured == 2 and len(seen) == 3, "what was captured is not captured again"


def test_a_chunk_with_many_segments_is_several_shards(tmp_path: Path) -> None:
    head = HeadModel.bundled()
    written = [make_segment(head, number) for number in range(5)]
    record = write_chunk(tmp_path, "train-00000", "train", written, [], per_shard=2)
    assert [entry["file"] for entry in record["shards"]] == [f"train-00000-00{n}.tar" for n in range(3)]
    assert [len(entry["segments"]) for entry in record["shards"]] == [2, 2, 1]
    assert [segment.key for segment in segments(tmp_path)] == [segment.key for segment in written]


def test_a_changed_video_is_captured_again(
    copies: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = copies("a.mp4"), tmp_path / "out"
    seen = watch_captures(monkeypatch)
    prepare(root, out, ENCODERS, SMALL)
    shutil.rmtree(out / "chunks")
    os.utime(root / "a.mp4", (1, 1))
    prepare(root, out, ENCODERS, SMALL)
    assert len(seen) == 2
    assert_each_once(out, clips=1)


COMMAND = [
    sys.executable,
    "-m",
    "anifacediff_core",
    "prepare",
    "--size",
    "64",
    "--chunk",
    "1",
    "--device",
    "cpu",
]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(copies: Callable[..., Path], tmp_path: Path) -> None:
    root, out = copies(*names(8)), tmp_path / "out"
    command = [*COMMAND, "--videos", str(root), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while len(list(out.glob("chunks/*.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in out.glob("chunks/*.json")}
    assert 3 <= len(done) < 8
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.tar") if _record(path) in done}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "8 train" in again.stdout
    assert all(path.stat().st_mtime_ns == at for path, at in (done | shards).items())
    found = Counter(segment.info.clip for segment in segments(out))
    assert found == Counter(names(8))


def _record(shard: Path) -> Path:
    return shard.parent / "chunks" / f"{shard.name.rpartition('-')[0]}.json"


@pytest.mark.slow
def test_several_processes_prepare_each_clip_once(copies: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "from anifacediff_core.lab.cli import main\n"
        "if __name__ == '__main__':\n"
        f"    raise SystemExit(main({[*COMMAND[3:], '--processes', '2']!r} + "
        f"['--videos', {str(copies(*names(5)))!r}, '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], env=environment, check=True)
    assert_each_once(tmp_path / "out", clips=5, per_clip=1)


# ---- avatars


def test_avatars_become_the_same_shards_with_their_true_parameters(tmp_path: Path) -> None:
    config = AvatarShardsConfig(count=3, frames=3, fps="1", size=64, normals=True, chunk=2, picture="png")
    told: list[tuple[int, int]] = []
    prepare_avatars(tmp_path, config, "cpu", progress=lambda done, total: told.append((done, total)))
    found = segments(tmp_path)
    assert sorted(s.info.identity for s in found) == [config.identity(number) for number in range(3)]
    assert told[-1][0] == told[-1][1] and all(s.parameters.valid.all() for s in found)
    first = found[0]
    drawn = render_normals(HeadModel.bundled(), first.parameters, 64)
    stored = torch.stack([decode_picture(data, 64, "it") for data in first.normals]) / 255
    assert (stored - drawn).abs().max() < 0.51 / 255
    before = {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    shutil.rmtree(tmp_path / "chunks")
    prepare_avatars(tmp_path, config, "cpu")
    assert {path: path.read_bytes() for path in tmp_path.glob("*.tar")} == before, "seeds decide everything"
    with pytest.raises(InputError, match="was begun with count 3 and not 4"):
        prepare_avatars(tmp_path, replace(config, count=4), "cpu")


@pytest.mark.parametrize(
    "change", [{"size": 60}, {"size": 9000}, {"fps": "0"}, {"frames": 1}, {"count": 0}, {"picture": "gif"}]
)
def test_avatars_that_no_shard_can_have_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        replace(AvatarShardsConfig(count=1), **change)
    assert "\n" not in str(caught.value)


def test_an_avatar_in_a_shard_wears_its_own_shape(tmp_path: Path) -> None:
    prepare_avatars(tmp_path, AvatarShardsConfig(count=1, frames=2, size=64, picture="png"), "cpu")
    (segment,) = segments(tmp_path)
    head = HeadModel.bundled()
    assert segment.parameters.shape.abs().max() > 0
    from anifacediff_core.lab.avatars.identity import Identity

    identity = Identity.random(1, torch.Generator().manual_seed(0), head)
    expected = Studio(head).render(identity, segment.parameters, 64)
    stored = torch.stack([decode_picture(data, 64, "it") for data in segment.pictures]) / 255
    assert (stored - expected).abs().mean() < 0.01


# ---- commands


def test_the_commands_write_shards(
    copies: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = copies("a.mp4"), tmp_path / "out"
    common = ["--size", "64", "--device", "cpu"]
    assert (
        main(["prepare", "--videos", str(root), "--out", str(out), *common, "--shares", "0", "0", "1"]) == 0
    )
    assert "1 test" in capsys.readouterr().out
    avatars = ["avatars", "shards", "--out", str(tmp_path / "avatars"), "--count", "1", "--frames", "2"]
    assert main([*avatars, *common]) == 0
    assert len(segments(tmp_path / "avatars")) == 1
    gone = ["--videos", str(tmp_path / "gone"), "--out", str(tmp_path / "other")]
    assert main(["prepare", *gone, *common]) == 2
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["1/0", "0", "-24", "many"])
def test_frame_rates_that_mean_nothing_are_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prepare", "--videos", "a", "--out", "b", f"--fps={rate}"])
    assert caught.value.code == 2 and "frame rate" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_told_in_a_sentence(
    copies: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--videos", str(copies("a.mp4")), "--out", str(tmp_path / "out")]
    assert main(["prepare", *folders, "--device", "cuda:77"]) == 2
    assert capsys.readouterr().err == "anifacediff: The device cuda:77 is not there; use cpu or auto.\n"


def test_ray_and_processes_exclude_each_other(copies: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out either --ray or --processes"):
        prepare(copies("a.mp4"), tmp_path / "out", ENCODERS, SMALL, Scale(processes=2, ray=""))
