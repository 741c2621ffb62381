"""Every shipped workflow, executed by a real ComfyUI; with small files where users bring theirs."""

from __future__ import annotations

import wave
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import install
from anifacediff_core.lab import client
from anifacediff_core.weights.checkpoint import bundled_checkpoint, load_checkpoint
from harness import files, graphs, server
from harness.server import workflow_names

FRAMES, STEPS, SIZE = 4, 2, 128
WINDOW, OVERLAP = 3, 1  # two windows, as most videos have several
# Nodes that are switched off in a workflow until a user has the files for them.
OPTIONAL = {
    "lora_upscale_paste_back": ["ImageUpscaleWithModel", "LoraLoaderModelOnly", "UpscaleModelLoader"],
    "controlnet": ["ControlNetApplyAdvanced", "ControlNetLoader"],
}
# What has to be chosen before a workflow can run, as (class, widget): value.
CHOICES = {
    "full_size_with_deca": {("AniFaceDiffLoader", "checkpoint"): "full_size.safetensors"},
    "magicportrait": {
        ("AniFaceDiffLoader", "checkpoint"): "magicportrait.safetensors",
        ("AniFaceDiffRenderGuidance", "texture"): "none",
    },
    "aniportrait": {("AniFaceDiffLoader", "checkpoint"): "aniportrait.safetensors"},
}
# The rest of what runs with few frames.
PLAIN = [
    "expression_editor",
    "long_video",
    "reenact_a_face.app",
    "reenact_many",
    "transparent_webm",
    "two_drivers",
]
VOICE = ["talk"]  # driven by a sound
LIVE = ["live", "live.app"]  # takes a camera: test_live_sessions.py runs it
# Of videos that are no squares.
SIZES = dict.fromkeys(("lora_upscale_paste_back", "reenact_many", "transparent_webm"), (768, 512))
WHOLE = ("AniFaceDiffReenactLongVideo", "AniFaceDiffReenactMany")  # from the files to the file
SAMPLERS = ("AniFaceDiffSampler", "KSampler", "AniFaceDiffLive", *WHOLE)
WINDOWED = ("AniFaceDiffSampler", "AniFaceDiffApply", *WHOLE)
SIZED = (
    "AniFaceDiffPortraitCrop",
    "AniFaceDiffDECAExtract",
    "AniFaceDiffRenderNormals",
    "AniFaceDiffRenderGuidance",
    "AniFaceDiffReferenceNetEncode",
    "AniFaceDiffReenactMany",
)


@pytest.fixture(scope="module")
def host_with_files(running_comfyui: client.Server) -> client.Server:
    """With a file of every kind that a workflow may need, and a short driving video."""
    files.write_all(running_comfyui.base / "models")
    driving = running_comfyui.base / "input" / "short.mp4"
    server.shorten(server.EXAMPLES / "driving.mp4", driving, FRAMES)
    with wave.open(str(driving.with_name("short.wav")), "wb") as sound:
        sound.setparams((1, 2, 24_000, 0, "NONE", ""))
        sound.writeframes(bytes(2 * 1000 * FRAMES))
    return running_comfyui


def shortened(name: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Few frames, steps and pixels, in two windows, and the choices made."""
    drivers = client.set_inputs(graph, "LoadVideo", "file", "short.mp4")
    assert drivers + client.set_inputs(graph, "LoadAudio", "audio", "short.wav") >= 1
    samplers = [client.set_inputs(graph, kind, "steps", STEPS) for kind in SAMPLERS]
    assert sum(samplers) == 1
    windows = [client.set_inputs(graph, kind, "window", WINDOW) for kind in WINDOWED]
    assert sum(windows) == sum(client.set_inputs(graph, kind, "overlap", OVERLAP) for kind in WINDOWED) > 0
    for (kind, widget), value in CHOICES.get(name, {}).items():
        assert client.set_inputs(graph, kind, widget, value) == 1
    for kind in SIZED:
        client.set_inputs(graph, kind, "size", SIZE)
    return without_mediapipe(graph)


def without_mediapipe(graph: dict[str, Any]) -> dict[str, Any]:
    """The driver's frames where landmarks would be drawn, which takes a package that may be missing."""
    drawing = [name for name, node in graph.items() if node["class_type"] == "AniFaceDiffDrawFaceLandmarks"]
    for name in drawing:
        scaling = {"upscale_method": "bilinear", "width": SIZE, "height": SIZE, "crop": "disabled"}
        image = graph[name]["inputs"]["driving_video"]
        graph[name] = {"class_type": "ImageScale", "inputs": {"image": image, **scaling}}
        for node in graph.values():
            for key, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == name:
                    node["inputs"][key] = [name, 0]
    return graph


def with_the_sound_of_a_video(graph: dict[str, Any]) -> dict[str, Any]:
    """In place of LoadAudio, which a host without torchaudio lacks."""
    for name in [name for name, node in graph.items() if node["class_type"] == "LoadAudio"]:
        graph["video"] = {"class_type": "LoadVideo", "inputs": {"file": "short.mp4"}}
        graph[name] = {"class_type": "AniFaceDiffVideoFrames", "inputs": {"video": ["video", 0]}}
        for node in graph.values():
            for key, value in node["inputs"].items():
                if value == [name, 0]:
                    node["inputs"][key] = [name, 1]
    return graph


def run_to_video(host: client.Server, graph: dict[str, Any]) -> Path:
    """Run a graph; the video that it saved, which has to keep the driver's time."""
    run = client.run_prompt(host, graph).check()
    videos = [file for file in server.saved_files(host, run) if file.suffix in (".mp4", ".webm")]
    assert videos
    drivers = [node["inputs"]["file"] for node in graph.values() if node["class_type"] == "LoadVideo"]
    expected = server.VideoFacts(FRAMES, Fraction(24), 0, 0, FRAMES / 24)  # of the voice
    if drivers:
        expected = server.video_facts(host.base / "input" / Path(drivers[0]).name)
    made = server.video_facts(videos[-1])
    assert (made.frames, made.rate) == (expected.frames, expected.rate)
    # Each codec rounds the sound up to its own packets.
    assert made.audio_seconds == pytest.approx(expected.audio_seconds, abs=0.1)
    return videos[-1]


# --- What lies in the folder ---------------------------------------------------------------------


def test_every_workflow_has_an_api_graph_and_a_thumbnail() -> None:
    names = set(workflow_names())
    assert {"first_reenactment", *OPTIONAL, *CHOICES, *PLAIN, *VOICE, *LIVE} == names
    assert {file.stem for file in server.API_GRAPHS.glob("*.json")} == names
    assert {file.stem for file in (install.ROOT / "workflows").glob("*.jpg")} == names


@pytest.mark.parametrize("name", workflow_names())
def test_workflow_and_api_graph_hold_the_same_nodes(name: str) -> None:
    workflow = graphs.flat(server.read_workflow(name))
    active = [
        node for node in workflow["nodes"] if node.get("mode", 0) == 0 and node["type"] not in graphs.VIRTUAL
    ]
    graph = server.load_graph(name)
    assert Counter(node["type"] for node in active) == Counter(node["class_type"] for node in graph.values())
    assert graphs.bypassed(workflow) == OPTIONAL.get(name, [])


@pytest.mark.parametrize("name", workflow_names())
def test_workflow_and_api_graph_say_the_same(running_comfyui: client.Server, name: str) -> None:
    server.require_sound(running_comfyui, name)
    known = client.request(running_comfyui.address, "/object_info")
    graph, committed = graphs.to_api(server.read_workflow(name), known), server.load_graph(name)
    assert graphs.without_news(graph, committed, known) == committed


@pytest.mark.parametrize("name", workflow_names())
def test_nothing_overlaps(name: str) -> None:
    """Nodes lie beside each other, each within one group; those of subgraphs, too."""
    workflow = server.read_workflow(name)
    for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", [])):
        require_order(graph)


def require_order(workflow: dict[str, Any]) -> None:
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    title = 30
    for number, (x, y, width, height) in enumerate(boxes):
        for left, top, across, down in boxes[:number]:
            beside = x + width <= left or left + across <= x
            assert beside or y + height <= top - title or top + down <= y - title, workflow["nodes"][number]
        around = [
            group["title"]
            for group in workflow["groups"]
            for left, top, across, down in [group["bounding"]]
            if left <= x and top <= y - title and x + width <= left + across and y + height <= top + down
        ]
        assert len(around) == 1, workflow["nodes"][number]


@pytest.mark.parametrize("name", workflow_names())
def test_what_is_saved_is_marked(name: str) -> None:
    """Whatever becomes a file has passed through the mark, right before it."""
    graph = server.load_graph(name)
    assert not [node for node in graph.values() if node["class_type"] in ("SaveVideo", "SaveWEBM")]
    made = [node for node in graph.values() if node["class_type"] == "CreateVideo"]
    for node in made:
        assert graph[node["inputs"]["images"][0]]["class_type"] == "AniFaceDiffMark"
    whole = [node for node in graph.values() if node["class_type"] in WHOLE]
    whole += [node for node in graph.values() if node["class_type"] == "AniFaceDiffSaveVideoAs"]
    assert all(node["inputs"]["mark"] is True for node in whole)
    assert len(made) + len(whole) == 1


@pytest.mark.parametrize("name", ["first_reenactment", *OPTIONAL, *PLAIN, *VOICE, *LIVE])
def test_the_bundled_checkpoint_is_sampled_as_it_wants_to_be(name: str) -> None:
    wanted = load_checkpoint(bundled_checkpoint()).sampling
    graph = server.load_graph(name)
    (sampler,) = [node["inputs"] for node in graph.values() if node["class_type"] in SAMPLERS]
    found = [sampler[key] for key in ("steps", "cfg", "sampler_name", "scheduler")]
    assert found == [wanted.steps, wanted.cfg, wanted.sampler, wanted.scheduler]


@pytest.mark.parametrize("name", sorted({*workflow_names()} - {*LIVE, *VOICE}))
def test_times_and_sound_are_those_of_the_video_that_gives_the_rate(name: str) -> None:
    graph = server.load_graph(name)
    for saving in (node for node in graph.values() if node["class_type"] == "AniFaceDiffSaveVideo"):
        made = graph[saving["inputs"]["video"][0]]["inputs"]
        frames = graph[made["fps"][0]]
        assert made["audio"][0] == made["fps"][0]
        assert frames["class_type"] == "AniFaceDiffVideoFrames"
        assert saving["inputs"]["driving"] == frames["inputs"]["video"]
        assert graph[saving["inputs"]["driving"][0]]["class_type"] == "LoadVideo"


@pytest.mark.parametrize("name", VOICE)
def test_the_sound_is_the_voice_that_moves_the_face(name: str) -> None:
    graph = server.load_graph(name)
    (made,) = [node["inputs"] for node in graph.values() if node["class_type"] == "CreateVideo"]
    moved = graph[made["fps"][0]]
    assert moved["class_type"] == "AniFaceDiffSpeechToMotion" and moved["inputs"]["audio"] == made["audio"]
    assert graph[made["audio"][0]]["class_type"] == "LoadAudio"


# --- What the host says of it --------------------------------------------------------------------


def test_the_extension_loads(running_comfyui: client.Server) -> None:
    log = running_comfyui.log.read_text(encoding="utf-8", errors="replace")
    assert "(IMPORT FAILED)" not in log, log[:8000]  # core files that fail are named without the parentheses
    nodes = client.request(running_comfyui.address, "/object_info")
    assert any(is_ours(node) for node in nodes.values())


def is_ours(node: dict) -> bool:
    return str(node["python_module"]).startswith("custom_nodes.ComfyUI-AniFaceDiff")


@pytest.mark.parametrize("name", workflow_names())
def test_only_core_nodes_and_ours(running_comfyui: client.Server, name: str) -> None:
    server.require_sound(running_comfyui, name)
    nodes = client.request(running_comfyui.address, "/object_info")
    for node in graphs.flat(server.read_workflow(name))["nodes"]:
        if node["type"] not in graphs.VIRTUAL:
            known = nodes[node["type"]]
            assert is_ours(known) or not str(known["python_module"]).startswith("custom_nodes")


@pytest.mark.parametrize("name", workflow_names())
def test_the_host_lists_the_workflow_as_a_template(running_comfyui: client.Server, name: str) -> None:
    templates = client.request(running_comfyui.address, "/workflow_templates")
    assert name in templates["ComfyUI-AniFaceDiff"]
    path = f"/api/workflow_templates/ComfyUI-AniFaceDiff/{name}"
    assert client.request(running_comfyui.address, f"{path}.json")["nodes"]
    assert client.request(running_comfyui.address, f"{path}.jpg")[:2] == b"\xff\xd8"


# --- Running it ----------------------------------------------------------------------------------


def test_the_first_workflow_runs_as_it_is(running_comfyui: client.Server) -> None:
    run_to_video(running_comfyui, server.load_graph("first_reenactment"))


def test_missing_files_are_named(running_comfyui: client.Server) -> None:
    graph = server.load_graph("full_size_with_deca")
    client.set_inputs(graph, "AniFaceDiffLoadDECA", "deca", "absent.tar")
    told = client.run_prompt(running_comfyui, graph).message()
    assert "deca_model.tar" in told and "models/deca" in told


@pytest.fixture(scope="module")
def run_as_shipped(host_with_files: client.Server) -> Callable[[str], Path]:
    """Run a workflow with what is switched off staying off, once."""
    hears = server.hears(host_with_files)

    def run(name: str) -> Path:
        graph = shortened(name, server.load_graph(name))
        return run_to_video(host_with_files, graph if hears else with_the_sound_of_a_video(graph))

    return cache(run)


@pytest.mark.parametrize("name", [*OPTIONAL, *CHOICES, *PLAIN, *VOICE])
def test_a_workflow_runs_without_what_is_switched_off(
    run_as_shipped: Callable[[str], Path], name: str
) -> None:
    facts = server.video_facts(run_as_shipped(name))
    assert (facts.width, facts.height) == SIZES.get(name, (SIZE, SIZE))


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_workflow_runs_with_everything_switched_on(
    host_with_files: client.Server, run_as_shipped: Callable[[str], Path], name: str
) -> None:
    known = client.request(host_with_files.address, "/object_info")
    whole = graphs.switch_on(server.read_workflow(name))
    graph = shortened(name, graphs.to_api(whole, known))
    assert set(OPTIONAL[name]) <= {node["class_type"] for node in graph.values()}
    made = run_to_video(host_with_files, graph)
    assert made.read_bytes() != run_as_shipped(name).read_bytes()
