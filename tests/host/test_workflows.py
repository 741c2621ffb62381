"""Every shipped workflow, executed by a real ComfyUI over its API."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import install
from harness import server
from harness.server import workflow_names

VIRTUAL = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # the front-end resolves them itself


def test_every_workflow_has_an_api_graph_and_a_thumbnail() -> None:
    names = set(workflow_names())
    assert "first_reenactment" in names
    assert {file.stem for file in install.API_GRAPHS.glob("*.json")} == names
    assert {file.stem for file in (install.ROOT / "workflows").glob("*.jpg")} == names


@pytest.mark.parametrize("name", workflow_names())
def test_workflow_and_api_graph_hold_the_same_nodes(name: str) -> None:
    workflow = server.read_workflow(name)
    active = [node for node in workflow["nodes"] if node.get("mode", 0) == 0 and node["type"] not in VIRTUAL]
    graph = install.load_graph(name)
    assert Counter(node["type"] for node in active) == Counter(node["class_type"] for node in graph.values())


def test_the_extension_loads(running_comfyui: install.Server) -> None:
    log = running_comfyui.log.read_text(encoding="utf-8", errors="replace")
    assert "(IMPORT FAILED)" not in log, log[:8000]  # core files that fail are named without the parentheses
    nodes = install.request(running_comfyui.address, "/object_info")
    assert any(is_ours(node) for node in nodes.values())


def is_ours(node: dict) -> bool:
    return str(node["python_module"]).startswith("custom_nodes.ComfyUI-AniFaceDiff")


@pytest.mark.parametrize("name", workflow_names())
def test_only_core_nodes_and_ours(running_comfyui: install.Server, name: str) -> None:
    nodes = install.request(running_comfyui.address, "/object_info")
    for node in install.load_graph(name).values():
        known = nodes[node["class_type"]]
        assert is_ours(known) or not str(known["python_module"]).startswith("custom_nodes")


@pytest.mark.parametrize("name", workflow_names())
def test_the_host_lists_the_workflow_as_a_template(running_comfyui: install.Server, name: str) -> None:
    templates = install.request(running_comfyui.address, "/workflow_templates")
    assert name in templates["ComfyUI-AniFaceDiff"]
    path = f"/api/workflow_templates/ComfyUI-AniFaceDiff/{name}"
    assert install.request(running_comfyui.address, f"{path}.json")["nodes"]
    assert install.request(running_comfyui.address, f"{path}.jpg")[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", workflow_names())
def test_workflow_runs_and_keeps_the_drivers_time(running_comfyui: install.Server, name: str) -> None:
    graph = install.load_graph(name)
    run = install.run_prompt(running_comfyui, graph).check()
    videos = [file for file in server.saved_files(running_comfyui, run) if file.suffix == ".mp4"]
    assert videos
    drivers = [node["inputs"]["file"] for node in graph.values() if node["class_type"] == "LoadVideo"]
    expected = server.video_facts(running_comfyui.base / "input" / Path(drivers[0]).name)
    made = server.video_facts(videos[-1])
    assert (made.frames, made.rate) == (expected.frames, expected.rate)
    # Each codec rounds the sound up to its own packets.
    assert made.audio_seconds == pytest.approx(expected.audio_seconds, abs=0.1)
