"""Socket types of our own and what travels through them; everything else is the host's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import torch

from anifacediff_core.capture.paste import FEATHER
from anifacediff_core.errors import InputError
from anifacediff_core.sampling.settings import SamplingSettings

from .host.api import io

FaceParametersSocket = io.Custom("FACE_PARAMETERS")
FaceLandmarksSocket = io.Custom("FACE_LANDMARKS")  # the host's own, in releases that have a face landmarker
ReferenceNetSocket = io.Custom("ANIFACEDIFF_REFERENCE_NET")
PoseEncoderSocket = io.Custom("ANIFACEDIFF_POSE_ENCODER")
FaceCaptureSocket = io.Custom("ANIFACEDIFF_FACE_CAPTURE")
ReferenceSocket = io.Custom("ANIFACEDIFF_REFERENCE")
PoseSocket = io.Custom("ANIFACEDIFF_POSE")
CropSocket = io.Custom("ANIFACEDIFF_CROP")
HeadSocket = io.Custom("ANIFACEDIFF_HEAD")
AppearanceSocket = io.Custom("ANIFACEDIFF_APPEARANCE")
BoundingBoxSocket = io.Custom("BOUNDING_BOX")  # the host's own, in releases that have face detectors

CATEGORY = "AniFaceDiff"
Stage = Literal["Models", "Faces", "Motion", "Guidance", "Sampling", "Result"]  # a sub-menu

Value = TypeVar("Value")


@dataclass(frozen=True)
class Reference:
    """The source as the sampler needs it.

    Attributes:
        tokens: features of the ReferenceNet (1, tokens, channels) by the name of the transformer block.
        embedding: CLIP's image embedding (1, channels), or that of a text (1, tokens, channels).
        latent: the source's latent as in the host's LATENT, (1, 4, height / 8, width / 8).
    """

    tokens: dict[str, torch.Tensor]
    embedding: torch.Tensor
    latent: torch.Tensor

    @property
    def of_text(self) -> bool:
        """Whether the context is a text, which is the same in both halves of guidance."""
        return self.embedding.ndim == 3

    @property
    def size(self) -> int:
        """Side of the source picture in pixels."""
        return 8 * self.latent.shape[-1]


@dataclass(frozen=True)
class Pose:
    """Features of the pose encoder.

    Attributes:
        levels: (frames, channels, height / 8, width / 8), and smaller ones of some encoders.
    """

    levels: tuple[torch.Tensor, ...]

    @property
    def features(self) -> torch.Tensor:
        return self.levels[0]

    @property
    def size(self) -> int:
        """Side of the encoded pictures in pixels."""
        return 8 * self.features.shape[-1]


@dataclass(frozen=True)
class Crop:
    """Where a portrait was cut out of its picture, so that what becomes of it can be put back.

    Attributes:
        square: left, top, side of the portrait, as fractions of the picture's longer side; it may reach
            beyond the picture. (3,) for all frames, or (frames, 3) where it follows the face.
        width, height: of the picture, in pixels.
        skipped: numbers of the frames that were left out, since they show no face.
    """

    square: torch.Tensor
    width: int
    height: int
    skipped: tuple[int, ...] = ()


def make_schema(*, stage: Stage, advanced: str = "", **values: Any) -> io.Schema:
    """A schema in our category; what the host's release does not know yet is left out.

    Args:
        stage: the sub-menu.
        advanced: names of widgets that few need, with spaces between; they are folded away.
        values: the rest of the schema.
    """
    inputs = {entry.id: entry for entry in values["inputs"]}
    for name in advanced.split():
        inputs[name].advanced = True  # not as an argument, which older releases refuse
    known = {field.name for field in fields(io.Schema)}
    values = {name: value for name, value in values.items() if name in known}
    return io.Schema(category=f"{CATEGORY}/{stage}", **values)


def connected(value: Value | None, name: str, maker: str) -> Value:
    """Refuse what a node before us could not provide."""
    if value is None:
        raise InputError(f"There is no {name}: {maker}.")
    return value


def parameters_output(tooltip: str) -> io.Output:
    return FaceParametersSocket.Output(display_name="parameters", tooltip=tooltip)


def frames_output() -> io.Int.Output:
    return io.Int.Output(display_name="frames", tooltip="How many frames there are.")


def share_input(
    name: str, default: float, tooltip: str, *, most: float = 1.0, step: float = 0.05, optional: bool = False
) -> io.Float.Input:
    """A number from 0 on: a share, a strength, a weight."""
    return io.Float.Input(
        name, default=default, min=0.0, max=most, step=step, optional=optional, tooltip=tooltip
    )


def paste_inputs(
    feather: str = "Width of the soft edge when pasting back, as a share of the square's side.",
    colors: str = "How much to bring the portrait's colors to those of the picture around it when pasting "
    "back: 0 leaves them.",
    optional: bool = False,
) -> list[io.Input]:
    """How a portrait goes back into its picture; with tooltips of a node's own."""
    return [
        share_input("feather", FEATHER, feather, most=0.5, step=0.01, optional=optional),
        share_input("match_color", 0.0, colors, optional=optional),
    ]


def rate_input(
    tooltip: str, name: str = "fps", default: float = 24.0, optional: bool = False
) -> io.Float.Input:
    """Frames a second."""
    return io.Float.Input(
        name,
        default=default,
        min=1.0,
        max=240.0,
        step=0.001,
        round=0.00001,
        optional=optional,
        tooltip=tooltip,
    )


def prefix_input(default: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Folder below output, and the start of the file's name; a number is added.",
    )


def head_model_input() -> io.Input:
    return HeadSocket.Input(
        "head_model", optional=True, tooltip="Head of Load DECA, for parameters that were read with it."
    )


def size_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("size", default=SamplingSettings.size, min=32, max=2048, step=8, tooltip=tooltip)
