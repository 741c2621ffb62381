"""A motion as a picture: curves over time, and the head at some of its moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..head import rotation
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..head.render import render_normals
from ..progress import Progress

WIDTH, PANEL, LEFT, RIGHT, GAP = 1024, 110, 64, 172, 14
HEADS, HEAD_SIZE = 8, 128
BACKGROUND, FRAME, FAINT, TEXT = (24, 26, 30), (70, 74, 82), (44, 47, 54), (214, 218, 226)
# Okabe and Ito's colors, which color-blind people tell apart too.
COLORS = ((86, 180, 233), (230, 159, 0), (0, 190, 140), (204, 121, 167), (240, 228, 66))
BEFORE = 0.45  # brightness of what is compared with
SMALL, LARGE = 13, 15


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        least: smallest height of the axis on each side of zero, so that stillness looks still.
        curves: (frames,) by name.
    """

    title: str
    unit: str
    least: float
    curves: dict[str, Tensor]


def panels(params: FaceParameters, names: Sequence[str]) -> list[Panel]:
    """What is worth seeing of a motion, on the CPU."""
    params = params.to("cpu", torch.float32)
    joints = params.pose.unflatten(1, (-1, 3))
    yaw, pitch, roll = rotation.to_euler(rotation.compose(joints[:, 0], joints[:, 1]))
    scale, shift = params.camera[:, 0], params.camera[:, :1] * params.camera[:, 1:]
    result = [
        Panel("head", "°", 10, _degrees({"yaw": yaw, "pitch": pitch, "roll": roll})),
        Panel(
            "place", "%", 10,
            {"right": 50 * shift[:, 0], "up": 50 * shift[:, 1], "size": 100 * (scale / scale.mean() - 1)},
        ),
    ]  # fmt: skip
    gaze_yaw, gaze_pitch, _ = rotation.to_euler(joints[:, 3:].mean(dim=1))
    gaze = Panel("gaze", "°", 10, _degrees({"yaw": gaze_yaw, "pitch": gaze_pitch}))
    if not names:
        jaw = rotation.to_euler(joints[:, 2])[1]
        modes = {
            f"expression {mode}": params.expression[:, mode] for mode in range(params.expression.shape[1])
        }
        first = dict(list(modes.items())[: len(COLORS)])
        return [*result, Panel("jaw", "°", 10, _degrees({"open": jaw})), Panel("face", "", 1, first), gaze]

    def mean(*wanted: str) -> Tensor:
        return params.expression[:, [names.index(name) for name in wanted]].mean(dim=1)

    def both(name: str) -> Tensor:
        return mean(f"{name}Left", f"{name}Right")

    return [
        *result,
        Panel(
            "mouth", "", 1,
            {"jaw open": mean("jawOpen"), "smile": both("mouthSmile"), "frown": both("mouthFrown"),
             "pucker": mean("mouthPucker")},
        ),
        Panel("lids", "", 1, {"blink left": mean("eyeBlinkLeft"), "blink right": mean("eyeBlinkRight"),
                              "wide": both("eyeWide")}),
        Panel("brows", "", 1, {"inner up": mean("browInnerUp"), "outer up": both("browOuterUp"),
                               "down": both("browDown")}),
        gaze,
    ]  # fmt: skip


def plot(params: FaceParameters, names: Sequence[str], before: FaceParameters | None = None) -> Tensor:
    """Curves of a motion over its frames: a picture (3, height, width) in [0, 1].

    Args:
        names: ARKit's, of the expressions; empty for heads without.
        before: a motion of the same head to compare with, drawn thin and dark.
    """
    drawn = panels(params, names)
    compared = [None] * len(drawn) if before is None else [panel.curves for panel in panels(before, names)]
    frames = max(len(params), 0 if before is None else len(before))
    image = Image.new("RGB", (WIDTH, len(drawn) * (PANEL + GAP) + 2 * GAP + SMALL), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for row, (panel, dark) in enumerate(zip(drawn, compared, strict=True)):
        _draw_panel(draw, GAP + row * (PANEL + GAP), panel, dark or {}, frames)
    bottom = GAP + len(drawn) * (PANEL + GAP)
    for frame in _ticks(frames):
        _write(draw, (_across(frame, frames), bottom), str(frame), anchor="mt")
    _write(draw, (LEFT - 8, bottom), "frame", anchor="rt")
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def strip(
    head: HeadModel, params: FaceParameters, frames: Sequence[int], progress: Progress | None = None
) -> Tensor:
    """The head's normals at these frames side by side, as wide as the plot: (3, HEAD_SIZE, WIDTH)."""
    heads = render_normals(head, params[list(frames)], HEAD_SIZE, progress=progress)
    side = WIDTH // HEADS
    whole = torch.zeros(3, HEAD_SIZE, WIDTH)
    for place, image in enumerate(heads):
        whole[:, :, place * side : place * side + HEAD_SIZE] = image
    return whole


def evenly(frames: int) -> list[int]:
    """Numbers of up to :data:`HEADS` frames from the first to the last."""
    return torch.linspace(0, frames - 1, min(HEADS, frames)).round().long().tolist()


def preview(
    head: HeadModel,
    params: FaceParameters,
    names: Sequence[str],
    before: FaceParameters | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Heads above the curves, those of ``before`` on top: (3, height, WIDTH) in [0, 1].

    Raises:
        InputError: the parameters belong to another head.
    """
    shown = [params] if before is None else [before, params]
    strips = [strip(head, motion, evenly(len(motion)), progress) for motion in shown]
    return torch.cat([*strips, plot(params, names, before)], dim=1)


def _degrees(curves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: curve * (180 / math.pi) for name, curve in curves.items()}


def _draw_panel(
    draw: ImageDraw.ImageDraw, top: int, panel: Panel, before: Mapping[str, Tensor], frames: int
) -> None:
    low, high = _limits(panel, before)

    def height(value: float) -> float:
        return top + PANEL * (high - value) / (high - low)

    for frame in _ticks(frames):
        draw.line([(_across(frame, frames), top), (_across(frame, frames), top + PANEL)], FAINT)
    draw.rectangle([LEFT, top, WIDTH - RIGHT, top + PANEL], outline=FRAME)
    draw.line([(LEFT, height(0)), (WIDTH - RIGHT, height(0))], FRAME)
    for value in (low, 0.0, high):
        if value == 0 or abs(height(value) - height(0)) > SMALL:
            _write(draw, (LEFT - 8, height(value)), f"{value:.3g}{panel.unit}", anchor="rm")
    _write(draw, (WIDTH - RIGHT + 12, top), panel.title, size=LARGE)
    for (name, curve), color, row in zip(panel.curves.items(), COLORS, range(len(COLORS)), strict=False):
        if name in before:
            _draw_curve(draw, before[name], frames, height, tuple(round(BEFORE * part) for part in color), 1)
        _draw_curve(draw, curve, frames, height, color, 2)
        line = top + LARGE + 12 + row * (SMALL + 4)
        draw.line([(WIDTH - RIGHT + 12, line), (WIDTH - RIGHT + 30, line)], color, 3)
        _write(draw, (WIDTH - RIGHT + 38, line), name, anchor="lm")


def _draw_curve(
    draw: ImageDraw.ImageDraw,
    curve: Tensor,
    frames: int,
    height: Callable[[float], float],
    color: tuple[int, ...],
    width: int,
) -> None:
    points = [(_across(frame, frames), height(value)) for frame, value in enumerate(curve.tolist())]
    if len(points) == 1:
        (x, y), = points  # fmt: skip
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
    draw.line(points, color, width, joint="curve")


def _limits(panel: Panel, before: Mapping[str, Tensor]) -> tuple[float, float]:
    """Both ends of the axis: with zero, and no narrower than the panel's least."""
    values = torch.cat([*panel.curves.values(), *before.values()])
    low, high = float(values.min()), float(values.max())
    one_sided = low >= 0 and not panel.unit  # coefficients, which are never below 0
    return (0.0 if one_sided else min(low, -panel.least)), max(high, panel.least)


def _across(frame: float, frames: int) -> float:
    return LEFT + (WIDTH - RIGHT - LEFT) * (frame + 0.5) / frames


def _ticks(frames: int) -> range:
    """Round frame numbers, about eight of them."""
    rough = max(frames / 8, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    return range(0, frames, step)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str = "la", size: int = SMALL
) -> None:
    draw.text(place, text, TEXT, ImageFont.load_default(size), anchor)
