"""Pictures to FLAME's parameters by the encoders that users own: DECA, SMIRK, or both.

Crops are cut as the encoders' authors cut them: their squares are counted from pixel center to pixel center
and rounded down to whole pixels, and there is black outside of the picture. Other than theirs, crops that are
reduced to less than half are averaged first, since plain sampling of a large photograph flickers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..head.camera import uncrop_camera
from ..head.flame import SHAPES
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..head.texture import Appearance
from .deca import CROP, DecaEncoder
from .detector import SQUARE_SCALE, Detection
from .extract import FindsFaces, crop_resize, moved
from .locate import LANDMARKS_GROWTH, FacesAtHand
from .smirk import SmirkEncoder

DECA_SCALE, SMIRK_SCALE = 1.25, 1.4
# MediaPipe's mesh reaches up to the hairline where the 68 landmarks end at the brows: how much larger its box
# is than theirs, and by how much of theirs its middle is higher, in MediaPipe's average face.
MESH_GROWTH, MESH_LIFT = 1.08, 0.08
LEAST_SCALE = 0.5  # a camera behind the head has no meaning, whatever an untrained network says
ROUNDING = 1e-3  # of pixels; squares are kept as fractions of the picture


@dataclass(frozen=True)
class FlameModels:
    """Encoders of FLAME's parameters and the head, on one device; see :func:`.extract.extract_parameters`.

    With both encoders, expression and jaw are SMIRK's and everything else is DECA's, as in MagicPortrait.

    Attributes:
        detector: finds faces where they are not given.
        deca, smirk: at least one of them.
    """

    detector: FindsFaces
    head: HeadModel
    deca: DecaEncoder | None = None
    smirk: SmirkEncoder | None = None

    def to(self, device: torch.device) -> FlameModels:
        detector = self.detector
        if isinstance(detector, FacesAtHand):
            detector = FacesAtHand(moved(detector.last, device))
        return FlameModels(
            moved(detector, device), self.head.to(device), moved(self.deca, device), moved(self.smirk, device)
        )

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        return self.detector.detect(frames)

    def read(self, frames: Tensor, faces: list[Detection]) -> tuple[FaceParameters, Appearance | None]:
        """Parameters of one face per picture, camera of the whole picture.

        Args:
            frames: (faces, 3, height, width) in [0, 1].
        """
        longer = max(frames.shape[-2:])
        if self.deca is None:
            assert self.smirk is not None, "there is no encoder"
            squares = smirk_squares(faces, longer)
            seen = self.smirk.read(cut(frames, squares))
            read = self._parameters(seen.shape, seen.expression, seen.turn, seen.jaw, seen.camera, squares)
            return read, None
        squares = deca_squares(faces, longer)
        found = self.deca.read(cut(frames, squares))
        expression, jaw = found.expression, found.jaw
        if self.smirk is not None:
            expression, jaw = self.smirk.read_expression(cut(frames, smirk_squares(faces, longer)))
        read = self._parameters(found.shape, expression, found.turn, jaw, found.camera, squares)
        return read, Appearance(found.texture, found.light)

    def remarks(self) -> list[str]:
        notes = []
        if isinstance(self.detector, FacesAtHand) and self.detector.name:
            notes.append(f"Faces were found by {self.detector.name}.")
        if self.smirk is not None:
            notes.append("SMIRK's eyelids are left out, FLAME has none.")
        return notes

    def _parameters(
        self, shape: Tensor, expression: Tensor, turn: Tensor, jaw: Tensor, camera: Tensor, squares: Tensor
    ) -> FaceParameters:
        """FLAME's full pose is [turn, neck 0, jaw, eyes 0]; shapes that an encoder does not tell are 0."""
        neutral = self.head.neutral(len(shape))
        zero = torch.zeros_like(turn)
        shape = torch.cat([shape, shape.new_zeros(len(shape), SHAPES - shape.shape[1])], dim=1)
        camera = torch.cat([camera[:, :1].clamp(min=LEAST_SCALE), camera[:, 1:]], dim=1)
        return replace(
            neutral,
            shape=shape,
            expression=expression,
            pose=torch.cat([turn, zero, jaw, zero, zero], dim=1),
            camera=uncrop_camera(camera, squares.to(camera)),
        )


def cut(frames: Tensor, squares: Tensor) -> Tensor:
    """Crops (faces, 3, 224, 224) at squares (faces, 3)."""
    return crop_resize(frames, squares, CROP, outside="zeros")


def deca_squares(faces: list[Detection], longer: int) -> Tensor:
    """The squares (faces, 3) that DECA cuts out, as fractions of the picture's longer side."""
    return torch.tensor([_deca_square(face, longer) for face in faces])


def smirk_squares(faces: list[Detection], longer: int) -> Tensor:
    """The squares (faces, 3) that SMIRK cuts out, as fractions of the picture's longer side."""
    return torch.tensor([_smirk_square(face, longer) for face in faces])


def _deca_square(face: Detection, longer: int) -> tuple[float, float, float]:
    x, y = face.center
    box = face.square[2] / SQUARE_SCALE * longer
    return _cut_square(x * longer, y * longer, LANDMARKS_GROWTH * box * DECA_SCALE, longer)


def _smirk_square(face: Detection, longer: int) -> tuple[float, float, float]:
    if face.mesh is not None:
        left, top, side = face.mesh
        x, y = left + side / 2, top + side / 2
    else:
        (x, y), box = face.center, face.square[2] / SQUARE_SCALE
        y, side = y - MESH_LIFT * box, MESH_GROWTH * box
    return _cut_square(x * longer, y * longer, side * longer * SMIRK_SCALE, longer)


def _cut_square(x: float, y: float, size: float, longer: int) -> tuple[float, float, float]:
    """From a center and a size in pixels, counted between pixel centers, to a square between pixel edges."""
    size = max(int(size + ROUNDING), 1)
    step = size / (CROP - 1)
    edge = 0.5 - 0.5 * step - size / 2
    return (x + edge) / longer, (y + edge) / longer, CROP * step / longer
