"""The extension in a host that runs in the test's own process."""

from __future__ import annotations

import asyncio
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anifacediff_core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Extension:
    """The loaded extension."""

    classes: dict[str, Any]
    folder_paths: ModuleType
    base: Path

    def run(self, node: str, **inputs: Any) -> tuple:
        """Outputs of a node, executed as the host does it but for the queue."""
        return self.output(node, **inputs).result

    def output(self, node: str, **inputs: Any) -> Any:
        return self.classes[f"AniFaceDiff{node}"].execute(**inputs)

    def refusal(self, node: str, **inputs: Any) -> str:
        """What a node says when it refuses its inputs: an InputError of one sentence."""
        with pytest.raises(InputError) as error:
            self.output(node, **inputs)
        return one_sentence(str(error.value))


def one_sentence(text: str) -> str:
    assert "\n" not in text and len(text) < 300, text
    assert text[0].isupper() or text[0] in "'\"" or text.split()[0].endswith((".safetensors", ".pth")), text
    assert text.endswith(".") and not re.search(r"[.!?] +[A-Z]", text), text
    return text


def load(base: Path) -> Extension:
    """The extension, loaded by the host's own loader; the host's folders are below ``base``."""
    folder_paths = importlib.import_module("folder_paths")
    folder_paths.models_dir = str(base / "models")
    folder_paths.set_input_directory(str(base / "input"))
    folder_paths.set_output_directory(str(base / "output"))
    for name in ("input", "output", "models/anifacediff", "models/deca", "models/flame"):
        (base / name).mkdir(parents=True)
    host_nodes = importlib.import_module("nodes")
    assert hasattr(host_nodes, "load_custom_node"), "this is not the host's module `nodes`"
    assert asyncio.run(host_nodes.load_custom_node(str(ROOT), module_parent="custom_nodes"))
    classes = {
        name: node for name, node in host_nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("AniFaceDiff")
    }
    return Extension(classes, folder_paths, base)
