"""Curated colors. Skin, hair and irises have natural scales; the rest is one harmonious scheme per avatar."""

from __future__ import annotations

import torch
from torch import Tensor


def colors(*codes: str) -> Tensor:
    """(colors, 3) sRGB in [0, 1] from hex codes."""
    return torch.tensor([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in codes])


# Neighbors on the scale blend into each other.
SKIN = colors("ffe3d0", "fbd3b4", "f3c099", "e5a878", "d18e60", "b8744a", "965a37", "744329", "57311f")
LIPS = colors("d9686c", "c9505c", "d9778a", "b9404f", "c4776c", "a8484c")
NATURAL_HAIR = colors(
    "201716",
    "33211a",
    "4f2f1e",
    "71452a",
    "96622f",
    "bf8b46",
    "e0bc72",
    "f1dda6",
    "a8401f",
    "cc6a2c",
    "a3a3a8",
    "dedad2",
)
IRIS = colors("5a3620", "7d5028", "a87532", "55803f", "3f9583", "3d88c9", "6fb1e0", "8496a8", "8d6fc4")
EYESHADOW = colors("8a5a9e", "5a7fa0", "b0644c", "5aa083", "c56a86")
FRAMES = colors("1c1a1f", "4a2c1c", "8a4b2a", "f2efe9", "b23a48", "27475c")
TEETH = colors("fbf7ef")
GUM = colors("c9676a")
TONGUE = colors("d9686f")
CAVITY = colors("4a1416")
SCLERA = colors("fbf9f7")
LASH = colors("1d1312")

# background light, background deep, clothes, accent, dye of fancy hair
SCHEMES = torch.stack(
    [
        colors("f8cfae", "ea9478", "1f6f78", "f6e6cb", "36a79e"),
        colors("c3e6f4", "74b7dc", "ef6f59", "fff1dc", "f28a72"),
        colors("d2ead9", "83c3a7", "6d4079", "f4c9d8", "9d64b4"),
        colors("ddd3f1", "a08cd4", "e3a92b", "4a3873", "8c72e0"),
        colors("fce4a6", "f3bb50", "28437a", "f7f1e2", "5580d4"),
        colors("fad6d9", "e68f9a", "31614e", "f4e4c5", "e2748d"),
        colors("4a5c84", "222a4f", "e9b750", "dce5ee", "74acff"),
        colors("ccd8b8", "8ea57e", "bb5833", "f4e5d2", "da7b44"),
        colors("a4dedb", "44a5aa", "f6f2ea", "e3654f", "3cb6b0"),
        colors("73405a", "3d1a3c", "f3b8aa", "f7e3d6", "ff93b0"),
        colors("ecdfc4", "cbad83", "406597", "f3f0e8", "cc8f50"),
        colors("f9b06a", "dd7134", "f6ebd6", "2f5061", "ff8547"),
        colors("dcd7d1", "a69e96", "33373f", "db5f42", "7d8e9e"),
        colors("dfe9ad", "a2c263", "5d4e90", "fff5d8", "84b841"),
        colors("2a6b70", "123f49", "f3a06b", "f4e8d2", "30cabb"),
        colors("f4b8c4", "c76b98", "f9e7a0", "5b3b78", "f48fb1"),
    ]
)
