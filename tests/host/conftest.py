"""The host inside the test's own process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from harness.extension import Extension, load

ROOT = Path(__file__).resolve().parents[2]


def load_package(name: str, folder: Path) -> ModuleType:
    """Import a package without the repository on sys.path, where our `nodes` would hide the host's."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


@pytest.fixture(scope="module", autouse=True)
def without_gradients() -> Iterator[None]:
    """As the host runs its nodes; only here, since other tests train."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def comfy(comfyui: Path) -> ModuleType:
    """ComfyUI's package `comfy`, on the CPU, with the submodules that the tests use."""
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    try:
        # without this the host ignores its own command line, and with it --cpu
        import comfy.options

        comfy.options.enable_args_parsing()
        importlib.import_module("utils.extra_config")
        importlib.import_module("utils.install_util")
        import comfy.cli_args
    finally:
        sys.argv = arguments
    for name in (
        "sample",
        "samplers",
        "sd",
        "sd1_clip",
        "utils",
        "lora",
        "controlnet",
        "model_management",
        "model_sampling",
    ):
        importlib.import_module(f"comfy.{name}")
    return comfy


@pytest.fixture(scope="session")
def nodes(comfy: ModuleType) -> ModuleType:
    """The host's module `nodes`."""
    return importlib.import_module("nodes")


@pytest.fixture(scope="session")
def extension(comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Extension:
    """The extension in that host, whose folders are temporary ones."""
    return load(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def host(comfy: ModuleType) -> SimpleNamespace:
    """The modules of `nodes/host`, loaded as a package of their own."""
    load_package("anifacediff_host", ROOT / "nodes" / "host")
    names = (
        "apply",
        "auxiliary",
        "cache",
        "clip_vision",
        "examples",
        "folders",
        "lora",
        "model",
        "parts",
        "places",
        "sampling",
        "stream",
        "vae",
        "windows",
    )
    return SimpleNamespace(**{name: importlib.import_module(f"anifacediff_host.{name}") for name in names})
