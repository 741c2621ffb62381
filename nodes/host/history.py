"""What a file was made of, as far as the workflow tells that runs: input files, and what was done to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anifacediff_core.errors import InputError

from .files import input_file

FILES = {"LoadImage": "image", "LoadVideo": "file"}  # nodes of the host, and their inputs that name a file
PASTES = {"AniFaceDiffPasteBack", "AniFaceDiffReenactMany"}
MAY_PASTE = ("AniFaceDiffReenactLongVideo", "original")  # does so if this is connected


def upstream(prompt: Mapping[str, Any], node: str | None) -> list[Mapping[str, Any]]:
    """The nodes that lead to one, and itself; all of them where it is not in the prompt."""
    if node is None or node not in prompt:
        return list(prompt.values())
    found: dict[str, Mapping[str, Any]] = {}
    waiting = [node]
    while waiting:
        number = waiting.pop()
        if number in found or number not in prompt:
            continue
        found[number] = prompt[number]
        links = (value for value in prompt[number].get("inputs", {}).values() if isinstance(value, list))
        waiting += [link[0] for link in links if link and isinstance(link[0], str)]
    return list(found.values())


def made_of(nodes: list[Mapping[str, Any]]) -> list[Path]:
    """Pictures and videos of the input folder that nodes load, each once."""
    names = [node.get("inputs", {}).get(FILES.get(node.get("class_type", ""))) for node in nodes]
    paths = []
    for name in names:
        try:
            paths += [input_file(name)] if isinstance(name, str) else []
        except InputError:
            continue  # of another folder
    return list(dict.fromkeys(paths))


def is_composite(nodes: list[Mapping[str, Any]]) -> bool:
    """Whether a portrait was put back into the picture that it is from."""
    kind, name = MAY_PASTE
    return any(
        node.get("class_type") in PASTES
        or (node.get("class_type") == kind and name in node.get("inputs", {}))
        for node in nodes
    )
