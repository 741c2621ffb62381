"""The demo: a shipped workflow in a real ComfyUI, with a line per node and a contact sheet at its end."""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageOps

from install import TIMES, phase, python_can, say

from .client import HostError, request, run_prompt, running_server, set_inputs, upload

VIDEOS = {".mp4", ".webm", ".mkv"}
NO_ACCELERATOR = (
    "import sys, torch; backends = [torch.cuda, torch.backends.mps, getattr(torch, 'xpu', None)]; "
    "sys.exit(any(backend and backend.is_available() for backend in backends))"
)


def run_demo(host: Path, source: Path, driving: Path, out: Path, graph_file: Path, started: float) -> None:
    """Reenact in the ComfyUI at `host`, run by this very Python; write the video and a PNG beside it.

    Args:
        started: when all began, of `time.time`.

    Raises:
        HostError: the host fails, or the graph makes no video.
    """
    graph: dict[str, Any] = json.loads(graph_file.read_text(encoding="utf-8"))
    line = ProgressLine(graph)
    cpu = python_can(sys.executable, NO_ACCELERATOR)
    with ExitStack() as stack:
        with phase("starting ComfyUI" + (" on the CPU" if cpu else "")):
            server = stack.enter_context(running_server(host, sys.executable, cpu=cpu))
        set_inputs(graph, "LoadImage", "image", upload(server.address, source, f"source{source.suffix}"))
        set_inputs(graph, "LoadVideo", "file", upload(server.address, driving, f"driving{driving.suffix}"))
        with phase("running the workflow"):
            try:
                run = run_prompt(server, graph, line, timeout=3600).check()
            finally:
                line.end()
        videos = [file for file in run.files() if Path(file["filename"]).suffix.lower() in VIDEOS]
        if not videos:
            raise HostError("The workflow ended without a video.")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(request(server.address, "/view?" + urllib.parse.urlencode(videos[-1])))
    contact_sheet(source, driving, out, out.with_suffix(".png"))
    say("\ntime:")
    for name, seconds in TIMES.items():
        say(f"  {seconds:7.1f} s  {name}")
    for node, seconds in sorted(run.seconds.items(), key=lambda item: -item[1]):
        if seconds >= 0.5:
            say(f"    {seconds:7.1f} s  {line.titles.get(node, node)}")
    say(f"  {time.time() - started:7.1f} s  altogether\n")
    say(f"video:         {out}\ncontact sheet: {out.with_suffix('.png')}")


class ProgressLine:
    """One line per node of the graph, with a bar where the node counts its work."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.titles = {
            key: node.get("_meta", {}).get("title") or node["class_type"] for key, node in graph.items()
        }
        self.live = sys.stdout.isatty()
        self.node = ""
        self.tenth = 0
        self.since = time.monotonic()

    def __call__(self, node: str, done: int, total: int) -> None:
        if node != self.node:
            self.end()
            self.node, self.tenth, self.since = node, 0, time.monotonic()
            print(f"  {self.titles.get(node, node)}", end="" if self.live else "\n", flush=True)
        if total and self.live:
            filled = 24 * done // total
            bar = "#" * filled + "." * (24 - filled)
            print(f"\r  {self.titles.get(node, node):32} [{bar}] {done}/{total}", end="", flush=True)
        elif total and 10 * done // total >= self.tenth + 2:
            self.tenth = 10 * done // total
            say(f"    {done}/{total}")

    def end(self) -> None:
        if self.live and self.node:
            say(f"  {time.monotonic() - self.since:.1f} s")


def contact_sheet(
    source: Path, driving: Path, result: Path, sheet: Path, columns: int = 8, side: int = 192
) -> None:
    """A PNG: the source on the left; above the driver's frames, below the result's at the same times."""

    def frames(video: Path) -> list[Any]:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
        wanted = {round(i * (count - 1) / (columns - 1)) for i in range(columns)}
        with av.open(str(video)) as container:
            return [frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i in wanted]

    gap = side // 24
    step = side + gap
    picture = Image.new("RGB", (step * (columns + 1) + gap, 2 * step + gap), "white")
    with Image.open(source) as still:
        picture.paste(ImageOps.fit(still.convert("RGB"), (side, side)), (gap, gap + step))
    for row, video in enumerate((driving, result)):
        for column, frame in enumerate(frames(video)):
            place = (gap + step * (column + 1), gap + step * row)
            picture.paste(ImageOps.fit(frame.convert("RGB"), (side, side)), place)
    picture.save(sheet)
