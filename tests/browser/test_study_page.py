"""A participant's way through the study's page, from a file and without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from anifacediff_core.lab.evaluation.pairs import Pair
from anifacediff_core.lab.evaluation.results import Method
from anifacediff_core.lab.evaluation.study import tally, write_study
from anifacediff_core.video import write_image
from harness import browser


def clip(folder: Path, value: float) -> str:
    for number in range(3):
        write_image(folder / f"{number}.png", torch.full((3, 64, 64), value))
    return str(folder)


def test_a_participant_chooses_and_saves(browser_driver: Path, tmp_path: Path) -> None:
    driving = clip(tmp_path / "driving", 0.1)
    pairs = [Pair(name, "same", driving, 0, driving, 0, 0, "a", "a") for name in ("one", "two")]
    for number in range(2):
        for place, pair in enumerate(pairs):
            clip(tmp_path / f"method{number}" / pair.pair, 0.2 * (1 + number + 2 * place))
    methods = [Method(f"method{number}", tmp_path / f"method{number}") for number in range(2)]
    page = tmp_path / "study.html"
    key = write_study(page, pairs, methods)

    task = {"page": str(page), "folder": str(tmp_path)}
    found = browser.drive("study.mjs", None, browser_driver, task, timeout=600)
    assert found["errors"] == []
    assert {address.partition(":")[0] for address in found["asked"]} <= {"file", "data"}
    assert [shown["early"] for shown in found["pages"]] == [False, False]
    assert found["pages"][0]["blocked"], "one goes on when all three questions are answered"

    study = json.loads(re.search(r"const study = (.*);\n", page.read_text())[1])
    answers = found["saved"]["answers"]
    assert {(answer["pair"], answer["question"]) for answer in answers} == {
        (p, q) for p in (0, 1) for q in range(3)
    }
    chosen = [study["pairs"][answer["pair"]]["results"][answer["choice"]] for answer in answers]
    assert chosen == [address for shown in found["pages"] for address in shown["chosen"]]
    report = tally(key, [Path(found["file"])])
    assert sum(method["all"]["chosen"] for method in report["methods"].values()) == 6
