"""Reenact Long Video in the real front-end: pictures, then the video, in both renderers of nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anifacediff_core.lab import client
from harness import browser


@pytest.fixture(scope="module", params=["classic", "vue"])
def found(
    request: pytest.FixtureRequest,
    browser_driver: Path,
    running_comfyui: client.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the node showed; see watch.mjs."""
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "name": "long_video",
        "type": "AniFaceDiffReenactLongVideo",
        "vue": request.param == "vue",
        "values": {"steps": 2, "cfg": 1, "filename_prefix": f"shown/{request.param}"},
        "folder": str(tmp_path_factory.mktemp(request.param)),
        "timeout": 900_000,
    }
    return {**browser.drive("watch.mjs", running_comfyui, browser_driver, task, timeout=1200), **task}


def test_pictures_are_shown_while_it_runs(found: dict[str, Any]) -> None:
    assert found["outcome"] == "execution_success"
    assert found["pictures"]


def test_the_finished_video_takes_their_place(found: dict[str, Any]) -> None:
    folder, _, name = found["values"]["filename_prefix"].partition("/")
    (video,) = (video for video in found["videos"] if video["query"].get("type") == "output")
    assert video["query"]["filename"] == f"{name}_00001_.mp4" and video["query"]["subfolder"] == folder
    assert video["size"] == [256, 256] and video["visible"]
    assert found["left"] == 0, "the pictures are gone"


def test_a_deleted_node_keeps_no_picture_in_memory(found: dict[str, Any]) -> None:
    assert found["kept"] == [1, 0]


def test_the_page_shows_no_errors(found: dict[str, Any]) -> None:
    # that one is the host's own
    assert [error for error in found["errors"] if "reading 'id'" not in error] == []
