"""The lines between the packages: who imports whom, what the core needs; ruff and mypy over all of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from install import ROOT

ALWAYS = {
    "anifacediff_core",
    "torch",
    "numpy",
    "diffusers",
    "transformers",
    "safetensors",
    "einops",
    "filelock",
    "av",
    "PIL",
}
ALWAYS |= {"yaml", "tqdm"}
# What a package may import besides: the extras of pyproject.toml, and optional backends of one file.
EXTRAS = {
    "anifacediff_core/lab": {"aiohttp", "install"},
    "anifacediff_core/lab/training": {"accelerate", "bitsandbytes", "braceexpand", "pydantic", "webdataset"},
    "anifacediff_core/lab/scale.py": {"ray"},
    "anifacediff_core/lab/evaluation": {"sklearn", "torch_fidelity", "onnxruntime"},
    "anifacediff_core/lab/assets/build_bundled.py": {"anny", "scipy"},
    "anifacediff_core/head/pytorch3d_rasterize.py": {"pytorch3d"},
    "anifacediff_core/capture/mediapipe.py": {"mediapipe"},
    "anifacediff_core/network/kernels_triton.py": {"triton"},
    "anifacediff_core/provenance/manifest.py": {"c2pa"},
}


def run_tool(*command: str) -> None:
    tool = Path(sys.executable).with_name(command[0])
    if not tool.exists():
        pytest.skip(f"no {command[0]}: install the extra dev, or use 'python3 install.py test'")
    result = subprocess.run(
        [str(tool), *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    if result.returncode:
        pytest.fail(f"{command[0]} found:\n{result.stdout}{result.stderr}", pytrace=False)


def imports(folder: str) -> Iterator[tuple[str, int, str]]:
    """Every absolute import below a folder, also those inside functions: (file, line, module)."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield name, node.lineno, node.module


def test_import_contracts() -> None:
    run_tool("lint-imports", "--no-cache")


def test_ruff() -> None:
    run_tool("ruff", "check", "--no-cache", ".")


def test_types() -> None:
    run_tool("mypy")


def test_core_imports_only_what_it_declares() -> None:
    def allowed(file: str) -> set[str]:
        extras = (names for place, names in EXTRAS.items() if file == place or file.startswith(f"{place}/"))
        return ALWAYS.union(sys.stdlib_module_names, *extras)

    undeclared = [
        f"{file}:{line} imports {module}"
        for file, line, module in imports("anifacediff_core")
        if module.split(".")[0] not in allowed(file)
    ]
    assert undeclared == []


def test_one_place_names_the_version_of_the_hosts_api() -> None:
    """`comfy_api.torch_helpers`, which has no versions, apart."""
    versions = {(file, module) for file, _, module in imports("nodes") if module.startswith("comfy_api")}
    assert versions - {("nodes/host/compile.py", "comfy_api.torch_helpers")} == {
        ("nodes/host/api.py", "comfy_api.v0_0_2")
    }


def test_nothing_reaches_for_our_nodes_by_a_name_that_the_host_owns() -> None:
    wrong = [entry for folder in ("nodes", "anifacediff_core") for entry in imports(folder)]
    assert [f"{file}:{line}" for file, line, module in wrong if module.split(".")[0] == "nodes"] == []


def test_requirements_and_project_agree() -> None:
    """requirements.txt is the core's list without torch and numpy, which are the host's."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = ast.literal_eval(text.split("\ndependencies = ")[1].split("\n]")[0] + "\n]")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert set(declared) - set(listed) == {"torch", "numpy"}
    assert set(listed) <= set(declared)
