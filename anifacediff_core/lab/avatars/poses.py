"""Independent random frames: broad coverage of expressions, gaze, head turns and cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from anifacediff_core.head import rotation
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters

from .batch import Rng

YAW, PITCH, ROLL = 0.5, 0.25, 0.15  # radians, limits
SCALE, SCALE_SPREAD = 6.2, 0.08  # a face of 0.17 m fills about half of the frame's height
SHIFT_X = 0.018  # meters
SHIFT_Y = (-0.026, -0.008)

# Actions that come and go by themselves: probability, strongest value.
SINGLE_ACTIONS: dict[tuple[str, ...], tuple[float, float]] = {
    ("mouthLeft",): (0.07, 0.6),
    ("mouthRight",): (0.07, 0.6),
    ("mouthStretchLeft", "mouthStretchRight"): (0.12, 0.6),
    ("mouthUpperUpLeft", "mouthUpperUpRight"): (0.16, 0.6),
    ("mouthLowerDownLeft", "mouthLowerDownRight"): (0.14, 0.6),
    ("mouthDimpleLeft", "mouthDimpleRight"): (0.08, 0.8),
    ("mouthPressLeft", "mouthPressRight"): (0.08, 0.7),
    ("mouthRollLower",): (0.07, 0.5),
    ("mouthRollUpper",): (0.07, 0.5),
    ("mouthShrugLower",): (0.07, 0.5),
    ("mouthShrugUpper",): (0.05, 0.4),
    ("jawLeft",): (0.06, 0.5),
    ("jawRight",): (0.06, 0.5),
    ("jawForward",): (0.05, 0.5),
    ("cheekPuff",): (0.08, 0.9),
    ("noseSneerLeft", "noseSneerRight"): (0.1, 0.7),
    ("browDownLeft", "browDownRight"): (0.2, 0.9),
    ("browInnerUp",): (0.28, 1.0),
    ("browOuterUpLeft",): (0.12, 1.0),
    ("browOuterUpRight",): (0.12, 1.0),
    ("browOuterUpLeft", "browOuterUpRight"): (0.15, 1.0),
    ("eyeSquintLeft", "eyeSquintRight"): (0.15, 0.8),
}


def random_frames(
    count: int, generator: torch.Generator, head: HeadModel, device: torch.device | str | None = None
) -> FaceParameters:
    """Independent frames for training.

    Args:
        count: frames.
        generator: the source of all randomness; the same seed gives the same frames.
        head: a head with ARKit expressions.
        device: of the result; default the generator's.

    Returns:
        ``count`` frames with shape 0: give them an identity's by ``dataclasses.replace(params, shape=…)``.
        The head turns in the neck joint; the eye joints follow the eyeLook actions.
    """
    rng = Rng(count, generator, device)
    expression = _expression(rng, head.expression_names)
    pose = torch.zeros(count, 15, device=rng.device)
    pose[:, 3:6] = _head_turn(rng)
    camera = torch.stack(
        [
            SCALE * (1 + rng.uniform(-SCALE_SPREAD, SCALE_SPREAD)),
            rng.uniform(-SHIFT_X, SHIFT_X),
            rng.uniform(*SHIFT_Y),
        ],
        dim=1,
    )
    neutral = FaceParameters.neutral(count, head.name, head.n_shape, head.n_expression).to(rng.device)
    return look_along(
        replace(neutral, expression=expression, pose=pose, camera=camera), head.expression_names
    )


def _head_turn(rng: Rng) -> Tensor:
    """(count, 3) axis-angle; most heads nearly face the camera, all of the range occurs."""
    turned = rng.chance(0.55)
    yaw = torch.where(turned, rng.uniform(-YAW, YAW), (rng.normal() * 0.14).clamp(-YAW, YAW))
    pitch = (rng.normal() * 0.12).clamp(-PITCH, PITCH)
    roll = (rng.normal() * 0.07).clamp(-ROLL, ROLL)
    return rotation.from_euler(yaw, pitch, roll)


def _expression(rng: Rng, names: list[str]) -> Tensor:
    """(count, expressions) in [0, 1]."""
    values = torch.zeros(rng.count, len(names), device=rng.device)

    def add(actions: tuple[str, ...], amount: Tensor) -> None:
        for action in actions:
            values[:, names.index(action)] += amount

    def sides(action: str) -> tuple[str, str]:
        return f"{action}Left", f"{action}Right"

    for actions, (probability, strongest) in SINGLE_ACTIONS.items():
        add(actions, rng.chance(probability) * rng.uniform(0.1, strongest))
    smile = rng.chance(0.48) * rng.uniform(0.15, 1.0)
    for side in sides("mouthSmile"):
        add((side,), smile * rng.uniform(0.75, 1.0))
    add(sides("cheekSquint"), smile * 0.6)
    serious = (smile == 0).float()
    add(sides("mouthFrown"), serious * rng.chance(0.25) * rng.uniform(0.2, 0.9))
    add(("mouthPucker",), serious * rng.chance(0.2) * rng.uniform(0.2, 0.9))
    add(("mouthFunnel",), serious * rng.chance(0.15) * rng.uniform(0.2, 0.8))
    jaw = rng.chance(0.55) * rng.uniform(0.05, 0.85)
    add(("jawOpen",), jaw)
    add(("mouthClose",), rng.chance(0.06) * jaw * 0.5)
    add(("tongueOut",), (rng.chance(0.06) & (jaw > 0.55)) * rng.uniform(0.4, 0.8))
    blink = torch.where(rng.chance(0.14), rng.uniform(0.6, 1.0), rng.chance(0.3) * rng.uniform(0.0, 0.4))
    add(sides("eyeBlink"), blink)
    for side in sides("eyeBlink"):
        add((side,), rng.chance(0.05) * rng.uniform(0.5, 1.0))
    add(sides("eyeWide"), (blink < 0.1) * rng.chance(0.18) * rng.uniform(0.2, 0.9))
    _look(add, rng)
    return values.clamp(0, 1)


def _look(add: Callable[[tuple[str, ...], Tensor], None], rng: Rng) -> None:
    """Gaze: both eyes turn together."""
    across = rng.chance(0.65) * rng.uniform(-1, 1)
    up = rng.chance(0.55) * rng.uniform(-0.8, 0.8)
    add(("eyeLookOutLeft", "eyeLookInRight"), across.clamp(min=0))
    add(("eyeLookInLeft", "eyeLookOutRight"), (-across).clamp(min=0))
    add(("eyeLookUpLeft", "eyeLookUpRight"), up.clamp(min=0))
    add(("eyeLookDownLeft", "eyeLookDownRight"), (-up).clamp(min=0))
