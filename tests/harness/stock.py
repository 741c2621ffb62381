"""The host's own nodes, called as its executor does."""

from __future__ import annotations

import importlib
from typing import Any


def run_node(node: Any, **inputs: Any) -> tuple:
    """Outputs of a node class of either generation."""
    if hasattr(node, "define_schema"):
        output = node.execute(**inputs)
        return output if isinstance(output, tuple) else output.result
    return getattr(node(), node.FUNCTION)(**inputs)


def extra(file: str, name: str) -> Any:
    """A node class of the host's folder comfy_extras."""
    return getattr(importlib.import_module(f"comfy_extras.nodes_{file}"), name)
