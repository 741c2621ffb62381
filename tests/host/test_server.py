"""The client of the demo and the tests against a real ComfyUI: what the demo and the tests rely on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anifacediff_core.lab import client
from harness import server


def invert_graph(image: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
    }


@pytest.fixture
def picture(running_comfyui: client.Server, tmp_path: Path) -> str:
    file = tmp_path / "orange.png"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(file)
    return client.upload(running_comfyui.address, file)


def test_a_graph_runs_and_its_file_comes_back(running_comfyui: client.Server, picture: str) -> None:
    seen: list[str] = []
    run = client.run_prompt(running_comfyui, invert_graph(picture), lambda node, *_: seen.append(node))
    run.check()
    (file,) = server.saved_files(running_comfyui, run)
    with Image.open(file) as image:
        assert image.getpixel((5, 5)) == (0, 255, 255)
    assert seen[-1] == "3" and set(run.seconds) <= {"1", "2", "3"}


def test_validation_errors_are_told(running_comfyui: client.Server) -> None:
    run = client.run_prompt(running_comfyui, invert_graph("absent.png"))
    assert set(run.node_errors) == {"1"}
    with pytest.raises(client.HostError, match="absent.png"):
        run.check()


def test_one_valid_output_does_not_hide_an_invalid_one(running_comfyui: client.Server, picture: str) -> None:
    graph = invert_graph(picture)
    graph |= {f"1{key}": node for key, node in invert_graph("absent.png").items()}
    graph["12"]["inputs"]["image"], graph["13"]["inputs"]["images"] = ["11", 0], ["12", 0]
    run = client.run_prompt(running_comfyui, graph)
    assert run.files() and set(run.node_errors) == {"11"}


def test_unknown_nodes_are_told(running_comfyui: client.Server) -> None:
    run = client.run_prompt(running_comfyui, {"1": {"class_type": "NoSuchNode", "inputs": {}}})
    assert "NoSuchNode" in run.message()


def test_errors_of_a_run_are_told(running_comfyui: client.Server, picture: str) -> None:
    (running_comfyui.base / "input" / picture).write_bytes(b"not a picture")
    run = client.run_prompt(running_comfyui, invert_graph(picture))
    assert run.error is not None and run.error["node_type"] == "LoadImage"
    assert run.message().startswith("LoadImage: ")


def test_an_exception_in_progress_interrupts_the_host(running_comfyui: client.Server, picture: str) -> None:
    graph = invert_graph(picture)
    # Long enough to be interrupted, whatever the machine.
    graph["2"] = {"class_type": "ImageScale", "inputs": {
        "image": ["1", 0], "upscale_method": "lanczos", "width": 3000, "height": 3000, "crop": "disabled",
    }}  # fmt: skip

    def stop(node: str, done: int, total: int) -> None:
        if node == "2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.run_prompt(running_comfyui, graph, stop)
    deadline = time.monotonic() + 60
    while client.request(running_comfyui.address, "/queue")["queue_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (history,) = client.request(running_comfyui.address, "/history?max_items=1").values()
    assert history["status"]["status_str"] == "error"
    assert not any("3" in output for output in history["outputs"])


def test_a_host_that_dies_is_told(comfyui: Path) -> None:
    size = {"width": 2048, "height": 2048, "batch_size": 16, "color": 1}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "empty"}},
    }
    with server.start(comfyui) as doomed:
        threading.Timer(0.3, doomed.process.kill).start()
        with pytest.raises(client.HostError, match="ComfyUI stopped during the run"):
            client.run_prompt(doomed, graph)
        base = doomed.base
    assert not base.exists()
