"""APD and AED: how far the result's pose and expression are from the driver's (paper 4.1).

The paper gives no formula. PIRenderer, which brought the two in, calls them the average distance of the face
model's parameters between result and target; we take the mean absolute difference of the coefficients, which
has the size of the numbers in the paper's Table 1. With DECA the pose is its six numbers (global and jaw
rotation, axis-angle in radians) and the expression its 50 coefficients. The bundled encoder knows other
coefficients (ARKit's actions) and is reported under names of its own, never as APD and AED.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from anifacediff_core.capture.extract import Models, extract_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.camera import project, to_pixels
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.progress import Progress
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models

# Of the 68 landmarks in iBUG's order: right eye, left eye, nose, right and left corner of the mouth.
FIVE = (range(36, 42), range(42, 48), (30,), (48,), (54,))


@dataclass(frozen=True)
class FaceReader:
    """Reads every frame of a clip for itself, without smoothing.

    Attributes:
        models: of DECA or the bundled encoder.
        name: for the report.
        is_deca: whether its distances are the paper's APD and AED.
    """

    models: Models
    name: str
    is_deca: bool

    @classmethod
    def deca(
        cls, deca: Path, flame: Path, checkpoint: Path, device: torch.device | str = "cpu"
    ) -> FaceReader:
        """DECA on FLAME; faces are found by what is installed, else by the checkpoint's detector."""
        models = load_face_models(load_checkpoint(checkpoint), deca, flame=flame, device=device)
        return cls(models, f"DECA ({deca.name})", True)

    @classmethod
    def bundled(cls, checkpoint: Path, device: torch.device | str = "cpu") -> FaceReader:
        """The face encoder of a checkpoint of this project."""
        models = load_face_models(load_checkpoint(checkpoint), device=device)
        return cls(models, f"bundled face encoder ({checkpoint.name})", False)

    def __call__(
        self,
        frames: Tensor | Iterable[Tensor],
        what: str,
        total: int | None = None,
        progress: Progress | None = None,
    ) -> ReadFaces:
        """Read a clip of pictures (3, height, width) of one size; frames without a face are not valid."""
        size = [0]

        def measured() -> Iterable[Tensor]:
            for frame in frames:
                size[0] = max(frame.shape[-2:])
                yield frame

        try:
            found = extract_parameters(
                measured(),
                self.models,
                "whole",
                smoothing=0.0,
                least_confidence=0.0,  # a poor picture counts as it is
                what=what,
                total=total,
                progress=progress,
            ).parameters
        except InputError as error:
            if "no face was found" not in str(error):
                raise
            neutral = self.models.head.neutral(total or 1).to("cpu")
            found = replace(neutral, valid=torch.zeros(len(neutral), dtype=torch.bool))
        return ReadFaces(found, five_points(self.models.head, found, size[0]))


@dataclass(frozen=True)
class ReadFaces:
    """What a reader found in a clip.

    Attributes:
        parameters: (frames) on the CPU, camera of the whole picture.
        points: (frames, 5, 2) x, y in pixels: eyes, nose and corners of the mouth.
    """

    parameters: FaceParameters
    points: Tensor

    def __getitem__(self, part: slice) -> ReadFaces:
        return ReadFaces(self.parameters[part], self.points[part])


@torch.no_grad()
def five_points(head: HeadModel, params: FaceParameters, size: int, batch: int = 64) -> Tensor:
    """The five points that face recognition aligns, from the head's landmarks: (frames, 5, 2) in pixels.

    Args:
        size: the picture's longer side.
    """
    parts = []
    for start in range(0, len(params), batch):
        some = params[start : start + batch].to(head.template.device)
        marks = project(head(some)[:, head.landmarks], some.camera)
        places = to_pixels(marks, size)[..., :2].cpu()
        parts.append(torch.stack([places[:, list(index)].mean(1) for index in FIVE], dim=1))
    return torch.cat(parts)


def pose_numbers(params: FaceParameters, is_deca: bool) -> Tensor:
    """The pose that is compared: DECA's six numbers, or else the head's turn in space (3), in radians."""
    if is_deca:
        return torch.cat([params.pose[:, 0:3], params.pose[:, 6:9]], dim=1)
    return rotation.compose(params.pose[:, 0:3], params.pose[:, 3:6])


@dataclass(frozen=True)
class FaceDistances:
    """Distances of the frames in which both faces were found, (valid frames,) each; rotation in degrees."""

    pose: Tensor
    expression: Tensor
    rotation: Tensor
    missing: int


def face_distances(result: FaceParameters, driving: FaceParameters, is_deca: bool) -> FaceDistances:
    """Mean absolute difference of pose and of expression in every frame.

    Args:
        result, driving: the same number of frames, read by the same networks.
    """
    result.require_same_head(driving, "result and driving")
    keep = result.valid & driving.valid
    ours, theirs = result[keep], driving[keep]
    turns = [rotation.compose(p.pose[:, 0:3], p.pose[:, 3:6]).double() for p in (ours, theirs)]
    pose = (pose_numbers(ours, is_deca).double() - pose_numbers(theirs, is_deca).double()).abs().mean(1)
    expression = (ours.expression.double() - theirs.expression.double()).abs().mean(1)
    angle = torch.rad2deg(rotation.angle_between(*turns))
    return FaceDistances(pose, expression, angle, int((~keep).sum()))
