"""How a video wants its frames to be shown, obeyed: turned and mirrored by its display matrix, with square
pixels, HDR and wide gamuts brought to what a common screen shows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .media import require_affordable

MOST_ASPECT = 10  # a pixel that is longer than that is no pixel but damage

# Numbers of ITU-T H.273, as FFmpeg has them.
HLG, PQ = 18, 16
BT709, BT601, BT2020, DISPLAY_P3 = 1, 5, 9, 12
# Matrices of YUV other than that of BT.601, which is what FFmpeg takes. To PyAV before 17 it must be given.
MATRICES = {1: 1, 4: 4, 7: 7, 9: 9, 10: 9}
SDR_GAMMA = 2.4  # BT.1886
REFERENCE_WHITE = 203.0  # nits: of HDR pictures, what SDR's white becomes (BT.2408)
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
KNEE = 0.9  # of white: HDR above it is compressed, so that highlights keep their drawing
# CIE x, y of red, green and blue, by the number of the primaries; the white is D65.
PRIMARIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
WHITE = (0.3127, 0.3290)


@dataclass(frozen=True)
class Display:
    """What the first frame of a video says about showing all of them.

    Attributes:
        width, height: that stored frames are scaled to; of frames of another size, too.
        transposed, mirrored, flipped: what happens to them then, in this order: rows become columns, left
            becomes right, top becomes bottom.
        transfer, primaries: of their colors, as numbers of H.273.
    """

    width: int
    height: int
    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False
    transfer: int = 1
    primaries: int = BT709

    @classmethod
    def of(cls, stream: Any, frame: Any | None) -> Display:
        """That of a stream by its first frame, which has the display matrix; None where it is damaged."""
        stored = stream if frame is None else frame
        width = _scaled(stored.width, stream.sample_aspect_ratio)
        codec = stream.codec_context
        matrix = None if frame is None else _display_matrix(frame)
        orientation = (False, False, False) if matrix is None else _orientation(*matrix)
        return cls(width, stored.height, *orientation, codec.color_trc, codec.color_primaries)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        return (self.height, self.width) if self.transposed else (self.width, self.height)

    def pixels(self, frame: Any) -> np.ndarray:
        """A decoded frame as (height, width, 3) uint8, sRGB as shown."""
        changes: dict[str, Any] = {}
        if frame.colorspace in MATRICES:
            changes = {"src_colorspace": MATRICES[frame.colorspace], "dst_colorspace": BT601}
        if (frame.width, frame.height) != (self.width, self.height):
            require_affordable("A frame of the video", frame.width, frame.height)
            changes |= {"width": self.width, "height": self.height, "interpolation": "BICUBIC"}
        if self.transfer in (HLG, PQ) or self.primaries in (BT2020, DISPLAY_P3):
            pixels = to_sdr(frame.to_ndarray(format="rgb48le", **changes), self.transfer, self.primaries)
        else:
            pixels = frame.to_ndarray(format="rgb24", **changes)
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]


def _scaled(width: int, aspect: Fraction | None) -> int:
    """The width of pixels made square, of so many that are `aspect` times as wide as high."""
    if not aspect or not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        return width
    return max(round(width * aspect), 1)


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d, where a stored point (x, y) is shown at (a x + c y, b x + d y) and more to the right and
    below.
    """
    for entry in frame.side_data:
        if entry.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(entry)[:20])
            return a, b, c, d
    return None


def _orientation(a: int, b: int, c: int, d: int) -> tuple[bool, bool, bool]:
    """Transposed, mirrored, flipped: the nearest of the eight ways to lay a picture."""
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


# ---- colors


def to_sdr(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """(height, width, 3) uint16 of HDR or a wide gamut to uint8 of BT.709.

    What is at most as bright as SDR's white keeps its brightness, but for the last tenth of it, into which
    everything brighter is brought as well.
    """
    light = torch.from_numpy(_light(transfer)[pixels])
    if transfer == HLG:  # the screen's own contrast, by the luminance of the scene
        luminance = light @ torch.from_numpy(_to_xyz(primaries)[1].astype(np.float32))
        light *= luminance.pow_(HLG_GAMMA - 1).unsqueeze(-1) * (HLG_PEAK / REFERENCE_WHITE)
    if transfer in (HLG, PQ):
        light *= _compression(light.amax(-1, keepdim=True))
    if primaries != BT709:
        conversion = np.linalg.solve(_to_xyz(BT709), _to_xyz(primaries))
        light = light @ torch.from_numpy(conversion.astype(np.float32)).T
    shown = light.clamp_(0, 1).pow_(1 / SDR_GAMMA).mul_(255).round_()
    return shown.to(torch.uint8).numpy()


def _compression(peaks: Tensor) -> Tensor:
    """Factors for pixels whose brightest color is so many whites: the knee bends towards the peak of HLG."""
    over = (peaks - KNEE).clamp_(min=0) / (1 - KNEE)
    bent = KNEE + (1 - KNEE) * over / (1 + over)
    return torch.where(peaks > KNEE, bent / peaks.clamp(min=KNEE), 1.0)


@lru_cache(maxsize=3)
def _light(transfer: int) -> np.ndarray:
    """(65536,) float32: light of 16-bit values, in whites of SDR; of HLG, the scene's light in [0, 1]."""
    value = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        m1, m2 = 2610 / 16384, 2523 / 32
        c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
        root = value ** (1 / m2)
        light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * (10_000 / REFERENCE_WHITE)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = value**SDR_GAMMA
    return light.astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    """(3, 3): linear RGB to CIE XYZ; of unknown primaries as of BT.2020's."""
    known = PRIMARIES.get(primaries, PRIMARIES[BT2020])
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in known]).T
    x, y = WHITE
    return columns * np.linalg.solve(columns, np.array((x / y, 1, (1 - x - y) / y)))
