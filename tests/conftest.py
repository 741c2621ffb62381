"""What tests can rely on: the core under its own name, install.py, a running ComfyUI, a browser."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_file(name: str, file: Path) -> ModuleType:
    """Import a file, or the package whose __init__.py it is, under that name."""
    if name in sys.modules:
        return sys.modules[name]
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# The repository's root must not be on sys.path: its folder `nodes` would hide the host's module `nodes`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
load_file("anifacediff_core", ROOT / "anifacediff_core" / "__init__.py")
load_file("install", ROOT / "install.py")
load_file("harness", ROOT / "tests" / "harness" / "__init__.py")

import install  # noqa: E402
from anifacediff_core.lab import client, environment  # noqa: E402
from harness import browser, server  # noqa: E402

# A test that needs the network of a hub is a mistake.
os.environ["HF_HUB_OFFLINE"] = "1"


class RepositoryIsNoPackage:
    """pytest would import the repository's __init__.py, which is ComfyUI's entry and needs ComfyUI."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RepositoryIsNoPackage())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-api-graphs",
        action="store_true",
        help="browser tests write workflows/api/*.json anew instead of comparing with them",
    )
    parser.addoption(
        "--write-node-record",
        action="store_true",
        help="test_nodes.py writes tests/host/nodes.json anew instead of comparing with it",
    )


def pytest_report_header() -> list[str]:
    return [f"ComfyUI: {environment.find_host() or 'none'}", f"browser: {browser.chromium() or 'none'}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in ("host", "browser"):
            if item.path.is_relative_to(ROOT / "tests" / name):
                item.add_marker(name)


def skip_or_fail(reason: str) -> None:
    """Skip, unless the test command promised that what is missing would be there."""
    if os.environ.get("ANIFACEDIFF_TEST_COMMAND"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of a ComfyUI."""
    host = environment.find_host()
    if host is None:
        skip_or_fail("no ComfyUI: set COMFYUI_PATH, or use 'python3 install.py test', which fetches one")
    return host


@pytest.fixture(scope="session")
def running_comfyui(comfyui: Path) -> Iterator[client.Server]:
    """A real ComfyUI with this extension, shared by all tests."""
    with server.start(comfyui) as running:
        yield running


@pytest.fixture(scope="session")
def browser_driver() -> Path:
    """The folder of what drives a browser, where there is one."""
    if browser.chromium() is None:
        pytest.skip("no Chromium: install it (Debian: apt install chromium), or name one in CHROMIUM_PATH")
    try:
        return browser.driver_folder()
    except install.SetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["classic", "vue"])
def front_end(
    request: pytest.FixtureRequest,
    browser_driver: Path,
    running_comfyui: client.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, browser.Page]:
    """What the real front-end made of every shipped workflow, by its name, in each renderer; one also ran."""
    folder, vue = tmp_path_factory.mktemp("screenshots"), request.param == "vue"
    names, running = server.workflow_names(), {"first_reenactment"}
    return browser.load_workflows(running_comfyui, browser_driver, names, folder, vue, running)
