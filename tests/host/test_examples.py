"""The examples that the shipped workflows name, in the host's input folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anifacediff_core.lab import client
from harness.server import EXAMPLES, load_graph, require_sound, workflow_names

NAMES = [
    "anifacediff_driving.mp4",
    "anifacediff_group.jpg",
    "anifacediff_scene.jpg",
    "anifacediff_source.png",
    "anifacediff_speech.ogg",
    "anifacediff_turning.mp4",
]
PICTURE = "anifacediff_source.png"


@pytest.fixture
def input_folder(host: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty input folder of the host, and examples of our own that a test may change."""
    folder = tmp_path / "input"
    monkeypatch.setattr(host.examples.folder_paths, "input_directory", str(folder))
    shutil.copytree(EXAMPLES, tmp_path / "assets" / "examples")
    monkeypatch.setattr(host.examples, "ASSETS", tmp_path / "assets")
    return folder


def shown_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def test_they_come_into_an_empty_folder_once(host: SimpleNamespace, input_folder: Path) -> None:
    host.examples.bring_examples()
    assert shown_files(input_folder) == NAMES
    for name in NAMES:
        example = EXAMPLES / name.removeprefix("anifacediff_")
        assert (input_folder / name).read_bytes() == example.read_bytes()
    before = {file: file.stat() for file in input_folder.iterdir()}
    host.examples.bring_examples()
    assert {file: file.stat() for file in before} == before


def test_what_is_missing_comes_back(host: SimpleNamespace, input_folder: Path) -> None:
    host.examples.bring_examples()
    (input_folder / PICTURE).unlink()
    host.examples.bring_examples()
    assert shown_files(input_folder) == NAMES


def test_copies_of_an_earlier_version_are_renewed(host: SimpleNamespace, input_folder: Path) -> None:
    host.examples.bring_examples()
    example = host.examples.ASSETS / "examples" / "source.png"
    example.write_bytes(b"a later version")
    host.examples.bring_examples()
    assert (input_folder / PICTURE).read_bytes() == b"a later version"


def test_what_a_user_has_made_of_a_copy_stays(host: SimpleNamespace, input_folder: Path) -> None:
    host.examples.bring_examples()
    (input_folder / PICTURE).write_bytes(b"painted over")
    for _ in range(2):
        host.examples.bring_examples()
    (host.examples.ASSETS / "examples" / "source.png").write_bytes(b"a later version")
    host.examples.bring_examples()
    assert (input_folder / PICTURE).read_bytes() == b"painted over"
    assert shown_files(input_folder) == NAMES


@pytest.mark.parametrize(
    "record", [None, b"", b"[1]", b"\xff", b"[" * 100_000, b'{"anifacediff_source.png": [1]}']
)
def test_a_users_file_stays_whatever_the_record_says(
    host: SimpleNamespace, input_folder: Path, record: bytes | None
) -> None:
    input_folder.mkdir()
    (input_folder / PICTURE).write_bytes(b"a user's")
    if record is not None:
        (input_folder / host.examples.RECORD).write_bytes(record)
    host.examples.bring_examples()
    assert (input_folder / PICTURE).read_bytes() == b"a user's"
    assert shown_files(input_folder) == NAMES
    assert PICTURE not in json.loads((input_folder / host.examples.RECORD).read_text())


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows, and there are no pipes")
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_file_stays(host: SimpleNamespace, input_folder: Path, tmp_path: Path, kind: str) -> None:
    input_folder.mkdir()
    path, elsewhere = input_folder / PICTURE, tmp_path / "elsewhere.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
        if kind == "link":
            shutil.copyfile(EXAMPLES / "source.png", elsewhere)
    before = path.lstat()
    host.examples.bring_examples()
    (host.examples.ASSETS / "examples" / "source.png").write_bytes(b"a later version")
    host.examples.bring_examples()
    assert path.lstat() == before and elsewhere.exists() == (kind == "link")


def test_where_nothing_can_be_written_the_log_says_so(
    host: SimpleNamespace,
    input_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    input_folder.write_bytes(b"a file where the folder would be")
    host.examples.bring_examples()
    assert len(caplog.records) == 1 and "Not all examples" in caplog.text


def test_the_rest_comes_where_one_cannot_be_written(
    host: SimpleNamespace,
    input_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy = shutil.copyfile

    def fail(source: Path, target: Any) -> None:
        if source.name == "source.png":
            raise PermissionError(13, "not allowed")
        copy(source, target)

    monkeypatch.setattr(host.examples.shutil, "copyfile", fail)
    host.examples.bring_examples()
    assert shown_files(input_folder) == [name for name in NAMES if name != PICTURE]
    assert "not allowed" in caplog.text


@pytest.mark.parametrize("name", workflow_names())
def test_what_a_workflow_names_is_a_choice_of_its_nodes(running_comfyui: client.Server, name: str) -> None:
    require_sound(running_comfyui, name)
    known = client.request(running_comfyui.address, "/object_info")
    for node in load_graph(name).values():
        widget = {"LoadImage": "image", "LoadVideo": "file", "LoadAudio": "audio"}.get(node["class_type"])
        if widget is not None:
            kind, options = known[node["class_type"]]["input"]["required"][widget]
            choices = kind if isinstance(kind, list) else options["options"]
            assert node["inputs"][widget] in choices
