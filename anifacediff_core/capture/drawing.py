"""Drawings of the face's landmarks, the language of AniPortrait, and their retargeting to another face.

Colors, thickness and retargeting are those of AniPortrait (https://github.com/Zejun-Yang/AniPortrait,
Apache-2.0), the connections those of MediaPipe's mesh, and the lines those of OpenCV, pixel by pixel: the
network has never seen others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..progress import Progress
from .arkit import expression_coefficients, follow, mesh_points, unpack
from .geometry import FaceGeometry, face_geometry, project
from .mesh import MESH_POINTS
from .missing import format_ranges
from .tracker import Tracker

CANVAS = 512  # side at which the lines are drawn
WINDOW = 3  # frames over which the head's pose is averaged
HEAD_MOTIONS = ("relative", "absolute")

# Chains of points, each a line, by what they show; the colors are red, green, blue. Later ones cover earlier.
LINES: tuple[tuple[tuple[int, int, int], tuple[tuple[int, ...], ...]], ...] = (
    (
        (10, 200, 10),  # jaw and temples; the forehead stays open
        (
            (251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136,
             172, 58, 132, 93, 234, 127, 162, 21),
        ),
    ),
    (
        (180, 200, 10),  # left eye
        (
            (263, 249, 390, 373, 374, 380, 381, 382, 362),
            (263, 466, 388, 387, 386, 385, 384, 398, 362),
        ),
    ),
    ((180, 220, 10), ((276, 283, 282, 295, 285), (300, 293, 334, 296, 336))),  # left brow
    (
        (10, 200, 180),  # right eye
        (
            (33, 7, 163, 144, 145, 153, 154, 155, 133),
            (33, 246, 161, 160, 159, 158, 157, 173, 133),
        ),
    ),
    ((10, 220, 180), ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107))),  # right brow
    ((10, 180, 20), ((61, 146, 91, 181, 84, 17),)),  # outer edge of the lips, below
    ((20, 10, 180), ((17, 314, 405, 321, 375, 291),)),
    ((100, 100, 30), ((78, 95, 88, 178, 87, 14),)),  # inner edge, below
    ((100, 150, 50), ((14, 317, 402, 318, 324, 308),)),
    ((20, 80, 100), ((61, 185, 40, 39, 37, 0),)),  # outer edge, above
    ((80, 100, 20), ((0, 267, 269, 270, 409, 291),)),
    ((120, 100, 200), ((78, 191, 80, 81, 82, 13),)),  # inner edge, above
    ((150, 120, 100), ((13, 312, 311, 310, 415, 308),)),
)  # fmt: skip


@dataclass(frozen=True)
class Drawings:
    """What was drawn.

    Attributes:
        driving: the driver's motion on the source's face (frames, 3, size, size) in [0, 1].
        source: the source's own face (1, 3, size, size).
        frames_without_face: of the driving video; they are filled in from their neighbors.
        note: one or two sentences for people.
    """

    driving: Tensor
    source: Tensor
    frames_without_face: list[int]
    note: str


def draw_reenactment(
    source: Mapping[str, Any],
    driving: Mapping[str, Any],
    size: int = CANVAS,
    *,
    head_motion: str = "relative",
    face: int = 0,
    progress: Progress | None = None,
) -> Drawings:
    """Draw how the source's face would look if it moved like the driver's.

    The expression is the driver's difference from its most neutral frame, added to the source's face.

    Args:
        source, driving: FACE_LANDMARKS with MediaPipe's mesh, as :func:`.arkit.from_face_landmarks` takes
            them; of the source the middle square of the first picture is drawn.
        head_motion: "relative" moves the head from where the source's is, "absolute" puts it where the
            driver's is. It turns as the driver's either way.
        face: in the driving video, 0 for the most prominent one, 1 for the first from the left, and so on.

    Raises:
        InputError: there is no face, or no mesh of it.
    """
    if head_motion not in HEAD_MOTIONS:
        raise InputError(f"The head motion '{head_motion}' is unknown; choose {' or '.join(HEAD_MOTIONS)}.")
    points, target, _, _ = _read(source, 0, "the source's landmarks", first=True)
    moved, motion, valid, neutral = _read(driving, face, "the driver's landmarks")
    retargeted = retarget(target, motion, neutral, head_motion)
    missing = [index for index, found in enumerate(valid) if not found]
    seen = _fill(project(retargeted.surface, retargeted.turn, retargeted.place), valid)
    notes = [f"A face was found in {len(moved)} of {len(valid)} frames of the driving video."]
    if missing:
        notes.append(f"Filled in from the neighbors: {format_ranges(missing)}.")
    return Drawings(draw(seen, size, progress), draw(points, size), missing, " ".join(notes))


def retarget(
    source: FaceGeometry, driving: FaceGeometry, neutral: int, head_motion: str = "relative"
) -> FaceGeometry:
    """The driver's motion on the source's face, its pose averaged over `WINDOW` frames.

    Args:
        source: one frame.
        neutral: the frame in which the driver shows no expression.
    """
    place = driving.place
    if head_motion == "relative":
        place = place - place[0] + source.place[0]
    turn = _from_angles(_average(_angles(driving.turn)))
    return FaceGeometry(driving.surface - driving.surface[neutral] + source.surface, turn, _average(place))


def draw(points: Tensor, size: int = CANVAS, progress: Progress | None = None) -> Tensor:
    """Draw meshes: points (frames, 468 or 478, 2) as fractions of the picture -> (frames, 3, size, size)."""
    drawings = torch.empty(len(points), 3, size, size)
    patterns: dict[tuple[int, int], np.ndarray] = {}
    # The landmarks pass through single precision in MediaPipe.
    for index, fractions in enumerate(points.float().cpu().numpy().astype(np.float64)):
        drawing = torch.from_numpy(_canvas(fractions, patterns)).movedim(-1, 0)[None].float()
        if size != CANVAS:
            drawing = F.interpolate(drawing, (size, size), mode="bilinear").round()
        drawings[index] = drawing[0] / 255
        if progress is not None:
            progress(index + 1, len(drawings))
    return drawings


def _canvas(fractions: np.ndarray, patterns: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """One mesh (468 or 478, 2) drawn at full size, (CANVAS, CANVAS, 3) uint8."""
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    places = np.minimum(np.floor(fractions * CANVAS), CANVAS - 1).astype(int)
    outside = set(np.nonzero((fractions < 0) | (fractions > 1))[0].tolist())
    for color, chains in LINES:
        for chain in chains:
            for start, end in pairwise(chain):
                if not outside & {start, end}:
                    _line(canvas, places[start], places[end], color, patterns)
    return canvas


def _read(
    landmarks: Mapping[str, Any], face: int, what: str, *, first: bool = False
) -> tuple[Tensor, FaceGeometry, list[bool], int]:
    """Of the frames with a face: points as fractions, and geometry. Which they are, and the most neutral one.

    With `first`, only the first picture counts, and of that the middle square.
    """
    frames, (height, width) = unpack(landmarks, what)
    tracker = Tracker(face=face)
    followed = [follow(faces, tracker, width, height) for faces in (frames[:1] if first else frames)]
    faces = [found for found in followed if found is not None]
    if not faces:
        raise InputError(f"There is no face in {what}; use pictures that show one large and from the front.")
    if not all("landmarks_xy" in found and "landmarks_3d" in found for found in faces):
        raise InputError(f"There is no mesh in {what}; use MediaPipe or ComfyUI's face landmarker.")
    points = torch.stack([mesh_points(found) for found in faces])
    if points.shape[1] < MESH_POINTS:
        raise InputError(
            f"There are {points.shape[1]} points in {what} where MediaPipe's mesh has 478; use MediaPipe or "
            "ComfyUI's face landmarker."
        )
    if first:
        side = min(height, width)
        points = points + torch.tensor([-(width - side) // 2, (height - side) // 2, 0])
        height = width = side
    fractions = points[..., :2] * torch.tensor([1 / width, -1 / height])
    sums = [sum(found.values()) for found in expression_coefficients(faces, what)[0]]
    valid = [found is not None for found in followed]
    return fractions, face_geometry(points, (height, width)), valid, int(np.argmin(sums))


def _fill(points: Tensor, valid: Sequence[bool]) -> Tensor:
    """Points of the valid frames (valid frames, points, 2) to those of all frames, by their neighbors."""
    index = np.interp(np.arange(len(valid)), np.flatnonzero(valid), np.arange(len(points)))
    before, after = torch.from_numpy(np.floor(index)).long(), torch.from_numpy(np.ceil(index)).long()
    share = torch.from_numpy(index - np.floor(index))[:, None, None]
    return points[before] * (1 - share) + points[after] * share


def _average(values: Tensor) -> Tensor:
    """Running mean of (frames, n) over `WINDOW` frames, fewer at the ends."""
    reach = WINDOW // 2
    return torch.stack([values[max(0, i - reach) : i + reach + 1].mean(0) for i in range(len(values))])


def _angles(turn: Tensor) -> Tensor:
    """Rotations (frames, 3, 3) to angles (frames, 3) about the fixed x, then y, then z axis."""
    return torch.stack(
        [
            torch.atan2(turn[:, 2, 1], turn[:, 2, 2]),
            torch.asin(-turn[:, 2, 0].clamp(-1, 1)),
            torch.atan2(turn[:, 1, 0], turn[:, 0, 0]),
        ],
        -1,
    )


def _from_angles(angles: Tensor) -> Tensor:
    """Inverse of :func:`_angles`."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


# ---- lines of thickness 2 as OpenCV draws them, in its fixed-point numbers

ONE = 1 << 16
HALF = ONE >> 1


def _line(
    canvas: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    color: tuple[int, int, int],
    patterns: dict[tuple[int, int], np.ndarray],
) -> None:
    """Draw onto (height, width, 3); `patterns` keeps the pixels of each kind of line for the next one."""
    step = (int(end[0] - start[0]), int(end[1] - start[1]))
    if step not in patterns:
        patterns[step] = np.array(sorted(_pixels(*step)))
    pixels = patterns[step] + start
    pixels = pixels[((pixels >= 0) & (pixels < canvas.shape[1::-1])).all(1)]
    canvas[pixels[:, 1], pixels[:, 0]] = color


def _pixels(dx: int, dy: int) -> set[tuple[int, int]]:
    """Pixels (x, y) of a line from (0, 0) to (dx, dy): a rectangle of width 2, and a cross at either end."""
    cross = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    found = {(x + i, y + j) for x, y in ((0, 0), (dx, dy)) for i, j in cross}
    if dx or dy:
        reach = ONE / math.hypot(dx, dy)
        x, y = round(dy * reach), round(-dx * reach)
        far_x, far_y = dx * ONE, dy * ONE
        corners = [(x, y), (-x, -y), (far_x - x, far_y - y), (far_x + x, far_y + y)]
        for last, corner in zip(corners[-1:] + corners[:-1], corners, strict=True):
            found |= _edge(last, corner)
        found |= _inside(corners)
    return found


def _edge(start: tuple[int, int], end: tuple[int, int]) -> set[tuple[int, int]]:
    """Pixels of a thin line between fixed-point places."""
    axis = 0 if abs(end[0] - start[0]) > abs(end[1] - start[1]) else 1  # along which it is walked
    if end[axis] < start[axis]:
        start, end = end, start
    length = end[axis] - start[axis]
    slope = _divide((end[1 - axis] - start[1 - axis]) << 16, length | 1)
    found = {((end[0] + HALF) >> 16, (end[1] + HALF) >> 16)}
    along, aside = start[axis] + HALF, start[1 - axis] + HALF
    for _ in range((length >> 16) + 1):
        pixel = (along >> 16, aside >> 16)
        found.add(pixel if axis == 0 else pixel[::-1])
        along, aside = along + ONE, aside + slope
    return found


def _inside(corners: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Pixels between the edges of a convex polygon, row by row."""
    rows = [(y + HALF) >> 16 for _, y in corners]
    top = min(range(len(corners)), key=lambda index: corners[index][1])
    # Two walks from the top: x, its step from row to row, row at which the edge ends, corner there.
    walks = [[-ONE, 0, rows[top], top], [-ONE, 0, rows[top], top]]
    found: set[tuple[int, int]] = set()
    left_over = len(corners)
    for y in range(rows[top], max(rows) + 1):
        for walk, direction in zip(walks, (1, -1), strict=True):
            if y < walk[2]:
                continue
            last = walk[3]
            while True:
                left_over -= 1
                if left_over < 0:
                    break
                corner = (last + direction) % len(corners)
                if rows[corner] > y:
                    height = rows[corner] - y
                    x, goal = corners[last][0], corners[corner][0]
                    walk[:] = [x, _divide((goal - x) * 2 + height, 2 * height), rows[corner], corner]
                    break
                last = corner
        if left_over < 0:
            break
        low, high = sorted(walk[0] for walk in walks)
        found |= {(x, y) for x in range((low + HALF) >> 16, ((high + HALF) >> 16) + 1)}
        for walk in walks:
            walk[0] += walk[1]
    return found


def _divide(number: int, by: int) -> int:
    """Division that rounds towards zero."""
    return number // by if number >= 0 else -(-number // by)
