"""A live session: frames, or what is dialed, come from the page that started a run over the host's own server
to the node that runs.

The route answers only while such a node runs, and only to who has the session's token, which the host sends
to that page alone. Whatever else comes is refused before anything of it is read: 403 without the token or
from another origin, 413 too large, 429 too many, 400 nothing to draw by. The session ends with the node.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import comfy.model_management
from aiohttp import web
from PIL import Image
from torch import Tensor

from anifacediff_core.capture.extract import LEAST_PIXELS
from anifacediff_core.errors import InputError
from anifacediff_core.pictures import open_picture, shown
from anifacediff_core.sampling.pace import Clock, Newest
from anifacediff_core.video import to_pixels, to_tensor

ROUTE = "/anifacediff/live"
EVENT = "anifacediff.live"
TOKEN, STATUS = "X-AniFaceDiff-Token", "X-AniFaceDiff-Status"
FORMATS = ("JPEG", "WEBP")
MOST_BYTES = 2 * 2**20
MOST_PIXELS = 2_500_000  # somewhat more than full HD
MOST_WAITING = 4  # requests that are answered at a time
MOST_A_SECOND = 120
ACTIONS = {"neutral", "record", "pause", "stop"}
POLL = 0.25  # seconds after which is looked whether the user has cancelled the run
FIRST_WITHIN, NEXT_WITHIN = 60.0, 10.0  # seconds until a page that sends nothing counts as closed
Decode = Callable[[bytes], Any]  # None for what is too large; InputError for what is nothing to draw by
ANSWER_WITHIN = 5.0
QUALITY = 90


class LiveSession:
    """What the server's thread and the node's share, for as long as the node runs.

    Args:
        read: makes of a request's body what the node draws by; pixels (3, height, width) in [0, 1] if None.
        silence: seconds without any after which the page counts as closed.

    Attributes:
        token: 256 random bits.
        newest: number and content of the request that came last.
    """

    def __init__(
        self, clock: Clock = time.monotonic, read: Decode | None = None, silence: float = NEXT_WITHIN
    ) -> None:
        self.clock, self.token = clock, secrets.token_urlsafe(32)
        self.read, self.silence = read or decode, silence
        self.newest: Newest[tuple[int, Any]] = Newest(clock)
        self._lock = Lock()
        self._closed = False
        self._asked: set[str] = set()
        self._came: deque[float] = deque(maxlen=MOST_A_SECOND)
        self._inside = self._number = self._drawing = self._shown = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._picture, self._status = b"", "{}"

    # ---- what the node does

    def frames(self) -> Iterator[tuple[float, Any]]:
        """When each frame came, and its content, newest first and foremost; until the page stops or is gone.

        Raises:
            the host's exception when the user has cancelled the run.
        """
        heard, patience = self.clock(), FIRST_WITHIN
        while not self._closed:
            comfy.model_management.throw_exception_if_processing_interrupted()
            taken = self.newest.take(POLL)
            if taken is not None:
                self._drawing, content = taken.item
                yield taken.time, content
                heard, patience = self.clock(), self.silence
            elif self.clock() - heard > patience:
                return

    def asked(self) -> set[str]:
        """What was asked for since the last call, of `ACTIONS`."""
        with self._lock:
            asked, self._asked = self._asked, set()
            return asked

    def show(self, image: Tensor, status: Mapping[str, Any]) -> None:
        """Answer who waits for the frame that was yielded last, or for one before it.

        Args:
            image: (3, height, width) in [0, 1].
            status: figures to show beside it.
        """
        file = io.BytesIO()
        Image.fromarray(to_pixels(image)).save(file, "JPEG", quality=QUALITY)
        with self._lock:
            self._shown, self._picture = self._drawing, file.getvalue()
            self._status = json.dumps({**status, "number": self._shown})
            self._wake(self._shown)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wake(self._number)
        self.newest.close()

    def _wake(self, number: int) -> None:
        ready = [future for waiting, future in self._waiting if waiting <= number]
        self._waiting = [entry for entry in self._waiting if entry[0] > number]
        for future in ready:
            future.get_loop().call_soon_threadsafe(_finish, future)

    # ---- what the server does

    def admits(self, token: str) -> bool:
        given = token.encode("utf-8", "surrogateescape")  # whatever bytes there are in a header
        return not self._closed and hmac.compare_digest(given, self.token.encode())

    def enter(self) -> bool:
        """Whether a request may be answered now; it leaves when it is."""
        now = self.clock()
        with self._lock:
            hurried = len(self._came) == MOST_A_SECOND and now - self._came[0] < 1
            if self._inside >= MOST_WAITING or hurried:
                return False
            self._came.append(now)
            self._inside += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def ask(self, action: str) -> None:
        with self._lock:
            self._asked.add(action)
        if action == "stop":
            self.close()

    async def answer(self, content: Any) -> web.Response:
        """The picture of a frame, or of one that came after it."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            self._number += 1
            self._waiting.append((self._number, future))
            self.newest.put((self._number, content))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(future, ANSWER_WITHIN)
        with self._lock:
            self._waiting = [entry for entry in self._waiting if entry[1] is not future]
            if self._closed or not self._picture:
                return web.Response(status=204)
            headers = {STATUS: self._status, "Cache-Control": "no-store"}
            return web.Response(body=self._picture, content_type="image/jpeg", headers=headers)


class LiveSessions:
    """The session of the node that runs, if one does; the host runs one node at a time."""

    def __init__(self) -> None:
        self.current: LiveSession | None = None

    async def receive(self, request: web.Request) -> web.Response:
        """A frame in the body, or something to do in the query: `?do=neutral`."""
        session = self.current
        if session is None or not session.admits(request.headers.get(TOKEN, "")) or not same_origin(request):
            return web.Response(status=403)
        if not session.enter():
            return web.Response(status=429)
        try:
            if action := request.query.get("do"):
                if action not in ACTIONS:
                    return web.Response(status=400)
                session.ask(action)
                return web.Response(status=204)
            data = await _body(request)
            content = None if data is None else await asyncio.to_thread(session.read, data)
            return web.Response(status=413) if content is None else await session.answer(content)
        except InputError:
            return web.Response(status=400)
        finally:
            session.leave()


SESSIONS = web.AppKey("anifacediff_live", LiveSessions)


def register_live_route() -> None:
    """Add the route to the host's server, where there is one; it refuses everything until a node runs."""
    server = _server()
    if server is not None:
        sessions = server.app[SESSIONS] = LiveSessions()
        server.routes.post(ROUTE)(sessions.receive)


@contextmanager
def live_session(
    node: str,
    *,
    needs: str = "Live Reenactment takes its frames from",
    otherwise: str = "use the command live",
    told: Mapping[str, Any] | None = None,
    **values: Any,
) -> Iterator[LiveSession]:
    """A session for the page that queued the prompt that runs; it ends with the context.

    Args:
        node: number of the node that runs.
        needs, otherwise: of the message, where there is no such page: what it is for, what to do instead.
        told: what the page gets beside the token.
        values: what `LiveSession` takes.

    Raises:
        InputError: there is no such page.
    """
    server = _server()
    page = None if server is None else server.client_id
    if server is None or page is None:
        raise InputError(
            f"{needs} the page that started the run, but no page did: queue the workflow in the browser, or "
            f"{otherwise}."
        )
    session = LiveSession(**values)
    server.app[SESSIONS].current = session
    server.send_sync(EVENT, {**(told or {}), "node": node, "token": session.token}, page)
    try:
        yield session
    finally:
        server.app[SESSIONS].current = None
        session.close()
        server.send_sync(EVENT, {"node": node, "token": None}, page)


def same_origin(request: web.Request) -> bool:
    """Whether a page of this server sent it, as far as browsers tell; other programs send neither header."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    with suppress(ValueError):
        return urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()
    return False


def decode(data: bytes) -> Tensor | None:
    """Pixels (3, height, width) in [0, 1] of a JPEG or WebP; None if it has too many, which its header says.

    Raises:
        InputError: it is no such picture, or has hardly any pixels.
    """
    with open_picture(io.BytesIO(data), FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            return None
        if min(image.size) < LEAST_PIXELS:
            raise InputError(f"The frame has only {image.width}×{image.height} pixels: send a larger one.")
        return to_tensor(shown(image))


async def _body(request: web.Request) -> bytes | None:
    """What was sent; None if it is more than a frame may have, of which no more is read."""
    if (request.content_length or 0) > MOST_BYTES:
        return None
    data = bytearray()
    async for part in request.content.iter_chunked(2**16):
        data += part
        if len(data) > MOST_BYTES:
            return None
    return bytes(data)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _server() -> Any:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)
