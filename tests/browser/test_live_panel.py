"""Live Reenactment in the real front-end with a fake camera, in both renderers of nodes."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from anifacediff_core.lab import client
from anifacediff_core.provenance.detect import detect
from anifacediff_core.video import read_frames, to_pixels
from harness import browser, server

SIZE = 128
ROOT = Path(__file__).resolve().parents[2]


def write_camera(path: Path) -> None:
    """The example clip as Chromium's fake camera takes it."""
    with av.open(str(path), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuvj420p"
        for frame in islice(read_frames(server.EXAMPLES / "driving.mp4"), 24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(to_pixels(frame), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module", params=["classic", "vue"])
def found(
    request: pytest.FixtureRequest,
    browser_driver: Path,
    running_comfyui: client.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What was seen; see live.mjs."""
    folder = tmp_path_factory.mktemp(request.param)
    write_camera(folder / "camera.mjpeg")
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "vue": request.param == "vue",
        "locale": "en",
        "size": SIZE,
        "prefix": f"live_{request.param}/recorded",
        "camera": str(folder / "camera.mjpeg"),
        "folder": str(folder),
    }
    return {**browser.drive("live.mjs", running_comfyui, browser_driver, task, timeout=1200), **task}


def test_the_source_moves_and_stop_ends_the_run(found: dict[str, Any]) -> None:
    assert found["moving"] == 3 and found["ended"] == ["execution_success"]
    assert "FPS" in found["status"] and "recorded:" in found["status"]
    assert found["camera"], "the camera is free again"


def test_what_was_recorded_is_a_marked_video(found: dict[str, Any], running_comfyui: client.Server) -> None:
    folder = running_comfyui.base / "output" / found["prefix"].partition("/")[0]
    video = sorted(folder.glob("recorded_*.mp4"))[0]
    frames = torch.stack(list(read_frames(video)))
    assert len(frames) >= 2 and frames.shape[1:] == (3, SIZE, SIZE)
    assert frames.diff(dim=0).abs().amax() > 0.05, "it moves"
    assert detect([frames]).identifier == 0


def test_the_page_shows_no_errors(found: dict[str, Any]) -> None:
    # that one is the host's own
    assert [error for error in found["errors"] if "reading 'id'" not in error] == []


def test_every_word_of_the_panel_is_translated() -> None:
    words = (ROOT / "web" / "live" / "words.js").read_text(encoding="utf-8")
    panel = (ROOT / "web" / "live" / "panel.js").read_text(encoding="utf-8")
    used = set(re.findall(r'(?:\bt|#say|#button)\(\s*"([^"]+)"', panel))
    either = re.findall(r'this\.t\([^\n]* \? "([^"]+)" : "([^"]+)"\)', panel)
    used |= {word for pair in either for word in pair}
    assert {"Start", "Stop", "Neutral", "Record", "End recording"} <= used
    for word in used:
        key = word if word.isidentifier() else json.dumps(word, ensure_ascii=False)
        assert words.count(f"{key}:") == 2, word
