"""Where the faces are: the face square, and a small network that finds it in whole pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..head.camera import project
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from .encoder import Block, downsample

CANVAS = 128
CELLS = 16
SQUARE_SCALE = 2.0
TYPICAL_SIDE = 0.5  # of the canvas; log sizes are relative to it
SCORE_BIAS = -4.0


@dataclass(frozen=True)
class Detection:
    """A face in a picture.

    Attributes:
        score: in [0, 1].
        square: left, top, side as fractions of the picture's *longer* side, from its top left corner; as
            :func:`face_square` has it.
        mesh: the square around the box of MediaPipe's mesh, hairline to chin, where there was a mesh; in the
            same form, its side the mean of the box's width and height.
        sure: how sure whoever else found it is that it is a face, in [0, 1]; None for the bundled detector,
            whose score tells that, see :mod:`.confidence`.
        look: what its colors are, see :mod:`.look`, where that was looked at.
    """

    score: float
    square: tuple[float, float, float]
    mesh: tuple[float, float, float] | None = None
    sure: float | None = None
    look: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def center(self) -> tuple[float, float]:
        left, top, side = self.square
        return left + side / 2, top + side / 2

    def moved(self, square: tuple[float, float, float]) -> Detection:
        """The same face with another square; the mesh's moves along."""
        if self.mesh is None:
            return replace(self, square=square)
        zoom = square[2] / self.square[2]
        left, top = (
            new + zoom * (mesh - old)
            for new, old, mesh in zip(square[:2], self.square[:2], self.mesh[:2], strict=True)
        )
        return replace(self, square=square, mesh=(left, top, zoom * self.mesh[2]))


def face_square(head: HeadModel, params: FaceParameters) -> Tensor:
    """The square around a face, from its parameters.

    Centered on the mean of the 68 landmarks, its side twice the mean of width and height of their box. The
    expression is left out, so that the square stays where it is while the person talks.

    Args:
        head: the head model that ``params`` belong to.
        params: (frames), whole-picture camera.

    Returns:
        (frames, 3): left, top, side as fractions of the picture's side; may reach beyond the picture.
    """
    head.require(params)
    params = params.to(head.template.device)
    everything = torch.arange(len(head.template), device=head.template.device)
    index = head.landmarks if len(head.landmarks) else everything
    rest = head.template[index] + torch.einsum("fs,vcs->fvc", params.shape, head.shape_basis[index])
    pose = torch.cat([params.pose[:, :6], torch.zeros_like(params.pose[:, 6:])], dim=1)
    posed = head.skin(rest, pose, head.joints(params.shape), head.skin_weights[index])
    points = project(posed, params.camera)[..., :2]
    extent = (points.amax(1) - points.amin(1)).mean(dim=1)
    side = SQUARE_SCALE * extent / 2  # NDC spans 2
    corner = (points.mean(dim=1) + 1) / 2 - side[:, None] / 2
    return torch.cat([corner, side[:, None]], dim=1)


def letterbox(frames: Tensor, size: int = CANVAS) -> Tensor:
    """Scale pictures (frames, 3, height, width) to a ``size``² canvas, at its top left, the rest gray."""
    height, width = frames.shape[-2:]
    scale = size / max(height, width)
    target = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Area averaging touches every pixel of a large picture once and does not alias; it cannot enlarge.
    small = F.interpolate(frames, target, mode="area" if scale < 1 else "bilinear")
    return F.pad(small, (0, size - target[1], 0, size - target[0]), value=0.5)


class PortraitDetector(nn.Module):
    """0.3 M parameters. Input (frames, 3, 128, 128) in [0, 1], letterboxed.

    ``forward`` gives a map (frames, 4, 16, 16): the logit that a face's center lies in the cell, the center's
    offset from the middle of the cell in cells (x, y), and the logarithm of the square's side over half the
    canvas.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            downsample(3, 16, 5),
            downsample(16, 32),
            Block(32),
            downsample(32, 80),
            *[Block(80) for _ in range(3)],
        )
        # A look at the whole picture at half the resolution tells a face from its parts.
        self.wide = nn.Sequential(downsample(80, 88), Block(88), Block(88), nn.Conv2d(88, 80, 1))
        self.answer = nn.Sequential(Block(80), nn.GroupNorm(8, 80), nn.Conv2d(80, 4, 1))
        final = self.answer[-1]
        assert isinstance(final, nn.Conv2d) and final.bias is not None
        nn.init.normal_(final.weight, std=0.01)
        nn.init.zeros_(final.bias)
        nn.init.constant_(final.bias[:1], SCORE_BIAS)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> PortraitDetector:
        """A detector in evaluation mode from saved weights (any floating type)."""
        detector = cls()
        detector.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return detector.eval().requires_grad_(False)

    def forward(self, canvas: Tensor) -> Tensor:
        features = self.trunk(canvas * 2 - 1)
        wide = F.interpolate(self.wide(features), scale_factor=2.0, mode="nearest")
        return self.answer(features + wide)

    @torch.no_grad()
    def detect(self, frames: Tensor, threshold: float = 0.3) -> list[list[Detection]]:
        """Faces of pictures (frames, 3, height, width) in [0, 1], best first per picture."""
        answer = self(letterbox(frames))
        return [decode(answer[frame].float().cpu(), threshold) for frame in range(len(frames))]


def decode(answer: Tensor, threshold: float) -> list[Detection]:
    """Faces of one picture from the network's map (4, cells, cells), best first."""
    score = answer[0].sigmoid()
    # A weaker cell beside a stronger one is the same face.
    peak = (score == F.max_pool2d(score[None, None], 3, stride=1, padding=1)[0, 0]) & (score >= threshold)
    found = []
    for row, column in torch.nonzero(peak).tolist():
        offset_x, offset_y, log_side = answer[1:, row, column].tolist()
        side = TYPICAL_SIDE * float(torch.tensor(log_side).clamp(-3, 2).exp())
        x, y = (column + 0.5 + offset_x) / CELLS, (row + 0.5 + offset_y) / CELLS
        found.append(Detection(float(score[row, column]), (x - side / 2, y - side / 2, side)))
    return _without_doubles(sorted(found, key=lambda face: -face.score))


def encode(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Training targets of the detector's map.

    Args:
        squares: (pictures, faces, 3) left, top, side as fractions of the canvas; a side of 0 is no face.

    Returns:
        ``heat`` (pictures, cells, cells): 1 at the cell of a face's center, falling off around it; ``values``
        (pictures, 3, cells, cells): offsets and log side, right wherever ``heat`` is above 0.
    """
    grid = torch.arange(CELLS, device=squares.device) + 0.5
    left, top, side = squares[..., None, None].unbind(dim=2)
    x = (left + side / 2) * CELLS - grid  # (pictures, faces, 1, cells)
    y = (top + side / 2) * CELLS - grid[:, None]  # (pictures, faces, cells, 1)
    reach = (side * CELLS / 8).clamp(min=0.5)
    fall = torch.exp(-(x.square() + y.square()) / (2 * reach.square()))
    middle = (x > -0.5) & (x <= 0.5) & (y > -0.5) & (y <= 0.5)
    fall = torch.where(middle, 1.0, fall * (fall > 0.05)) * (side > 0)
    log_side = (side / TYPICAL_SIDE).clamp(min=1e-3).log()
    values = torch.stack(torch.broadcast_tensors(x, y, log_side, fall)[:3], dim=2)
    heat, nearest = fall.max(dim=1)
    chosen = torch.take_along_dim(values, nearest[:, None, None], dim=1)[:, 0]
    return heat, chosen


def choose(faces: list[Detection], width: float, height: float) -> Detection | None:
    """The face that a picture is about: large and near the middle.

    Args:
        width, height: extent of the picture as fractions of its longer side.
    """

    def weight(face: Detection) -> float:
        x, y = face.center
        away = ((x - width / 2) ** 2 + (y - height / 2) ** 2) ** 0.5
        return face.score**0.5 * face.square[2] * (1 - 0.5 * min(away, 1.0))

    return max(faces, key=weight) if faces else None


def _without_doubles(faces: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for face in faces:
        if all(_overlap(face, other) < 0.35 for other in kept):
            kept.append(face)
    return kept


def _overlap(first: Detection, second: Detection) -> float:
    """Intersection over union of two squares."""
    (l1, t1, s1), (l2, t2, s2) = first.square, second.square
    width = min(l1 + s1, l2 + s2) - max(l1, l2)
    height = min(t1 + s1, t2 + s2) - max(t1, t2)
    shared = max(width, 0) * max(height, 0)
    return shared / (s1 * s1 + s2 * s2 - shared)
