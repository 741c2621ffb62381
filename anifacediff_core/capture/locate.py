"""Where the faces are, by what is available: landmarks or boxes from elsewhere, or MediaPipe.

Whatever finds them, faces become face squares as in :func:`.detector.face_square`: around the box of the 68
landmarks (jaw, brows, nose, eyes, mouth), its side twice the mean of the box's width and height. From a mere
detector's box the square is such that DECA's crop comes out as DECA cuts it from such a box.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import mediapipe, mesh
from .arkit import score_of, unpack
from .detector import SQUARE_SCALE, Detection
from .extract import FindsFaces

LANDMARKS = 68
# Points of MediaPipe's mesh at the jaw line and the brows, which bound the box of the 68 landmarks.
JAW_AND_BROWS = (
    127, 234, 93, 132, 58, 172, 136, 150, 176, 148, 152, 377, 400, 379, 365, 397, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
)  # fmt: skip
# DECA cuts around landmarks as if their box were larger, and below the middle of a detector's box.
LANDMARKS_GROWTH, BOX_DROP = 1.1, 0.12
CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
SIZED = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


# ---- from elsewhere


def from_landmarks(
    landmarks: Mapping[str, Any], frames: int, size: tuple[int, int], what: str = "the face landmarks"
) -> list[list[Detection]]:
    """Faces of FACE_LANDMARKS: ``{"frames": [[face, ...], ...], "image_size": (height, width)}``.

    A face has ``landmarks_xy``: 68 points in iBUG's order or MediaPipe's 468 or 478, in pixels; or at least
    ``bbox_xyxy``; and a ``score``.

    Args:
        frames: number of pictures that the landmarks are for; landmarks of one picture serve all of them.
        size: their height and width.

    Raises:
        InputError: it is no such mapping, or it belongs to other pictures.
    """
    per_frame, (height, width) = unpack(landmarks, what)
    # pictures may have been scaled since, but not cut
    if abs(height / width - size[0] / size[1]) > 0.01 * height / width:
        raise InputError(
            f"{what[:1].upper()}{what[1:]} belong to pictures of {width}x{height} pixels but the pictures "
            f"have {size[1]}x{size[0]}; give the landmarker the same pictures."
        )
    found = [[_landmarked(face, max(height, width), what) for face in faces] for faces in per_frame]
    return _of_all_frames(found, frames, what)


def from_boxes(
    boxes: Any, frames: int, size: tuple[int, int], what: str = "the bounding boxes"
) -> list[list[Detection]]:
    """Faces of boxes in pixels, in any of the forms that nodes pass to each other.

    A box is a mapping with x, y, width and height (the host's BOUNDING_BOX) or with corners, or four numbers:
    two corners if they are ones inside the picture, else x, y, width and height. There may be a list of boxes
    for every frame, one box for every frame, or one box for all frames.

    Args:
        frames: number of pictures that the boxes are for.
        size: their height and width.

    Raises:
        InputError: there are boxes for another number of frames, or something is no box.
    """
    if isinstance(boxes, (Tensor, np.ndarray)):
        boxes = boxes.tolist()
    if _is_box(boxes):
        boxes = [[boxes]]
    if not isinstance(boxes, Sequence) or isinstance(boxes, str):
        raise InputError(f"{what[:1].upper()}{what[1:]} are no boxes; connect the output of a detector.")
    if frames == 1 and all(_is_box(box) for box in boxes):
        boxes = [boxes]
    found = [[_boxed(box, size, what) for box in _as_list(each)] for each in boxes]
    return _of_all_frames(found, frames, what)


def square_of_landmarks(points: Tensor) -> tuple[float, float, float]:
    """Left, top and side in pixels of the face square around the 68 landmarks (68, 2)."""
    low, high = points.amin(0), points.amax(0)
    return _square((low + high) / 2, SQUARE_SCALE * float((high - low).mean()))


def square_of_box(box: Box) -> tuple[float, float, float]:
    """Left, top and side in pixels of the face square for a detector's box."""
    corners = torch.tensor(box, dtype=torch.float64)
    extent = float((corners[2:] - corners[:2]).mean())
    center = (corners[:2] + corners[2:]) / 2 + torch.tensor([0.0, BOX_DROP * extent])
    return _square(center, SQUARE_SCALE * extent / LANDMARKS_GROWTH)


def _square(center: Tensor, side: float) -> tuple[float, float, float]:
    x, y = center.tolist()
    return x - side / 2, y - side / 2, side


def _landmarked(face: Mapping[str, Any], longer: int, what: str) -> Detection:
    score = score_of(face)
    points = face.get("landmarks_xy")
    if points is not None:
        points = torch.as_tensor(points, dtype=torch.float64)[:, :2]
        if len(points) == LANDMARKS:
            return Detection(score, _shares(square_of_landmarks(points), longer), sure=score)
        if len(points) >= mesh.MESH_POINTS:
            low, high = points.amin(0), points.amax(0)
            around = _square((low + high) / 2, float((high - low).mean()))
            inner = square_of_landmarks(points[list(JAW_AND_BROWS)])
            return Detection(score, _shares(inner, longer), _shares(around, longer), sure=score)
    if face.get("bbox_xyxy") is not None:
        left, top, right, bottom = (float(value) for value in face["bbox_xyxy"])
        return Detection(score, _shares(_square_of((left, top, right, bottom), what), longer), sure=score)
    raise InputError(
        f"There are neither 68 points nor MediaPipe's mesh nor a box in {what}; use another landmarker."
    )


def _as_list(boxes: Any) -> Sequence[Any]:
    """The boxes of one frame; what is no list of them counts as one, to be looked at by itself."""
    if boxes is None:
        return []
    listed = isinstance(boxes, (Sequence, Tensor, np.ndarray)) and not isinstance(boxes, str)
    return [boxes] if _is_box(boxes) or not listed else boxes


def _boxed(box: Any, size: tuple[int, int], what: str) -> Detection:
    if not _is_box(box):
        raise InputError(
            f"There is something else than a box in {what}: expected x, y, width and height, found "
            f"{str(box)[:60]!r}."
        )
    score = score_of(box) if isinstance(box, Mapping) else 1.0
    return Detection(score, _shares(_square_of(_corners(box, size), what), max(size)), sure=score)


def _square_of(box: Box, what: str) -> tuple[float, float, float]:
    left, top, right, bottom = box
    if not all(abs(value) < float("inf") for value in box) or right <= left or bottom <= top:
        raise InputError(f"There is an empty box in {what}; leave it out where there is no face.")
    return square_of_box(box)


def _is_box(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(set(names) <= set(value) for names in CORNERS + SIZED)
    if isinstance(value, (Tensor, np.ndarray)):
        return value.shape == (4,)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) in (4, 5)  # a fifth number is a score
        and all(isinstance(number, Real) for number in value)
    )


def _corners(box: Any, size: tuple[int, int]) -> Box:
    if isinstance(box, Mapping):
        for names in CORNERS:
            if set(names) <= set(box):
                left, top, right, bottom = (float(box[name]) for name in names)
                return left, top, right, bottom
        names = next(names for names in SIZED if set(names) <= set(box))
        left, top, width, height = (float(box[name]) for name in names)
        return left, top, left + width, top + height
    left, top, third, fourth = (float(value) for value in list(box)[:4])
    if left < third <= size[1] + 1 and top < fourth <= size[0] + 1:
        return left, top, third, fourth
    return left, top, left + third, top + fourth


def _shares(square: tuple[float, float, float], longer: int) -> tuple[float, float, float]:
    left, top, side = square
    return left / longer, top / longer, max(side, 1.0) / longer


def _of_all_frames(found: list[list[Detection]], frames: int, what: str) -> list[list[Detection]]:
    if len(found) == 1:
        return found * frames
    if len(found) != frames:
        raise InputError(f"There are {frames} pictures but {what} are for {len(found)}: give as many.")
    return found


# ---- a detector that may be installed


class MediapipeFaces:
    """MediaPipe's face mesh, where it is installed and carries one."""

    name = "MediaPipe"

    @staticmethod
    def available() -> bool:
        if not mediapipe.available():
            return False
        try:
            importlib.import_module("mediapipe.python.solutions.face_mesh")
        except ImportError:
            return False  # newer releases carry no mesh
        return True

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        size = (int(frames.shape[-2]), int(frames.shape[-1]))
        return from_landmarks(mediapipe.detect_landmarks(frames, what="the picture"), len(frames), size)


@dataclass
class FacesAtHand:
    """MediaPipe where it is installed, else another detector; looked for when the first pictures come.

    Attributes:
        last: taken where it is not.
        name: of the detector that was taken, for people.
    """

    last: FindsFaces
    name: str = ""
    _chosen: FindsFaces | None = field(default=None, repr=False)

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        if self._chosen is None:
            installed = MediapipeFaces.available()
            self._chosen = MediapipeFaces() if installed else self.last
            self.name = MediapipeFaces.name if installed else "the detector that comes with AniFaceDiff"
        return self._chosen.detect(frames)
