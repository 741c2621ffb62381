"""Lists of pairs, distances, flicker, and the measuring of results of any method."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("onnxruntime", reason="the extra eval is not installed")
pytest.importorskip("onnx", reason="the extra dev is not installed")
pytest.importorskip("cv2", reason="there is no OpenCV")

from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import NAME as FLAME
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.evaluation import pairs as pairs_module
from anifacediff_core.lab.evaluation import results, sheet
from anifacediff_core.lab.evaluation.faces import FaceReader, face_distances, five_points
from anifacediff_core.lab.evaluation.generate import VARIANTS, Generator
from anifacediff_core.lab.evaluation.identity import Embedder
from anifacediff_core.lab.evaluation.pairs import (
    CROSS,
    SAME,
    Pair,
    clip_frames,
    draw_pairs,
    find_clips,
    identity_of,
    read_pairs,
    write_pairs,
)
from anifacediff_core.lab.evaluation.results import METHOD_FILE, Method, MetricModels, measure
from anifacediff_core.lab.evaluation.sheet import SHEET_SIDE
from anifacediff_core.lab.evaluation.steadiness import Flicker, WarpingMetric, warped_difference
from anifacediff_core.lab.evaluation.tables import results_markdown
from anifacediff_core.lab.metrics import flicker
from anifacediff_core.sampling.settings import SamplingSettings
from anifacediff_core.video import VideoWriter, read_image, write_image
from harness import files, flame
from harness.onnx_files import write_onnx


class MeanColors:
    """Stands in for Inception: nine mean colors of a picture."""

    name = "mean colors"

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(frames, 3).flatten(1)


def write_clip(folder: Path, frames: Tensor) -> None:
    for index, frame in enumerate(frames):
        write_image(folder / f"{index}.png", frame)


def noise(frames: int, seed: int, side: int = 32) -> Tensor:
    return torch.rand(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two people with two clips each, as folders of frames."""
    for index, name in enumerate(("anna/one", "anna/two", "ben/one", "ben/two")):
        write_clip(tmp_path / "videos" / name, noise(12, index))
    return tmp_path / "videos"


# ---- the list


def names(folder: Path, *entries: str) -> Path:
    for entry in entries:
        (folder / entry).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry).touch()
    return folder


def test_cross_pairs_never_share_an_identity_and_never_come_twice(tmp_path: Path) -> None:
    clips = [f"id{person}#{clip}#0#9.mp4" for person in range(4) for clip in range(5)]
    for count in (30, 1000):  # few of the 300 possible ones, and all of them
        pairs = draw_pairs(names(tmp_path, *clips), (CROSS,), count=count, seed=5)
        assert len(pairs) == min(count, 300)
        assert all(pair.source_identity != pair.driving_identity for pair in pairs)
        assert all(Path(p.source).name.split("#")[0] == p.source_identity for p in pairs)
        assert len({(pair.source, pair.driving) for pair in pairs}) == len(pairs)


def test_same_pairs_begin_with_the_first_frame_and_drive_with_the_rest(tmp_path: Path) -> None:
    pairs = draw_pairs(names(tmp_path, *(f"{i}.mp4" for i in range(8))), (SAME,), count=5)
    assert len({pair.driving for pair in pairs}) == 5
    assert all((p.source, p.source_frame, p.first) == (p.driving, 0, 1) for p in pairs)


def test_the_same_seed_gives_the_same_pairs_wherever_the_folder_lies(tmp_path: Path) -> None:
    clips = [f"p{i}/v.mp4" for i in range(12)]
    here, there = names(tmp_path / "here", *clips), names(tmp_path / "there", *reversed(clips))

    def drawn(folder: Path, seed: int) -> list[tuple[str, ...]]:
        pairs = draw_pairs(folder, (SAME, CROSS), count=6, seed=seed)
        return [
            (p.pair, *(Path(f).relative_to(folder).as_posix() for f in (p.source, p.driving))) for p in pairs
        ]

    assert drawn(here, 0) == drawn(there, 0)
    assert drawn(here, 0) != drawn(here, 1)


def test_links_back_and_hidden_pictures_are_passed_over(videos: Path) -> None:
    before = find_clips(videos)
    (videos / "again").symlink_to(videos, target_is_directory=True)
    assert find_clips(videos) == before
    frames = len(list(clip_frames(before[0])))
    (before[0] / "._0.png").write_bytes(b"what macOS leaves beside pictures")
    assert len(list(clip_frames(before[0]))) == frames


def test_identities_of_voxceleb_of_folders_and_by_a_pattern() -> None:
    root = Path("/videos")
    assert identity_of(root / "id10280#NXjT3732Ekg#001093#001192.mp4", root) == "id10280"
    assert identity_of(root / "anna" / "a.b" / "clip.mp4", root) == "anna"
    assert identity_of(root / "clip_0001.mp4", root) == "clip_0001"
    assert identity_of(root / "x" / "s07-take2.mp4", root, r"(s\d+)-") == "s07"
    with pytest.raises(InputError, match="no group that fits"):
        identity_of(root / "clip.mp4", root, r"(s\d+)-")
    with pytest.raises(InputError, match="no regular expression"):
        identity_of(root / "clip.mp4", root, "(")


def test_one_identity_gives_no_cross_pairs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need two identities"):
        draw_pairs(names(tmp_path, "anna/a.mp4", "anna/b.mp4"), (CROSS,))
    with pytest.raises(InputError, match="holds no videos"):
        draw_pairs(names(tmp_path / "empty", "note.txt"), (SAME,))


def test_a_list_can_move_with_its_videos(tmp_path: Path, videos: Path) -> None:
    pairs = draw_pairs(videos, (SAME, CROSS), count=3, frames=4)
    write_pairs(tmp_path / "pairs.csv", pairs)
    assert str(tmp_path) not in (tmp_path / "pairs.csv").read_text()
    assert read_pairs(tmp_path / "pairs.csv") == pairs
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "pairs.csv").rename(moved / "pairs.csv")
    videos.rename(moved / "videos")
    assert all(Path(pair.source).is_dir() for pair in read_pairs(moved / "pairs.csv"))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("../../evil,same,a,0,a,1,0,x,x", "no name of a pair"),
        ("p,swap,a,0,a,1,0,x,x", "expected same or cross"),
        ("p,same,a,-1,a,1,0,x,x", "source_frame is '-1'"),
        ("p,same,a,0,a,1,0,x,x\np,same,a,0,a,1,0,x,x", "names a pair twice"),
        ("", "is empty"),
    ],
)
def test_lists_that_are_not_right_are_refused(row: str, why: str, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.csv", [])
    with (tmp_path / "pairs.csv").open("a") as file:
        file.write(row)
    with pytest.raises(InputError, match=why):
        read_pairs(tmp_path / "pairs.csv")


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", torch.arange(12).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 20)
    found = [float(frame.mean()) * 20 for frame in clip_frames(tmp_path / "clip")]
    assert found == pytest.approx(range(12), abs=0.05)
    assert [float(f.mean()) * 20 for f in clip_frames(tmp_path / "clip", 9, 2)] == pytest.approx(
        [9, 10], abs=0.05
    )


# ---- distances


def parameters(frames: int, seed: int, head: str = FLAME) -> FaceParameters:
    generator = torch.Generator().manual_seed(seed)
    neutral = FaceParameters.neutral(frames, head, 4, 3)
    return replace(
        neutral,
        expression=torch.randn(frames, 3, generator=generator),
        pose=0.2 * torch.randn(frames, 15, generator=generator),
    )


def test_pose_and_expression_distance_by_hand() -> None:
    truth = parameters(2, 0)
    found = replace(truth, expression=truth.expression.clone(), pose=truth.pose.clone())
    found.expression[0] += torch.tensor([0.3, -0.3, 0.0])
    found.pose[1, 0] += 0.06  # of the whole head
    found.pose[1, 8] -= 0.12  # of the jaw
    found.pose[1, 3] += 5  # a neck, which DECA does not tell
    distances = face_distances(found, truth, is_deca=True)
    assert distances.expression.tolist() == pytest.approx([0.2, 0], abs=1e-6)
    assert distances.pose.tolist() == pytest.approx([0, 0.03], abs=1e-6)
    turned = replace(truth, pose=torch.zeros(2, 15))
    straight = replace(turned, pose=turned.pose.clone())
    straight.pose[:, 4] = 0.3
    straight.pose[:, 1] = -0.06
    other = face_distances(straight, turned, is_deca=False)
    assert other.pose.tolist() == pytest.approx([0.08, 0.08], abs=1e-6)
    assert other.rotation.tolist() == pytest.approx([math.degrees(0.24)] * 2, abs=1e-4)


def test_frames_without_a_face_are_left_out_and_counted() -> None:
    truth, found = parameters(4, 0), parameters(4, 1)
    found.valid[1], truth.valid[2] = False, False
    distances = face_distances(found, truth, is_deca=True)
    assert len(distances.pose) == len(distances.expression) == 2 and distances.missing == 2


def test_the_five_points_lie_on_eyes_nose_and_mouth() -> None:
    head = HeadModel.bundled()
    points = five_points(head, head.neutral(2), 200)
    right_eye, left_eye, nose, right_mouth, left_mouth = points[0]
    assert right_eye[0] < nose[0] < left_eye[0] and right_mouth[0] < nose[0] < left_mouth[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
    assert torch.allclose(five_points(head, head.neutral(1), 400)[0], 2 * points[0], atol=1e-3)


# ---- flicker


def test_streamed_flicker_is_the_flicker_of_the_whole() -> None:
    video, truth = noise(6, 0), noise(6, 1).cumsum(0) / 6
    found = Flicker()
    for frame, true in zip(video, truth, strict=True):
        found.update(frame, true)
    assert found.value == pytest.approx(flicker(video[None], truth[None]), rel=1e-6)
    assert math.isnan(Flicker().value)


def test_warping_error_of_known_flow_by_hand() -> None:
    first = torch.zeros(3, 8, 10)
    first[:, 3, 4] = 1
    second = first.roll(2, dims=2)
    there = torch.zeros(2, 8, 10)
    there[0] = 2
    assert warped_difference(first, second, there, -there) == pytest.approx(0, abs=1e-9)
    # 8 x 8 pixels stay in the picture; one of them is 0.5 too bright in each color
    brighter = second.clone()
    brighter[:, 5, 5] = 0.5
    assert warped_difference(first, brighter, there, -there) == pytest.approx(3 * 0.25 / 64, abs=1e-9)
    # where flow there and back do not cancel, a pixel is hidden and doesn't count
    back = -there
    back[:, 5, 5] = 9
    assert warped_difference(first, brighter, there, back) == pytest.approx(0, abs=1e-9)
    assert warped_difference(first, second, there, there + 3) is None


def test_motion_is_no_warping_error_but_flicker_is() -> None:
    picture = torch.nn.functional.interpolate(noise(1, 3, 12), (96, 96), mode="bicubic").clamp(0.1, 0.9)[0]

    def error(frames: Iterator[Tensor]) -> float:
        found = WarpingMetric()
        for frame in frames:
            found.update(frame)
        return found.value

    moving = error(picture.roll(shift, dims=2) for shift in range(5))
    flickering = error(picture.roll(i, dims=2) + 0.1 * (i % 2) for i in range(5))
    assert error(picture for _ in range(3)) < 1e-9
    assert flickering > 0.02 and moving < 0.1 * flickering
    assert math.isnan(error(iter([picture])))


# ---- results


@pytest.fixture
def networks(tmp_path: Path) -> MetricModels:
    path = write_onnx(tmp_path / "arcface.onnx", np.random.default_rng(0).normal(size=(3, 8)), side=112)
    return MetricModels(inception=MeanColors(), embedder=Embedder.load(path))


def copy_truth(pairs: list[Pair], folder: Path) -> Method:
    for pair in pairs:
        write_clip(
            folder / pair.pair, torch.stack(list(clip_frames(Path(pair.driving), pair.first, pair.frames)))
        )
    return Method.of(folder.name, folder)


def test_the_truth_as_a_result_is_perfect(videos: Path, tmp_path: Path) -> None:
    for clip in find_clips(videos):  # still videos, in which source and result are the same picture
        frames = read_image(clip / "0.png")
        write_clip(clip, frames.expand(12, -1, -1, -1))
    pairs = draw_pairs(videos, (SAME,), count=4)
    method = copy_truth(pairs, tmp_path / "truth")
    embedder = Embedder.load(write_onnx(tmp_path / "net.onnx", np.eye(3), side=112))
    networks = MetricModels(MeanColors(), embedder)
    report, _ = measure([method], pairs, networks, reference=find_clips(tmp_path / "truth"))
    found = report["methods"]["truth"]["protocols"][SAME]
    assert found["psnr"] == pytest.approx(100) and found["ssim"] == pytest.approx(1, abs=1e-5)
    assert found["csim"] == pytest.approx(1, abs=1e-6)
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["warping"] == pytest.approx(0, abs=1e-9)
    assert (found["results"], found["frames"]) == (4, 44)
    assert report["methods"]["truth"]["problems"] == {}


def test_moving_truth_has_flicker_one_and_no_distance(
    videos: Path, tmp_path: Path, networks: MetricModels
) -> None:
    pairs = draw_pairs(videos, (SAME,), count=4)
    methods = [copy_truth(pairs, tmp_path / "truth"), copy_truth(pairs, tmp_path / "still")]
    for folder in (tmp_path / "still").iterdir():
        for file in folder.iterdir():
            write_image(file, noise(1, 0)[0])
    report, sheet = measure(methods, pairs, networks, reference=find_clips(tmp_path / "truth"))
    truth, still = (report["methods"][name]["protocols"][SAME] for name in ("truth", "still"))
    assert truth["fid"] == pytest.approx(0, abs=1e-9) and truth["flicker"] == pytest.approx(1)
    assert still["fid"] > 1e-4 and still["flicker"] == 0 and still["csim"] != truth["csim"]
    assert sheet is not None and sheet.shape == (3, 4 * SHEET_SIDE, 4 * SHEET_SIDE)


def test_csim_is_the_mean_cosine_with_the_source_over_all_frames(tmp_path: Path) -> None:
    red, green = torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0.5, 1.0, 0.5])
    write_clip(tmp_path / "videos" / "a" / "v", red.view(1, 3, 1, 1).expand(3, 3, 16, 16))
    write_clip(tmp_path / "videos" / "b" / "v", green.view(1, 3, 1, 1).expand(3, 3, 16, 16))
    pairs = [p for p in draw_pairs(tmp_path / "videos", (CROSS,)) if p.source_identity == "a"]
    shown = torch.stack([red, green, (red + green) - 0.5]).view(3, 3, 1, 1).expand(3, 3, 16, 16)
    write_clip(tmp_path / "ours" / pairs[0].pair, shown)
    embedder = Embedder.load(write_onnx(tmp_path / "net.onnx", np.eye(3), side=112))
    report, _ = measure([Method.of("ours", tmp_path / "ours")], pairs, MetricModels(embedder=embedder))
    # 128/255 is not quite 0.5, and with it every other color of the files
    x, y = 1.0, 2 * 128 / 255 - 1
    colors = np.array([[x, y, y], [y, x, y], [x, x, y]])
    unit = colors / np.linalg.norm(colors, axis=1, keepdims=True)
    assert report["methods"]["ours"]["protocols"][CROSS]["csim"] == pytest.approx(
        float((unit @ unit[0]).mean()), abs=1e-6
    )


def test_missing_networks_are_said_in_the_cells(videos: Path, tmp_path: Path) -> None:
    pairs = draw_pairs(videos, (SAME, CROSS), count=2)
    report, _ = measure([copy_truth(pairs, tmp_path / "fomm")], pairs, MetricModels())
    for protocol in (SAME, CROSS):
        found = report["methods"]["fomm"]["protocols"][protocol]
        assert all(found.get(metric) is None for metric in ("fid", "csim", "apd", "aed"))
    row = next(line for line in results_markdown(report).splitlines() if line.startswith("| fomm |"))
    assert "| no Inception file | no ArcFace file | no DECA file | no DECA file |" in row
    json.dumps(report, allow_nan=False)


def test_bad_results_are_listed_and_the_rest_is_measured(
    videos: Path, tmp_path: Path, networks: MetricModels
) -> None:
    pairs = draw_pairs(videos, (SAME,), count=4)
    method = copy_truth(pairs, tmp_path / "ours")
    alone, _ = measure([method], pairs[3:], networks, reference=find_clips(videos))
    missing, broken, short = (pair.pair for pair in pairs[:3])
    tiny = replace(pairs[0], pair="tiny")
    write_clip(tmp_path / "ours" / "tiny", torch.rand(11, 3, 8, 8))
    (tmp_path / "ours" / missing).rename(tmp_path / "elsewhere")
    (tmp_path / "ours" / broken / "3.png").write_bytes(b"\x89PNG nonsense")
    (tmp_path / "ours" / short / "10.png").unlink()
    report, _ = measure([method], [*pairs, tiny], networks, reference=find_clips(videos))
    ours = report["methods"]["ours"]
    assert set(ours["problems"]) == {missing, broken, short, "tiny"}
    assert ours["problems"]["tiny"] == "its frames have only 8x8 pixels"
    assert "no result" in ours["problems"][missing]
    assert "could not be read" in ours["problems"][broken]
    assert "10 frames where 11 drive" in ours["problems"][short]
    expected = alone["methods"]["ours"]["protocols"][SAME]
    for metric in ("fid", "csim", "flicker", "warping"):  # the broken ones have left no trace
        assert ours["protocols"][SAME][metric] == pytest.approx(expected[metric], rel=1e-9)
    assert f"- ours, {short}: it has 10 frames" in results_markdown(report)


def test_a_damaged_video_does_not_stop_the_others(videos: Path, tmp_path: Path) -> None:
    pairs = draw_pairs(videos, (SAME,), count=2)
    folder = tmp_path / "ours"
    for pair in pairs:
        with VideoWriter(folder / f"{pair.pair}.mp4", Fraction(25)) as video:
            video.write(noise(11, 0))
    whole = (folder / f"{pairs[0].pair}.mp4").read_bytes()
    (folder / f"{pairs[0].pair}.mp4").write_bytes(whole[: len(whole) // 2])
    report, _ = measure([Method.of("ours", folder)], pairs, MetricModels())
    assert list(report["methods"]["ours"]["problems"]) == [pairs[0].pair]
    assert report["methods"]["ours"]["protocols"][SAME]["results"] == 1


def test_frames_are_never_held_all_at_once(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    pairs = [Pair("p", SAME, "unused", 0, "unused", 1, 0, "a", "a")]
    alive: set[int] = set()
    most = 0

    def stream(clip: Path, first: int = 0, count: int = 0) -> Iterator[Tensor]:
        nonlocal most
        for index in range(count or 200):
            frame = torch.full((3, 16, 16), index / 200)
            alive.add(id(frame))
            weakref.finalize(frame, alive.discard, id(frame))
            most = max(most, len(alive))
            yield frame

    for module in (results, pairs_module):
        monkeypatch.setattr(module, "clip_frames", stream)
    for module in (results, sheet):
        monkeypatch.setattr(module, "one_frame", lambda clip, index: torch.zeros(3, 16, 16))
    (tmp_path / "ours" / "p").mkdir(parents=True)
    report, _ = measure(
        [Method.of("ours", tmp_path / "ours")], pairs, MetricModels(MeanColors()), reference=[Path("unused")]
    )
    assert report["methods"]["ours"]["protocols"][SAME]["frames"] == 200
    assert most <= 2 * pairs_module.AT_ONCE + 2  # a stack, the one before it, and their last frames


# ---- tables


def summary(value: float, **told: Any) -> dict[str, Any]:
    rows = {"results": 2, "frames": 8, "frames_without_face": {}, "pairs": {}, "apd": value, "aed": 2 * value}
    protocols = {SAME: rows, CROSS: {**rows, "apd": 10 * value}}
    return {"fsa": None, "adapter": None, "checkpoint": "", "problems": {}, **told, "protocols": protocols}


def report_of(methods: dict[str, Any]) -> dict[str, Any]:
    return {
        "networks": {},
        "missing": {"fid": "no Inception file"},
        "pairs": {SAME: 2, CROSS: 2},
        "reference": {"videos": 1, "frames": None, "chosen": ""},
        "methods": methods,
    }


def test_the_best_is_bold_and_the_second_underlined() -> None:
    text = results_markdown(report_of({"a": summary(0.3), "b": summary(0.1), "c": summary(0.2)}))
    rows = [line for line in text.split("## Cross")[0].splitlines() if line[:4] in ("| a ", "| b ", "| c ")]
    assert "**" not in rows[0] and "<u>" not in rows[0]
    assert "**0.1000** | **0.2000**" in rows[1]
    assert "<u>0.2000</u> | <u>0.4000</u>" in rows[2]
    assert all("no Inception file" in row for row in rows)


def test_the_ablation_has_the_rows_of_table_2() -> None:
    methods = {
        "full": summary(0.1, fsa=True, adapter=True),
        "no_adapter": summary(0.2, fsa=True, adapter=False),
        "no_fsa": summary(0.3, fsa=False, adapter=True),
        "neither": summary(0.4, fsa=False, adapter=False),
    }
    for name in ("no_fsa", "neither"):  # not run on the same identity, where alignment has no part
        methods[name]["protocols"].pop(SAME)
    rows = results_markdown(report_of(methods)).split("Table 2)")[1].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    head = cells[0]
    same, cross = head.index("same APD↓"), head.index("cross APD↓")
    assert [(row[0], row[1], row[same], row[cross]) for row in cells[2:]] == [
        ("–", "–", "0.2000", "4.0000"),
        ("✓", "–", "–", "2.0000"),
        ("–", "✓", "0.1000", "3.0000"),
        ("✓", "✓", "–", "1.0000"),
    ]


def test_each_checkpoint_has_an_ablation_of_its_own() -> None:
    methods = {}
    for name, value in (("a", 0.1), ("b", 0.5)):
        methods[f"{name} full"] = summary(value, fsa=True, adapter=True, checkpoint=name)
        methods[f"{name} no_fsa"] = summary(value + 0.1, fsa=False, adapter=True, checkpoint=name)
        methods[f"{name} no_fsa"]["protocols"].pop(SAME)
    tables = results_markdown(report_of(methods)).split("Table 2)")[1]
    first, second = tables.split("### b\n")
    assert first.strip().startswith("### a")
    assert "| 0.1000 |" in first and "0.5000" not in first
    assert "| 0.5000 |" in second and "0.1000" not in second.split("## How")[0]


# ---- our own method


class Recorder:
    """Stands in for the pipeline: tells whose shape it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    def reenact(
        self, picture: Tensor, source: FaceParameters, driving: FaceParameters, **options: Any
    ) -> Iterator[Tensor]:
        self.calls.append((float(source.shape[0, 0] - driving.shape[0, 0]), options["expression_scale"]))
        yield picture.expand(len(driving), -1, -1, -1)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_switch_alignment_and_adapter(
    name: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(frames: Any, models: Any, mode: str, *, what: str, total: int | None) -> Any:
        neutral = FaceParameters.neutral(total or 1, "bundled", 2, 2)
        return SimpleNamespace(parameters=replace(neutral, shape=neutral.shape + ("source" in what)))

    monkeypatch.setattr("anifacediff_core.lab.evaluation.generate.extract_parameters", read)
    pipeline, variant = Recorder(), VARIANTS[name]
    generator = Generator(pipeline, None, SamplingSettings(size=32, expression_scale=0.7), pictures=True)  # type: ignore[arg-type]
    pairs = draw_pairs(videos, (SAME, CROSS), count=1)
    problems = generator.run(variant, pairs, tmp_path / "out", "demo", lambda done, total: None)
    assert problems == {}
    scale = 0.7 if variant.adapter else 0.0
    cross = (1.0 if variant.fsa else 0.0, scale)
    assert pipeline.calls == ([(0.0, scale), cross] if variant.fsa else [cross])
    method = Method.of(name, tmp_path / "out")
    assert (method.fsa, method.adapter, method.protocols) == (variant.fsa, variant.adapter, variant.protocols)
    report, _ = measure([method], pairs, MetricModels())
    assert report["methods"][name]["problems"] == {}


def test_results_of_other_settings_are_not_mixed(videos: Path, tmp_path: Path) -> None:
    def run(sampling: SamplingSettings) -> None:
        Generator(Recorder(), None, sampling).run(  # type: ignore[arg-type]
            VARIANTS["full"], [], tmp_path / "out", "demo", lambda done, total: None
        )

    run(SamplingSettings())
    run(SamplingSettings())
    with pytest.raises(InputError, match="results of other settings"):
        run(SamplingSettings(steps=7))
    with pytest.raises(InputError, match="other settings or pairs"):
        Generator(Recorder(), None, SamplingSettings()).run(  # type: ignore[arg-type]
            VARIANTS["full"],
            draw_pairs(videos, (SAME,), count=1),
            tmp_path / "out",
            "demo",
            lambda done, total: None,
        )


def test_a_source_that_nobody_needs_does_not_cost_the_report(videos: Path, tmp_path: Path) -> None:
    (pair,) = draw_pairs(videos, (CROSS,), count=1)
    shutil.copytree(pair.driving, tmp_path / "results" / pair.pair)
    gone = replace(pair, source=str(tmp_path / "gone.png"))
    report, sheet = measure([Method.of("copy", tmp_path / "results")], [gone], MetricModels())
    assert report["methods"]["copy"]["protocols"][CROSS]["results"] == 1
    assert sheet is not None and float(sheet[:, :, :160].std()) == 0


# ---- the whole way, on avatars


@pytest.fixture(scope="module")
def avatars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avatars")
    clips = ["avatars", "clips", "--out", str(folder), "--count", "2", "--frames", "5", "--size", "128"]
    assert main([*clips, "--device", "cpu"]) == 0
    return folder


def test_avatars_from_the_list_to_the_report(
    avatars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, runs, out = (str(tmp_path / name) for name in ("pairs.csv", "runs", "report"))
    assert main(["evaluate", "pairs", "--videos", str(avatars), "--count", "1", "--out", listed]) == 0
    run = [
        "evaluate",
        "run",
        "--pairs",
        listed,
        "--out",
        runs,
        "--variants",
        "full",
        "no_fsa",
        "--size",
        "128",
    ]
    assert main([*run, "--steps", "2", "--cfg", "1", "--device", "cpu"]) == 0
    copied = copy_truth(read_pairs(Path(listed)), tmp_path / "truth")
    net = write_onnx(tmp_path / "arcface.onnx", np.eye(3), side=112)
    measured = [
        "evaluate",
        "results",
        "--pairs",
        listed,
        "--results",
        runs,
        "--results",
        f"truth={copied.folder}",
    ]
    options = ["--arcface", str(net), "--bundled-encoder", "--out", out, "--device", "cpu"]
    assert main([*measured, *options]) == 0
    assert "| truth |" in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(report["methods"]) == {"runs full", "runs no_fsa", "truth"}
    truth, ours = (report["methods"][name]["protocols"][SAME] for name in ("truth", "runs full"))
    assert truth["pose_bundled"] == pytest.approx(0, abs=1e-6) == truth["expression_bundled"]
    assert truth["flicker"] == pytest.approx(1) and truth["apd"] is None
    assert ours["pose_bundled"] > 1e-4 and ours["results"] == 1
    assert "five points" in report["networks"]["csim"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "pose (bundled encoder)" in text and "no DECA file" in text and "Table 2" in text
    assert read_image(tmp_path / "report" / "sheet.jpg").shape[-1] == 5 * SHEET_SIDE


def test_a_folder_of_clips_in_one_command(
    avatars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clips"
    command = ["evaluate", "clips", "--videos", str(avatars), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--size", "64", "--bundled-encoder"]) == 0
    assert "| AniFaceDiff full |" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["pairs"] == {SAME: 2, CROSS: 2}
    protocols = report["methods"]["AniFaceDiff full"]["protocols"]
    for pair, measured in protocols[SAME]["pairs"].items():
        made = torch.stack(list(clip_frames(out / "results" / "full" / pair)))
        listed = next(each for each in read_pairs(out / "pairs.csv") if each.pair == pair)
        true = torch.stack(list(clip_frames(Path(listed.driving), 1)))
        true = torch.nn.functional.interpolate(true, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        expected = -10 * (made - true).square().mean((1, 2, 3)).log10()
        assert measured["psnr"] == pytest.approx(float(expected.mean()), abs=1e-3)
        assert 15 < measured["psnr"] < 40 and measured["flicker"] > 0
    assert protocols[CROSS]["psnr"] is None and protocols[CROSS]["pose_bundled"] > 0


def test_apd_and_aed_are_measured_by_decas_own_file(avatars: Path, tmp_path: Path) -> None:
    files.write_deca(tmp_path / "deca_model.tar")
    flame.write_pickle(tmp_path / "generic_model.pkl", flame.make_fields())
    pairs = [replace(pair, frames=2) for pair in draw_pairs(avatars, (SAME,), count=1)]
    reader = FaceReader.deca(tmp_path / "deca_model.tar", tmp_path / "generic_model.pkl", files.BUNDLED)
    report, _ = measure([copy_truth(pairs, tmp_path / "truth")], pairs, MetricModels(readers=(reader,)))
    found = report["methods"]["truth"]["protocols"][SAME]
    assert found["frames_without_face"] == {"DECA (deca_model.tar)": 0}
    assert found["apd"] == pytest.approx(0, abs=1e-6) and found["aed"] == pytest.approx(0, abs=1e-6)
    assert report["networks"]["apd, aed"] == "DECA (deca_model.tar)"


def test_what_cannot_be_measured_is_one_sentence(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = str(tmp_path / "pairs.csv")
    assert main(["evaluate", "pairs", "--videos", str(videos), "--count", "2", "--out", listed]) == 0
    (tmp_path / "ours").mkdir()
    base = ["evaluate", "results", "--pairs", listed, "--out", str(tmp_path / "r"), "--device", "cpu"]
    for extra, why in (
        (["--results", "none"], "There is no folder none"),
        (["--results", str(tmp_path / "ours"), "--deca", "x.tar"], "DECA and FLAME belong together"),
        (["--results", str(tmp_path / "ours"), "--arcface", "x.pth"], "There is no file x.pth"),
        (["--results", "a=" + str(tmp_path / "ours"), "--results", "a=" + listed], "Two are called a"),
        (["--results", str(tmp_path / "ours"), "--reference", str(tmp_path / "ours")], "holds no videos"),
    ):
        capsys.readouterr()
        assert main([*base, *extra]) == 2
        told = capsys.readouterr().err.strip()
        assert why in told and told.count("\n") == 0
    (tmp_path / "ours" / METHOD_FILE).write_text("{")
    assert main([*base, "--results", str(tmp_path / "ours")]) == 2
