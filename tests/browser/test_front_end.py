"""Every shipped workflow, loaded in ComfyUI's real front-end; one also run there."""

from __future__ import annotations

import json

import pytest

from anifacediff_core.lab import client
from harness import graphs
from harness.browser import Page
from harness.server import API_GRAPHS, load_graph, require_sound, workflow_names


@pytest.mark.parametrize("name", workflow_names())
def test_the_front_end_knows_every_node(
    front_end: dict[str, Page], running_comfyui: client.Server, name: str
) -> None:
    require_sound(running_comfyui, name)
    assert front_end[name].unknown == []


@pytest.mark.parametrize("name", workflow_names())
def test_the_front_end_queues_the_committed_api_graph(
    front_end: dict[str, Page], running_comfyui: client.Server, name: str, request: pytest.FixtureRequest
) -> None:
    require_sound(running_comfyui, name)
    graph, file = front_end[name].graph, API_GRAPHS / f"{name}.json"
    if request.config.getoption("--write-api-graphs"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(graph, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    committed, known = load_graph(name), client.request(running_comfyui.address, "/object_info")
    anew = "write it anew: pytest tests/browser --write-api-graphs"
    assert graphs.without_news(graph, committed, known) == committed, anew


@pytest.mark.parametrize("name", workflow_names())
def test_the_page_shows_no_errors(
    front_end: dict[str, Page], running_comfyui: client.Server, name: str
) -> None:
    require_sound(running_comfyui, name)
    # that one is the host's own
    assert [error for error in front_end[name].errors if "reading 'id'" not in error] == []


def test_a_workflow_runs_from_the_front_end(front_end: dict[str, Page]) -> None:
    assert front_end["first_reenactment"].outcome == "execution_success"
