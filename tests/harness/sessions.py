"""A page that a live session is opened for, without a browser."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

ROUTE = "/anifacediff/live"
TOKEN, STATUS = "X-AniFaceDiff-Token", "X-AniFaceDiff-Status"
LIMIT = 300.0  # seconds, on the busiest machine


class Page:
    """What a browser's page does: it queues the workflow, is told the token, and posts."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = f"http://{address}", session
        self.sid, self.token = uuid.uuid4().hex, ""
        self.stream: Any = None
        self.seen: list[dict[str, Any]] = []

    async def queue(self, workflow: dict[str, Any]) -> None:
        body = {"prompt": workflow, "client_id": self.sid}
        async with self.session.post(f"{self.url}/prompt", json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def hear(self, *kinds: str) -> dict[str, Any]:
        """The data of the next message of such a kind."""
        while True:
            message = await self.stream.receive(LIMIT)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
            if message.type == aiohttp.WSMsgType.BINARY:
                continue
            told = message.json()
            self.seen.append(told)
            if told["type"] in kinds:
                return told["data"]

    async def begin(self, workflow: dict[str, Any]) -> None:
        await self.queue(workflow)
        self.token = (await self.hear("anifacediff.live"))["token"]

    async def post(
        self, body: bytes = b"", do: str = "", token: str | None = None, **headers: str
    ) -> tuple[int, dict[str, Any], bytes]:
        """Status, the figures of the answer, and its picture."""
        given = {TOKEN: self.token if token is None else token}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        query = {"do": do} if do else {}
        async with self.session.post(
            f"{self.url}/api{ROUTE}", data=body, headers=given, params=query
        ) as answer:
            return answer.status, json.loads(answer.headers.get(STATUS, "{}")), await answer.read()


@asynccontextmanager
async def page(address: str) -> AsyncIterator[Page]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        opened = Page(address, session)
        url = f"{opened.url}/ws?clientId={opened.sid}"
        async with session.ws_connect(url, max_msg_size=0) as opened.stream:
            yield opened
