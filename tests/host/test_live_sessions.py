"""Live Reenactment without a browser: who is let in, what is refused, how sessions end, what is recorded."""

from __future__ import annotations

import asyncio
import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from anifacediff_core.lab import client
from anifacediff_core.provenance.detect import detect
from anifacediff_core.video import read_frames, to_pixels
from harness import server
from harness.extension import Extension
from harness.sessions import ROUTE, page


def jpeg(frame: Tensor | None = None, size: tuple[int, int] = (64, 64), kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    picture = Image.new("RGB", size) if frame is None else Image.fromarray(to_pixels(frame))
    picture.save(file, kind)
    return file.getvalue()


FACES = [
    jpeg(frame) for _, frame in zip(range(3), read_frames(server.EXAMPLES / "driving.mp4"), strict=False)
]


def graph(prefix: str, **values: Any) -> dict[str, Any]:
    """The shipped workflow, small."""
    shipped = server.load_graph("live")
    for kind in ("AniFaceDiffDECAExtract", "AniFaceDiffReferenceNetEncode"):
        client.set_inputs(shipped, kind, "size", 128)
    client.set_inputs(shipped, "AniFaceDiffSaveVideo", "filename_prefix", prefix)
    for name, value in values.items():
        client.set_inputs(shipped, "AniFaceDiffLive", name, value)
    return shipped


def test_a_session_from_start_to_recording(running_comfyui: client.Server) -> None:
    async def work() -> tuple[list[bytes], list[dict[str, Any]]]:
        async with page(running_comfyui.address) as here, page(running_comfyui.address) as other:
            await here.begin(graph("live/recorded"))
            pictures, figures = [], []
            for number, face in enumerate(FACES):
                status, told, picture = await here.post(face)
                assert status == 200
                pictures.append(picture)
                figures.append(told)
                if number == 0:
                    assert (await here.post(do="neutral"))[0] == 204
                    assert (await here.post(do="record"))[0] == 204
            assert (await here.post(do="stop"))[0] == 204
            assert (await here.hear("anifacediff.live"))["token"] is None
            await here.hear("execution_success")
            assert (await here.post(FACES[0]))[0] == 403  # it is over
            await other.stream.close()
            assert not any(message["type"] == "anifacediff.live" for message in other.seen)
            return pictures, figures

    pictures, figures = asyncio.run(work())
    sizes = {Image.open(io.BytesIO(picture)).size for picture in pictures}
    assert sizes == {(128, 128)} and len(set(pictures)) == 3
    assert [told["recorded"] for told in figures] == [0, 1, 2]
    assert [told["number"] for told in figures] == [1, 2, 3] and not any(told["lost"] for told in figures)
    assert figures[-1]["fps"] > 0 and figures[-1]["latency"] > 0
    (video,) = (running_comfyui.base / "output" / "live").glob("recorded_*.mp4")
    shown = torch.stack(list(read_frames(video)))
    assert shown.shape == (2, 3, 128, 128) and detect([shown]).identifier == 0


def test_strangers_and_floods_are_refused_and_the_host_lives(running_comfyui: client.Server) -> None:
    bomb = jpeg(size=(10_000, 5_000), kind="WEBP")  # 50 megapixels in a few bytes
    assert len(bomb) < 200_000

    async def work() -> None:
        async with page(running_comfyui.address) as here:
            assert (await here.post(FACES[0], token="x"))[0] == 403  # nothing runs
            await here.begin(graph("live/refused"))
            own = here.url.removeprefix("http://")
            refused = {
                "no token": await here.post(FACES[0], token=""),
                "a wrong token": await here.post(FACES[0], token="é" * 43),
                "another origin": await here.post(FACES[0], Origin="http://evil.example"),
                "an opaque origin": await here.post(FACES[0], Origin="null"),
                "another site": await here.post(FACES[0], Sec_Fetch_Site="cross-site"),
                "a sibling": await here.post(FACES[0], Sec_Fetch_Site="same-site"),
            }
            assert {what: answer[0] for what, answer in refused.items()} == dict.fromkeys(refused, 403)
            assert (await here.post(bomb))[0] == 413
            assert (await here.post(b"\xff\xd8" + bytes(3 * 2**20)))[0] == 413
            assert (await here.post(b"GIF89a"))[0] == 400
            assert (await here.post(jpeg(kind="PNG")))[0] == 400
            assert (await here.post(jpeg(size=(8, 8))))[0] == 400
            assert (await here.post(do="format"))[0] == 400
            assert (await here.post(FACES[0], Origin=f"http://{own}"))[0] == 200
            flood = await asyncio.gather(*(here.post(FACES[0]) for _ in range(100)))
            counts = {status: [each[0] for each in flood].count(status) for status in (200, 429)}
            assert counts[200] >= 1 and counts[200] + counts[429] == 100 and counts[429] >= 90
            assert (await here.post(FACES[1]))[0] == 200
            await here.post(do="stop")
            await here.hear("execution_success")

    asyncio.run(work())
    log = running_comfyui.log.read_text(encoding="utf-8", errors="replace")
    assert ROUTE not in log
    client.request(running_comfyui.address, "/system_stats")


def test_cancelling_ends_the_session(running_comfyui: client.Server) -> None:
    async def work() -> None:
        async with page(running_comfyui.address) as here:
            await here.begin(graph("live/cancelled"))
            assert (await here.post(FACES[0]))[0] == 200
            async with here.session.post(f"{here.url}/interrupt", json={}):
                pass
            await here.hear("execution_interrupted")
            assert (await here.post(FACES[0]))[0] == 403

    asyncio.run(work())
    assert not list((running_comfyui.base / "output").glob("live/cancelled_*"))


def test_a_silent_page_ends_the_session_with_the_last_picture(running_comfyui: client.Server) -> None:
    """Closing the page leaves the token with nobody."""

    async def work() -> None:
        async with page(running_comfyui.address) as here:
            await here.begin(graph("live/silent"))
            assert (await here.post(FACES[0]))[0] == 200
            await here.hear("execution_success")

    asyncio.run(work())
    (video,) = (running_comfyui.base / "output" / "live").glob("silent_*.mp4")
    assert len(list(read_frames(video))) == 1


def test_stopping_before_the_first_frame_is_told(running_comfyui: client.Server) -> None:
    async def work() -> dict[str, Any]:
        async with page(running_comfyui.address) as here:
            await here.begin(graph("live/none"))
            await here.post(do="stop")
            return await here.hear("execution_error")

    told = asyncio.run(work())
    assert "No frame came from the page" in told["exception_message"]


def test_without_a_page_it_is_told(running_comfyui: client.Server) -> None:
    body = {"prompt": graph("live/headless")}
    identifier = client.request(running_comfyui.address, "/prompt", body)["prompt_id"]

    async def work() -> str:
        async with page(running_comfyui.address) as here:
            while True:
                history = await (await here.session.get(f"{here.url}/history/{identifier}")).json()
                if history:
                    return str(history[identifier]["status"]["messages"])
                await here.hear("status")

    assert "no page did" in asyncio.run(work())


# ---- parts


def test_a_session_without_a_server(extension: Extension) -> None:
    """By a clock of its own: who is admitted, how fast, and how long silence lasts."""
    live = sys.modules[f"{extension.classes['AniFaceDiffLive'].__module__.rpartition('.')[0]}.host.live"]
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    for origin, same in (
        ("http://a:1", True),
        ("http://A:1", True),
        ("http://b:1", False),
        ("http://[", False),
    ):
        assert live.same_origin(SimpleNamespace(headers={"Origin": origin, "Host": "a:1"})) is same
    session = live.LiveSession(clock)
    assert session.admits(session.token) and not session.admits("") and not session.admits("\udcff")
    entered = [session.enter() for _ in range(live.MOST_WAITING + 1)]
    assert entered == [True] * live.MOST_WAITING + [False]
    for _ in range(live.MOST_WAITING):
        session.leave()
    for _ in range(live.MOST_A_SECOND - live.MOST_WAITING):
        assert session.enter()
        session.leave()
    assert not session.enter()
    now[0] += 1.0
    assert session.enter()
    session.leave()
    session.newest.put((1, torch.zeros(3, 16, 16)))
    frames = session.frames()
    next(frames)
    now[0] += live.NEXT_WITHIN
    session.ask("neutral")
    session.newest.put((2, torch.zeros(3, 16, 16)))
    next(frames)  # what came counts, however late
    assert session.asked() == {"neutral"} and session.asked() == set()
    session.ask("stop")
    assert list(frames) == [] and not session.admits(session.token)


def test_recordings_are_bounded_and_keep_their_pace(extension: Extension) -> None:
    module = sys.modules[extension.classes["AniFaceDiffLive"].__module__]
    recording = module.Recording(most=4)
    for number in range(10):
        if number == 2:
            recording.running = True
        if number == 4:
            recording.running = False  # a pause is no time
        if number == 7:
            recording.running = True
        recording.add(torch.full((3, 8, 8), number / 10), number / 5)
    assert recording.rate == pytest.approx(5.0) and not recording.running
    image = recording.image()
    assert image.shape == (4, 8, 8, 3) and image.dtype == torch.float32
    levels = [round(float(frame.mean()), 1) for frame in image]
    assert levels == [0.2, 0.3, 0.7, 0.8]
    assert recording.images[0].dtype == torch.uint8
