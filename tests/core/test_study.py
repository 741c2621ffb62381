"""The study's page has no names in it, and the tally counts as done by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.evaluation.pairs import Pair, write_pairs
from anifacediff_core.lab.evaluation.study import tally, wilson
from anifacediff_core.video import write_image


def clip(folder: Path, value: float) -> None:
    for number in range(3):
        write_image(folder / f"{number}.png", torch.full((3, 32, 32), value))


def make_study(folder: Path, methods: list[str]) -> Path:
    """A study of two pairs, the second of which the last method lacks; returns its page."""
    for name in ("one", "two"):
        clip(folder / "videos" / name, 0.3)
    videos = [str(folder / "videos" / name) for name in ("one", "two")]
    write_pairs(
        folder / "pairs.csv",
        [
            Pair("first_pair", "same", videos[0], 0, videos[0], 1, 0, "a", "a"),
            Pair("second_pair", "cross", videos[0], 0, videos[1], 0, 0, "a", "b"),
        ],
    )
    arguments = []
    for number, method in enumerate(methods):
        clip(folder / method / "first_pair", 0.2 * number)
        if method != methods[-1]:
            clip(folder / method / "second_pair", 0.5)
        arguments += ["--results", f"{method}={folder / method}"]
    page = folder / "study.html"
    assert (
        main(["evaluate", "study", "--pairs", str(folder / "pairs.csv"), *arguments, "--out", str(page)]) == 0
    )
    return page


def answers(folder: Path, study: str, who: str, *choices: tuple[int, int, int]) -> Path:
    path = folder / f"answers_{who}.json"
    given = [{"pair": pair, "question": question, "choice": choice} for pair, question, choice in choices]
    path.write_text(json.dumps({"study": study, "participant": who, "answers": given}))
    return path


def key_file(folder: Path, methods: int = 2, pairs: int = 2) -> Path:
    key = {
        "study": "s",
        "methods": [f"m{n}" for n in range(methods)],
        "pairs": [f"p{n}" for n in range(pairs)],
    }
    (folder / "study.key.json").write_text(json.dumps(key))
    return folder / "study.key.json"


# --- The page ------------------------------------------------------------------------------------


def test_the_page_tells_no_names_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page = make_study(tmp_path, ["<script>alert(1)<", "secret"])
    text = page.read_text()
    for name in ("secret", "alert(1)", "first_pair", "second_pair", "videos"):
        assert name not in text
    assert not re.search(r"https?://|url\(|src=|import\(", text)
    key = json.loads((tmp_path / "study.key.json").read_text())
    assert key["methods"] == ["<script>alert(1)<", "secret"]
    assert key["pairs"] == ["first_pair"]  # of the other, one method has no result
    study = json.loads(re.search(r"const study = (.*);\n", text)[1])
    assert study["id"] == key["study"]
    (trial,) = study["pairs"]
    assert trial["source"].startswith("data:image/png;base64,")
    assert all(video.startswith("data:video/mp4;base64,") for video in (trial["driving"], *trial["results"]))
    assert trial["results"][0] != trial["results"][1]


def test_one_method_is_no_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study(tmp_path, ["a", "b"])
    arguments = ["--pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "c.html")]
    assert main(["evaluate", "study", "--results", str(tmp_path / "a"), *arguments]) == 2
    assert "two methods" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    both = ["--results", str(tmp_path / "a"), "--results", str(tmp_path / "empty")]
    assert main(["evaluate", "study", *both, *arguments]) == 2
    assert "no pair" in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


# --- The tally -----------------------------------------------------------------------------------


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = 0.8, n = 10, z = 1.96
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def test_choices_are_counted_by_question_and_in_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_file(tmp_path)
    files = [
        answers(tmp_path, "s", "ann", (0, 0, 1), (0, 1, 1), (0, 2, 0), (1, 0, 1), (1, 1, 0), (1, 2, 0)),
        answers(tmp_path, "s", "bob", (0, 0, 1), (1, 0, 0)),
    ]
    arguments = ["--key", str(key), "--answers", *map(str, files), "--out", str(tmp_path / "tally")]
    assert main(["evaluate", "tally", *arguments]) == 0
    report = json.loads((tmp_path / "tally" / "tally.json").read_text())
    assert (report["participants"], report["pairs"]) == (2, 2)
    counted = {
        name: {kind: (cell["chosen"], cell["of"]) for kind, cell in row.items()}
        for name, row in report["methods"].items()
    }
    assert counted == {
        "m0": {
            "image quality": (1, 4),
            "identity and detail": (1, 2),
            "pose and expression": (2, 2),
            "all": (4, 8),
        },
        "m1": {
            "image quality": (3, 4),
            "identity and detail": (1, 2),
            "pose and expression": (0, 2),
            "all": (4, 8),
        },
    }
    assert "| m1 | 75.0% [30.1%, 95.4%] | 50.0% [9.5%, 90.5%] |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"study": "other", "participant": "ann", "answers": []}, "another study"),
        (
            {"study": "s", "participant": "ann", "answers": [{"pair": 0, "question": 3, "choice": 0}]},
            "cannot give",
        ),
        (
            {"study": "s", "participant": "ann", "answers": [{"pair": 0, "question": 0, "choice": 2}]},
            "cannot give",
        ),
        (
            {"study": "s", "participant": "ann", "answers": [{"pair": -1, "question": 0, "choice": 0}]},
            "cannot give",
        ),
        (
            {"study": "s", "participant": "ann", "answers": [{"pair": True, "question": 0, "choice": 0}]},
            "cannot give",
        ),
        (
            {"study": "s", "participant": "ann", "answers": [{"pair": 0, "question": 0, "choice": 0}] * 2},
            "cannot give",
        ),
        ({"study": "s", "participant": "ann", "answers": "many"}, "cannot give"),
        ([1, 2], "another form"),
    ],
)
def test_answers_that_no_page_gives_are_refused(tmp_path: Path, given: Any, match: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(given))
    with pytest.raises(InputError, match=match):
        tally(key_file(tmp_path), [tmp_path / "a.json"])


def test_nobody_counts_twice(tmp_path: Path) -> None:
    ann = answers(tmp_path, "s", "ann", (0, 0, 1))
    (tmp_path / "again.json").write_text(ann.read_text())
    with pytest.raises(InputError, match="one participant"):
        tally(key_file(tmp_path), [ann, tmp_path / "again.json"])
