"""The pattern of the mark: a tile of 64×64 chips that repeats over the picture, with a message in it.

The tile's period is the picture's shorter side, so that the pattern grows with the picture. A quarter of the
chips, spread over the tile, is the same in every mark: by them the pattern is found in a picture that was
scaled or cropped. The others carry the message, six bytes. Each byte has a sixth of these chips and draws one
of 256 known patterns there, of which the detector picks the one that fits best: with the same chips that is
twice as sure as bit by bit.

All that must be the same in every mark, forever, comes from SHAKE-256 and not from a random number generator.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

CHIPS = 64  # per side of the tile
SEED = b"made by AniFaceDiff"
VERSION = 1
IDENTIFIERS = 1 << 16
MESSAGE_BYTES = 6  # version, identifier (2), checksum (3)
BYTE_CHIPS = CHIPS**2 * 3 // 4 // MESSAGE_BYTES


@dataclass(frozen=True)
class Codebook:
    """What every mark has in common.

    Attributes:
        sync: (CHIPS, CHIPS), ±1 at the known chips, 0 at the others.
        places: (MESSAGE_BYTES, BYTE_CHIPS) where the chips of each byte lie in the flattened tile.
        words: (MESSAGE_BYTES, 256, BYTE_CHIPS), ±1: what a byte of each value draws there.
    """

    sync: Tensor
    places: Tensor
    words: Tensor


@cache
def codebook() -> Codebook:
    order = np.frombuffer(_stream(b"order", 8 * CHIPS**2), "<u8").argsort(kind="stable")
    carriers = MESSAGE_BYTES * BYTE_CHIPS
    sync = np.zeros(CHIPS**2, np.float32)
    sync[order[carriers:]] = _signs(b"sync", CHIPS**2 - carriers)
    places = order[:carriers].reshape(MESSAGE_BYTES, BYTE_CHIPS)
    words = _signs(b"words", carriers * 256).reshape(MESSAGE_BYTES, 256, BYTE_CHIPS)
    return Codebook(
        torch.from_numpy(sync.reshape(CHIPS, CHIPS)), torch.from_numpy(places), torch.from_numpy(words)
    )


def _stream(name: bytes, size: int) -> bytes:
    return hashlib.shake_256(SEED + b", " + name).digest(size)


def _signs(name: bytes, count: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(_stream(name, -(-count // 8)), np.uint8), count=count)
    return 2 * bits.astype(np.float32) - 1


def message_of(identifier: int) -> bytes:
    """What the mark says: version, identifier, and a checksum of both."""
    text = bytes([VERSION]) + identifier.to_bytes(2, "big")
    return text + (zlib.crc32(SEED + text) & 0xFFFFFF).to_bytes(3, "big")


def identifier_of(message: bytes) -> int | None:
    """The identifier in a message; None when it is not one of ours."""
    identifier = int.from_bytes(message[1:3], "big")
    return identifier if message == message_of(identifier) else None


def draw_tile(identifier: int) -> Tensor:
    """The tile (CHIPS, CHIPS) of ±1 that says this identifier."""
    book = codebook()
    tile = book.sync.flatten().clone()
    for place, words, value in zip(book.places, book.words, message_of(identifier), strict=True):
        tile[place] = words[value]
    return tile.reshape(CHIPS, CHIPS)


def read_message(chips: Tensor) -> bytes:
    """The message that fits chips (CHIPS, CHIPS) best, of any amplitude."""
    book = codebook()
    found = torch.einsum("bvc,bc->bv", book.words, chips.flatten()[book.places])
    return bytes(found.argmax(1).tolist())


def weights(length: int, chips_per_pixel: Tensor | float, phases: int = 1) -> Tensor:
    """How much of each chip shows at each pixel along one side: (..., length, phases * CHIPS).

    The tile has its middle in the picture's middle and repeats. Column `phases * k + p` belongs to chip k
    when the tile is moved by p / phases of a chip. Chips are joined by Catmull-Rom splines, which leave no
    edges to be seen and keep more fine detail, of which pictures themselves have least, than softer ones.

    Args:
        chips_per_pixel: one, or several (...).
    """
    pixels = torch.as_tensor(chips_per_pixel)[..., None, None] * (
        torch.arange(length)[:, None] + 0.5 - length / 2
    )
    chips = torch.arange(phases * CHIPS) / phases + 0.5
    away = ((pixels - chips).remainder(CHIPS) - CHIPS / 2).abs()
    near = 1 + away.square() * (1.5 * away - 2.5)
    far = 2 + away * (away * (2.5 - 0.5 * away) - 4)
    return torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
