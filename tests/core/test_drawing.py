"""Faces in space against MediaPipe's own geometry; drawings of landmarks and their retargeting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anifacediff_core.capture.drawing import LINES, Drawings, draw, draw_reenactment
from anifacediff_core.capture.geometry import BASIS, face_geometry, project
from anifacediff_core.errors import InputError
from harness.face_geometry import GOLDEN, SIZES

CANONICAL = {int(number): place for number, _, *place in BASIS}


def test_geometry_is_mediapipes() -> None:
    golden = load_file(GOLDEN)
    for (height, width), landmarks, surface, pose in zip(
        SIZES, golden["landmarks"], golden["surface"], golden["pose"], strict=True
    ):
        points = landmarks * torch.tensor([width, -height, -width])
        found = face_geometry(points[None], (height, width))
        assert (found.surface[0] - surface).abs().max() < 1e-4  # cm; MediaPipe computes in single precision
        assert (found.turn[0] - pose[:3, :3]).abs().max() < 1e-5
        assert (found.place[0] - pose[:3, 3]).abs().max() < 1e-3


def test_geometry_lies_where_the_landmarks_are() -> None:
    golden = load_file(GOLDEN)
    for (height, width), landmarks in zip(SIZES, golden["landmarks"], strict=True):
        points = landmarks * torch.tensor([width, -height, -width])
        found = face_geometry(points[None], (height, width))
        seen = project(found.surface, found.turn, found.place, width / height)[0]
        assert (seen - landmarks[:, :2]).abs().max() < 1e-3


def make_face(turn: float = 0.0, x: float = 0.0, jaw: float = 0.0, size: int = 240) -> dict[str, Any]:
    """A face of MediaPipe's mesh: its steady points are right, the others lie in a heap near the mouth.

    Args:
        turn: to the side, radians.
        x: to the right, centimeters.
        jaw: how far point 17, of the lower lip, hangs down, centimeters.
    """
    places = torch.tensor([[0.0, -3.5, 5.0]]).repeat(478, 1)
    places += torch.randn(478, 3, generator=torch.Generator().manual_seed(0))
    for number, place in CANONICAL.items():
        places[number] = torch.tensor(place)
    places[17, 1] -= jaw
    sine, cosine = math.sin(turn), math.cos(turn)
    rotation = torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    seen = places @ rotation.T + torch.tensor([x, 0.0, -40.0])
    depth = -seen[:, 2]
    focal = size / 2 / math.tan(math.radians(31.5))
    flat = torch.stack([seen[:, 0], -seen[:, 1]], -1) / depth[:, None] * focal + size / 2
    deep = (depth / 40 - 1) * focal
    return {
        "landmarks_xy": flat,
        "landmarks_3d": torch.cat([flat, deep[:, None]], -1),
        "bbox_xyxy": torch.cat([flat.amin(0), flat.amax(0)]),
        "blendshapes": {"jawOpen": jaw / 4},
        "score": 0.9,
    }


def landmarks(*faces: dict[str, Any] | None, size: int = 240) -> dict[str, Any]:
    return {"frames": [[] if face is None else [face] for face in faces], "image_size": (size, size)}


def of_color(drawing: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Which pixels (H, W) of a drawing (3, H, W) have a color."""
    return ((drawing * 255).round() == torch.tensor(color)[:, None, None]).all(0)


def lowest(drawing: Tensor, color: tuple[int, int, int]) -> int:
    """The lowest row of a drawing (3, H, W) with pixels of a color."""
    return int(of_color(drawing, color).any(1).nonzero().max())


def center(drawing: Tensor) -> Tensor:
    """Middle of what is drawn, (x, y) in pixels."""
    y, x = (drawing.sum(0) > 0).nonzero(as_tuple=True)
    return torch.stack([x.double().mean(), y.double().mean()])


LOWER_LIP = LINES[5][0]


def test_a_still_driver_leaves_the_source_as_it_is() -> None:
    source = make_face(x=2.0)
    drawn = draw_reenactment(landmarks(source), landmarks(*[make_face(x=-3.0)] * 3))
    assert drawn.driving.shape == (3, 3, 512, 512) and drawn.source.shape == (1, 3, 512, 512)
    for frame in drawn.driving:
        assert (center(frame) - center(drawn.source[0])).abs().max() < 1.5
        assert ((frame > 0) != (drawn.source[0] > 0)).sum() < 0.05 * (frame > 0).sum()


def test_the_expression_is_added_to_the_sources() -> None:
    opening = [make_face(jaw=jaw) for jaw in (2.0, 0.0, 2.0, 2.0, 4.0, 4.0)]
    drawn = draw_reenactment(landmarks(make_face()), landmarks(*opening))
    rows = [lowest(frame, LOWER_LIP) for frame in drawn.driving]
    own = lowest(drawn.source[0], LOWER_LIP)
    assert abs(rows[1] - own) <= 1  # the neutral frame, though it is not the first
    assert rows[0] == rows[2] > own + 5 and rows[5] > rows[3] + 5


@pytest.mark.parametrize("head_motion", ["relative", "absolute"])
def test_head_motion(head_motion: str) -> None:
    driver = [make_face(x=x) for x in (4.0, 4.0, 6.0, 6.0)]
    drawn = draw_reenactment(landmarks(make_face(x=-2.0)), landmarks(*driver), head_motion=head_motion)
    moved = center(drawn.driving[3]) - center(drawn.driving[0])
    start = center(drawn.driving[0]) - center(drawn.source[0])
    pixel = 512 / 2 / math.tan(math.radians(31.5)) / 36  # of a centimeter at the lips
    assert moved[0] == pytest.approx(2 * pixel, abs=2)
    assert start[0] == pytest.approx(0 if head_motion == "relative" else 6 * pixel, abs=5)


def test_the_head_turns_as_the_drivers_and_steadily() -> None:
    def drawn(*turns: float) -> Tensor:
        driver = [make_face(turn=turn) for turn in turns]
        return draw_reenactment(landmarks(make_face()), landmarks(*driver)).driving

    jerk = drawn(0.0, 0.0, 0.0, 0.6, 0.0, 0.0)
    aside = [float(center(frame * of_color(frame, LOWER_LIP))[0]) for frame in jerk]
    steady = drawn(0.0, 0.0, 0.0, 0.2, 0.2, 0.2)[4]
    expected = float(center(steady * of_color(steady, LOWER_LIP))[0])
    assert aside[2:5] == pytest.approx([expected] * 3, abs=2)  # a third of the turn, in three frames
    assert aside[3] > aside[0] + 8 and aside[0] == aside[1] == aside[5]


def test_frames_without_a_face_are_filled_in() -> None:
    driver = [None, make_face(x=0.0), None, make_face(x=4.0), None]
    drawn = draw_reenactment(landmarks(make_face()), landmarks(*driver), size=128)
    assert drawn.driving.shape == (5, 3, 128, 128) and drawn.frames_without_face == [0, 2, 4]
    assert "2 of 5" in drawn.note and "Filled in" in drawn.note
    places = [float(center(frame)[0]) for frame in drawn.driving]
    assert places[0] == places[1] and places[3] == places[4]
    assert places[2] == pytest.approx((places[1] + places[3]) / 2, abs=1)


def test_the_middle_of_a_wide_source_is_drawn() -> None:
    face = make_face()
    shifted = dict(face, landmarks_xy=face["landmarks_xy"] + torch.tensor([60.0, 0.0]))
    shifted["landmarks_3d"] = face["landmarks_3d"] + torch.tensor([60.0, 0.0, 0.0])
    shifted["bbox_xyxy"] = face["bbox_xyxy"] + torch.tensor([60.0, 0.0, 60.0, 0.0])
    wide = {"frames": [[shifted]], "image_size": (240, 360)}

    def drawn(source: dict[str, Any]) -> Drawings:
        return draw_reenactment(source, landmarks(make_face()))

    found, expected = drawn(wide), drawn(landmarks(face))
    for one, other in ((found.source, expected.source), (found.driving, expected.driving)):
        assert (one != other).float().mean() < 1e-3, "but for a point that is rounded to the next pixel"


def test_points_outside_are_left_out() -> None:
    points = torch.full((1, 478, 2), 0.5)
    points[0, 389] = torch.tensor([1.5, 0.5])  # a corner of the jaw's line
    empty = torch.full((1, 478, 2), 2.0)
    assert draw(points).any() and not draw(empty).any()


def test_refusals() -> None:
    face = make_face()
    good = landmarks(face)
    mere = {name: value for name, value in face.items() if name == "bbox_xyxy"}
    few = dict(face, landmarks_xy=face["landmarks_xy"][:68], landmarks_3d=face["landmarks_3d"][:68])
    for bad, words in (
        (landmarks(None), "no face"),
        (landmarks(mere), "no mesh"),
        (landmarks(few), "68 points"),
        ({"frames": []}, "lack"),
    ):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(InputError, match=words):
                draw_reenactment(*pair)
    with pytest.raises(InputError, match="sideways"):
        draw_reenactment(good, good, head_motion="sideways")


def test_lines_are_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    chain, color = LINES[2][1][1], LINES[2][0]
    generator = np.random.default_rng(0)
    for _ in range(200):
        places = generator.integers(20, 490, (len(chain), 2))
        expected = np.zeros((512, 512, 3), np.uint8)
        for start, end in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
            cv2.line(expected, start, end, color, 2)
        points = torch.full((1, 478, 2), 2.0)
        points[0, list(chain)] = torch.from_numpy((places + 0.5) / 512).float()
        found = (draw(points)[0] * 255).round().to(torch.uint8).movedim(0, -1).numpy()
        assert (found == expected).all()
