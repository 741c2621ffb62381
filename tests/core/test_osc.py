"""Coefficients by OSC: messages and bundles, what they mean, and what is refused."""

from __future__ import annotations

import math
import random
import socket
import struct

import pytest
import torch

from anifacediff_core.capture.live_link_stream import COEFFICIENTS
from anifacediff_core.capture.osc import DEEPEST, OscReader, OscSocket, read_osc
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters


def text(value: str) -> bytes:
    encoded = value.encode() + b"\0"
    return encoded + b"\0" * (-len(encoded) % 4)


def message(address: str, *arguments: float | str) -> bytes:
    kinds = "".join("s" if isinstance(value, str) else "f" for value in arguments)
    values = [text(value) if isinstance(value, str) else struct.pack(">f", value) for value in arguments]
    return text(address) + text("," + kinds) + b"".join(values)


def bundle(*elements: bytes) -> bytes:
    sized = (struct.pack(">I", len(element)) + element for element in elements)
    return b"#bundle\0" + struct.pack(">Q", 1) + b"".join(sized)


def deep(levels: int) -> bytes:
    data = message("/ARKit/jawOpen", 0.5)
    for _ in range(levels):
        data = bundle(data)
    return data


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def test_all_kinds_of_arguments_are_read_or_passed_over() -> None:
    data = text("/any") + text(",ifhdsSbtcrmTFNI[i]")
    data += struct.pack(">ifqd", -7, 0.5, 2**40, 0.25) + text("ab") + text("abcd")
    data += struct.pack(">I5s3x", 5, b"12345") + b"\1" * 8 + b"\1" * 12 + struct.pack(">i", 3)
    ((address, arguments),) = read_osc(data)
    assert address == "/any"
    assert arguments == [-7, 0.5, 2**40, 0.25, "ab", "abcd", *[None] * 10, 3, None]


def test_every_coefficient_by_either_name(head: HeadModel) -> None:
    names = head.expression_names
    assert set(COEFFICIENTS) == set(names)
    for number, name in enumerate(COEFFICIENTS):
        value, reader = 0.25 + number / 100, OscReader(head)
        spelled = name[0].upper() + name[1:]
        data = (
            message("/VMC/Ext/Blend/Val", spelled, value) if number % 2 else message(f"/ARKit/{name}", value)
        )
        assert reader.take(bundle(data, message("/VMC/Ext/Blend/Apply")))
        found = reader.parameters()
        assert found.expression[0, names.index(name)] == pytest.approx(value)
        assert found.expression[0].count_nonzero() == 1 and found.valid.all()


def test_a_value_holds_and_others_are_ignored(head: HeadModel) -> None:
    reader, names = OscReader(head), head.expression_names
    assert reader.take(deep(DEEPEST))
    assert reader.take(message("/VMC/Ext/Blend/Val", "eyeBlink_L", 1.0))
    for other in ("/VMC/Ext/T", "/ARKit/none", "/VMC/Ext/OK", "/"):
        assert not reader.take(message(other, 1.0))
    params = reader.parameters()
    assert params.expression[0, names.index("jawOpen")] == pytest.approx(0.5)
    assert params.expression[0, names.index("eyeBlinkLeft")] == 1
    assert torch.equal(params.camera, head.neutral(1).camera)


def test_the_heads_turn_in_angles_and_in_unitys_axes(head: HeadModel) -> None:
    """To the subject's right and down, either way; the halves of neck and head add up."""
    plain, unity = OscReader(head), OscReader(head)
    plain.take(bundle(message("/ARKit/HeadYaw", 0.3), message("/ARKit/HeadPitch", 0.0)))
    half = (0.0, math.sin(0.075), 0.0, math.cos(0.075))
    for bone in ("Neck", "Head"):
        unity.take(message("/VMC/Ext/Bone/Pos", bone, 0.0, 1.0, 0.0, *(-value for value in half)))
    expected, found = plain.parameters().pose, unity.parameters().pose
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected[0, 4] < -0.2
    unity = OscReader(head)
    unity.take(message("/VMC/Ext/Bone/Pos", "Head", 0.0, 1.0, 0.0, math.sin(0.1), 0.0, 0.0, math.cos(0.1)))
    _, pitch, _ = rotation.to_euler(unity.parameters().pose[0, 3:6])
    assert pitch == pytest.approx(0.2, abs=1e-5)
    plain = OscReader(head)
    plain.take(message("/ARKit/headPitch", 0.2))
    torch.testing.assert_close(unity.parameters().pose, plain.parameters().pose, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"/ARKit/jawOpen",
        message("/ARKit/jawOpen", 0.5)[:-1],
        message("/ARKit/jawOpen", 0.5) + b"\0\0\0\0",
        message("/ARKit/jawOpen", math.nan),
        message("/ARKit/jawOpen", math.inf),
        message("/ARKit/jawOpen", 1e9),
        message("/ARKit/jawOpen", "wide"),
        message("/ARKit/jawOpen"),
        message("/ARKit/jawOpen", 0.5, 0.5),
        message("/VMC/Ext/Blend/Val"),
        message("/VMC/Ext/Blend/Val", "jawOpen", "wide"),
        message("/VMC/Ext/Bone/Pos", "Head", 0.0, 0.0),
        message("/VMC/Ext/Bone/Pos", "Head", *[0.0] * 7),
        text("/ARKit/jawOpen") + text(",q") + b"\0" * 4,
        text("/ARKit/jawOpen") + text(",b") + b"\xff" * 4,
        text("/ARKit/jawOpen") + text("f") + b"\0" * 4,
        b"/a\xff\0" + text(","),
        b"#bundle\0",
        bundle(b""),
        bundle(message("/ARKit/jawOpen", 0.5))[:-4],
        b"#bundle\0" + b"\0" * 8 + b"\xff" * 4 + b"\0" * 40,
        deep(DEEPEST + 2),
        deep(3000),
        bundle(message("/ARKit/jawOpen", 0.5), message("/ARKit/jawOpen", math.nan)),
        b"\0" * 70000,
    ],
    ids=range(26),
)
def test_what_is_refused_changes_nothing(head: HeadModel, data: bytes) -> None:
    reader = OscReader(head)
    with pytest.raises(ValueError):
        reader.take(data)
    assert not reader.parameters().expression.any()


def test_noise_is_refused_or_ignored(head: HeadModel) -> None:
    dice, reader = random.Random(0), OscReader(head)
    whole = bundle(message("/ARKit/jawOpen", 0.5), message("/VMC/Ext/Bone/Pos", "Head", *[0.5] * 7), deep(2))
    for _ in range(2000):
        data = bytearray(whole[: dice.randrange(len(whole) + 1)])
        for _ in range(dice.randrange(4)):
            if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            reader.take(bytes(data))
        except ValueError:
            continue
    params = reader.parameters()
    assert torch.isfinite(params.expression).all() and torch.isfinite(params.pose).all()


def test_packets_of_one_frame_are_taken_together_and_others_counted(head: HeadModel) -> None:
    link = OscSocket("osc://:0", OscReader(head))
    try:
        assert link._socket.getsockname()[0] == "127.0.0.1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sent = [
                message("/ARKit/jawOpen", 0.5),
                message("/VMC/Ext/T", 1.0),
                b"x",
                message("/ARKit/cheekPuff", 1.0),
            ]
            for data in (b"hello", *sent):
                sender.sendto(data, ("127.0.0.1", link.port))
            assert link.receive(30) is None and link.malformed == 1
            received = link.receive(30)
        assert isinstance(received, FaceParameters) and link.malformed == 2
        shown = [
            float(received.expression[0, head.expression_names.index(name)])
            for name in ("jawOpen", "cheekPuff")
        ]
        assert shown == pytest.approx([0.5, 1.0])
        with pytest.raises(InputError, match="listened at"):
            OscSocket(f"osc://127.0.0.1:{link.port}", OscReader(head))
    finally:
        link.close()
    with pytest.raises(InputError, match="address"):
        OscSocket("osc://:99999", OscReader(head))
