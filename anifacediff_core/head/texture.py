"""The skin of a head: FLAME's texture space, and what DECA reads of a portrait's color and light.

The texture space holds a mean texture, 200 directions to change it in, and where every triangle lies in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

SIDE = 256  # of the texture as DECA uses it: every second pixel of FLAME's
CODES = 50  # of the 200 directions, those that DECA has codes for
BANDS = 9  # of the spherical harmonics of a light


@dataclass(frozen=True)
class Appearance:
    """Color and light of a face, as DECA reads them.

    Attributes:
        texture: (frames, 50) codes of FLAME's texture space.
        light: (frames, 9, 3) spherical harmonics of the light, a column for each of red, green and blue.
    """

    texture: Tensor
    light: Tensor

    def __post_init__(self) -> None:
        frames = len(self.texture)
        if self.texture.ndim != 2 or self.light.shape != (frames, BANDS, 3):
            raise InputError(
                f"An appearance has texture codes {list(self.texture.shape)} and light "
                f"{list(self.light.shape)}: expected [frames, codes] and [frames, {BANDS}, 3]."
            )

    def __len__(self) -> int:
        return len(self.texture)

    def __getitem__(self, index: int | slice | list[int]) -> Appearance:
        """A part of the frames; the frame axis always stays."""
        frames = [index] if isinstance(index, int) else index
        return Appearance(self.texture[frames], self.light[frames])

    def to(self, device: torch.device | str) -> Appearance:
        return Appearance(self.texture.to(device), self.light.to(device))


@dataclass(frozen=True)
class TextureModel:
    """Colors of a head's skin.

    Attributes:
        mean: (3, 256, 256) RGB in [0, 1].
        basis: (50, 3, 256, 256), change per unit of a code.
        corners: (triangles, 3, 2) where each corner of each triangle lies in the texture, in the coordinates
            of ``torch.nn.functional.grid_sample``: x right, y down, [-1, 1] spans the picture.
    """

    mean: Tensor
    basis: Tensor
    corners: Tensor

    def to(self, device: torch.device | str) -> TextureModel:
        return TextureModel(self.mean.to(device), self.basis.to(device), self.corners.to(device))

    def albedo(self, codes: Tensor) -> Tensor:
        """The skin's own color for codes (frames, up to 50), (frames, 3, 256, 256), not clamped."""
        return self.mean + torch.einsum("fk,kcyx->fcyx", codes.to(self.basis), self.basis[: codes.shape[1]])
