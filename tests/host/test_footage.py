"""From footage to portrait and back in the host: Portrait Crop, frames without a face, Paste Back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_nodes import LEFT, SIZE, landmarks, models_that_find, picture
from torch import Tensor, nn

from anifacediff_core.head.model import HeadModel
from harness.discs import Discs, discs
from harness.extension import Extension

FRAMES = 6
CROPPING = {
    "choose": "number",
    "face": 0,
    "x": 0.5,
    "y": 0.5,
    "margin": 0.25,
    "size": SIZE,
    "motion": "still",
    "smoothing": 0.5,
    "missing": "interpolate",
}
READING = {"least_confidence": 0.0, "region": "portrait", "size": SIZE, "face": 0, "smoothing": 0.3}
PASTING = {"feather": 0.1, "match_color": 0.0}


def crop(extension: Extension, image: Tensor | None, **inputs: Any) -> dict[str, Any]:
    given = {"face_capture": Discs(), **CROPPING, **inputs}
    result = extension.run("PortraitCrop", image=image, **given)
    return dict(zip(("portrait", "crop", "missing", "report"), result, strict=True))


def read(
    extension: Extension, image: Tensor, *faces: list[tuple[float, float, float]], **inputs: Any
) -> tuple:
    given = {**READING, **inputs}
    return extension.run("DECAExtract", face_capture=models_that_find(*faces), image=image, **given)


def boxes(frames: int = FRAMES, gaps: tuple[int, ...] = ()) -> list[list[dict[str, float]]]:
    """Of someone who walks to the right through a picture of 160 × 120 pixels."""
    return [
        [] if i in gaps else [{"x": 30.0 + 4 * i, "y": 40.0, "width": 30.0, "height": 30.0}]
        for i in range(frames)
    ]


def scaled(image: Tensor, factor: float) -> Tensor:
    """As an upscaler gives it back."""
    return nn.functional.interpolate(
        image.movedim(-1, 1), scale_factor=factor, mode="bicubic", align_corners=False
    ).movedim(1, -1)


# ---- outputs


def test_outputs_of_saved_workflows_stay_in_their_places(extension: Extension) -> None:
    expected = {
        "DECAExtract": ["parameters", "portrait", "report", "crop", "appearance", "frames_without_face"],
        "ParametersFromFaceLandmarks": ["parameters", "report", "frames_without_face"],
        "PortraitCrop": ["portrait", "crop", "frames_without_face", "report"],
        "PasteBack": ["image", "mask"],
    }
    for name, outputs in expected.items():
        info = extension.classes[f"AniFaceDiff{name}"].GET_NODE_INFO_V1()
        assert info["output_name"] == outputs
    for name, added in (("DECAExtract", "missing"), ("PasteBack", "shape")):
        info = extension.classes[f"AniFaceDiff{name}"].GET_NODE_INFO_V1()
        assert added in info["input"]["optional"] and added not in info["input"]["required"]


def test_one_still_square(extension: Extension) -> None:
    video = picture(FRAMES, 120, 160)
    found = crop(extension, video, bounding_boxes=boxes())
    assert found["portrait"].shape == (FRAMES, SIZE, SIZE, 3) and found["portrait"].is_contiguous()
    assert found["crop"].square.shape == (3,) and found["crop"].skipped == ()
    assert (found["crop"].width, found["crop"].height) == (160, 120)
    assert found["missing"] == "" and "6 of 6" in found["report"]


def test_a_square_that_follows(extension: Extension) -> None:
    video = picture(FRAMES, 120, 160)
    square = crop(extension, video, bounding_boxes=boxes(), motion="follow", smoothing=0.0)["crop"].square
    assert square.shape == (FRAMES, 3)
    assert torch.allclose(160 * square[:, 0].diff(), torch.full((FRAMES - 1,), 4.0), atol=0.05)


def test_faces_are_chosen(extension: Extension) -> None:
    group = discs(120, 160, (25, 40, 8), (60, 80, 6), (120, 50, 12)).movedim(1, -1)

    def center(**inputs: Any) -> float:
        left, _, side = (160 * crop(extension, group, **inputs)["crop"].square).tolist()
        return left + side / 2

    assert [round(center(face=number)) for number in (1, 2, 3)] == [25, 60, 120]
    assert round(center(choose="largest")) == 120
    assert round(center(choose="nearest", x=0.3, y=0.8)) == 60
    message = extension.refusal("PortraitCrop", face_capture=Discs(), image=group, **CROPPING | {"face": 4})
    assert "number 4" in message and "up to 3" in message


# ---- there and back


@pytest.mark.parametrize("motion", ["still", "follow"])
@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_there_and_back(extension: Extension, motion: str, factor: float) -> None:
    """Whatever scales the portrait in between, and whatever scales the original."""
    video = picture(FRAMES, 120, 160)
    found = crop(extension, video, bounding_boxes=boxes(), motion=motion, size=128)
    portrait = scaled(found["portrait"], factor)
    for original in (video, scaled(video, 2)):
        pasted, mask = extension.run(
            "PasteBack", portrait=portrait, original=original, crop=found["crop"], **PASTING
        )
        assert pasted.shape == original.shape and (pasted - original).abs().max() < 0.02
        assert len(mask) == (FRAMES if motion == "follow" else 1) and (mask == 1).any()


def test_frames_that_were_left_out_come_back_untouched(extension: Extension) -> None:
    video = picture(FRAMES, 120, 160)
    for motion in ("still", "follow"):
        found = crop(extension, video, bounding_boxes=boxes(gaps=(1, 2)), missing="skip", motion=motion)
        assert len(found["portrait"]) == 4 and found["crop"].skipped == (1, 2) and found["missing"] == "1-2"
        white = torch.ones_like(found["portrait"])
        given = {"portrait": white, "crop": found["crop"], **PASTING}
        pasted, mask = extension.run("PasteBack", original=video, **given)
        assert torch.equal(pasted[1:3], video[1:3]) and (mask[1:3] == 0).all()
        assert all((frame[shown == 1] > 0.999).all() for frame, shown in zip(pasted, mask))
        assert all((mask[number] == 1).any() for number in (0, 3, 4, 5))
        kept, _ = extension.run("PasteBack", original=video[[0, 3, 4, 5]], **given)
        assert torch.equal(kept, pasted[[0, 3, 4, 5]])
        message = extension.refusal("PasteBack", original=video[:5], **given)
        assert "5 frames" in message and "the 6 that" in message


def test_the_portrait_of_a_following_crop_keeps_its_frames(extension: Extension) -> None:
    video = picture(FRAMES, 120, 160)
    found = crop(extension, video, bounding_boxes=boxes(), motion="follow")
    given = {"portrait": found["portrait"][:4], "crop": found["crop"], **PASTING}
    message = extension.refusal("PasteBack", original=video[:4], **given)
    assert "6 frames" in message and "4" in message


def test_an_ellipse(extension: Extension) -> None:
    video = picture(1, 120, 160)
    found = crop(extension, video, bounding_boxes=boxes(1))
    given = {"portrait": found["portrait"], "original": video, "crop": found["crop"], **PASTING}
    square, oval = (extension.run("PasteBack", **given, shape=shape)[1] for shape in ("square", "ellipse"))
    assert torch.equal(square, extension.run("PasteBack", **given)[1])
    assert 0.5 * square.sum() < oval.sum() < 0.85 * square.sum()


def test_masks_with_fewer_and_more_axes(extension: Extension) -> None:
    video = picture(2, 120, 160)
    found = crop(extension, video, bounding_boxes=boxes(2))
    given = {"portrait": found["portrait"], "original": video, "crop": found["crop"], **PASTING}
    allowed = torch.rand(1, 120, 160)
    expected = extension.run("PasteBack", **given, mask=allowed)[1]
    for mask in (allowed[0], allowed[:, None]):
        assert torch.equal(extension.run("PasteBack", **given, mask=mask)[1], expected)


# ---- frames without a face

GAP = ([LEFT], [LEFT], [], [], [LEFT], [LEFT])


@pytest.mark.parametrize("missing", ["interpolate", "hold", "skip"])
def test_reading_frames_without_a_face(extension: Extension, missing: str) -> None:
    video = picture(FRAMES)
    parameters, portrait, report, place, _, without = read(extension, video, *GAP, missing=missing)
    assert without == "2-3" and "4 of 6" in report and "2-3" in report
    remaining = 4 if missing == "skip" else FRAMES
    assert len(parameters) == len(portrait) == remaining
    assert place.skipped == ((2, 3) if missing == "skip" else ())
    assert parameters.valid.tolist() == (
        [True] * 4 if missing == "skip" else [True, True, False, False, True, True]
    )
    if missing == "skip":
        whole = read(extension, video, *GAP)
        assert torch.equal(portrait, whole[1][[0, 1, 4, 5]])
        assert torch.equal(parameters.camera, whole[0].camera[[0, 1, 4, 5]])


def test_held_readings(extension: Extension) -> None:
    head = HeadModel.bundled()
    faces = landmarks(head, FRAMES, missing=(2, 3))
    given = {"region": "auto", "face": 0, "smoothing": 0.0, "face_landmarks": faces}
    jaw = head.expression_names.index("jawOpen")

    def opening(missing: str) -> list[float]:
        parameters, _, without = extension.run("ParametersFromFaceLandmarks", **given, missing=missing)
        assert without == "2-3"
        return [round(6 * value, 3) for value in parameters.expression[:, jaw].tolist()]

    assert opening("interpolate") == [0, 1, 2, 3, 4, 5]
    assert opening("hold") == [0, 1, 1, 1, 4, 5]
    assert opening("skip") == [0, 1, 4, 5]
    assert "frame 2-3" in extension.refusal("ParametersFromFaceLandmarks", **given, missing="stop")


def test_stopping_at_frames_without_a_face(extension: Extension) -> None:
    video = picture(FRAMES, 120, 160)
    message = extension.refusal(
        "DECAExtract", face_capture=models_that_find(*GAP), image=video, **READING, missing="stop"
    )
    assert "the video" in message and "frame 2-3" in message
    given = {"face_capture": Discs(), "image": video, "bounding_boxes": boxes(gaps=(0, 4))}
    message = extension.refusal("PortraitCrop", **given, **CROPPING | {"missing": "stop"})
    assert "the video" in message and "frame 0, 4" in message


def test_held_squares(extension: Extension) -> None:
    video = picture(FRAMES, 120, 160)
    given = {"bounding_boxes": boxes(gaps=(2, 3)), "motion": "follow", "smoothing": 0.0}
    held = crop(extension, video, missing="hold", **given)["crop"].square
    assert torch.equal(held[2], held[1]) and torch.equal(held[3], held[1])
    between = crop(extension, video, missing="interpolate", **given)["crop"].square
    assert torch.allclose(160 * between[:, 0].diff(), torch.full((5,), 4.0), atol=0.05)


# ---- pictures of every form


def in_every_node(extension: Extension, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Portraits of Portrait Crop and DECA Extract, and the picture that Paste Back makes of the first."""
    height, width = image.shape[1:3]
    box = {"x": 0.3 * width, "y": 0.3 * height, "width": 0.3 * height, "height": 0.3 * height}
    found = crop(extension, image, bounding_boxes=box)
    portrait = read(extension, image, [(0.3, 0.2, 0.3)])[1]
    pasted, _ = extension.run(
        "PasteBack", portrait=found["portrait"], original=image, crop=found["crop"], **PASTING
    )
    return found["portrait"], portrait, pasted


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_gray_and_transparent_pictures(extension: Extension, channels: int) -> None:
    image = picture(2, 90, 130, channels)
    color = image[..., : -1 if channels in (2, 4) else None].expand(-1, -1, -1, 3)
    alpha = image[..., -1:] if channels in (2, 4) else torch.ones(())
    plain = color * alpha + 128 / 255 * (1 - alpha)
    for found, expected in zip(in_every_node(extension, image), in_every_node(extension, plain)):
        assert found.shape[-1] == 3 and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (17, 16)])
def test_pictures_of_any_proportion(extension: Extension, size: tuple[int, int]) -> None:
    image = picture(1, *size)
    for portrait in in_every_node(extension, image)[:2]:
        assert portrait.shape == (1, SIZE, SIZE, 3) and portrait.isfinite().all()


def test_4k(extension: Extension) -> None:
    image = picture(1, 2160, 3840)
    *portraits, pasted = in_every_node(extension, image)
    assert all(portrait.shape == (1, SIZE, SIZE, 3) for portrait in portraits)
    assert pasted.shape == image.shape and (pasted - image).abs().max() < 0.05


BAD = {
    "tiny": picture(1, 8, 8),
    "empty": torch.zeros(0, 32, 32, 3),
    "nan": torch.full((2, 32, 32, 3), float("nan")),
    "five channels": torch.zeros(1, 32, 32, 5),
    "nothing": None,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures(extension: Extension, kind: str) -> None:
    good = picture(1, 32, 32)
    place = read(extension, good, [LEFT])[3]
    extension.refusal("PortraitCrop", face_capture=Discs(), image=BAD[kind], **CROPPING)
    extension.refusal("DECAExtract", face_capture=models_that_find([LEFT]), image=BAD[kind], **READING)
    extension.refusal("PasteBack", portrait=BAD[kind], original=good, crop=place, **PASTING)
    extension.refusal("PasteBack", portrait=good, original=BAD[kind], crop=place, **PASTING)


def test_what_portrait_crop_refuses(extension: Extension) -> None:
    image = torch.zeros(2, 40, 50, 3)
    given = {"face_capture": Discs(), "image": image, **CROPPING}
    assert "no face was found" in extension.refusal("PortraitCrop", **given)
    assert "face capture" in extension.refusal("PortraitCrop", **given | {"face_capture": None})
    for boxes_ in ([[], [], []], "boxes", [[{"a": 1}], []]):
        extension.refusal("PortraitCrop", **given, bounding_boxes=boxes_)
    extension.refusal("PortraitCrop", **given, face_landmarks={"frames": []})
