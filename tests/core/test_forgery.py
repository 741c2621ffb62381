"""Forgery detection: AUC by hand, scores from CSV files and from ONNX detectors, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn", reason="the extra eval is not installed")
pytest.importorskip("onnxruntime", reason="the extra eval is not installed")
pytest.importorskip("onnx", reason="the extra dev is not installed")

from anifacediff_core.capture.detector import Detection
from anifacediff_core.errors import InputError
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.evaluation.forgery import (
    Detector,
    Preprocessing,
    Score,
    Videos,
    chosen_frames,
    detection_rates,
    forgery_report,
    read_scores,
    score_videos,
)
from anifacediff_core.lab.evaluation.onnx_model import OnnxModel
from anifacediff_core.lab.evaluation.tables import forgery_markdown
from anifacediff_core.video import write_image
from harness.onnx_files import write_onnx

BRIGHTNESS = np.full((3, 1), 1 / 3)


def scores(*videos: tuple[str, int, list[float]], method: str = "") -> list[Score]:
    return [
        Score(name, frame, value, label, method if label else "")
        for name, label, values in videos
        for frame, value in enumerate(values)
    ]


# ---- the measure


def test_auc_by_hand_with_ties() -> None:
    # eighths: real frames 1 4 4 6, fake 4 5 6; of the 12 pairs 7 are right and 3 are ties, which count half:
    # 4 beats 1 and ties with two; 5 beats three; 6 beats three and ties with one
    eighths = (("r", 0, [1.0, 4]), ("s", 0, [4.0, 6]), ("f", 1, [4.0, 5, 6]))
    found = detection_rates(
        scores(*((name, kind, [x / 8 for x in values]) for name, kind, values in eighths))
    )
    assert found["frame_auc"] == pytest.approx((1 + 0.5 * 2 + 3 + 3 + 0.5) / 12, abs=1e-6)
    # videos: real 2.5 and 5, fake 5: one right, one tie
    assert found["video_auc"] == pytest.approx(0.75, abs=1e-6)
    counts = [found[key] for key in ("real_frames", "fake_frames", "real_videos", "fake_videos")]
    assert counts == [4, 3, 2, 1]


def test_a_videos_score_is_the_mean_of_its_frames() -> None:
    # one bright frame makes the first real video's maximum the highest of all, but not its mean
    found = detection_rates(
        scores(("r", 0, [0.9, 0.0, 0.0]), ("s", 0, [0.1]), ("f", 1, [0.5, 0.5]), ("g", 1, [0.6, 0.4, 0.5]))
    )
    assert found["video_auc"] == 1
    assert found["frame_auc"] == pytest.approx(15 / 20, abs=1e-6)


def test_perfect_inverted_and_blind_detectors() -> None:
    good = detection_rates(scores(("r", 0, [0.1, 0.2]), ("f", 1, [0.8, 0.9])))
    bad = detection_rates(scores(("r", 0, [0.8, 0.9]), ("f", 1, [0.1, 0.2])))
    blind = detection_rates(scores(("r", 0, [0.5, 0.5]), ("f", 1, [0.5, 0.5])))
    assert [x["frame_auc"] for x in (good, bad, blind)] == [1, 0, 0.5]
    assert [x["frame_eer"] for x in (good, bad, blind)] == pytest.approx([0, 1, 0.5], abs=1e-6)


def test_equal_error_rate_by_hand() -> None:
    # above .45 there are one of four real ones and three of four fakes: a quarter wrong on either side
    found = detection_rates(scores(("r", 0, [0.1, 0.2, 0.3, 0.7]), ("f", 1, [0.25, 0.5, 0.8, 0.9])))
    assert found["frame_eer"] == pytest.approx(0.25, abs=1e-6)


def test_one_kind_alone_has_no_auc() -> None:
    with pytest.raises(InputError, match="only one kind"):
        detection_rates(scores(("r", 0, [0.1, 0.2])))
    with pytest.raises(InputError, match="only one kind"):
        forgery_report({"net": scores(("r", 0, [0.1, 0.2]))}, {})


def test_methods_are_told_apart_and_taken_together() -> None:
    real = scores(("r", 0, [0.2, 0.4]))
    fakes = scores(("a", 1, [0.9]), method="ours") + scores(("b", 1, [0.3]), method="fomm")
    report = forgery_report({"net": real + fakes, "other": real + fakes[:1]}, {})
    rates = {name: rows["net"]["frame_auc"] for name, rows in report["methods"].items()}
    assert rates == {"ours": 1, "fomm": 0.5, "all": 0.75}
    assert "other" not in report["methods"]["fomm"]
    text = forgery_markdown(report)
    assert "| net | 50.00 |" in text and "| Average | 100.00 |" in text


# ---- scores from a file


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def clip(folder: Path, brightness: list[float], side: int = 16) -> None:
    for index, value in enumerate(brightness):
        write_image(folder / f"{index}.png", torch.full((3, side, side), value))


def test_labels_come_from_the_table_or_from_the_folders(tmp_path: Path) -> None:
    written = table(
        tmp_path / "a.csv", "video,frame,score,label,method\nx,0,0.1,real,\ny,0,0.9,1,ours\nz,1,-3e-1,fake,\n"
    )
    assert read_scores(written) == [
        Score("x", 0, 0.1, 0),
        Score("y", 0, 0.9, 1, "ours"),
        Score("z", 1, -0.3, 1),
    ]
    clip(tmp_path / "real" / "x", [0.1])
    clip(tmp_path / "fomm" / "y", [0.1])
    videos = Videos.of(tmp_path / "real", {"fomm": tmp_path / "fomm"})
    bare = table(tmp_path / "b.csv", "video,frame,score\nx,0,0.1\nelsewhere/y,0,0.9\n")
    assert [(s.label, s.method) for s in read_scores(bare, videos)] == [(0, ""), (1, "fomm")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("video,score\nx,1\n", "expected the columns video, frame, score"),
        ("video,frame,score\nx,0,1\n", "line 2: nothing tells whether 'x'"),
        ("video,frame,score,label\nx,0,high,1\n", "line 2: frame and score must be numbers"),
        ("video,frame,score,label\nx,0,nan,1\n", "line 2: the score is nan"),
        ("video,frame,score,label\nx,0,.1,maybe\n", "line 2: the label is 'maybe'"),
        ("video,frame,score,label\nx,0,.1,1\nx,0,.2,1\n", "line 3: frame 0 of x comes twice"),
    ],
)
def test_tables_that_are_not_right_are_refused_by_line(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        read_scores(table(tmp_path / "scores.csv", text))


def test_fakes_may_have_the_name_of_the_real_video_they_are_made_from(tmp_path: Path) -> None:
    text = "video,frame,score,label,method\nx,0,.1,0,\nx,0,.8,1,a\nx,0,.9,1,b\n"
    scores = read_scores(table(tmp_path / "scores.csv", text))
    assert [(s.label, s.method, s.score) for s in scores] == [(0, "", 0.1), (1, "a", 0.8), (1, "b", 0.9)]


def test_a_name_that_stands_for_real_and_fake_needs_a_label(tmp_path: Path) -> None:
    clip(tmp_path / "real" / "x", [0.1])
    clip(tmp_path / "fake" / "x", [0.1])
    videos = Videos.of(tmp_path / "real", {"fake": tmp_path / "fake"})
    text = "video,frame,score\nx,0,.1\n"
    with pytest.raises(InputError, match="several videos have this name"):
        read_scores(table(tmp_path / "scores.csv", text), videos)
    whole = f"video,frame,score\n{tmp_path / 'fake' / 'x'},0,.1\n"
    assert read_scores(table(tmp_path / "scores.csv", whole), videos)[0].label == 1


# ---- scores by a detector


def test_frames_are_spread_evenly() -> None:
    assert chosen_frames(5, 0) == chosen_frames(5, 9) == [0, 1, 2, 3, 4]
    assert chosen_frames(100, 4) == [12, 37, 62, 87]
    assert len(chosen_frames(33, 32)) == 32


def test_pictures_are_normalized_as_told(tmp_path: Path) -> None:
    model = OnnxModel.load(write_onnx(tmp_path / "net.onnx", np.diag([1.0, 10, 100])[:, 1:2]))
    detector = Detector(model, Preprocessing(size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)))
    assert float(detector(torch.full((1, 3, 16, 16), 0.6))[0]) == pytest.approx(10 * 0.4 / 0.25, rel=1e-5)


def test_logits_become_probabilities_and_probabilities_stay(tmp_path: Path) -> None:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    logits = OnnxModel.load(write_onnx(tmp_path / "a.onnx", np.array([[1.0, 4], [0, 0], [0, 0]])))
    ours = Detector(logits, Preprocessing(size=8, **plain))(torch.ones(2, 3, 8, 8))
    assert ours.tolist() == pytest.approx([1 / (1 + math.exp(-3))] * 2, abs=1e-6)
    chances = OnnxModel.load(write_onnx(tmp_path / "b.onnx", np.array([[0.3, 0.7], [0, 0], [0, 0]])))
    assert Detector(chances, Preprocessing(size=8, **plain))(torch.ones(1, 3, 8, 8)).item() == pytest.approx(
        0.7
    )
    other = Detector(chances, Preprocessing(size=8, fake_class=0, **plain))
    assert other(torch.ones(1, 3, 8, 8)).item() == pytest.approx(0.3)
    with pytest.raises(InputError, match="no class 2"):
        Detector(chances, Preprocessing(size=8, fake_class=2))(torch.ones(1, 3, 8, 8))
    with pytest.raises(InputError, match="no output fake: choose from numbers"):
        Detector(chances, Preprocessing(output="fake"))(torch.ones(1, 3, 8, 8))


class Finder:
    """A face in the right lower quarter of bright pictures, none in dark ones."""

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        found = Detection(0.9, (0.25, 0.25, 1.0))  # the face square is twice the box
        return [[found] if frame.mean() > 0.1 else [] for frame in frames]


def test_with_a_margin_only_the_face_is_seen(tmp_path: Path) -> None:
    model = OnnxModel.load(write_onnx(tmp_path / "net.onnx", BRIGHTNESS))
    settings = Preprocessing(size=16, mean=(0.0,) * 3, std=(1.0,) * 3, margin=0.8)
    pictures = torch.zeros(2, 3, 64, 64)
    pictures[0, :, 24:, 24:] = 1.0
    found = Detector(model, settings, Finder())(pictures)
    # a box of 0.55 times 0.8 around (.75, .75) is .53 to .97: white, where the whole picture is 39 % white
    assert float(found[0]) == pytest.approx(1, abs=1e-5)
    assert math.isnan(float(found[1]))


def test_broken_videos_are_listed_and_the_rest_is_scored(tmp_path: Path) -> None:
    clip(tmp_path / "real" / "dark", [0.1, 0.2])
    clip(tmp_path / "fake" / "bright", [0.8, 0.9, 1.0])
    (tmp_path / "fake" / "broken.mp4").write_bytes(b"no video")
    model = OnnxModel.load(write_onnx(tmp_path / "net.onnx", BRIGHTNESS, side=8, batch=1))
    videos = Videos.of(tmp_path / "real", {"ours": tmp_path / "fake"})
    found, problems = score_videos(Detector(model), videos)
    assert [(s.label, s.frame) for s in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert list(problems) == [str(tmp_path / "fake" / "broken.mp4")]
    assert detection_rates(found)["frame_auc"] == 1


# ---- the command


def test_detectors_from_videos_to_table_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, values in enumerate(([0.1, 0.4], [0.2, 0.6])):
        clip(tmp_path / "real" / f"r{index}", values)
        clip(tmp_path / "ours" / f"f{index}", [1 - value for value in values])
    write_onnx(tmp_path / "bright.onnx", BRIGHTNESS)
    write_onnx(tmp_path / "dark.onnx", -BRIGHTNESS)
    folders = ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "ours")]
    nets = ["--detector", str(tmp_path / "bright.onnx"), "--detector", f"inverse={tmp_path / 'dark.onnx'}"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["evaluate", "forgery", *folders, *nets, *out, "--input-size", "8", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    # fakes .9 .6 .8 .4 against real .1 .4 .2 .6: 14 right or half of two ties
    assert "| bright | 87.50 | 100.00 |" in told and "| inverse | 12.50 | 0.00 |" in told
    assert "| Average | 50.00 | 50.00 |" in told
    report = json.loads((tmp_path / "out" / "forgery.json").read_text())
    assert report["methods"]["ours"]["bright"]["frame_auc"] == pytest.approx(0.875, abs=1e-6)
    again = ["--scores", f"again={tmp_path / 'out' / 'scores_bright.csv'}"]
    assert main(["evaluate", "forgery", *again, *out]) == 0
    assert "| again | 87.50 | 100.00 |" in capsys.readouterr().out


def test_what_cannot_be_scored_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "real" / "r", [0.1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    net = str(write_onnx(tmp_path / "net.onnx", BRIGHTNESS))
    folders = ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "real")]
    for options, why in (
        (folders, "There is no detector"),
        (["--detector", net], "A detector needs videos"),
        (["--detector", net, *folders[:2]], "Real and fake videos belong together"),
        (["--detector", net, "--real", str(tmp_path / "empty"), *folders[2:]], "holds no videos"),
        (["--detector", str(tmp_path / "broken.onnx"), *folders], "broken.onnx could not be opened"),
        (["--detector", net, *folders, "--std", "0", "1", "1"], "must be above 0"),
    ):
        capsys.readouterr()
        out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
        assert main(["evaluate", "forgery", *options, *out]) == 2
        told = capsys.readouterr().err.strip()
        assert why in told and told.count("\n") == 0
