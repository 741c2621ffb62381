"""The files around the code: they parse, name one version, and the documented example runs."""

from __future__ import annotations

import re
import subprocess
from datetime import date
from pathlib import Path

import pytest
import yaml

import anifacediff_core
from anifacediff_core.video import probe
from harness.server import shorten
from install import ROOT

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
KINDS = (".yml", ".yaml", ".cff")
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
FILES = [name for name in LISTED.splitlines() if name.endswith(KINDS) and (ROOT / name).exists()]


@pytest.mark.parametrize("name", FILES)
def test_yaml_files_hold_mappings(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_issue_forms_have_what_github_asks_for() -> None:
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        identifiers = [part["id"] for part in form["body"]]
        assert len(set(identifiers)) == len(identifiers)


def test_there_is_one_version_and_the_changelog_dates_it() -> None:
    version = anifacediff_core.__version__
    project, changes = ((ROOT / name).read_text() for name in ("pyproject.toml", "CHANGELOG.md"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.findall(r'^version = "(.+)"$', project, re.MULTILINE) == [version] == [citation["version"]]
    newest = re.findall(r"^## (\S+) \((.+)\)$", changes, re.MULTILINE)[0]
    assert newest == (version, str(citation["date-released"])) and date.fromisoformat(newest[1])


def test_the_lock_covers_what_is_required_and_names_no_torch() -> None:
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    names = {line.split("==")[0] for line in lines if "==" in line}
    wanted = {re.split("[>=<]", line)[0] for line in (ROOT / "requirements.txt").read_text().split("\n")}
    assert {name for name in wanted if name and name[0] != "#" and " " not in name} <= names
    assert not {"torch", "torchvision"} & names and not any("://" in line for line in lines)


def test_the_librarys_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    example, imports = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) == 10
    (tmp_path / "source.png").write_bytes((EXAMPLES / "source.png").read_bytes())
    shorten(EXAMPLES / "driving.mp4", tmp_path / "driving.mp4", 2)
    monkeypatch.chdir(tmp_path)
    exec(compile(imports + example, "docs/library.md", "exec"), {})  # noqa: S102 - it is the project's own
    assert probe("result.mp4").frames == 2 and probe("result.mp4").has_audio
