"""The result in the Expression Editor without a browser: what is drawn, what is refused, what comes out."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys
import weakref
from typing import Any

import pytest
import torch
from PIL import Image

from anifacediff_core.errors import InputError
from anifacediff_core.head.editing import edit
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab import client
from harness import server
from harness.extension import Extension
from harness.sessions import Page, page

SIZE = 128
EDITOR = "AniFaceDiffExpressionEditor"


def graph(prefix: str, **values: Any) -> dict[str, Any]:
    """Source picture, model and editor of the shipped workflow; what is dialed goes into a file."""
    shipped = server.load_graph("expression_editor")
    for kind in ("AniFaceDiffDECAExtract", "AniFaceDiffReferenceNetEncode"):
        client.set_inputs(shipped, kind, "size", SIZE)
    (number,) = (key for key, node in shipped.items() if node["class_type"] == EDITOR)
    editor = shipped[number]["inputs"]
    editor |= {"expression": "{}", "show_result": True, **values}
    del editor["parameters"]
    kept: dict[str, Any] = {}
    wanted = [number]
    while wanted:
        key = wanted.pop()
        kept[key] = shipped[key]
        wanted += [value[0] for value in shipped[key]["inputs"].values() if isinstance(value, list)]
    save = {"parameters": [number, 0], "filename_prefix": prefix, "format": "safetensors"}
    return {**kept, "900": {"class_type": "AniFaceDiffSaveFaceParameters", "inputs": save}}


def dialed(expression: str, frame: int = 0, number: int = 1) -> bytes:
    return json.dumps({"expression": expression, "frame": frame, "number": number}).encode()


def saved(comfyui: client.Server, prefix: str) -> FaceParameters:
    (file,) = (comfyui.base / "output").glob(f"{prefix}_*.safetensors")
    return FaceParameters.load(file)


async def drawn(here: Page, expression: str, frame: int, number: int) -> bytes:
    """The picture, as the page waits for it: a slow machine answers before it is there."""
    while True:
        status, told, picture = await here.post(dialed(expression, frame, number))
        assert status in (200, 204)
        if status == 200 and told["asked"] == number:
            return picture


def test_what_is_dialed_is_drawn_and_comes_out(running_comfyui: client.Server) -> None:
    yawn, turn = '{"jawOpen": 1}', '{"headYaw": 30}'
    over_time = json.dumps(
        {"keyframes": [{"frame": 0, "expression": {"jawOpen": 1}}, {"frame": 4, "expression": {}}]}
    )

    async def work() -> list[bytes]:
        async with page(running_comfyui.address) as here:
            await here.begin(graph("dialed"))
            asked = [("{}", 0), (yawn, 0), (turn, 0), (over_time, 4), (over_time, 0)]
            pictures = [await drawn(here, *each, number) for number, each in enumerate(asked, start=7)]
            assert (await here.post(do="stop"))[0] == 204
            assert (await here.hear("anifacediff.live"))["token"] is None
            await here.hear("execution_success")
            assert (await here.post(dialed("{}")))[0] == 403  # it is over
            return pictures

    rest, yawning, turned, ended, began = asyncio.run(work())
    assert Image.open(io.BytesIO(rest)).size == (SIZE, SIZE)
    assert len({rest, yawning, turned}) == 3
    assert rest == ended and yawning == began, "keyframes are drawn at the frame that is asked for"
    assert len(saved(running_comfyui, "dialed")) == 5, "what was dialed last"


def test_strangers_and_nonsense_are_refused(running_comfyui: client.Server) -> None:
    async def refusals(here: Page) -> None:
        for nonsense in (b"", b"{}", b"[]", b"\xff\xd8", dialed('{"jawOpn": 1}'), b'{"number": NaN}'):
            assert (await here.post(nonsense))[0] == 400, nonsense
        assert (await here.post(b"[" * 100_000))[0] == 400
        assert (await here.post(b'"' + b"x" * 3 * 2**20))[0] == 413
        assert (await here.post(dialed("{}"), token="x"))[0] == 403
        assert (await here.post(dialed("{}"), Origin="http://evil.example"))[0] == 403

    async def work() -> None:
        async with page(running_comfyui.address) as here:
            await here.begin(graph("refused"))
            await refusals(here)
            # many at once: those that are let in are answered with the newest, by few pictures
            flood = [here.post(dialed(json.dumps({"headYaw": n}), number=n)) for n in range(1, 41)]
            answers = await asyncio.gather(*flood)
            assert {answer[0] for answer in answers} <= {200, 204, 429}
            assert await drawn(here, '{"jawOpen": 0.5}', 0, 99)
            async with here.session.post(f"{here.url}/interrupt", json={}):
                pass
            await here.hear("execution_interrupted")
            assert (await here.post(dialed("{}")))[0] == 403

    asyncio.run(work())
    assert not list((running_comfyui.base / "output").glob("refused_*"))


def test_off_it_never_waits_and_without_a_network_it_tells(running_comfyui: client.Server) -> None:
    async def work() -> str:
        async with page(running_comfyui.address) as here:
            await here.queue(graph("off", show_result=False))
            await here.hear("execution_success")
            assert not any(message["type"] == "anifacediff.live" for message in here.seen)
            lacking = graph("lacking")
            (editor,) = (node for node in lacking.values() if node["class_type"] == EDITOR)
            del editor["inputs"]["vae"]
            await here.queue(lacking)
            return (await here.hear("execution_error"))["exception_message"]

    assert "vae" in asyncio.run(work())
    assert len(saved(running_comfyui, "off")) == 1


# ---- parts


def module_of(extension: Extension) -> Any:
    return sys.modules[extension.classes[EDITOR].__module__]


@pytest.mark.parametrize(
    "data", [b"{", b"3", b'{"number": 1, "frame": 0}', b'{"number": 1.5, "frame": 0, "expression": "{}"}']
)
def test_what_a_page_may_send(extension: Extension, data: bytes) -> None:
    read, head = module_of(extension).read_dialed, HeadModel.bundled()
    with pytest.raises(InputError):
        read(data, head)
    assert read(dialed("{}", frame=10**9), head).frame < 10**5
    assert read(dialed('{"jawOpen": 1}', 3, 2), head).keyframes[0].edits == {"jawOpen": 1.0}


def test_nothing_is_left_of_a_session(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither networks nor pictures; and the same again is not drawn again."""
    module, head = module_of(extension), HeadModel.bundled()
    drawn: list[tuple[int, dict[str, float]]] = []

    class Networks:
        def __init__(self) -> None:
            self.head = head

    class Session:
        def __init__(self) -> None:
            self.newest, self.shown = self, []

        def frames(self) -> Any:
            for text, frame in (("{}", 0), ("{}", 0), ('{"jawOpen": 1}', 0), ('{"jawOpen": 1}', 1)):
                yield 0.0, module.read_dialed(dialed(text, frame), head)

        def show(self, image: torch.Tensor, status: dict[str, Any]) -> None:
            self.shown.append(image)

        def take(self, _: float) -> None:
            return None

    class Opened:
        def __init__(self, node: str, **values: Any) -> None:
            self.session = Session()

        def __enter__(self) -> Session:
            return self.session

        def __exit__(self, *_: object) -> None:
            pass

    def draw(self: Any, edits: dict[str, float], frame: int) -> torch.Tensor:
        drawn.append((frame, edits))
        return torch.zeros(3, 8, 8)

    monkeypatch.setattr(module, "live_session", Opened)
    monkeypatch.setattr(module.Result, "draw", draw)
    networks = Networks()
    result = module.Result(head.neutral(2), head.neutral(), networks)
    left = weakref.ref(networks)
    last = result.dial("1", [], {})
    assert drawn == [(0, {}), (0, {"jawOpen": 1.0}), (1, {"jawOpen": 1.0})]
    assert last[0].edits == {"jawOpen": 1.0}
    assert torch.equal(edit(head, head.neutral(), last[0].edits).shape, head.neutral().shape)
    del result, networks
    gc.collect()
    assert left() is None
