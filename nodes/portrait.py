"""Footage to portraits: Portrait Crop."""

from __future__ import annotations

from typing import Any

import torch

from anifacediff_core.capture.extract import Models, crop_portrait
from anifacediff_core.capture.missing import format_ranges
from anifacediff_core.capture.portrait import MOTIONS, SMOOTHING, find_portrait
from anifacediff_core.capture.tracker import CHOICES, MARGIN, Tracker

from .capture import (
    face_input,
    frames_without_face_output,
    known_faces,
    landmarks_inputs,
    missing_input,
    name_of,
    on_device,
    report_output,
)
from .host.api import io
from .host.runtime import Progress, show_text
from .images import checked, to_host
from .sockets import Crop, CropSocket, FaceCaptureSocket, make_schema, share_input, size_input


class PortraitCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffPortraitCrop",
            stage="Faces",
            display_name="Portrait Crop",
            description="Cut a square portrait out of a picture or a video, around the face that you choose. "
            "Paste Back puts what becomes of it into its place again.",
            search_aliases=["face crop", "face detection", "stabilize", "group picture", "tracking"],
            advanced="x y margin smoothing missing",
            inputs=[
                FaceCaptureSocket.Input(
                    "face_capture", tooltip="Face detector of Load AniFaceDiff or of Load DECA."
                ),
                io.Image.Input("image", tooltip="Picture or video with a face, of any size."),
                io.Combo.Input(
                    "choose",
                    options=list(CHOICES),
                    default="number",
                    tooltip="Which face, if there are several. number: the one that face counts. largest: "
                    "the largest one. nearest: the one nearest to x and y.",
                ),
                face_input(),
                _place_input("x", "from 0 at the left to 1 at the right"),
                _place_input("y", "from 0 at the top to 1 at the bottom"),
                share_input(
                    "margin",
                    MARGIN,
                    "Room around the face, as a share of it. The default is how the bundled model knows "
                    "portraits; the square never grows beyond the picture.",
                    most=2.0,
                ),
                size_input("Side of the portrait pictures in pixels, whatever size the face has."),
                io.Combo.Input(
                    "motion",
                    options=list(MOTIONS),
                    default="still",
                    tooltip="still: one square for the whole video, large enough for the head in all frames. "
                    "follow: the square moves with the head, for someone who walks through the picture.",
                ),
                share_input(
                    "smoothing",
                    SMOOTHING,
                    "How calmly the square follows: 0 takes over every tremble of the detector, 1 moves for "
                    "clear motion only. It never lags. Without effect when motion is still.",
                ),
                missing_input(),
                *landmarks_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="portrait", tooltip="The square portraits, one picture per frame."
                ),
                CropSocket.Output(
                    display_name="crop", tooltip="Where the portraits lie in the picture, for Paste Back."
                ),
                frames_without_face_output(),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        face_capture: Models | None,
        image: torch.Tensor,
        choose: str,
        face: int,
        x: float,
        y: float,
        margin: float,
        size: int,
        motion: str,
        smoothing: float,
        missing: str,
        face_landmarks: dict[str, Any] | None = None,
        bounding_boxes: Any = None,
    ) -> io.NodeOutput:
        frames, _ = checked(image, "picture or video")
        height, width = frames.shape[-2:]
        progress = Progress(2 * len(frames))  # once through to find the face, once to cut
        with on_device(face_capture) as models:
            found = find_portrait(
                frames,
                models,
                Tracker(face=face, choice=choose, place=(x, y)),
                motion=motion,
                margin=margin,
                smoothing=smoothing,
                missing=missing,
                what=name_of(frames),
                faces=known_faces(frames, face_landmarks, bounding_boxes),
                progress=lambda done, total: progress(done, 2 * total),
            )
        show_text(found.note)
        portrait = crop_portrait(
            frames,
            found.square,
            size,
            found.kept,
            progress=lambda done, total: progress(total + done, 2 * total),
        )
        crop = Crop(found.square, width, height, found.skipped)
        return io.NodeOutput(to_host(portrait), crop, format_ranges(found.frames_without_face), found.note)


def _place_input(name: str, meaning: str) -> io.Float.Input:
    tooltip = f"Place of the face in the picture, {meaning}. Only when the nearest is chosen."
    return share_input(name, 0.5, tooltip, step=0.01)
