"""Texts in other languages: complete, and of the nodes as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.extension import Extension

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("ja", "zh")


def texts(language: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))
    return found


def english(extension: Extension) -> dict[str, dict[str, Any]]:
    """Names of inputs and outputs of every node."""
    found = {}
    for name, node in extension.classes.items():
        info = node.GET_NODE_INFO_V1()
        inputs = [key for part in ("required", "optional") for key in info["input"].get(part, {})]
        found[name] = {"inputs": inputs, "outputs": [str(i) for i in range(len(info["output"]))]}
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_is_translated(extension: Extension, language: str) -> None:
    nodes, expected = texts(language, "nodeDefs.json"), english(extension)
    assert set(nodes) == set(expected)
    for name, node in nodes.items():
        assert node["display_name"] and node["description"], name
        for part in ("inputs", "outputs"):
            assert sorted(node.get(part, {})) == sorted(expected[name][part]), f"{name} {part}"
            for key, entry in node.get(part, {}).items():
                assert entry["name"] and entry["tooltip"], f"{name} {key}"
                assert any(ord(letter) > 0x2E80 for letter in entry["tooltip"]), f"{name} {key}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_is_translated(extension: Extension, language: str) -> None:
    for name in extension.classes:
        page = (ROOT / "web" / "docs" / name / f"{language}.md").read_text(encoding="utf-8")
        plain = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith("# ") and any(ord(letter) > 0x2E80 for letter in page), name
        assert page.count("\n| ") == plain.count("\n| "), f"{name}: rows of the tables differ"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sub_menu_has_a_name(extension: Extension, language: str) -> None:
    paths = {node.GET_NODE_INFO_V1()["category"] for node in extension.classes.values()}
    named = texts(language, "main.json")["nodeCategories"]
    assert {part for path in paths for part in path.split("/")} == set(named)
