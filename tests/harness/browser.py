"""ComfyUI's front-end in headless Chromium, driven by playwright-core from npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import install
from anifacediff_core.lab import client, environment

PLAYWRIGHT = "1.64.1"
HARNESS = Path(__file__).parent
NO_VUE = 77  # how a driver ends that finds a front-end with one renderer of nodes only; see page.mjs


@dataclass(frozen=True)
class Page:
    """What the front-end made of one workflow."""

    unknown: list[str]  # types of nodes that it does not know
    graph: dict[str, Any]  # the API form that it would queue
    outcome: str  # "execution_success", or what went wrong, or "not queued"
    errors: list[str]  # uncaught errors of the page meanwhile
    screenshot: Path


def chromium() -> str | None:
    """A Chromium or Chrome on this machine."""
    named = os.environ.get("CHROMIUM_PATH")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return named or next((path for path in map(shutil.which, names) if path), None)


def driver_folder() -> Path:
    """A folder with playwright-core, outside the repository; made on first use."""
    folder = environment.cache_folder() / f"playwright-core-{PLAYWRIGHT}"
    if (folder / "node_modules" / "playwright-core").is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise install.SetupError("no npm: install Node.js for the browser tests")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        npm,
        "install",
        "--prefix",
        str(folder),
        "--no-save",
        "--ignore-scripts",
        f"playwright-core@{PLAYWRIGHT}",
    ]
    result = install.run_quietly(command)
    if result.returncode:
        raise install.SetupError(
            f"playwright-core could not be installed: {install.last_line(result.stdout)}"
        )
    return folder


def load_workflows(
    server: client.Server,
    driver: Path,
    names: list[str],
    screenshots: Path,
    vue: bool,
    running: Collection[str] = (),
    timeout: float = 900.0,
) -> dict[str, Page]:
    """Open every workflow from the host's template list in one browser and tell what happened.

    Nodes are drawn by Vue or on the canvas. Those in `running` are also queued, and their end is waited for.
    """
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "names": names,
        "vue": vue,
        "running": list(running),
        "screenshots": str(screenshots),
        "timeout": timeout * 1000,
    }
    pages = drive("drive.mjs", server, driver, task, timeout * max(1, len(names)))
    return {name: Page(**{**page, "screenshot": Path(page["screenshot"])}) for name, page in pages.items()}


def drive(
    script: str, server: client.Server | None, driver: Path, task: dict[str, Any], timeout: float
) -> Any:
    """What a driver of this folder prints last, for a task to which the server and the browser are added.

    One that waits in vain for its page begins once more: a front-end may lose a key while it loads.
    """
    address = None if server is None else f"http://{server.address}"
    task = {"address": address, "chromium": chromium(), **task}
    with FileLock(driver / "one.lock"):  # processes that test side by side would slow each other's pages down
        # Node.js looks for packages beside the script, not in the current folder.
        for file in HARNESS.glob("*.mjs"):
            shutil.copy(file, driver / file.name)
        for _ in range(2):
            result = subprocess.run(
                ["node", str(driver / script), json.dumps(task)],
                capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
            if "TimeoutError" not in result.stderr:
                break
    if result.returncode == NO_VUE:
        pytest.skip("this front-end does not offer to draw nodes by Vue")
    if result.returncode:
        raise RuntimeError(f"the browser driver failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])
