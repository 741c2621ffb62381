"""Several people in one picture: who is who, whose portrait shows where, and drivers on one timeline."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anifacediff_core.capture.detector import Detection
from anifacediff_core.capture.people import (
    Person,
    find_people,
    from_back_to_front,
    paste_people,
    shown_areas,
)
from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.retime import at_times
from anifacediff_core.sampling.timeline import Timeline
from anifacediff_core.video import VideoWriter, read_image
from anifacediff_core.weights.checkpoint import bundled_checkpoint, load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness.extension import ROOT
from harness.videos import write_driver

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
HEIGHT, WIDTH = 120, 200


def motion(frames: int, rising: bool = False) -> FaceParameters:
    """Neutral; or with a first expression that is the number of the frame."""
    made = FaceParameters.neutral(frames, "head", 4, 6)
    if rising:
        made.expression[:, 0] = torch.arange(frames, dtype=torch.float32)
    return made


def person(number: int, left: float, top: float, side: float) -> Person:
    """Whose portrait square is half as large again as the face square."""
    square = torch.tensor([left - 0.25 * side, top - 0.25 * side, 1.5 * side])
    return Person(number, motion(1), square, torch.tensor([left, top, side]))


def middle(one: Person) -> tuple[int, int]:
    """Row and column of the middle of a face."""
    left, top, side = (float(value) for value in one.face)
    return round((top + side / 2) * WIDTH), round((left + side / 2) * WIDTH)


def color_of(frames: Tensor, one: Person) -> Tensor:
    row, column = middle(one)
    return frames[:, :, row, column]


# The second one stands in front of the first; the third one stands apart.
BEHIND, FRONT, APART = (
    person(1, 0.03, 0.15, 0.2),
    person(2, 0.2, 0.1, 0.35),
    person(3, 0.75, 0.15, 0.2),
)
PEOPLE = [BEHIND, FRONT, APART]


def areas(*driven: int) -> dict[int, Tensor]:
    return shown_areas(PEOPLE, driven, HEIGHT, WIDTH)


def test_everybody_in_a_picture_is_read_from_left_to_right() -> None:
    picture = read_image(EXAMPLES / "group.jpg")
    found = find_people(picture, load_face_models(load_checkpoint(bundled_checkpoint())))
    assert [one.number for one in found] == [1, 2, 3]
    centers = [float(one.face[0] + one.face[2] / 2) for one in found]
    assert centers == pytest.approx([0.235, 0.49, 0.76], abs=0.03)
    assert [one.number for one in from_back_to_front(found)][-1] == 2
    for one in found:  # the portrait square holds the face square
        assert (one.square[:2] < one.face[:2]).all()
        assert (one.square[:2] + one.square[2] > one.face[:2] + one.face[2]).all()
        assert float(one.parameters.camera[0, 0]) == pytest.approx(6.2, rel=0.25), "as portraits have it"


def test_faces_that_are_known_are_not_looked_for() -> None:
    models = load_face_models(load_checkpoint(bundled_checkpoint()))
    known = [Detection(1.0, (0.66, 0.2, 0.22)), Detection(1.0, (0.13, 0.2, 0.22))]
    found = find_people(read_image(EXAMPLES / "group.jpg"), models, known)
    assert [round(float(one.face[0] + one.face[2] / 2), 1) for one in found] == [0.2, 0.8]


def test_a_picture_of_nobody() -> None:
    models = load_face_models(load_checkpoint(bundled_checkpoint()))
    with pytest.raises(InputError, match="no face was found"):
        find_people(torch.full((1, 3, 64, 96), 0.5), models)


def test_nobody_alone_is_held_back() -> None:
    (area,) = shown_areas([FRONT], [2], HEIGHT, WIDTH).values()
    assert (area == 1).all()


@pytest.mark.parametrize("driven", [(1,), (1, 3), (3,), (1, 2, 3)])
def test_no_portrait_covers_the_face_of_somebody_in_front_or_apart(driven: tuple[int, ...]) -> None:
    shown = areas(*driven)
    assert set(shown) == set(driven)
    for number, area in shown.items():
        assert area.shape == (1, HEIGHT, WIDTH) and area.min() >= 0 and area.max() <= 1
        for other in PEOPLE:
            at = area[0][middle(other)]
            if other.number == number:
                assert at == 1
            elif other.number not in driven or other is APART:
                assert at == 0


def colored(*numbers: int, frames: int = 2) -> dict[int, Tensor]:
    """Portraits of one color each: gray of a tenth of the number."""
    return {number: torch.full((frames, 3, 32, 32), number / 10) for number in numbers}


def test_who_stands_in_front_is_pasted_last() -> None:
    picture = torch.full((1, 3, HEIGHT, WIDTH), 0.9)
    everyone = [PEOPLE[index] for index in (1, 2, 0)]  # in whatever order they come
    found = paste_people(everyone, colored(1, 2, 3), picture, areas(1, 2, 3))
    assert found.shape == (2, 3, HEIGHT, WIDTH)
    for one in PEOPLE:
        at = color_of(found, one)
        assert torch.allclose(at, torch.full_like(at, one.number / 10), atol=1e-3)
    row, column = middle(BEHIND)
    covered = found[:, :, row, column + 18]  # of the portrait behind, where the head in front is
    assert torch.allclose(covered, torch.full_like(covered, 0.2), atol=1e-3)
    assert (found[:, :, 0] == 0.9).all() and (found[:, :, -1] == 0.9).all()


def test_who_has_no_driver_stays_bit_by_bit() -> None:
    picture = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    found = paste_people(PEOPLE, colored(1), picture, areas(1))
    changed = (found != picture).any(1).any(0)
    assert changed.any()
    row, column = middle(FRONT)
    assert not changed[row - 12 : row + 12, column - 12 : column + 12].any()
    assert not changed[:, WIDTH // 2 :].any()


def test_motion_at_other_times() -> None:
    made = at_times(motion(3, rising=True), [0.0, 1.0, 3.0], [-1.0, 0.0, 0.25, 1.0, 2.0, 3.0, 9.0])
    assert made.expression[:, 0].tolist() == pytest.approx([0, 0, 0.25, 1, 1.5, 2, 2])
    assert len(at_times(motion(1), [0.0], [0.0, 0.5])) == 2


def silent(path: Path, frames: int, rate: Fraction) -> Path:
    with VideoWriter(path, rate) as video:
        video.write(torch.rand(frames, 3, 32, 32))
    return path


def heard(path: Path, times: Sequence[float]) -> Path:
    write_driver(path, times, seconds=0.2)
    return path


def test_the_longest_or_the_shortest_driver_leads(tmp_path: Path) -> None:
    long, short = silent(tmp_path / "a.mp4", 12, Fraction(24)), silent(tmp_path / "b.mp4", 9, Fraction(30))
    timeline = Timeline.of({long, short}, "longest")
    assert (timeline.lead, timeline.timing.rate) == (long, 24)
    given = motion(12)
    assert timeline.fit(given, long, 12) is given
    # frames of b at the times of a: 30 / 24 of its frames each, until its last one is reached
    followed = timeline.fit(motion(9, rising=True), short, 12).expression[:, 0]
    assert followed.tolist() == pytest.approx([min(1.25 * number, 8) for number in range(12)], abs=1e-4)
    timeline = Timeline.of({long, short}, "shortest")
    assert (timeline.lead, timeline.timing.rate) == (short, 30)
    assert len(timeline.fit(motion(12), long, 9)) == 9


def test_the_sound_is_that_of_who_leads_or_of_the_first_who_is_heard(tmp_path: Path) -> None:
    steady = [number / 25 for number in range(5)]
    loud, louder = heard(tmp_path / "b.mp4", steady), heard(tmp_path / "c.mp4", [*steady, 0.2, 0.24])
    assert Timeline.of({loud, louder}, "longest").timing.sound == str(louder)
    assert Timeline.of({loud, louder}, "shortest").timing.sound == str(loud)
    quiet = silent(tmp_path / "a.mp4", 20, Fraction(25))
    timeline = Timeline.of({loud, louder, quiet}, "longest")
    assert timeline.lead == quiet and timeline.timing.sound == str(loud)


def test_times_without_a_constant_rate(tmp_path: Path) -> None:
    uneven = heard(tmp_path / "a.mp4", [0.0, 0.04, 0.3, 0.34, 0.5])
    timeline = Timeline.of({uneven, silent(tmp_path / "b.mp4", 3, Fraction(10))}, "longest")
    assert timeline.lead == uneven
    followed = timeline.fit(motion(3, rising=True), tmp_path / "b.mp4", 5).expression[:, 0]
    assert followed.tolist() == pytest.approx([0, 0.4, 2, 2, 2], abs=1e-3)


def test_pasting_takes_the_correction_of_each_person() -> None:
    picture = torch.full((1, 3, HEIGHT, WIDTH), 0.9)
    plain = torch.stack([torch.ones(3, 1, 1), torch.zeros(3, 1, 1)])
    colors = {1: plain, 3: replace_offset(plain, 0.25)}
    found = paste_people(PEOPLE, colored(1, 3), picture, areas(1, 3), colors=colors)
    at = color_of(found, APART)
    assert torch.allclose(at, torch.full_like(at, 0.55), atol=1e-3)


def replace_offset(colors: Tensor, offset: float) -> Tensor:
    return torch.stack([colors[0], torch.full_like(colors[1], offset)])
