"""What a picture tells of a face besides its form: DECA's texture and light."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Appearance:
    """Codes for drawing a face in color, frame by frame.

    Attributes:
        texture: (frames, 50), coefficients of FLAME's texture space.
        light: (frames, 9, 3), spherical harmonics of the light: nine bands, RGB.
    """

    texture: Tensor
    light: Tensor

    def __len__(self) -> int:
        return len(self.texture)

    def __getitem__(self, frames: slice | list[int]) -> Appearance:
        return Appearance(self.texture[frames], self.light[frames])
