"""Pixels or landmarks to face parameters: DECA Extract and Parameters from Face Landmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from anifacediff_core.capture.arkit import from_face_landmarks
from anifacediff_core.capture.confidence import LEAST
from anifacediff_core.capture.detector import Detection
from anifacediff_core.capture.extract import (
    MODES,
    SMOOTHING,
    Models,
    crop_portrait,
    extract_parameters,
)
from anifacediff_core.capture.locate import from_boxes, from_landmarks
from anifacediff_core.capture.mediapipe import detect_landmarks
from anifacediff_core.capture.missing import MISSING, format_ranges
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel

from .host.api import io
from .host.runtime import Progress, device, show_text
from .images import checked, to_core, to_host
from .sockets import (
    AppearanceSocket,
    BoundingBoxSocket,
    Crop,
    CropSocket,
    FaceCaptureSocket,
    FaceLandmarksSocket,
    connected,
    make_schema,
    parameters_output,
    share_input,
    size_input,
)


def region_input() -> io.Combo.Input:
    return io.Combo.Input(
        "region",
        options=list(MODES),
        default="auto",
        tooltip="What becomes the portrait. auto: the whole picture if it is a square portrait already, "
        "else the square around the head. portrait: always the square around the head. whole: always the "
        "whole picture.",
    )


def face_input(where: str = "") -> io.Int.Input:
    return io.Int.Input(
        "face",
        default=0,
        min=0,
        max=31,
        tooltip=f"Which face{where}, if there are several: 0 follows the most prominent one, 1 the first "
        "from the left, and so on.",
    )


def smoothing_input() -> io.Float.Input:
    return share_input(
        "smoothing",
        SMOOTHING,
        "How much to calm the tremble of a video's parameters: 0 leaves them as they were read, 1 is strong. "
        "No effect on a single picture.",
    )


def missing_input(optional: bool = False, skip: bool = True) -> io.Combo.Input:
    """With `skip`, frames can be left out."""
    return io.Combo.Input(
        "missing",
        options=[way for way in MISSING if skip or way != "skip"],
        default="interpolate",
        optional=optional,
        tooltip="What becomes of frames without a face. interpolate: filled in from both neighbors. hold: as "
        f"last seen.{' skip: left out.' * skip} stop: an error that names them.",
    )


def least_confidence_input() -> io.Float.Input:
    return share_input(
        "least_confidence",
        LEAST,
        "How sure the reading of a frame must be: what is less sure, such as a face behind a hand, counts as "
        "a frame without a face. 0 takes all that is found.",
        optional=True,
    )


def landmarks_inputs() -> list[io.Input]:
    """Where the faces are, if another node has found them."""
    return [
        FaceLandmarksSocket.Input(
            "face_landmarks",
            optional=True,
            tooltip="Landmarks of the same pictures by ComfyUI's face landmarker: the surest way to "
            "find faces in photographs. By default they are looked for here.",
        ),
        BoundingBoxSocket.Input(
            "bounding_boxes",
            optional=True,
            extra_dict={"forceInput": True},
            tooltip="Boxes around faces in the same pictures, from any detector. Without effect when "
            "face_landmarks are connected.",
        ),
    ]


def known_faces(
    frames: torch.Tensor, face_landmarks: dict[str, Any] | None, bounding_boxes: Any
) -> list[list[Detection]] | None:
    """The faces of every frame (frames, channels, height, width) that `landmarks_inputs` tell."""
    size = (int(frames.shape[-2]), int(frames.shape[-1]))
    if face_landmarks is not None:
        return from_landmarks(face_landmarks, len(frames), size)
    return None if bounding_boxes is None else from_boxes(bounding_boxes, len(frames), size)


def report_output() -> io.String.Output:
    return io.String.Output(
        display_name="report",
        tooltip="How many frames show a face, in how many that is sure, and what became of the others.",
    )


def frames_without_face_output() -> io.String.Output:
    return io.String.Output(
        display_name="frames_without_face",
        tooltip="Numbers of the frames that show no face, or none for sure, counted from 0: 12-15, 40. Empty "
        "if all show one.",
    )


class DECAExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffDECAExtract",
            stage="Faces",
            display_name="Face Capture (DECA Extract)",
            description="Find the face, cut the portrait square around it, and read shape, expression, pose "
            "and camera, frame by frame. Use one for the source picture and one for the driving video.",
            search_aliases=["face detection", "portrait crop", "tracking", "face reader", "driving video"],
            advanced="region smoothing missing least_confidence",
            inputs=[
                FaceCaptureSocket.Input(
                    "face_capture",
                    tooltip="Face detector and encoder of Load AniFaceDiff, or DECA of Load DECA.",
                ),
                io.Image.Input("image", tooltip="Picture or video with a face."),
                region_input(),
                size_input("Side of the portrait pictures in pixels. It doesn't change the parameters."),
                face_input(),
                smoothing_input(),
                *landmarks_inputs(),
                missing_input(optional=True),
                least_confidence_input(),
            ],
            outputs=[
                parameters_output(
                    "Shape, expression, pose and camera of every frame, filled in where there is no face."
                ),
                io.Image.Output(
                    display_name="portrait",
                    tooltip="The portrait square that the parameters refer to, one picture per frame.",
                ),
                report_output(),
                CropSocket.Output(
                    display_name="crop",
                    tooltip="Where the portrait lies in the picture, for putting a result back.",
                ),
                AppearanceSocket.Output(
                    display_name="appearance",
                    tooltip="Texture and light of the face, which only DECA tells.",
                ),
                frames_without_face_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        face_capture: Models | None,
        image: torch.Tensor,
        region: str,
        size: int,
        face: int,
        smoothing: float,
        face_landmarks: dict[str, Any] | None = None,
        bounding_boxes: Any = None,
        missing: str = "interpolate",
        least_confidence: float = LEAST,
    ) -> io.NodeOutput:
        frames, _ = checked(image, "picture or video")
        height, width = frames.shape[-2:]
        with on_device(face_capture) as models:
            captured = extract_parameters(
                frames,
                models,
                region,
                face=face,
                smoothing=smoothing,
                missing=missing,
                least_confidence=least_confidence,
                what=name_of(frames),
                faces=known_faces(frames, face_landmarks, bounding_boxes),
                progress=Progress(len(frames)),
            )
        show_text(captured.note)
        portrait = to_host(crop_portrait(frames, captured.square, size, captured.kept))
        crop = Crop(captured.square, width, height, captured.skipped)
        return io.NodeOutput(
            captured.parameters,
            portrait,
            captured.note,
            crop,
            captured.appearance,
            format_ranges(captured.frames_without_face),
        )


@contextmanager
def on_device(face_capture: Models | None) -> Iterator[Models]:
    """The models where the host computes, for as long as it takes.

    They move as they are, without the host's memory management, and leave when they are done.
    """
    models = connected(
        face_capture,
        "face capture",
        "load a checkpoint that has a face detector and a face encoder, or connect Load DECA",
    )
    try:
        yield models.to(device())
    finally:
        models.to(torch.device("cpu"))


def name_of(frames: torch.Tensor) -> str:
    return "the video" if len(frames) > 1 else "the picture"


class ParametersFromFaceLandmarks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffParametersFromFaceLandmarks",
            stage="Faces",
            display_name="Parameters from Face Landmarks",
            description="Turn the landmarks of a person's face into face parameters: the way for a video of "
            "a person to drive an avatar. Connect ComfyUI's own face landmarker, or the video itself where "
            "MediaPipe is installed.",
            search_aliases=["mediapipe", "arkit", "blendshapes", "photograph", "real person"],
            advanced="region smoothing missing least_confidence",
            inputs=[
                FaceLandmarksSocket.Input(
                    "face_landmarks",
                    optional=True,
                    tooltip="Landmarks and expression coefficients of ComfyUI's face landmarker.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Picture or video of a person, for ComfyUI versions without a face landmarker; "
                    "needs the Python package mediapipe. Without effect when landmarks are connected.",
                ),
                region_input(),
                face_input(),
                smoothing_input(),
                missing_input(optional=True),
                least_confidence_input(),
            ],
            outputs=[
                parameters_output("Expression, pose and camera of every frame; the shape is neutral."),
                report_output(),
                frames_without_face_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        region: str,
        face: int,
        smoothing: float,
        face_landmarks: dict[str, Any] | None = None,
        image: torch.Tensor | None = None,
        missing: str = "interpolate",
        least_confidence: float = LEAST,
    ) -> io.NodeOutput:
        if face_landmarks is None:
            if image is None:
                raise InputError(
                    "There is nothing to read parameters from: connect face_landmarks, or image where "
                    "MediaPipe is installed."
                )
            frames = to_core(image, "picture or video")
            face_landmarks = detect_landmarks(frames, what=name_of(frames), progress=Progress(len(frames)))
        captured = from_face_landmarks(
            face_landmarks,
            HeadModel.bundled(),
            region,
            face=face,
            smoothing=smoothing,
            missing=missing,
            least_confidence=least_confidence,
        )
        show_text(captured.note)
        return io.NodeOutput(captured.parameters, captured.note, format_ranges(captured.frames_without_face))
