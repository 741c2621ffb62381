"""The blueprint *Reenact a Face* and the template that opens as an app: two files, few clicks, a video."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import install
from anifacediff_core.lab import client
from harness import browser, server

NAME = "Reenact a Face"
APP = "reenact_a_face.app"
FRAMES = 4
MOST_CLICKS = 3
FIRST_WITH_APPS = (1, 41, 13)  # of the front-end


def blueprint() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (install.ROOT / "subgraphs" / f"{NAME}.json").read_text(encoding="utf-8")
    )
    return found


def test_app_and_blueprint_hold_the_same() -> None:
    assert server.read_workflow(APP)["definitions"] == blueprint()["definitions"]


def test_an_app_shows_widgets_that_are_there() -> None:
    for name in (APP, "live.app"):
        workflow = server.read_workflow(name)
        nodes = {node["id"]: node for node in workflow["nodes"]}
        shown = workflow["extra"]["linearData"]
        assert workflow["extra"]["linearMode"] is True and set(shown["outputs"]) <= set(nodes)
        assert {entry[0] for entry in shown["inputs"]} <= set(nodes)


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_typing_reenact_finds_the_blueprint(
    browser_driver: Path, running_comfyui: client.Server, vue: bool
) -> None:
    task = {"vue": vue, "query": "reenact", "title": NAME}
    seen = browser.drive("app.mjs", running_comfyui, browser_driver, task, 900)
    assert seen["title"] == NAME and seen["unknown"] == [] and seen["errors"] == []
    assert ["picture", "IMAGE"] in seen["inputs"] and ["video", "VIDEO"] in seen["inputs"]
    assert seen["outputs"] == [["video", "VIDEO"]]
    assert seen["widgets"] == [["face", 0], ["expression", 1], ["size", 256], ["steps", 1], ["seed", 1]]


def opens_apps() -> bool:
    """Whether this environment's front-end opens workflows as apps."""
    try:
        installed = importlib.metadata.version("comfyui_frontend_package")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in installed.split(".")[:3]) >= FIRST_WITH_APPS


@pytest.mark.skipif(not opens_apps(), reason="this front-end does not open workflows as apps")
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_two_files_and_a_click_make_a_video(
    browser_driver: Path, running_comfyui: client.Server, tmp_path: Path, vue: bool
) -> None:
    picture, driver = tmp_path / f"my_face_{vue}.png", tmp_path / f"my_driver_{vue}.mp4"
    shutil.copy(server.EXAMPLES / "source.png", picture)
    server.shorten(server.EXAMPLES / "driving.mp4", driver, FRAMES)
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "name": APP,
        "vue": vue,
        "files": [str(picture), str(driver)],
        "result": "AniFaceDiff_",
        "folder": str(tmp_path),
        "timeout": 600_000,
    }
    seen = browser.drive("app.mjs", running_comfyui, browser_driver, task, 1200)
    assert seen["outcome"] == "execution_success" and len(seen["clicks"]) <= MOST_CLICKS
    made = [video["size"] for video in seen["videos"] if video["file"].startswith("AniFaceDiff_")]
    assert made and all(size == [256, 256] for size in made)
    assert seen["errors"] == []
    words = seen["labels"].splitlines()
    assert [word for word in ("picture", "video", "expression", "steps", "seed") if word not in words] == []
