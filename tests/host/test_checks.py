"""Whatever an API puts into a widget, a node refuses it in a sentence; and no text of it becomes a path."""

from __future__ import annotations

import importlib
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anifacediff_core.errors import InputError
from harness.extension import Extension, one_sentence

NOTHING = (None, [], {}, object(), b"bytes")
BAD: dict[str, tuple[Any, ...]] = {
    "INT": (*NOTHING, float("nan"), float("inf"), 1.5, "7", 10**30, -(10**30), "\ud800"),
    "FLOAT": (*NOTHING, float("nan"), float("inf"), -float("inf"), "0.5", 1e300, -1e300, 10**400),
    "STRING": (*NOTHING, 5, float("nan"), "a\0b", "\ud800", "a" * 10**6),
    "BOOLEAN": (*NOTHING, "yes", float("nan")),
    "COMBO": (*NOTHING, 5, float("nan"), "evil\0", "\udfff", "../../../etc/passwd", "\\\\server\\share\\x"),
}


def widgets(node: Any) -> list[Any]:
    return [entry for entry in node.define_schema().inputs if entry.get_io_type() in BAD]


def refused(node: Any, entry: Any, value: Any) -> str:
    with pytest.raises(InputError) as error:
        node.execute(**{entry.id: value})
    return one_sentence(str(error.value))


def test_every_widget_refuses_what_it_cannot_hold(extension: Extension) -> None:
    tried = 0
    files = importlib.import_module(f"{package(extension)}.checks").FILES
    for node in extension.classes.values():
        for entry in widgets(node):
            for value in BAD[entry.get_io_type()]:
                if entry.id in files and isinstance(value, str) and value.isprintable():
                    continue  # the node itself tells that there is no such file
                told = refused(node, entry, value)
                assert told.startswith(f"The {entry.display_name or entry.id} of ")
                assert node.define_schema().display_name in told
                tried += 1
    assert tried > 500


def test_limits_of_widgets_hold_for_values_of_other_nodes(extension: Extension) -> None:
    for node in extension.classes.values():
        for entry in widgets(node):
            if entry.get_io_type() in ("INT", "FLOAT"):
                for value in (entry.min - 1, entry.max + 1):
                    assert f"from {entry.min} to {entry.max}" in refused(node, entry, value)
    told = refused(extension.classes["AniFaceDiffRenderNormals"], size_of(extension), 100.5)
    assert told == ("The size of Render Normals is 100.5: give a whole number from 32 to 2048 in steps of 8.")
    assert "steps of 8" in refused(extension.classes["AniFaceDiffRenderNormals"], size_of(extension), 100)


def test_files_that_are_not_there_are_told_by_name(extension: Extension) -> None:
    for name in ("../../x.safetensors", "/proc/kmsg", "\\\\server\\share\\x", "a" * 300, "x:y", "CON"):
        assert "There is no f" in extension.refusal("Loader", checkpoint=name)
        told = extension.refusal("LoadFaceParameters", file=name)
        assert "leads out of" in told or "There is no file" in told
        validated = extension.classes["AniFaceDiffLoadFaceParameters"].validate_inputs(file=name)
        assert isinstance(validated, str)


def test_a_fault_of_the_disk_is_told_in_a_sentence(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = extension.classes["AniFaceDiffLoadFaceParameters"]

    def fails(name: str) -> Path:
        raise OSError(5, "Input/output error", "x\x1b[2J")

    monkeypatch.setattr(sys.modules[node.__module__], "input_file", fails)
    told = extension.refusal("LoadFaceParameters", file="x")
    assert told.startswith(r"Load Face Parameters could not finish: x\x1b[2J cannot be read or written")


def test_long_names_are_cut_to_what_the_folder_takes(extension: Extension) -> None:
    head = importlib.import_module("anifacediff_core.head.model").HeadModel.bundled()
    for prefix in ("界" * 80, "界" * 300, f"{'界' * 300}/x", "x" * 1000):
        _, name = extension.run(
            "SaveFaceParameters", parameters=head.neutral(1), filename_prefix=prefix, format="json"
        )
        assert (extension.base / "output" / name).is_file()
        assert max(len(part.encode()) for part in name.split("/")) <= 255
        if len(prefix) == 80:
            assert name == f"{prefix}_00001_.json", "what fits stays"


# ---- fingerprints


def package(extension: Extension) -> str:
    return extension.classes["AniFaceDiffReenactLongVideo"].__module__.rpartition(".")[0]


def size_of(extension: Extension) -> Any:
    node = extension.classes["AniFaceDiffRenderNormals"]
    return next(entry for entry in widgets(node) if entry.id == "size")


def test_no_text_is_taken_for_a_path_but_that_of_drop_downs(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything asked for by a name outside of the host's folders: devices hang, servers listen."""
    folder = extension.base / "input"
    (folder / "picture.png").write_bytes(b"a")
    graph = importlib.import_module(f"{package(extension)}.fingerprints").workflow_fingerprint

    def found(**given: Any) -> str | None:
        prompt = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "picture.png", **given}},
            "2": {"class_type": "AniFaceDiffReenactLongVideo", "inputs": {"source": ["1", 0]}},
        }
        return graph(SimpleNamespace(prompt=prompt, unique_id="2"))

    with_text, plain = found(bogus="picture.png"), found()
    outside = [
        "/proc/kmsg",
        "../secret",
        "\\\\server\\share\\x",
        "//server/share",
        "x\0y",
        "\ud800",
        "a" * 5000,
    ]
    asked: list[str] = []
    stat, opened = os.stat, Path.open

    def noted(path: Any, *args: Any, **names: Any) -> Any:
        asked.append(str(path))
        return stat(path, *args, **names)

    monkeypatch.setattr(os, "stat", noted)
    for text in outside:
        found(image=text, bogus=text)
    strange = [path for path in asked if any(word in path for word in ("kmsg", "server", "secret"))]
    assert all(Path(path).is_relative_to(folder) for path in strange)
    monkeypatch.setattr(os, "stat", stat)
    (folder / "picture.png").write_bytes(b"b")
    assert found(bogus="picture.png") != with_text and found() != plain, "the file of the drop-down counts"

    # what lies in the folder but is no plain file of it is not opened: this would hang
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/proc/kmsg")
    (folder / "away").symlink_to("/proc")
    (folder / "round").symlink_to(folder / "round")

    def opening(self: Path, *args: Any, **names: Any) -> Any:
        assert self.name == "picture.png"
        return opened(self, *args, **names)

    monkeypatch.setattr(Path, "open", opening)
    for name in ("pipe", "link", "away/kmsg", "round", "", ".", "link [input]"):
        assert found(image=name)
    for name in ("pipe", "link", "away", "round"):
        (folder / name).unlink()


# ---- text


def test_text_on_nodes_is_no_markup(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = importlib.import_module(f"{package(extension)}.host.runtime")
    sent: list[str] = []
    server = SimpleNamespace(send_progress_text=lambda text, node: sent.append(text))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    monkeypatch.setattr(runtime, "get_executing_context", lambda: SimpleNamespace(node_id="1"))
    runtime.notify("<img src=x onerror=window.pwned=1>\x1b[2J & 'so on'\nanother line")
    assert sent == ["&lt;img src=x onerror=window.pwned=1>\\x1b[2J & 'so on'\nanother line"]


def test_random_values_are_refused_or_taken(extension: Extension) -> None:
    """Never another error than a refusal, of 500 values for the nodes that need nothing but widgets."""
    dice = random.Random(7)
    values: list[Any] = [value for each in BAD.values() for value in each]
    values += ["", "{}", '{"jawOpen": NaN}', "[" * 10_000, "<b>", 0, -1, 1, 255, 0.5, True, "none", "bundled"]
    nodes = [
        node
        for node in extension.classes.values()
        if all(entry.optional for entry in node.define_schema().inputs if entry not in widgets(node))
    ]
    for _ in range(500):
        node = dice.choice(nodes)
        entries = widgets(node)
        given = {entry.id: getattr(entry, "default", None) for entry in entries}
        if entries:
            given[dice.choice(entries).id] = dice.choice(values)
        try:
            node.execute(**given)
        except InputError as error:
            one_sentence(str(error))
