"""Epic's Live Link Face app while it runs: its UDP packets to face parameters.

A packet: version 6 (1 byte), device and subject (each a length of 4 bytes and a text), frame number, its
fraction, rate and the rate's denominator (4 bytes each), the number of values, 61 (1 byte), and the values as
32-bit floats: ARKit's 52 coefficients in the order below, then yaw, pitch and roll of the head and of each
eye in radians. Big-endian. Without a face a packet ends behind the subject. Signs as in :mod:`.live_link`.
"""

from __future__ import annotations

import math
import socket
import struct
from dataclasses import replace
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ..errors import InputError
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from .arkit import from_arkit
from .detector import face_square
from .live_link import SIGNS

VERSION = 6
HOST, PORT = "127.0.0.1", 11111
LONGEST = 2048  # bytes of a packet; the app's have some 350
GREATEST = 10.0  # of a value: coefficients reach 1, angles pi
_EYE = ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide")
COEFFICIENTS = (
    *(f"{name}Left" for name in _EYE), *(f"{name}Right" for name in _EYE),
    "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft",
    "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight", "mouthDimpleLeft",
    "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft", "browDownRight",
    "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip
VALUES = len(COEFFICIENTS) + 9


def read_packet(data: bytes) -> Tensor | None:
    """The values (61,) of a packet; None where it shows no face.

    Raises:
        ValueError: it is no packet of the app.
    """
    if not 9 <= len(data) <= LONGEST or data[0] != VERSION:
        raise ValueError("not a packet of Live Link Face")
    place = 1
    for _ in ("device", "subject"):
        if place + 4 > len(data):
            raise ValueError("a packet that ends early")
        place += 4 + int.from_bytes(data[place : place + 4], "big")
    if place == len(data):
        return None
    layout = struct.Struct(f">IfIIB{VALUES}f")
    if len(data) - place != layout.size:
        raise ValueError("a packet of another length")
    count, *values = layout.unpack_from(data, place)[4:]
    if count != VALUES or not all(math.isfinite(value) and abs(value) <= GREATEST for value in values):
        raise ValueError("a packet with values that can't be")
    return torch.tensor(values)


class LiveLinkReader:
    """Packets to face parameters: average shape, the camera of a portrait, as `live_link.load_live_link` has
    them.

    Args:
        head: a head with ARKit's expressions.
        flip: turn yaw, pitch, roll of the head the other way.
    """

    def __init__(self, head: HeadModel, flip: tuple[bool, bool, bool] = (False, False, False)) -> None:
        self.head = head
        self._neutral = head.neutral(1).to("cpu")
        self._square = face_square(head, head.neutral(1)).cpu()
        self._signs = torch.tensor(
            [-sign if flipped else sign for sign, flipped in zip(SIGNS, flip, strict=True)]
        )

    def read(self, data: bytes) -> FaceParameters:
        """One frame, not ``valid`` where the packet shows no face.

        Raises:
            ValueError: it is no packet of the app.
        """
        values = read_packet(data)
        if values is None:
            return replace(self._neutral, valid=torch.zeros(1, dtype=torch.bool))
        coefficients = dict(zip(COEFFICIENTS, values.tolist(), strict=False))
        turn = self._signs * values[len(COEFFICIENTS) :][:3]
        params = from_arkit([coefficients], turn[None], self._square, self.head)
        # A packet says nothing of the place: the neck stays where it is, and the head turns upon it.
        return replace(params, camera=self._neutral.camera.clone())


class PacketSocket:
    """Listens for packets of UDP at one address of this computer.

    Args:
        address: "scheme://host:port"; without a host only this computer itself is heard.
        port: the usual one.

    Attributes:
        kind: whose packets it takes, for people.
        malformed: how many packets were none of these.

    Raises:
        InputError: no such address, or another program listens there.
    """

    kind = ""

    def __init__(self, address: str, port: int) -> None:
        self.malformed = 0
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or HOST, port if parts.port is None else parts.port
        except ValueError as error:
            scheme = address.partition(":")[0]
            raise InputError(f"{address} is no address: give one like {scheme}://:{port}.") from error
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise InputError(
                f"{address} cannot be listened at ({error}): name an address of this computer and a port "
                "that no other program listens at."
            ) from error

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def packet(self, timeout: float, longest: int) -> bytes:
        """The next packet, cut behind the longest that there should be.

        Raises:
            TimeoutError: none came within so many seconds.
            OSError: it was closed.
        """
        self._socket.settimeout(timeout)
        return self._socket.recv(longest + 1)

    def receive(self, timeout: float) -> FaceParameters | None:
        """The next parameters; None if none came within so many seconds, or what came is malformed.

        Raises:
            OSError: it was closed.
        """
        raise NotImplementedError

    def close(self) -> None:
        self._socket.close()


class LiveLinkSocket(PacketSocket):
    """Listens for the app's packets at "udp://host:port", see `PacketSocket`; without a port at 11111.

    Args:
        reader: what reads them.
    """

    kind = "Live Link Face"

    def __init__(self, address: str, reader: LiveLinkReader) -> None:
        super().__init__(address, PORT)
        self.reader = reader

    def receive(self, timeout: float) -> FaceParameters | None:
        """See `PacketSocket.receive`."""
        try:
            return self.reader.read(self.packet(timeout, LONGEST))
        except TimeoutError:
            return None
        except ValueError:
            self.malformed += 1
            return None
