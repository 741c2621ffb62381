"""A ComfyUI of our own: started, asked through its API, and stopped. aiohttp is the host's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
Watcher = Callable[[str, int, int], None]


class HostError(Exception):
    """The host refused or failed; says what it said."""


# ---- a server


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


def wait_until_ready(server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise HostError(f"ComfyUI stopped while starting:\n{server.log_tail()}")
        try:
            request(server.address, "/system_stats", timeout=5)
            return
        except (HostError, OSError, aiohttp.ClientError, asyncio.TimeoutError):
            time.sleep(0.2)
    raise HostError(f"ComfyUI was not ready after {seconds:.0f} s:\n{server.log_tail()}")


# ---- its API


def request(address: str, path: str, data: Any = None, timeout: float = 60.0) -> Any:
    """GET, or POST when there is data (a form, or something for JSON); the answer parsed when it is JSON."""
    return asyncio.run(_request(address, path, data, timeout))


async def _request(address: str, path: str, data: Any, timeout: float) -> Any:
    form = {"data" if isinstance(data, aiohttp.FormData) else "json": data}
    limit = aiohttp.ClientTimeout(total=timeout)
    async with (
        aiohttp.ClientSession(timeout=limit) as session,
        session.request("GET" if data is None else "POST", f"http://{address}{path}", **form) as answer,
    ):
        if not answer.ok and (answer.status, path) != (400, "/prompt"):
            raise HostError(f"ComfyUI answered {answer.status} to {path}.")
        content = await answer.read()
        return json.loads(content) if answer.content_type == "application/json" and content else content


def upload(address: str, file: Path, name: str | None = None) -> str:
    """Put a picture or a video into the host's input folder; returns the name that it got there."""
    form = aiohttp.FormData({"overwrite": "true"})
    form.add_field("image", file.read_bytes(), filename=name or file.name)
    return str(request(address, "/upload/image", form)["name"])


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
    progress: Watcher | None = None,
    timeout: float = 900.0,
    extra_data: dict[str, Any] | None = None,
) -> Run:
    """Run an API graph and wait for it. `progress` gets (node id, done, total), with total 0 for a new node.

    Never raises for what the graph did: see `Run.check`. Raises HostError when the host itself is gone or
    silent for `timeout` seconds. An exception in `progress`, or Ctrl-C, interrupts the run.
    """
    body = {"prompt": graph, "client_id": uuid.uuid4().hex, "extra_data": extra_data or {}}
    try:
        return asyncio.run(_run(server.address, body, progress, timeout))
    except asyncio.TimeoutError:
        raise HostError(f"ComfyUI was silent for {timeout:.0f} s:\n{server.log_tail()}") from None
    except (ConnectionError, aiohttp.ClientError):
        raise HostError(f"ComfyUI stopped during the run:\n{server.log_tail()}") from None
    except BaseException:
        if server.process.poll() is None:
            request(server.address, "/interrupt", {}, timeout=5)
        raise


async def _run(address: str, body: dict[str, Any], progress: Watcher | None, timeout: float) -> Run:
    run, url = Run(), f"http://{address}/ws?clientId={body['client_id']}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as stream:
        answer = await _request(address, "/prompt", body, 60.0)
        run.node_errors = answer.get("node_errors") or {}
        if "prompt_id" not in answer:
            if not run.node_errors:
                run.error = {"exception_message": answer.get("error", {}).get("message", str(answer))}
            return run
        await _follow(stream, answer["prompt_id"], run, progress, timeout)
    return run


async def _follow(
    stream: aiohttp.ClientWebSocketResponse, prompt: str, run: Run, progress: Watcher | None, timeout: float
) -> None:
    """Fill `run` from the host's messages until the prompt has ended."""
    node, since = None, time.monotonic()
    while True:
        received = await stream.receive(timeout)
        if received.type == aiohttp.WSMsgType.BINARY:  # a preview
            continue
        if received.type != aiohttp.WSMsgType.TEXT:
            raise ConnectionError("ComfyUI closed the connection")
        message = received.json()
        kind, data = message["type"], message.get("data", {})
        if data.get("prompt_id", prompt) != prompt:
            continue
        if kind in ("executing", "execution_success"):
            now = time.monotonic()
            if node is not None:
                run.seconds[node] = run.seconds.get(node, 0.0) + now - since
            node, since = data.get("node"), now
            if progress and node is not None:
                progress(node, 0, 0)
        elif kind == "progress" and progress and data.get("node"):
            progress(data["node"], int(data["value"]), int(data["max"]))
        elif kind == "executed" and data.get("output"):
            run.outputs[data["node"]] = data["output"]
        elif kind == "execution_error":
            run.error = data
        run.interrupted |= kind == "execution_interrupted"
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            return


def set_inputs(graph: dict[str, Any], class_type: str, widget: str, value: str) -> int:
    """Write a widget of every node of that class; returns how many there are."""
    nodes = [node for node in graph.values() if node["class_type"] == class_type]
    for node in nodes:
        node["inputs"][widget] = value
    return len(nodes)
