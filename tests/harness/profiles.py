"""Small ICC profiles, made as the standard (ICC.1) describes them."""

from __future__ import annotations

import struct

import numpy as np

# Linear sRGB and Adobe RGB to CIE XYZ of the profile connection space, D50.
SRGB = np.array([(0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410)])
ADOBE = np.array([(0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)])
D50 = np.array((0.9642, 1.0, 0.8249))


def to_srgb(xyz: np.ndarray) -> np.ndarray:
    """CIE XYZ of D50 to uint8."""
    light = (xyz @ np.linalg.inv(SRGB).T).clip(0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * curve).round().astype(np.uint8)


def rgb_profile(matrix: np.ndarray, gamma: float) -> bytes:
    tags = {f"{name}XYZ": _xyz(column) for name, column in zip("rgb", matrix.T, strict=True)}
    return _profile(b"RGB ", b"XYZ ", {**tags, **{f"{name}TRC": _gamma(gamma) for name in "rgb"}})


def gray_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {"kTRC": _gamma(gamma)})


def cmyk_profile(paper: np.ndarray, ink: np.ndarray) -> bytes:
    """A printer with white or colored paper, cyan of the color `ink`, and no other ink than black; colors are
    CIE XYZ of D50.
    """
    corners = np.stack([0 * ink if number & 1 else ink if number & 8 else paper for number in range(16)])
    root = np.where(corners / D50 > 0.008856, np.cbrt(corners / D50), 7.787 * (corners / D50) + 16 / 116)
    x, y, z = root.T
    lab = np.stack([(116 * y - 16) * 652.8, (500 * (x - y) + 128) * 256, (200 * (y - z) + 128) * 256], 1)
    body = struct.pack(">4s4xBBBx9i", b"mft2", 4, 3, 2, *(65536 * np.eye(3, dtype=int)).ravel().tolist())
    straight = struct.pack(">2H", 0, 65535)
    body += struct.pack(">2H", 2, 2) + 4 * straight + lab.round().astype(">u2").tobytes() + 3 * straight
    return _profile(b"CMYK", b"Lab ", {"A2B0": body})


def _xyz(value: np.ndarray) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * one) for one in value))


def _gamma(value: float) -> bytes:
    return struct.pack(">4s4xIH", b"curv", 1, round(256 * value))


def _profile(space: bytes, connection: bytes, tags: dict[str, bytes]) -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {"desc": text, "wtpt": _xyz(D50), "cprt": b"text\0\0\0\0none\0", **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        place = 128 + 4 + 12 * len(tags) + len(body)
        table += struct.pack(">4sII", name.encode(), place, len(content))
        body += content + bytes(-len(content) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, kind, space, connection, b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">3i", *(round(65536 * one) for one in D50))
    return head.ljust(128, b"\0") + table + body
