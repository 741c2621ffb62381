"""The entry of the ComfyUI extension."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _share_core() -> None:
    """Make the library importable as `anifacediff_core`, without putting this folder on sys.path.

    There our folder `nodes` would hide the host's module `nodes` from every other extension.
    """
    folder = Path(__file__).resolve().parent / "anifacediff_core"
    if "anifacediff_core" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "anifacediff_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    core = importlib.util.module_from_spec(spec)
    sys.modules["anifacediff_core"] = core
    spec.loader.exec_module(core)


_share_core()

from .nodes import comfy_entrypoint  # noqa: E402

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
