"""Networks that judge avatars: who is it, and how does it move? They take no part in making what they judge.

The paper measures identity by a face recognition network, pose and expression by DECA (section 4): networks
for photographs, which say little about avatars. In their place stand two small networks of plain 3 x 3
residual convolutions that learnt from avatars of their own (`training.judges`). They share neither weights,
nor form, nor training data with the bundled face encoder. Both look at one fixed part of the picture, so that
no detector has a say either.

What they tell is named after them and is not to be compared with the paper's numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.camera import uncrop_camera
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.storage import write_tensors
from anifacediff_core.weights.fill import fill
from anifacediff_core.weights.reading import open_tensors

FORMAT = "anifacediff-judges"
PARTS = ("identity.", "motion.")
VIEW = (0.125, 0.1875, 0.75)  # left, top and side of what is looked at: brows to chin at any of our cameras
SIDE = 192  # what VIEW spans of a picture of 256 pixels
STRIDE = 16  # pixels of a cell of the last map
GROUPS = 8
WIDTHS = (24, 40, 64, 96)
IDENTITY_BLOCKS, MOTION_BLOCKS = (1, 1, 1, 1), (1, 1, 2, 1)
DEPTH, HIDDEN, EMBEDDING = 16, 128, 128
LARGEST_SIDE = 4096


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity (He et al. 2016), with group norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(GROUPS, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(GROUPS, channels)
        nn.init.constant_(self.second_norm.weight, 0.1)  # begins as a small change

    def forward(self, features: Tensor) -> Tensor:
        change = F.relu(self.first_norm(self.first(features)))
        return F.relu(features + self.second_norm(self.second(change)))


def trunk(widths: Sequence[int], blocks: Sequence[int]) -> nn.Sequential:
    """Stages that halve the resolution and then run their residual blocks."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in zip(widths, blocks, strict=True):
        kernel = 5 if inputs == 3 else 3
        layers += [
            nn.Conv2d(inputs, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(),
        ]
        layers += [Residual(width) for _ in range(count)]
        inputs = width
    return nn.Sequential(*layers)


class JudgeNet(nn.Module):
    """From pictures (n, 3, side, side) in [0, 1] to numbers (n, answers).

    The last map is flattened, not averaged: shape and expression are where things are.
    """

    def __init__(self, answers: int, side: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.trunk = trunk(widths, blocks)
        self.squeeze = nn.Conv2d(widths[-1], DEPTH, 1)
        self.mix = nn.Linear(DEPTH * (side // STRIDE) ** 2, HIDDEN)
        self.answer = nn.Linear(HIDDEN, answers)

    def backbone(self, pictures: Tensor) -> Tensor:
        """The last map, flattened."""
        return F.relu(self.squeeze(self.trunk(pictures * 2 - 1))).flatten(1)

    def embed(self, seen: Tensor) -> Tensor:
        """The map's features (n, 128)."""
        return F.relu(self.mix(seen))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.answer(self.embed(self.backbone(pictures)))


class IdentityNet(JudgeNet):
    """Who it is: 128 numbers, not yet of unit length."""

    def __init__(self, side: int = SIDE, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(EMBEDDING, side, widths, IDENTITY_BLOCKS)


class MotionNet(JudgeNet):
    """How it moves: expressions, the neck's axis-angle and the camera of the view, normalized.

    Means and deviations are buffers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, n_expression: int = 52, side: int = SIDE, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(n_expression + 6, side, widths, MOTION_BLOCKS)
        nn.init.normal_(self.answer.weight, std=0.01)
        self.register_buffer("mean", torch.zeros(n_expression + 6))
        self.register_buffer("deviation", torch.ones(n_expression + 6))


@dataclass(frozen=True)
class Motion:
    """What the motion judge reads, or the truth in the same form.

    Attributes:
        expression: (pictures, expressions) in [0, 1], ψ.
        neck: (pictures, 3), axis-angle of the head in radians.
        camera: (pictures, 3), ``[s, tx, ty]`` of the whole picture.
    """

    expression: Tensor
    neck: Tensor
    camera: Tensor

    def __getitem__(self, index: slice | Tensor) -> Motion:
        return Motion(self.expression[index], self.neck[index], self.camera[index])


@dataclass(frozen=True)
class Judges:
    """Both networks, in evaluation mode.

    Attributes:
        side: of the view that they look at, in pixels.
        provenance: how they were made, from the file's header.
    """

    identity: IdentityNet
    motion: MotionNet
    side: int = SIDE
    provenance: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Judges:
        return replace(self, identity=self.identity.to(device), motion=self.motion.to(device))

    @torch.no_grad()
    def predict(self, pictures: Tensor, batch: int = 256) -> Predictions:
        """What both see in whole square pictures (n, 3, size, size) in [0, 1]."""
        seen = [view(part, self.side) for part in pictures.float().split(batch)]
        who, how = (
            torch.cat([judge.embed(judge.backbone(part)) for part in seen])
            for judge in (self.identity, self.motion)
        )
        face = F.normalize(self.identity.answer(who), dim=1)
        return Predictions(
            face, denormalize(self.motion, self.motion.answer(how)), torch.cat([who, how], dim=1)
        )


@dataclass(frozen=True)
class Predictions:
    """What the judges see in pictures.

    Attributes:
        face: (pictures, 128), unit vectors.
        motion: expression, head rotation and camera.
        features: (pictures, 256), both judges' features before their answers, for a Fréchet distance.
    """

    face: Tensor
    motion: Motion
    features: Tensor


def view(pictures: Tensor, side: int) -> Tensor:
    """The judged part of whole square pictures (n, 3, size, size), as (n, 3, side, side)."""
    size = pictures.shape[-1]
    whole = round(side / VIEW[2])
    if size != whole:
        pictures = F.interpolate(pictures, size=(whole, whole), mode="bilinear", antialias=size > whole)
    left, top = round(VIEW[0] * whole), round(VIEW[1] * whole)
    return pictures[..., top : top + side, left : left + side]


def denormalize(judge: MotionNet, vector: Tensor) -> Motion:
    """The motion judge's answer in natural units, the camera being the whole picture's."""
    values = vector.float() * judge.deviation + judge.mean
    expression, neck, camera = values.split((values.shape[1] - 6, 3, 3), dim=1)
    return Motion(expression.clamp(0, 1), neck, uncrop_camera(camera, camera.new_tensor(VIEW)))


def true_motion(params: FaceParameters) -> Motion:
    """Known parameters in the form of a reading; the head turns in the neck and the root together."""
    return Motion(
        params.expression, rotation.compose(params.pose[:, 0:3], params.pose[:, 3:6]), params.camera
    )


# ---- measures


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of unit vectors (n, 128): (n,), 1 for the same face."""
    return (first * second).sum(1)


def expression_distance(found: Motion, wanted: Motion) -> Tensor:
    """AED: mean absolute difference of the expression's coefficients, (n,)."""
    return (found.expression - wanted.expression).abs().mean(1)


def pose_distance(found: Motion, wanted: Motion) -> Tensor:
    """APD: mean absolute difference of the head's three rotation numbers in radians, (n,)."""
    return (found.neck - wanted.neck).abs().mean(1)


def rotation_angle(found: Motion, wanted: Motion) -> Tensor:
    """Angle between the heads in degrees, (n,)."""
    return torch.rad2deg(rotation.angle_between(found.neck, wanted.neck))


def camera_distance(found: Motion, wanted: Motion) -> Tensor:
    """How far the place and the size of the face are apart, in hundredths of the picture's side: (n,).

    The mean absolute difference of x, y and of half the width of something 0.17 m wide, about a face.
    """
    spans = [
        torch.cat([m.camera[:, :1] * 0.085, m.camera[:, :1] * m.camera[:, 1:]], 1) for m in (found, wanted)
    ]
    return (spans[0] - spans[1]).abs().mean(1) * 50


# ---- the file


def bundled_path() -> Path:
    return Path(__file__).parents[1] / "assets" / "judges.safetensors"


def save_judges(path: Path, weights: Mapping[str, Tensor], provenance: dict[str, Any]) -> None:
    """Write the file in half precision.

    Args:
        weights: as `judge_weights` names them.
        provenance: how they were made; goes into the header as JSON.
    """
    # The statistics stay exact: they are few, and small deviations would lose most of their digits.
    stored = {
        name: tensor.float() if name.endswith((".mean", ".deviation")) else tensor.half()
        for name, tensor in weights.items()
    }
    write_tensors(path, stored, {"format": FORMAT, "provenance": json.dumps(provenance)})


def judge_weights(identity: IdentityNet, motion: MotionNet) -> dict[str, Tensor]:
    found = {f"identity.{name}": value for name, value in identity.state_dict().items()}
    return found | {f"motion.{name}": value for name, value in motion.state_dict().items()}


def load_judges(path: Path) -> Judges:
    """Read judges; sizes follow from the tensors' shapes.

    Raises:
        InputError: the file is missing, damaged or holds something else.
    """
    try:
        with open_tensors(path) as file:
            header = file.metadata
            tensors = {name: file.read(name) for name in file.infos if name.startswith(PARTS)}
    except InputError as error:
        raise InputError(
            f"The judges '{path.name}' cannot be read: the file is missing or damaged; name a file that "
            "`train --config judges` has written."
        ) from error
    try:
        return _build(tensors, parse_json(header.get("provenance", "{}")))
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"'{path.name}' holds no judges of avatars; name a file that `train --config judges` has written."
        ) from error


def _build(tensors: dict[str, Tensor], provenance: dict[str, Any]) -> Judges:
    parts: dict[str, dict[str, Tensor]] = {"identity": {}, "motion": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if tensor.is_complex():
            raise TypeError("numbers that are not real")
        if part in parts:
            parts[part][rest] = tensor.float()
    who, how = parts["identity"], parts["motion"]
    side = math.isqrt(who["mix.weight"].shape[1] // DEPTH) * STRIDE
    if not isinstance(provenance, dict) or not 0 < side <= LARGEST_SIDE:
        raise ValueError("a header or a side that no judge has")
    with torch.device("meta"):  # what the tensors' shapes claim takes no memory before all of them fit
        identity = IdentityNet(side, _widths(who))
        motion = MotionNet(len(how["mean"]) - 6, side, _widths(how))
    identity = fill(identity, who, "The judge of identity").eval().requires_grad_(False)
    motion = fill(motion, how, "The judge of motion").eval().requires_grad_(False)
    return Judges(identity, motion, side, provenance)


def _widths(weights: dict[str, Tensor]) -> list[int]:
    """Of the stages: the first convolutions of each have names of two parts, those of blocks have more."""
    stages = [
        (int(name.split(".")[1]), tensor.shape[0])
        for name, tensor in weights.items()
        if name.startswith("trunk.") and name.count(".") == 2 and tensor.dim() == 4
    ]
    return [width for _, width in sorted(stages)]
