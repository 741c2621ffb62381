"""Shards: their form, what they refuse, and batches that follow from a seed and go on where they stopped."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import threading
from dataclasses import fields, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.regions import emphasis
from anifacediff_core.lab.training.data import NormalsNoise, Pairs
from anifacediff_core.lab.training.shard_format import ShardWriter, find_shards, read_shard
from anifacediff_core.lab.training.shard_reader import mixed
from anifacediff_core.lab.training.shards import ShardSource, spots
from harness.shards import SIZE, make_segment, told, write_set

PLAIN = NormalsNoise(weakened=0, blurred=0)


class Transparent(nn.Module):
    """An autoencoder whose latents are the picture, smaller: it can be told what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def videos(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of two identities with two clips each."""
    folder = tmp_path_factory.mktemp("videos")
    shards = [
        [make_segment(head, identity, clip) for identity in (2 * n, 2 * n + 1) for clip in (0, 1)]
        for n in range(6)
    ]
    return write_set(folder, shards)


def source(urls: Any, head: HeadModel, **changes: Any) -> ShardSource:
    settings: dict[str, Any] = {
        "frames": 1,
        "rows": 4,
        "head": head,
        "autoencoder": Transparent(),
        "image_size": 28,
        "noise": PLAIN,
        "dtype": torch.float32,
        "seed": 5,
        "workers": 0,
        "visits": 2,
        "buffer": 16,
    }
    return ShardSource(urls, **{**settings, **changes})


def content(pairs: Pairs) -> dict[str, Tensor]:
    """The tensors that are there: shards keep no pictures beside the latents."""
    values = {field.name: getattr(pairs, field.name) for field in fields(pairs)}
    return {name: value for name, value in values.items() if value is not None}


def same(first: Pairs, second: Pairs) -> bool:
    a, b = content(first), content(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drawn(data: ShardSource, batches: int) -> list[tuple[int, int, int]]:
    """Identity, clip and frame of all driving frames of so many batches."""
    return [told(latent) for _ in range(batches) for latent in data.draw(data.rows).latents]


# ---- the form


def test_a_segment_comes_back_from_its_shard(head: HeadModel, tmp_path: Path) -> None:
    written = make_segment(head, 3, clip=1, invalid=[2], normals=True)
    write_set(tmp_path, [[written, make_segment(head, 4)]])
    found = list(read_shard(str(tmp_path / "0.tar")))
    assert [segment.key for segment in found] == ["003_001", "004_000"]
    assert found[0].info == written.info
    assert list(found[0].pictures) == list(written.pictures)
    assert list(found[0].normals) == list(written.normals)
    assert found[1].normals == []
    for name in ("shape", "expression", "pose", "camera", "valid"):
        assert torch.equal(getattr(found[0].parameters, name), getattr(written.parameters, name))


def test_webdataset_itself_groups_the_members_of_a_segment(videos: Path) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(str(videos / "0.tar"), shardshuffle=False))
    assert len(samples) == 4
    assert json.loads(samples[0]["json"])["identity"] == "person0"
    assert {"parameters.safetensors", "0000.png", "0005.png"} <= samples[0].keys()


def test_the_same_segments_make_the_same_file_and_a_failed_shard_leaves_none(
    head: HeadModel, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_set(tmp_path / name, [[make_segment(head, 0)]])
    assert (tmp_path / "a" / "0.tar").read_bytes() == (tmp_path / "b" / "0.tar").read_bytes()
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "c" / "0.tar") as writer:
        writer.write(make_segment(head, 0))
        raise KeyboardInterrupt
    assert list((tmp_path / "c").iterdir()) == []


def test_parameters_become_bytes_and_back_and_damaged_ones_are_refused(head: HeadModel) -> None:
    params = head.neutral(3)
    data = params.to_bytes()
    assert torch.equal(FaceParameters.from_bytes(data, "it").camera, params.camera)
    for damaged in (b"", data[:50], data[:-4], b"\xff" * 200):
        with pytest.raises(InputError, match="it cannot be read as face parameters"):
            FaceParameters.from_bytes(damaged, "it")


# ---- what is drawn


def test_pairs_are_different_valid_frames_of_one_clip(head: HeadModel, tmp_path: Path) -> None:
    shards = [[make_segment(head, n, clip, invalid=[0, 3]) for clip in (0, 1)] for n in range(3)]
    data = source(write_set(tmp_path, shards), head)
    for _ in range(20):
        pairs = data.draw(4)
        for first, second in zip(pairs.source_latents, pairs.latents, strict=True):
            a, b = told(first), told(second)
            assert a[:2] == b[:2] and a[2] != b[2]
            assert {a[2], b[2]} <= {1, 2, 4, 5}
    assert pairs.source_latents.shape == (4, 3, 4, 4) and pairs.source_pixels.shape == (4, 3, 28, 28)
    assert pairs.normals.shape == (4, 3, SIZE, SIZE) and pairs.spots.shape == (4, 4, 3)


def test_clips_are_consecutive_valid_frames_with_a_source_of_the_same_clip(
    head: HeadModel, tmp_path: Path
) -> None:
    shards = [[make_segment(head, n, frames=9, invalid=[4])] for n in range(2)]
    data = source(write_set(tmp_path, shards), head, frames=3, rows=2)
    starts = set()
    for _ in range(40):
        pairs = data.draw(2)
        for clip, first in zip(pairs.latents.unflatten(0, (2, 3)), pairs.source_latents, strict=True):
            frames = [told(latent) for latent in clip]
            starts.add(frames[0][2])
            assert [frame[2] - frames[0][2] for frame in frames] == [0, 1, 2]
            assert {frame[0] for frame in frames} == {told(first)[0]} and told(first)[2] != 4
    assert starts == {0, 1, 5, 6}


def test_an_epoch_visits_every_segment_so_often_and_the_next_in_another_order(
    head: HeadModel, videos: Path
) -> None:
    data = source(videos, head, rows=6)
    first, second = drawn(data, 8), drawn(data, 8)  # 24 segments, 2 visits, 6 rows
    for epoch in (first, second):
        visits = [clip[:2] for clip in epoch]
        assert len(set(visits)) == 24 and {visits.count(clip) for clip in visits} == {2}
    assert first != second
    assert first == drawn(source(videos, head, rows=6), 8)
    assert first != drawn(source(videos, head, rows=6, seed=6), 8)


def test_two_processes_see_different_segments(head: HeadModel, videos: Path) -> None:
    seen = [{clip[:2] for clip in drawn(source(videos, head, rank=rank, world=2), 24)} for rank in (0, 1)]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 24


def test_fewer_shards_than_processes_are_refused_in_a_sentence(head: HeadModel, videos: Path) -> None:
    with pytest.raises(InputError, match="6 shards for 7 processes.*smaller shards"):
        source(videos, head, rank=0, world=7)


def test_mixing_keeps_everything_and_holds_back_no_more_than_asked() -> None:
    import numpy as np

    taken: list[int] = []

    def counting() -> Any:
        for number in range(100):
            taken.append(number)
            yield number

    out: list[int] = []
    for item in mixed(counting(), 10, np.random.default_rng(0)):
        out.append(item)
        assert len(taken) - len(out) <= 10
    assert sorted(out) == list(range(100)) and out != sorted(out)


# ---- exact continuation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("manifest", [True, False])
def test_batches_after_a_restore_are_those_of_a_run_without_a_stop(
    head: HeadModel, videos: Path, workers: int, manifest: bool
) -> None:
    urls: Any = videos if manifest else f"{videos}/{{0..5}}.tar"
    noise = NormalsNoise(weakened=0.25, blurred=0.25)
    settings: dict[str, Any] = {"workers": workers, "noise": noise, "rows": 5}
    whole = source(urls, head, **settings)
    expected = [whole.draw() for _ in range(17)]  # 48 samples an epoch: into the second
    assert {told(latent) for pairs in expected for latent in pairs.latents}
    for stop in (0, 3, 11):
        before = source(urls, head, **settings)
        for _ in range(stop):
            before.draw()
        state = json.loads(json.dumps(before.state_dict()))
        torch.rand(7)  # whatever else the training draws
        after = source(urls, head, **settings)
        after.load_state_dict(state)
        again = [after.draw() for _ in range(17 - stop)]
        assert all(same(a, b) for a, b in zip(again, expected[stop:], strict=True)), stop


def test_a_source_can_be_set_back_in_the_middle(head: HeadModel, videos: Path) -> None:
    data = source(videos, head, workers=2)
    data.draw()
    state = data.state_dict()
    expected = [data.draw() for _ in range(3)]
    data.load_state_dict(state)
    assert all(same(data.draw(), pairs) for pairs in expected)


def test_the_list_of_shards_changes_nothing_but_the_way_back(head: HeadModel, videos: Path) -> None:
    listed, unlisted = source(videos, head), source(f"{videos}/{{0..5}}.tar", head)
    assert all(same(listed.draw(), unlisted.draw()) for _ in range(15))


def test_going_on_opens_only_shards_that_are_still_needed(
    head: HeadModel, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anifacediff_core.lab.training import shard_reader as module

    data = source(videos, head, buffer=2)
    for _ in range(10):
        data.draw()  # 40 of 48 samples
    opened: list[str] = []

    def watched(url: str) -> Any:
        opened.append(url)
        return read_shard(url)

    monkeypatch.setattr(module, "read_shard", watched)
    after = source(videos, head, buffer=2)
    after.load_state_dict(data.state_dict())
    assert same(after.draw(), data.draw())
    assert len(opened) <= 2


def test_drawing_leaves_the_global_random_numbers_alone(head: HeadModel, videos: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    source(videos, head, workers=2, noise=NormalsNoise()).draw()
    assert torch.equal(torch.rand(1), expected)


def test_a_state_of_other_data_is_refused(head: HeadModel, videos: Path) -> None:
    state = source(videos, head).state_dict()
    for changes in ({"seed": 6}, {"rows": 2}, {"rank": 0, "world": 2}, {"workers": 2}):
        with pytest.raises(InputError, match="go on with the same, or start anew"):
            source(videos, head, **changes).load_state_dict(state)


def test_examples_are_a_batch_with_its_pictures_that_counts_as_not_drawn(
    head: HeadModel, videos: Path
) -> None:
    data = source(videos, head, frames=2)
    sources, driving, pairs = data.examples()
    assert sources.shape == (4, 3, SIZE, SIZE) and driving.shape == (8, 3, SIZE, SIZE)
    assert torch.equal(nn.functional.avg_pool2d(driving, 8), pairs.latents)
    assert torch.equal(nn.functional.avg_pool2d(sources, 8), pairs.source_latents)
    assert data.batches == 0 and same(data.draw(), pairs)


def test_a_lost_reader_is_told_in_a_sentence_and_reading_goes_on_where_it_was(
    head: HeadModel, videos: Path
) -> None:
    whole, data = source(videos, head), source(videos, head)
    expected = [whole.draw() for _ in range(3)]
    assert same(data.draw(), expected[0])

    def lost() -> Any:  # as torch tells of it
        raise RuntimeError("DataLoader worker (pid(s) 123) exited unexpectedly")
        yield

    data._iterator = lost()
    with pytest.raises(InputError, match="perhaps for want of memory"):
        data.draw()
    assert same(data.draw(), expected[1]) and same(data.draw(), expected[2])


# ---- normals and spots


def test_stored_normals_are_those_that_are_drawn(head: HeadModel, tmp_path: Path) -> None:
    shards = [[make_segment(head, n, normals=True)] for n in range(2)]
    urls = write_set(tmp_path, shards)
    noise = NormalsNoise(weakened=0.25, blurred=0.25)
    stored = source(urls, head, noise=noise)
    rendered = source(urls, head, noise=noise, normals="rendered")
    assert stored.config.normals and not rendered.config.normals
    for _ in range(3):
        a, b = stored.draw().normals, rendered.draw().normals
        assert a.max() > 0.5
        assert (a - b).abs().max() < 1.01 / 255
        assert (a - b).abs().mean() < 1e-4


def test_the_first_rows_have_weakened_the_next_blurred_normals(head: HeadModel, videos: Path) -> None:
    plain = source(videos, head).draw().normals
    spoiled = source(videos, head, noise=NormalsNoise(weakened=0.25, blurred=0.5)).draw().normals
    assert not torch.equal(spoiled[0], plain[0])
    coarse = nn.functional.avg_pool2d(plain[1:3], 8)
    enlarged = nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    # Drawn in batches of other lengths, a pixel may be rounded to the next of its 256 steps.
    step = 1 / 255 + 1e-6
    torch.testing.assert_close(spoiled[1:3], enlarged, rtol=0, atol=step)
    torch.testing.assert_close(spoiled[3], plain[3], rtol=0, atol=step)


def test_normals_have_the_shape_of_the_source(head: HeadModel, tmp_path: Path) -> None:
    segment = make_segment(head, 0, frames=2)
    shape = segment.parameters.shape.clone()
    shape[1] = -shape[1]
    odd = replace(segment, parameters=replace(segment.parameters, shape=shape))
    plain = source(write_set(tmp_path / "a", [[segment]]), head, rows=8).draw()
    shaped = source(write_set(tmp_path / "b", [[odd]]), head, rows=8).draw()
    for row in range(8):
        is_first = told(plain.source_latents[row])[2] == 0
        assert torch.equal(plain.normals[row], shaped.normals[row]) == is_first


def test_a_head_without_eyes_and_lips_emphasizes_nothing(head: HeadModel) -> None:
    params = head.neutral(2)
    assert emphasis(spots(head, params, SIZE), torch.zeros(2, 2), 4, 8, 2.0, 3.0).max() > 1

    faceless: Any = SimpleNamespace(regions={})
    nothing = spots(faceless, params, SIZE)
    assert torch.equal(emphasis(nothing, torch.zeros(2, 2), 4, 8, 2.0, 3.0), torch.ones(2, 1, 4, 4))


def test_latents_are_scaled_as_the_network_wants_them(head: HeadModel, videos: Path) -> None:
    plain, scaled = source(videos, head).draw(), source(videos, head, scaling_factor=0.5).draw()
    assert torch.equal(scaled.latents, plain.latents * 0.5)
    assert torch.equal(scaled.source_latents, plain.source_latents * 0.5)


# ---- where shards come from


def test_shards_come_from_commands(head: HeadModel, videos: Path) -> None:
    expected = source(videos, head).draw()
    assert same(source(f"pipe:cat {videos}/{{0..5}}.tar", head).draw(), expected)


@pytest.mark.skipif(shutil.which("curl") is None, reason="WebDataset reads the web with curl")
def test_shards_come_from_the_web(head: HeadModel, videos: Path) -> None:
    expected = source(videos, head).draw()
    handler = partial(SimpleHTTPRequestHandler, directory=str(videos))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert same(source(f"{address}/shards.json", head).draw(), expected)
        assert same(source(f"{address}/{{0..5}}.tar", head).draw(), expected)
        server.shutdown()


def test_other_splits_are_passed_over(head: HeadModel, tmp_path: Path) -> None:
    shards = [[make_segment(head, 0)], [make_segment(head, 1, split="test")]]
    folder = write_set(tmp_path, shards)
    for urls in (folder, f"{folder}/{{0..1}}.tar"):
        assert {clip[0] for clip in drawn(source(urls, head), 4)} == {0}
        assert {clip[0] for clip in drawn(source(urls, head, split=None), 4)} == {0, 1}
    assert {clip[0] for clip in drawn(source(folder, head, split="test"), 4)} == {1}
    with pytest.raises(InputError, match="no shards of the split 'val'"):
        source(folder, head, split="val")


# ---- what is refused


def damaged(folder: Path, how: str) -> str:
    """A damaged copy of 0.tar."""
    data = (folder / "0.tar").read_bytes()
    path = folder / f"{how}.tar"
    if how == "truncated":
        data = data[: len(data) // 2 + 100]
    elif how == "cut between segments":
        data = data[: data.index(b"002_000.json")]
    elif how == "empty":
        data = b""
    elif how == "noise":
        data = bytes(range(256)) * 40
    elif how == "web page":
        data = b"<html>not found</html>" * 60
    path.write_bytes(data)
    return str(path)


def rewritten(folder: Path, change: Any) -> str:
    """A copy of 0.tar whose members went through `change(name, data)`; None leaves a member out."""
    path = folder / "changed.tar"
    with tarfile.open(folder / "0.tar") as old, tarfile.open(path, "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            data = change(member.name, content.read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return str(path)


def first_draw(url: str, head: HeadModel, **changes: Any) -> None:
    source(url, head, **changes).draw()


@pytest.mark.parametrize("how", ["truncated", "cut between segments", "empty", "noise", "web page"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_refused_in_a_sentence(
    head: HeadModel, tmp_path: Path, how: str, workers: int
) -> None:
    write_set(tmp_path, [[make_segment(head, n) for n in range(4)]])
    with pytest.raises(
        InputError, match=r"(?i)the shard .*\.tar is (missing or damaged|incomplete)"
    ) as caught:
        source(damaged(tmp_path, how), head, workers=workers, rows=8).draw()
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_damaged_shard_found_by_a_worker_is_told_in_the_same_sentence(
    head: HeadModel, tmp_path: Path
) -> None:
    folder = write_set(tmp_path, [[make_segment(head, n)] for n in range(2)])
    (folder / "1.tar").write_bytes((folder / "1.tar").read_bytes()[:3000])
    data = source(f"{folder}/{{0..1}}.tar", head, workers=2)
    with pytest.raises(InputError, match="1.tar is missing or damaged") as caught:
        for _ in range(4):
            data.draw()
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(head: HeadModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone.tar is missing or damaged .no such file"):
        source(str(tmp_path / "gone.tar"), head)
    with pytest.raises(InputError, match="no shards in"):
        source(tmp_path, head)
    with pytest.raises(InputError, match="missing or damaged"):
        source("pipe:exit 3", head)


def test_a_segment_cannot_fill_the_memory(
    head: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, [[make_segment(head, 0)]])
    monkeypatch.setattr("anifacediff_core.lab.training.shard_format.LARGEST_SEGMENT", 1000)
    with pytest.raises(InputError, match="too large to be a segment"):
        first_draw(str(tmp_path), head)


@pytest.mark.parametrize(
    "options", [{"frames": 0}, {"rows": 0}, {"visits": 0}, {"workers": -1}, {"urls": ["no:such.tar"]}]
)
def test_what_cannot_be_read_is_refused_in_a_sentence(
    head: HeadModel, videos: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        source(**{"urls": videos, "head": head, **options}).draw()
    assert "\n" not in str(caught.value)


def test_members_that_lie_are_refused_in_a_sentence(head: HeadModel, tmp_path: Path) -> None:
    write_set(tmp_path, [[make_segment(head, n) for n in range(2)]])
    huge = make_segment(head, 9, size=64).pictures[0]

    def describe(**values: Any) -> Any:
        return lambda name, data: (
            json.dumps({**json.loads(data), **values}).encode() if name.endswith("json") else data
        )

    cases = {
        "incomplete": lambda name, data: None if name.endswith("0003.png") else data,
        "64x64 pixels": lambda name, data: huge if name.endswith("png") else data,
        "is damaged": lambda name, data: data[:60] if name.endswith("png") else data,
        "cannot be read as face parameters": lambda name, data: data[:99] if "param" in name else data,
        "parameters that do not belong": describe(frames=5),
        "impossible numbers": describe(size=-1),
        "damaged description": describe(fps="1/0"),
        "newer version": describe(version=2),
        "has a damaged description": describe(first=float("inf")),
    }
    for sentence, change in cases.items():
        with pytest.raises(InputError, match=sentence) as caught:
            first_draw(rewritten(tmp_path, change), head)
        assert "\n" not in str(caught.value)


def test_a_pickle_in_a_shard_is_not_even_read(head: HeadModel, tmp_path: Path) -> None:
    write_set(tmp_path, [[make_segment(head, 0)]])
    trap = tmp_path / "trap"

    def add_pickles(name: str, data: bytes) -> bytes:
        return data

    url = rewritten(tmp_path, add_pickles)
    with tarfile.open(url, "a") as tar:
        bomb = f"cos\nsystem\n(S'touch {trap}'\ntR.".encode()
        for ending in ("pyd", "pkl", "pickle", "pth", "0000.pyd", "npy"):
            member = tarfile.TarInfo(f"000_000.{ending}")
            member.size = len(bomb)
            tar.addfile(member, io.BytesIO(bomb))
    first_draw(url, head)
    assert not trap.exists()


def test_a_set_for_another_head_or_without_usable_frames_is_refused(head: HeadModel, tmp_path: Path) -> None:
    folder = write_set(tmp_path, [[make_segment(head, 0, frames=6, invalid=[1, 3])]])
    with pytest.raises(InputError, match="No shard holds 3 usable frames"):
        source(folder, head, frames=3)
    with pytest.raises(InputError, match="No segment of 1 shards.*has 3 usable frames"):
        source(f"{folder}/0.tar", head, frames=3).draw()
    manifest = json.loads((folder / "shards.json").read_text())
    (folder / "shards.json").write_text(json.dumps({**manifest, "head": "flame"}))
    with pytest.raises(InputError, match="belong to the head 'flame' but the network to"):
        source(folder, head)


def test_a_list_that_does_not_fit_its_shards_is_refused(head: HeadModel, tmp_path: Path) -> None:
    folder = write_set(tmp_path, [[make_segment(head, 0)]])
    manifest = json.loads((folder / "shards.json").read_text())
    manifest["shards"][0]["segments"] *= 3
    (folder / "shards.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="holds other segments than its shards.json says"):
        drawn(source(folder, head), 3)
    (folder / "shards.json").write_text("{")
    with pytest.raises(InputError, match="could not be read as a list of shards"):
        source(folder, head)
    assert len(find_shards([f"{folder}/0.tar"], None).shards) == 1


def test_a_list_cannot_lead_out_of_its_folder_or_run_a_command(
    head: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path, [[make_segment(head, 0)]])
    monkeypatch.chdir(folder)
    manifest = json.loads((folder / "shards.json").read_text())
    for name in ("pipe:touch trap #.tar", "../0.tar", "/0.tar", "-0.tar"):
        manifest["shards"][0]["file"] = name
        (folder / "shards.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="which is no shard"):
            source("shards.json", head).draw()
    assert not (folder / "trap").exists()
