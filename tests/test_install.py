"""install.py and its environment: what they decide before they install anything, and how they refuse."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import install
from anifacediff_core.lab import environment
from install import ROOT, SetupError

MODULE = ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 10))


def test_a_bare_python_can_run_it() -> None:
    """The oldest Python's grammar, the standard library alone, and short enough to be read."""
    imported = [node for node in ast.walk(MODULE) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in imported if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    code = "import sys; sys.path.insert(0, sys.argv[1]); import install"
    bare = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], check=False)
    assert bare.returncode == 0


def test_every_requirement_has_a_name() -> None:
    names = [install.requirement_name(line) for line in install.requirement_lines(ROOT / "requirements.txt")]
    assert {"diffusers", "transformers", "safetensors"} <= set(names)
    assert not {"torch", "numpy"} & set(names)


def test_development_tools_are_read_from_pyproject() -> None:
    names = {install.requirement_name(line) for line in environment.dev_requirements()}
    assert {"pytest", "ruff", "mypy", "import-linter", "accelerate"} <= names
    assert "anny" not in names  # only for rebuilding the head


def test_versions_compare_by_number() -> None:
    assert install.version_tuple("2.13.0+cpu") == (2, 13, 0)
    assert install.version_tuple("0.9") < install.version_tuple("0.35.1")


def test_a_wrong_comfyui_path_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="holds no ComfyUI"):
        install.users_host()


def test_the_comfyui_around_this_folder_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(install, "ROOT", tmp_path / "custom_nodes" / "ComfyUI-AniFaceDiff")
    monkeypatch.setenv("COMFYUI_PATH", "/nowhere")
    assert install.users_host() == tmp_path


def test_a_users_comfyui_brings_its_own_list(tmp_path: Path) -> None:
    """Without what would fetch another torch, or CUDA."""
    (tmp_path / "requirements.txt").write_text(
        "comfyui-frontend-package==1.49.6\ntorch\ntorchvision\ntorchaudio\ntorchsde\nnumpy>=1.25.0\n"
        "comfy-kitchen==0.2.31\ncomfy-aimdo==0.4.13\n\n#optional\nkornia>=0.7.1\nspandrel\n"
    )
    needed, alone = environment.host_packages(tmp_path)
    assert needed == ["torchsde", "numpy>=1.25.0"]
    assert alone == [
        "comfyui-frontend-package==1.49.6", "torchaudio", "comfy-kitchen==0.2.31", "comfy-aimdo==0.4.13",
        "kornia>=0.7.1", "spandrel", "kornia_rs",
    ]  # fmt: skip


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Calls of pip, recorded instead of made, with the constraints file read."""
    calls: list[list[str]] = []

    def record(python: Path | str, what: str, packages: list[str], *options: str) -> None:
        calls.append([*packages, "constrained by", *Path(options[1]).read_text().split()])

    monkeypatch.setattr(install, "pip_install", record)
    return calls


EVERYTHING = {"diffusers": "0.40.0", "transformers": "5.0.0", "safetensors": "0.8.0", "einops": "0.8.0"}
EVERYTHING |= {"av": "16.0.0", "pillow": "12.0.0", "PyYAML": "6.0", "tqdm": "4.0", "filelock": "3.0"}
EVERYTHING |= {"torch": "2.9.0", "numpy": "2.1.0"}


def has(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    found = [SimpleNamespace(metadata={"Name": name}, version=each) for name, each in versions.items()]
    monkeypatch.setattr(install.metadata, "distributions", lambda: found)


def test_nothing_is_installed_where_nothing_is_missing(
    monkeypatch: pytest.MonkeyPatch, installed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch, EVERYTHING)
    install.install_missing()
    assert installed == []
    assert "nothing to install" in capsys.readouterr().out


def test_only_what_is_missing_is_installed_and_the_rest_held(
    monkeypatch: pytest.MonkeyPatch, installed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    present = {name: version for name, version in EVERYTHING.items() if name != "diffusers"} | {
        "av": "12.0.0"
    }
    has(monkeypatch, present)
    install.install_missing()
    (call,) = installed
    assert call[0].startswith("diffusers") and call[1] == "constrained by"
    assert {"torch==2.9.0", "numpy==2.1.0", "av==12.0.0"} <= set(call)
    assert "not changed: av is 12.0.0" in capsys.readouterr().out


def test_a_python_without_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="has no torch"):
        install.install_missing()


def test_refusals_are_one_sentence_without_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "COMFYUI_PATH": str(tmp_path)}
    for arguments in (["demo", "--source", "missing.png"], ["demo"]):
        command = [sys.executable, str(ROOT / "install.py"), *arguments]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_stamp_holds_for_one_list_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "VENV", tmp_path)
    file, text, done = environment.stamped("base", ["a", "b"])
    assert not done
    file.write_text(text)
    assert environment.stamped("base", ["a", "b"])[2]
    assert not environment.stamped("base", ["a", "c"])[2]
