"""Faces that are small in their picture: looked for in parts of it, and followed within a window.

A detector sees a picture at a size of its own, where the faces of a group are a few pixels wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .detector import Detection
from .extract import LEAST_PIXELS, Models
from .look import with_looks
from .tracker import Tracker

LEVELS = (1, 2, 4)  # the whole picture, then parts of a half and a quarter of its longer side
SEARCH_SIDE = 1024  # larger pictures are reduced before they are searched
SURE = 0.7  # score of a face in a part; there a pattern is taken for one more easily
# Shares of the larger square's side: nearer ones are the same face, or a part of it if they are much smaller.
APART, INSIDE = 0.3, 0.5
SMALL = 0.4  # a face square below this share of the picture's longer side is followed within a window
WINDOW = 3.0  # side of that window, in face squares
WINDOW_FRAMES = 4  # at once; then the window may have to follow

Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass
class Follower:
    """Finds one face in successive frames of a video, as small as it may be."""

    models: Models
    tracker: Tracker
    _region: Region | None = None

    def follow(self, frames: Tensor) -> list[Detection | None]:
        """The tracker's face in the next frames (frames, 3, height, width), or None where it is not.

        As long as there is no face to follow, the first of the frames, and those that show any face, are
        searched for small ones, too, unless a large one is wanted and there.
        """
        height, width = frames.shape[-2:]
        extent = width / max(height, width), height / max(height, width)
        found: list[Detection | None] = []
        while len(found) < len(frames):
            rest = frames[len(found) :]
            self._region = self._around(self.tracker.last, height, width)
            if self._region is None:
                per_frame = self.models.detect(rest)
            else:
                per_frame = detect_within(rest[:WINDOW_FRAMES], self.models, self._region)
            per_frame = with_looks(rest[: len(per_frame)], per_frame)
            for image, faces in zip(rest, per_frame, strict=False):
                if self._may_lack_faces(faces, first=not found):
                    everybody = with_looks(image[None], [search(image[None], self.models)])[0]
                    self.tracker.follow(everybody, *extent)
                    if self.tracker.last is not None:
                        break  # this frame and the rest are looked at again, around the face
                    found.append(None)
                else:
                    found.append(self.tracker.follow(faces, *extent))
        return found

    def _may_lack_faces(self, faces: list[Detection], first: bool) -> bool:
        """Whether one is to be chosen, and small ones matter that a look at the whole picture misses."""
        if self.tracker.last is not None or not (first or faces):
            return False
        return self.tracker.wants_small or all(face.square[2] < SMALL for face in faces)

    def _around(self, face: Detection | None, height: int, width: int) -> Region | None:
        """The window around a small face; it stays where it is as long as the face is well inside, since
        detectors see a face a little differently in another window.
        """
        if face is None or face.square[2] >= SMALL:
            return None
        longer = max(height, width)
        side = face.square[2] * longer
        x, y = (center * longer for center in face.center)
        if self._region is not None:
            left, top, right, bottom = self._region
            roomy = (
                (left == 0 or x - left > side)
                and (top == 0 or y - top > side)
                and (right == width or right - x > side)
                and (bottom == height or bottom - y > side)
            )
            if roomy and max(right - left, bottom - top) < 1.3 * WINDOW * side:
                return self._region
        reach = WINDOW / 2 * side
        (left, right), (top, bottom) = _interval(x, reach, width), _interval(y, reach, height)
        return left, top, right, bottom


def search(image: Tensor, models: Models) -> list[Detection]:
    """All faces of a picture (1, 3, height, width), the small ones of a group as well, best first."""
    scale = SEARCH_SIDE / max(image.shape[-2:])
    if scale < 1:
        size = [max(LEAST_PIXELS, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image, size, mode="area")
    height, width = image.shape[-2:]
    found: list[Detection] = []
    for level in LEVELS:
        side = max(LEAST_PIXELS, math.ceil(max(height, width) / level))
        for top in _starts(height, side):
            for left in _starts(width, side):
                region = (left, top, min(left + side, width), min(top + side, height))
                faces = detect_within(image, models, region)[0]
                found += [face for face in faces if level == 1 or face.score >= SURE]
    return _different(found)


def detect_within(frames: Tensor, models: Models, region: Region) -> list[list[Detection]]:
    """Faces of a part of pictures (frames, 3, height, width), placed in the whole of them.

    Faces that the part's edge cuts are left out: their squares would be wrong.
    """
    height, width = frames.shape[-2:]
    left, top, right, bottom = region
    longer = max(height, width)
    zoom = max(right - left, bottom - top) / longer

    def placed(face: Detection) -> Detection:
        x, y, side = face.square
        return face.moved((x * zoom + left / longer, y * zoom + top / longer, side * zoom))

    def whole(face: Detection) -> bool:
        # the middle half of the square holds the features
        near = [start + face.square[2] / 4 for start in face.square[:2]]
        far = [start + face.square[2] / 2 for start in near]
        return (
            (left == 0 or near[0] * longer > left)
            and (top == 0 or near[1] * longer > top)
            and (right == width or far[0] * longer < right)
            and (bottom == height or far[1] * longer < bottom)
        )

    found = models.detect(frames[..., top:bottom, left:right])
    return [[face for face in map(placed, faces) if whole(face)] for faces in found]


def _interval(center: float, reach: float, extent: int) -> tuple[int, int]:
    """Pixels around a center that lie inside a picture, and as many as a picture has at least."""
    low = max(0, min(math.floor(center - reach), extent - LEAST_PIXELS))
    return low, min(extent, max(math.ceil(center + reach), low + LEAST_PIXELS))


def _starts(extent: int, side: int) -> list[int]:
    """Where parts begin that overlap by half and cover an extent."""
    steps = max(0, math.ceil((extent - side) / (side / 2)))
    return [round((extent - side) * step / steps) for step in range(steps + 1)] if steps else [0]


def _different(faces: list[Detection]) -> list[Detection]:
    """Each face once, from the part where it scores best, and nothing that is a part of a face."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: -face.score):
        for other in kept:
            smaller, larger = sorted((face.square[2], other.square[2]))
            apart = APART if smaller > larger / 2 else INSIDE
            if math.dist(face.center, other.center) < apart * larger:
                break
        else:
            kept.append(face)
    return kept
