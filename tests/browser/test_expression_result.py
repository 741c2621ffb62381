"""The Expression Editor with its result in sight, in the real front-end, in both renderers of nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from anifacediff_core.lab import client
from harness import browser, server

SIZE, FRAMES = 128, 4
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["classic", "vue"])
def found(
    request: pytest.FixtureRequest,
    browser_driver: Path,
    running_comfyui: client.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What was seen; see result.mjs."""
    server.shorten(server.EXAMPLES / "driving.mp4", running_comfyui.base / "input" / "short.mp4", FRAMES)
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "vue": request.param == "vue",
        "size": SIZE,
        "prefix": f"expression_result_{request.param}",
        "folder": str(tmp_path_factory.mktemp(request.param)),
    }
    return {**browser.drive("result.mjs", running_comfyui, browser_driver, task, timeout=1200), **task}


def test_the_result_follows_the_sliders(found: dict[str, Any]) -> None:
    assert found["hidden"] and "Waiting" in found["waiting"] and found["side"] == SIZE
    keyframes = json.loads(found["text"])["keyframes"]
    assert [key["frame"] for key in keyframes] == [0, 3]
    assert "jawOpen" not in keyframes[0]["expression"], "it was undone while the result was shown"
    assert keyframes[1]["expression"]["headYaw"] == 60 and "headYaw" not in keyframes[0]["expression"]


def test_going_on_ends_the_run(found: dict[str, Any], running_comfyui: client.Server) -> None:
    assert found["ended"] == [] and found["end"] == ["execution_success"]
    assert found["left"] is None and found["queued"] is False
    assert len(list((running_comfyui.base / "output").glob(f"{found['prefix']}_*.mp4"))) == 1


def test_without_a_network_it_is_off_and_says_why(found: dict[str, Any]) -> None:
    assert found["off"] and "connect model" in found["why"]


def test_the_page_shows_no_errors(found: dict[str, Any]) -> None:
    # that one is the host's own
    assert [error for error in found["errors"] if "reading 'id'" not in error] == []


def test_every_word_of_the_panel_is_translated() -> None:
    folder = ROOT / "web" / "editor"
    words = (folder / "words.js").read_text(encoding="utf-8")
    scripts = [file.read_text(encoding="utf-8") for file in folder.glob("*.js") if file.name != "words.js"]
    used = {word for script in scripts for word in re.findall(r'\bt\(\s*"([^"]+)"', script)}
    used |= set(re.findall(r'^  "?([\w-]+)"?: \(', (folder / "keyframes.js").read_text(), re.MULTILINE))
    assert {"Saved", "The result", "ease-in-out", "hold", "Go on with what is dialed"} <= used
    for word in used:
        key = word if word.isidentifier() else json.dumps(word, ensure_ascii=False)
        assert words.count(f"{key}:") == 2, word
