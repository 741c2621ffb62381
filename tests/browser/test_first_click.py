"""The first click of somebody who has just installed the extension: a template, Run, a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anifacediff_core.lab import client
from harness import browser, server


@pytest.fixture(scope="module")
def fresh_host(comfyui: Path) -> Iterator[client.Server]:
    """A host that nobody has used: its input folder holds what the extension brings."""
    with server.start(comfyui) as running:
        yield running


# the renderer that comes second gets the first one's video out of the host's cache
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_template_runs_at_the_first_click(
    browser_driver: Path, fresh_host: client.Server, tmp_path: Path, vue: bool
) -> None:
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "name": "first_reenactment",
        "type": "AniFaceDiffSaveVideo",
        "result": "AniFaceDiff_",
        "vue": vue,
        "folder": str(tmp_path),
        "timeout": 900_000,
    }
    seen = browser.drive("click.mjs", fresh_host, browser_driver, task, 1200)
    assert (seen["invalid"], seen["missing"], seen["issues"]) == ([], [], []), "before anything was pressed"
    assert seen["outcome"] == "execution_success"
    (made,) = [video for video in seen["videos"] if video["file"].startswith(task["result"])]
    assert made["size"] == [256, 256] and made["seconds"] == pytest.approx(2, abs=0.1)
    assert seen["uploads"] == []
    assert [
        error for error in seen["errors"] if "reading 'id'" not in error
    ] == []  # that one is the host's own
