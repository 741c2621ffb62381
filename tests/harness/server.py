"""A real ComfyUI for the tests, and what can be asked of its runs."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import pytest

import install
from anifacediff_core.lab import client
from anifacediff_core.video import VideoWriter, probe, read_frames

ROOT = install.ROOT
EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
API_GRAPHS = ROOT / "workflows" / "api"


def start(comfyui: Path, extension: Path = ROOT) -> AbstractContextManager[client.Server]:
    """ComfyUI on the CPU with the extension and otherwise empty folders."""
    return client.running_server(comfyui, sys.executable, cpu=True, extension=extension)


def shorten(video: Path, target: Path, frames: int) -> None:
    """The beginning of a video with its sound, since tests have little time."""
    with VideoWriter(target, probe(video).rate, audio_from=video, cut_sound=True) as short:
        for frame in islice(read_frames(video), frames):
            short.write(frame[None])


def workflow_names() -> list[str]:
    """The shipped workflows, without .json."""
    return sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))


def read_workflow(name: str) -> dict[str, Any]:
    """A shipped workflow in the front-end's format."""
    workflow: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def load_graph(name: str) -> dict[str, Any]:
    """A shipped workflow in the form that the host's API takes."""
    graph: dict[str, Any] = json.loads((API_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    return graph


def require_sound(server: client.Server, name: str) -> None:
    """Skip a workflow that loads a sound where the host cannot: its LoadAudio takes torchaudio."""
    if any(node["class_type"] == "LoadAudio" for node in load_graph(name).values()) and not hears(server):
        pytest.skip("this host has no LoadAudio, since torchaudio is not installed")


def hears(server: client.Server) -> bool:
    return "LoadAudio" in client.request(server.address, "/object_info")


def saved_files(server: client.Server, run: client.Run) -> list[Path]:
    """The files that a run saved; they live as long as the server."""
    folders = {"output": server.base / "output", "temp": server.base / "temp", "input": server.base / "input"}
    return [folders[file["type"]] / file.get("subfolder", "") / file["filename"] for file in run.files()]


@dataclass(frozen=True)
class VideoFacts:
    frames: int
    rate: Fraction
    width: int
    height: int
    audio_seconds: float  # 0 without audio


def video_facts(file: Path) -> VideoFacts:
    """Decode a video wholly and say what is in it."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        rate, width, height = Fraction(stream.average_rate or 0), stream.width, stream.height
    seconds = 0.0
    with av.open(str(file)) as container:
        if container.streams.audio:
            sound = container.streams.audio[0]
            seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(sound))
    return VideoFacts(frames, rate, width, height, seconds)
