"""How sure readings are, what becomes of unsure ones, and that people who cross are not mixed up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anifacediff_core.capture.arkit import from_face_landmarks
from anifacediff_core.capture.confidence import LEAST, of_faces, over_time, sure_frames
from anifacediff_core.capture.detector import Detection
from anifacediff_core.capture.extract import Captured, CaptureModels, extract_parameters
from anifacediff_core.capture.look import unlike, with_looks
from anifacediff_core.capture.tracker import Tracker
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.video import read_frames
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness.extension import ROOT
from harness.files import BUNDLED

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
COLORS = {"light skin": (0.85, 0.62, 0.5), "black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}
HIDDEN = range(5, 9)


@pytest.fixture(scope="module")
def models() -> CaptureModels:
    return load_face_models(load_checkpoint(BUNDLED))


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return torch.stack(list(read_frames(EXAMPLES / "driving.mp4")))[:14]


def behind(clip: Tensor, color: str) -> Tensor:
    """The clip, in some frames of which something lies over the face from brows to chin."""
    covered = clip.clone()
    covered[list(HIDDEN), :, 60:230, 60:200] = torch.tensor(COLORS[color])[:, None, None]
    return covered


def steps(found: Captured) -> float:
    """The largest change of the head's size from a frame to the next."""
    return float(found.parameters.camera[:, 0].log().diff().abs().amax())


def test_an_open_face_is_sure(models: CaptureModels, clip: Tensor) -> None:
    found = extract_parameters(clip, models, what="the driving video")
    assert found.parameters.valid.all() and not found.frames_without_face
    assert found.parameters.confidence.min() >= LEAST
    assert (
        "A face was found in 14 of 14 frames of the driving video. It is sure in 14 of 14 frames."
        in found.note
    )


@pytest.mark.parametrize("color", COLORS)
def test_a_covered_face_counts_as_missing(models: CaptureModels, clip: Tensor, color: str) -> None:
    covered = behind(clip, color)
    found = extract_parameters(covered, models)
    assert found.frames_without_face == list(HIDDEN)
    assert "sure in 10 of 14 frames" in found.note and "frame 5-8" in found.note
    assert steps(found) < math.log(1.08)
    held = extract_parameters(covered, models, missing="hold", smoothing=0.0).parameters
    assert torch.equal(held.pose[8], held.pose[4]) and held.confidence[8] < LEAST <= held.confidence[4]
    assert len(extract_parameters(covered, models, missing="skip").parameters) == 10
    with pytest.raises(InputError, match="none for sure, at frame 5-8"):
        extract_parameters(covered, models, missing="stop")


def test_the_limit_is_the_artists(models: CaptureModels, clip: Tensor) -> None:
    picture = behind(clip, "light skin")
    everything = extract_parameters(picture, models, least_confidence=0.0)
    assert everything.parameters.valid.sum() > 10
    with pytest.raises(InputError, match="least confidence is nan"):
        extract_parameters(clip[:2], models, least_confidence=math.nan)


def test_where_nothing_is_sure_everything_is_taken(models: CaptureModels, clip: Tensor) -> None:
    """Drawings and photographs that the networks do not know are read as well as they can be."""
    found = extract_parameters(clip[:3], models, least_confidence=1.0)
    assert found.parameters.valid.all() and not found.frames_without_face
    assert "sure in 0 of 3 frames. All were taken as they are" in found.note
    with pytest.raises(InputError, match="none for sure"):
        extract_parameters(clip[:3], models, least_confidence=1.0, missing="stop")


def readings(frames: int, confidence: float = 0.9) -> FaceParameters:
    noise = torch.randn(frames, 100, generator=torch.Generator().manual_seed(0))
    still = HeadModel.bundled().neutral(frames).to("cpu")
    return replace(still, shape=still.shape + 0.1 * noise, confidence=torch.full((frames,), confidence))


def test_another_shape_and_a_jump_of_the_size_are_doubted() -> None:
    clip = readings(30)
    assert (over_time(clip) > 0.8).all()
    clip.shape[12] += 0.5
    clip.camera[20:22, 0] *= 1.15
    assert torch.nonzero(over_time(clip) < LEAST).flatten().tolist() == [12, 20, 21]


@pytest.mark.parametrize("pace", [0.005, 0.02])
def test_coming_nearer_is_no_jump(pace: float) -> None:
    clip = readings(30)
    clip.camera[:, 0] *= torch.exp(pace * torch.arange(30))
    assert (over_time(clip) > LEAST).all()


def test_few_frames_tell_nothing_of_each_other() -> None:
    clip = readings(4)
    clip.camera[2, 0] *= 2
    assert torch.equal(over_time(clip), clip.confidence)
    assert sure_frames(replace(clip, confidence=None), 0.5)[0].valid.all()


def test_detectors_of_others_tell_for_themselves() -> None:
    square = (0.2, 0.2, 0.5)
    faces = [Detection(0.98, square), Detection(0.6, square), Detection(0.6, square, sure=0.6)]
    sure = of_faces(faces)
    assert sure[0] > 0.8 and sure[1] < 0.2 and sure[2] == pytest.approx(0.6)


def test_landmarks_of_a_low_score_are_unsure() -> None:
    def face(score: float, size: float) -> dict:
        box = [100 - size, 100 - size, 100 + size, 100 + size]
        return {"bbox_xyxy": box, "score": score, "blendshapes": {"jawOpen": 0.5},
                "transformation_matrix": torch.eye(4)}  # fmt: skip

    frames = [[face(0.95, 50)] for _ in range(12)]
    frames[4] = [face(0.2, 30)]
    frames[8] = [face(math.nan, 50)]
    found = from_face_landmarks({"frames": frames, "image_size": (200, 200)}, HeadModel.bundled())
    assert found.frames_without_face == [4] and steps(found) < 0.01
    assert "sure in 11 of 12 frames" in found.note
    assert found.parameters.confidence[0] == pytest.approx(0.95)


# ---- people who cross


def crossing(
    frames: int, front: int, colors: tuple[tuple[float, ...], ...]
) -> tuple[Tensor, list[list[float]]]:
    """Two discs that walk through each other, and where they are (frames, 2)."""
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(256) + 0.5, indexing="ij")
    pictures, places = torch.full((frames, 3, 96, 256), 0.6), []
    for frame in range(frames):
        centers = [60 + 136 * frame / (frames - 1), 196 - 136 * frame / (frames - 1)]
        places.append([center / 256 for center in centers])
        for disc in (1 - front, front):
            inside = (x - centers[disc]) ** 2 + (y - 48) ** 2 < 30**2
            stripes = inside & ((y / 6).long() % 2 == 0)
            pictures[frame][:, inside] = torch.tensor(colors[disc])[:, None]
            pictures[frame][:, stripes] = 0.8 * torch.tensor(colors[disc])[:, None]
    return pictures, places


def seen(place: list[float], front: int) -> list[Detection]:
    """What a detector sees of the discs: none that is covered by half or more."""
    apart = abs(place[0] - place[1]) * 256
    visible = [disc for disc in (0, 1) if disc == front or apart > 30]
    return [Detection(0.9, (place[disc] - 0.18, 0.0, 0.36)) for disc in visible]


@pytest.mark.parametrize("frames", [10, 24, 90])
@pytest.mark.parametrize("front", [0, 1])
@pytest.mark.parametrize("follow", [0, 1])
@pytest.mark.parametrize("second", [(0.3, 0.45, 0.8), (0.6, 0.4, 0.25)])
def test_who_is_followed_stays_followed(
    frames: int, front: int, follow: int, second: tuple[float, ...]
) -> None:
    pictures, places = crossing(frames, front, ((0.9, 0.7, 0.55), second))
    tracker = Tracker(face=follow + 1)
    found = [
        tracker.follow(with_looks(picture[None], [seen(place, front)])[0], 1.0, 96 / 256)
        for picture, place in zip(pictures, places, strict=True)
    ]
    for face, place in zip(found, places, strict=True):
        assert face is None or face.center[0] == pytest.approx(place[follow], abs=1e-6)
    assert found[0] is not None and found[-1] is not None
    if follow == front:
        assert all(face is not None for face in found)


def test_a_cut_to_somebody_else_is_followed_after_a_while() -> None:
    pictures, places = crossing(2, 0, ((0.9, 0.7, 0.55), (0.3, 0.45, 0.8)))
    faces = with_looks(pictures, [seen(place, 0) for place in places])[0]
    tracker = Tracker()
    assert tracker.follow(faces[:1], 1.0, 96 / 256) is faces[0]
    waited = [tracker.follow(faces[1:], 1.0, 96 / 256) for _ in range(20)]
    assert waited[0] is None and waited[-1] is faces[1]


def test_looks_tell_colors_apart_and_do_not_flicker() -> None:
    gray = torch.full((3, 64, 64), 0.5)
    faces = [Detection(0.9, (0.0, 0.0, 1.0))]
    pictures = torch.stack(
        [gray, gray + 0.01, torch.tensor([0.9, 0.6, 0.5])[:, None, None].expand(3, 64, 64)]
    )
    same, almost, other = (each[0].look for each in with_looks(pictures, [faces] * 3))
    assert unlike(same, same) < 1e-3 and unlike(same, almost) < 0.15 and unlike(same, other) > 0.6
    assert unlike(same, None) == 0
    assert with_looks(pictures, [[], [], []]) == [[], [], []]
