"""The pack that artists get from ComfyUI's registry: what .comfyignore leaves of the tracked files."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import install
from anifacediff_core.lab import client
from harness import server

LARGEST = 43_000_000  # bytes of the archive
FRAMES, STEPS, SIZE = 4, 1, 128


def tracked(*options: str) -> set[str]:
    command = ["git", "ls-files", "-z", *options]
    listed = subprocess.run(command, cwd=install.ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy of the repository has no history")
    return {file for file in listed.stdout.split("\0") if file and (install.ROOT / file).is_file()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `comfy node pack` writes it."""
    path = tmp_path_factory.mktemp("archive") / "node.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for file in sorted(tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")):
            pack.write(install.ROOT / file, file)
    return path


@pytest.fixture(scope="module")
def pack(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    zipfile.ZipFile(archive).extractall(folder)
    return folder


def test_the_pack_is_small(archive: Path) -> None:
    assert archive.stat().st_size < LARGEST


def test_the_pack_has_what_the_nodes_need_and_nothing_of_the_laboratory(pack: Path) -> None:
    folders = ("nodes", "web", "locales", "subgraphs", "workflows", "anifacediff_core/assets/examples")
    needed = {file for file in tracked() if file.startswith(folders)}
    needed |= {
        "__init__.py",
        "install.py",
        "requirements.txt",
        "pyproject.toml",
        "LICENSE",
        "NOTICE",
        "README.md",
    }
    needed |= {f"anifacediff_core/assets/{name}.safetensors" for name in ("demo", "head")}
    packed = {file.relative_to(pack).as_posix() for file in pack.rglob("*") if file.is_file()}
    assert needed <= packed
    left_out = ("tests/", "benchmarks/", "anifacediff_core/lab/", ".")
    assert [file for file in packed if file.startswith(left_out)] == []


def test_a_host_runs_the_first_workflow_from_the_pack(comfyui: Path, pack: Path) -> None:
    graph = json.loads((pack / "workflows/api/first_reenactment.json").read_text(encoding="utf-8"))
    for node in graph.values():
        wanted = {"file": "short.mp4", "steps": STEPS, "size": SIZE}
        node["inputs"] |= {name: value for name, value in wanted.items() if name in node["inputs"]}
    with server.start(comfyui, extension=pack) as host:
        server.shorten(server.EXAMPLES / "driving.mp4", host.base / "input" / "short.mp4", FRAMES)
        run = client.run_prompt(host, graph).check()
        (video,) = [file for file in server.saved_files(host, run) if file.suffix == ".mp4"]
        assert server.video_facts(video).frames == FRAMES


def test_the_commands_say_where_they_are(pack: Path) -> None:
    for command, code in ((["-m", "anifacediff_core", "reenact"], 2), (["install.py", "demo"], 1)):
        run = subprocess.run(
            [sys.executable, *command], cwd=pack, capture_output=True, text=True, check=False
        )
        assert run.returncode == code and run.stdout == ""
        (line,) = run.stderr.splitlines()
        assert line.startswith(("anifacediff: ", "error: ")) and "repository" in line
