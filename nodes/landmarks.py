"""Landmarks to the drawings that steer AniPortrait: Draw Face Landmarks."""

from __future__ import annotations

from typing import Any

import torch

from anifacediff_core.capture.arkit import unpack
from anifacediff_core.capture.drawing import CANVAS, HEAD_MOTIONS, draw_reenactment
from anifacediff_core.capture.mediapipe import detect_landmarks
from anifacediff_core.errors import InputError

from .capture import face_input
from .host.api import io
from .host.runtime import Progress, show_text
from .images import square_of, to_core, to_host
from .sockets import FaceLandmarksSocket, make_schema


class DrawFaceLandmarks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffDrawFaceLandmarks",
            stage="Guidance",
            display_name="Draw Face Landmarks",
            description="Draw the landmarks of the source's face as they would lie if it moved like the "
            "driver's: the pictures that guide AniPortrait. Connect ComfyUI's own face landmarker, or the "
            "pictures themselves where MediaPipe is installed.",
            search_aliases=["aniportrait", "mediapipe", "face mesh", "pose guider"],
            inputs=[
                FaceLandmarksSocket.Input(
                    "source_landmarks",
                    optional=True,
                    tooltip="Landmarks of the source picture from ComfyUI's face landmarker. Of a picture "
                    "that isn't square, the middle is drawn.",
                ),
                io.Image.Input(
                    "source_image",
                    optional=True,
                    tooltip="The source picture, for ComfyUI versions without a face landmarker; needs the "
                    "Python package mediapipe. Without effect when its landmarks are connected.",
                ),
                FaceLandmarksSocket.Input(
                    "driving_landmarks",
                    optional=True,
                    tooltip="Landmarks of the driving video from ComfyUI's face landmarker.",
                ),
                io.Image.Input(
                    "driving_video",
                    optional=True,
                    tooltip="The driving video, read by mediapipe as the source picture is. Without effect "
                    "when its landmarks are connected.",
                ),
                io.Int.Input(
                    "size",
                    default=CANVAS,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the square pictures; the same as in ReferenceNet Encode. AniPortrait "
                    "was trained at 512.",
                ),
                io.Combo.Input(
                    "head_motion",
                    options=list(HEAD_MOTIONS),
                    default="relative",
                    tooltip="relative: the head moves from where the source's is, as in AniPortrait. "
                    "absolute: it is where the driver's is in its video.",
                ),
                face_input(" of the driving video"),
            ],
            outputs=[
                io.Image.Output(
                    display_name="drawings",
                    tooltip="The source's landmarks with the driver's motion, one picture per frame, for "
                    "normals of Pose Encode.",
                ),
                io.Image.Output(
                    display_name="source_drawing",
                    tooltip="The source's own landmarks, to look at: the first drawing should resemble it.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many frames show a face, and which ones were filled in.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        size: int,
        head_motion: str,
        face: int,
        source_landmarks: dict[str, Any] | None = None,
        source_image: torch.Tensor | None = None,
        driving_landmarks: dict[str, Any] | None = None,
        driving_video: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        source = _landmarks(source_landmarks, source_image, "source", "image", square=size)
        driving = _landmarks(driving_landmarks, driving_video, "driving", "video")
        frames, _ = unpack(driving, "the driver's landmarks")
        drawn = draw_reenactment(
            source,
            driving,
            size,
            head_motion=head_motion,
            face=face,
            progress=Progress(len(frames)),
        )
        show_text(drawn.note)
        return io.NodeOutput(to_host(drawn.driving), to_host(drawn.source), drawn.note)


def _landmarks(
    landmarks: dict[str, Any] | None, image: torch.Tensor | None, role: str, kind: str, square: int = 0
) -> dict[str, Any]:
    """The landmarks that are connected, or those that MediaPipe finds; with `square` in the middle square."""
    if landmarks is not None:
        return landmarks
    if image is None:
        raise InputError(
            f"There is nothing to read the {role}'s face from: connect {role}_landmarks, or {role}_{kind} "
            "where MediaPipe is installed."
        )
    frames = to_core(image, f"{role} {kind}")
    if square:
        frames = square_of(frames[:1], square)
    return detect_landmarks(frames, what=f"the {role} {kind}", progress=Progress(len(frames)))
