"""Face coefficients by OSC, as programs of avatars send them while they track, to face parameters.

Understood are, whatever the case of the names:

    /VMC/Ext/Blend/Val name value    one of ARKit's 52 coefficients (VMC: Virtual Motion Capture)
    /VMC/Ext/Bone/Pos name x y z x y z w    of Head or Neck: place; turn against its parent in Unity's axes
    /ARKit/<name> value              a coefficient, such as /ARKit/jawOpen
    /ARKit/headYaw value             and headPitch, headRoll: radians, signs as in :mod:`.live_link`

Names may end in _L and _R as iFacialMocap has them. Everything else is ignored. What came last holds until
it is sent again. OSC 1.0: https://opensoundcontrol.stanford.edu/spec-1_0.html; VMC: https://protocol.vmc.info/english
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..head import rotation
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from .arkit import from_arkit
from .detector import face_square
from .live_link import HEAD, SIGNS
from .live_link_stream import COEFFICIENTS, GREATEST, PacketSocket

PORT = 39539  # of VMC
LONGEST = 65507  # bytes of a packet
DEEPEST = 4  # bundles within bundles
# A frame's messages may come in packets of their own: wait so long, in seconds, for one more of them, in all
# no longer than this, and for no more than so many packets.
PAUSE, GATHERING, MOST_PACKETS = 0.004, 0.015, 256
BUNDLE = b"#bundle\0"
NUMBERS = {"i": ">i", "f": ">f", "h": ">q", "d": ">d"}
SIZES = {"t": 8, "c": 4, "r": 4, "m": 4}  # arguments that nothing here reads
EMPTY = "TFNI[]"  # types without bytes

Argument: TypeAlias = float | str | None


def read_osc(data: bytes, depth: int = 0) -> Iterator[tuple[str, list[Argument]]]:
    """Addresses and arguments of all messages of a packet; arguments that are no number or text are None.

    Raises:
        ValueError: it is no OSC, or holds more bundles within each other than any program sends.
    """
    if not data.startswith(BUNDLE):
        yield _message(data)
        return
    if depth > DEEPEST or len(data) < 16:
        raise ValueError("a bundle that ends early, or is too deep")
    place = 16  # behind the time to show it at, which is now
    while place < len(data):
        element = data[place + 4 : place + 4 + int.from_bytes(data[place : place + 4], "big")]
        if not element or len(element) != int.from_bytes(data[place : place + 4], "big"):
            raise ValueError("a bundle with an element of another length")
        yield from read_osc(element, depth + 1)
        place += 4 + len(element)


def _message(data: bytes) -> tuple[str, list[Argument]]:
    address, place = _text(data, 0)
    types, place = _text(data, place)
    if not address.startswith("/") or not types.startswith(","):
        raise ValueError("not a message of OSC")
    arguments: list[Argument] = []
    for kind in types[1:]:
        argument: Argument = None
        if kind in NUMBERS:
            layout = struct.Struct(NUMBERS[kind])
            if place + layout.size > len(data):
                raise ValueError("a message that ends early")
            argument = float(layout.unpack_from(data, place)[0])
            place += layout.size
        elif kind in "sS":
            argument, place = _text(data, place)
        elif kind == "b":
            place += 4 + -(-int.from_bytes(data[place : place + 4], "big") // 4) * 4
        elif kind in SIZES:
            place += SIZES[kind]
        elif kind not in EMPTY:
            raise ValueError("a message with arguments of an unknown kind")
        arguments.append(argument)
    if place != len(data):
        raise ValueError("a message of another length")
    return address, arguments


def _text(data: bytes, place: int) -> tuple[str, int]:
    """The text from there on, and where what follows begins: it ends in zeros up to a multiple of four."""
    end = data.find(b"\0", place)
    if end < 0:
        raise ValueError("a text that does not end")
    return data[place:end].decode(), end + 4 - end % 4  # UnicodeDecodeError is a ValueError


class OscReader:
    """What packets say so far of one face: average shape, the camera of a portrait.

    Args:
        head: a head with ARKit's expressions.
    """

    def __init__(self, head: HeadModel) -> None:
        self.head = head
        neutral = head.neutral(1)
        self._square, self._camera = face_square(head, neutral).cpu(), neutral.camera.cpu()
        self._values = dict.fromkeys((*COEFFICIENTS, *HEAD), 0.0)
        self._names = {name.lower(): name for name in self._values}
        self._turns: dict[str, Tensor] = {}

    def take(self, data: bytes) -> bool:
        """Take what a packet says; whether it said anything of a face. Of one that is refused, nothing.

        Raises:
            ValueError: it is no OSC, or has values that can't be.
        """
        if len(data) > LONGEST:
            raise ValueError("a packet that is too long")
        values: dict[str, float] = {}
        turns: dict[str, Tensor] = {}
        for address, arguments in read_osc(data):
            path = address.lower().split("/")[1:]
            if path == ["vmc", "ext", "bone", "pos"]:
                bone, *numbers = arguments
                if isinstance(bone, str) and bone.lower() in ("head", "neck"):
                    turns[bone.lower()] = _turn(_numbers(numbers, 7)[3:])
            elif path == ["vmc", "ext", "blend", "val"]:
                name, *numbers = arguments
                known = self._known(name)
                if known is not None:
                    (values[known],) = _numbers(numbers, 1)
            elif path[0] == "arkit" and len(path) == 2:
                known = self._known(path[1])
                if known is not None:
                    (values[known],) = _numbers(arguments, 1)
        self._values |= values
        self._turns |= turns
        return bool(values or turns)

    def _known(self, name: Argument) -> str | None:
        lower = str(name).lower()
        for short, side in (("_l", "left"), ("_r", "right")):
            if lower.endswith(short):
                lower = lower.removesuffix(short) + side
        return self._names.get(lower)

    def parameters(self) -> FaceParameters:
        """One frame of what was taken so far."""
        angles = torch.tensor([[sign * self._values[name] for sign, name in zip(SIGNS, HEAD, strict=True)]])
        turn = rotation.matrix(rotation.from_euler(*angles.unbind(-1)))
        for bone in ("neck", "head"):  # which hangs on the neck
            turn = turn @ rotation.matrix(self._turns.get(bone, torch.zeros(3)))
        params = from_arkit([self._values], turn, self._square, self.head)
        # As of Live Link Face: nothing is said of the place, and the head turns upon its neck.
        return replace(params, camera=self._camera.clone())


def _numbers(arguments: list[Argument], count: int) -> list[float]:
    numbers = [value for value in arguments if isinstance(value, float)]
    if len(numbers) != count or len(arguments) != count:
        raise ValueError("a message with other arguments than it should have")
    if not all(math.isfinite(value) and abs(value) <= GREATEST for value in numbers):
        raise ValueError("a message with values that can't be")
    return numbers


def _turn(quaternion: list[float]) -> Tensor:
    """Unity's quaternion x, y, z, w as axis-angle (3,) in our axes.

    Unity's axes are left-handed, x to the right of whom they belong to, who looks along z: ours are mirrored,
    which turns the axis of a rotation around but for its part along x.
    """
    x, y, z, w = quaternion
    length = math.sqrt(x * x + y * y + z * z)
    if length**2 + w * w < 1e-6:
        raise ValueError("a turn without a direction")
    angle = 2 * math.atan2(length, abs(w)) / max(length, 1e-9) * (1 if w >= 0 else -1)
    return torch.tensor([angle * x, -angle * y, -angle * z])


class OscSocket(PacketSocket):
    """Listens for OSC at one address of this computer.

    Args:
        address: "osc://host:port"; without a host only this computer itself is heard, without a port 39539.
        reader: what reads the packets.

    Raises:
        InputError: no such address, or another program listens there.
    """

    kind = "OSC"

    def __init__(self, address: str, reader: OscReader) -> None:
        super().__init__(address, PORT)
        self.reader = reader

    def receive(self, timeout: float) -> FaceParameters | None:
        """The parameters after the next packets; None if none came within so many seconds that is any.

        Raises:
            OSError: it was closed.
        """
        heard, until = False, 0.0
        for _ in range(MOST_PACKETS):
            try:
                heard |= self.reader.take(self.packet(timeout, LONGEST))
            except (TimeoutError, BlockingIOError):
                break
            except ValueError:
                self.malformed += 1
            if not heard:
                return None
            until = until or time.monotonic() + GATHERING
            timeout = max(0.0, min(PAUSE, until - time.monotonic()))  # 0: what is there already
        return self.reader.parameters() if heard else None
