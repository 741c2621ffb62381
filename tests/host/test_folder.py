"""Load Videos from Folder: which files, their names, and every node behind it once for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from anifacediff_core.lab import client
from harness import server
from harness.extension import Extension
from harness.server import EXAMPLES, shorten

DEFAULTS = {"filename_prefix": "video/", "start": 0, "count": 0}


@pytest.fixture(scope="module")
def folder(extension: Extension) -> Path:
    folder = extension.base / "input" / "drivers"
    folder.mkdir()
    for name in ("b.mp4", "a.mov", "a.mp4", "c.webm", "notes.txt", ".hidden.mp4"):
        (folder / name).write_bytes(b"not read yet")
    (folder / "below.mp4").mkdir()
    return folder


def test_videos_in_the_order_of_their_names(extension: Extension, folder: Path) -> None:
    videos, names = extension.run("VideosFromFolder", folder="drivers", **DEFAULTS)
    assert [Path(video.get_stream_source()).name for video in videos] == ["a.mov", "a.mp4", "b.mp4", "c.webm"]
    assert names == ["video/a.mov", "video/a.mp4", "video/b", "video/c"]
    assert str(folder) in videos[0].get_stream_source()


def test_a_part_of_them(extension: Extension, folder: Path) -> None:
    given = {"folder": "drivers", "filename_prefix": "x_", "start": 1, "count": 2}
    assert extension.run("VideosFromFolder", **given)[1] == ["x_a", "x_b"]


def test_it_runs_again_when_a_file_changes(extension: Extension, folder: Path) -> None:
    node = extension.classes["AniFaceDiffVideosFromFolder"]
    before = node.fingerprint_inputs(folder="drivers", **DEFAULTS)
    assert before == node.fingerprint_inputs(folder="drivers", **DEFAULTS)
    (folder / "b.mp4").write_bytes(b"another one")
    assert before != node.fingerprint_inputs(folder="drivers", **DEFAULTS)


def test_folders_are_offered(extension: Extension, folder: Path) -> None:
    kind = extension.classes["AniFaceDiffVideosFromFolder"].GET_NODE_INFO_V1()["input"]["required"]["folder"]
    options = kind[0] if isinstance(kind[0], list) else kind[1]["options"]
    assert options[0] == "." and "drivers" in options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "absent"}, "There is no folder 'absent'"),
        ({"folder": "../outside"}, "leads out of the folder input"),
        ({"start": 4}, "has 4 videos and none from number 4 on"),
        ({"count": -1}, "count"),
    ],
)
def test_refusals(extension: Extension, folder: Path, change: dict, words: str) -> None:
    given = {"folder": "drivers", **DEFAULTS, **change}
    assert words in extension.refusal("VideosFromFolder", **given)
    validated = extension.classes["AniFaceDiffVideosFromFolder"].validate_inputs(folder=given["folder"])
    assert (validated is True) == ("folder" not in change)


def test_every_result_gets_its_videos_name(running_comfyui: client.Server) -> None:
    """One prompt, two drivers, two files."""
    folder = running_comfyui.base / "input" / "two drivers"
    folder.mkdir()
    for name, frames in (("driving.mp4", 3), ("turning.mp4", 2)):
        shorten(EXAMPLES / name, folder / name, frames)
    graph = server.load_graph("long_video")
    (loader,) = [name for name, node in graph.items() if node["class_type"] == "LoadVideo"]
    (maker,) = [name for name, node in graph.items() if node["class_type"] == "AniFaceDiffReenactLongVideo"]
    given = {"folder": "two drivers", **DEFAULTS, "filename_prefix": "batch/"}
    graph[loader] = {"class_type": "AniFaceDiffVideosFromFolder", "inputs": given}
    graph[maker]["inputs"] |= {"filename_prefix": [loader, 1], "steps": 1}
    for kind in ("AniFaceDiffDECAExtract", "AniFaceDiffReferenceNetEncode"):
        client.set_inputs(graph, kind, "size", 128)
    client.run_prompt(running_comfyui, graph).check()
    made = {
        path.name: server.video_facts(path).frames
        for path in (running_comfyui.base / "output" / "batch").iterdir()
    }
    assert made == {"driving_00001_.mp4": 3, "turning_00001_.mp4": 2}
