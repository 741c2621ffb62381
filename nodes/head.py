"""Face parameters to surface normals: Facial Shape Align and Render Normals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.flame import NAME as FLAME_NAME
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import iterate_normals
from anifacediff_core.weights.faces import load_head as load_head_file

from .host.api import io
from .host.folders import BUNDLED, FLAME, file_path, head_names
from .host.runtime import Progress, device
from .images import to_host
from .sockets import FaceParametersSocket, head_model_input, make_schema, parameters_output, size_input


class FacialShapeAlign(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffFacialShapeAlign",
            stage="Motion",
            display_name="Facial Shape Align",
            description="Give the source's face shape to the driving motion, so that the result keeps the "
            "source's identity and takes pose, expression and framing from the driver.",
            search_aliases=["identity", "shape", "retarget"],
            advanced="camera",
            inputs=[
                FaceParametersSocket.Input(
                    "source",
                    tooltip="Face parameters of the source picture; their shape is kept. Of several frames "
                    "the first is taken.",
                ),
                FaceParametersSocket.Input(
                    "driving",
                    tooltip="Face parameters of the driving video; their pose, expression and camera are "
                    "kept.",
                ),
                camera_input(", as MagicPortrait has it", optional=True),
            ],
            outputs=[
                parameters_output(
                    "The driver's motion on the source's face, one set of parameters per driving frame."
                )
            ],
        )

    @classmethod
    def execute(
        cls, source: FaceParameters, driving: FaceParameters, camera: str = "driving"
    ) -> io.NodeOutput:
        return io.NodeOutput(align(source_frame(source), driving, camera))


class RenderNormals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffRenderNormals",
            stage="Guidance",
            display_name="Render Normals",
            description="Draw the surface normals of the head, frame by frame: the picture that tells the "
            "model where every part of the face is and which way it looks.",
            search_aliases=["normal map", "mesh", "snapshot"],
            advanced="head",
            inputs=[
                FaceParametersSocket.Input(
                    "parameters", tooltip="Face parameters to draw, usually those of Facial Shape Align."
                ),
                size_input(
                    "Side of the square pictures in pixels; the same as in ReferenceNet Encode. "
                    "The bundled model was trained at 256."
                ),
                head_input(),
                head_model_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="normals",
                    tooltip="One picture per frame: colors are directions, black is background.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, parameters: FaceParameters, size: int, head: str, head_model: HeadModel | None = None
    ) -> io.NodeOutput:
        model = head_model or load_head(head, parameters)
        model.require(parameters)
        progress, parts = Progress(len(parameters)), []
        with on_device(model):
            for part in iterate_normals(model, parameters, size):
                parts.append(part)
                progress.show(sum(map(len, parts)), len(parameters), image=part[-1])
        return io.NodeOutput(to_host(torch.cat(parts)))


@contextmanager
def on_device(model: HeadModel) -> Iterator[None]:
    """Where the host computes, for as long as it takes: the host doesn't know of this memory."""
    try:
        model.to(device())
        yield
    finally:
        model.to("cpu")


def camera_input(more: str = "", optional: bool = False, default: str = "driving") -> io.Combo.Input:
    return io.Combo.Input(
        "camera",
        options=["driving", "source"],
        default=default,
        optional=optional,
        tooltip="Whose place in the picture the head takes: the driver's, which moves, or the source's, "
        f"where the head only turns{more}.",
    )


def head_input() -> io.Combo.Input:
    return io.Combo.Input(
        "head",
        options=[BUNDLED, *head_names()],
        default=BUNDLED,
        tooltip="Head model that the parameters belong to: the bundled one, or a file in "
        "models/flame. Without effect when head_model is connected.",
    )


def load_head(name: str, parameters: FaceParameters) -> HeadModel:
    if name != BUNDLED:
        return load_head_file(file_path(FLAME, name))
    if parameters.head == FLAME_NAME:
        raise InputError(
            "The face parameters were read with FLAME but the head to draw is the bundled one: connect head "
            "of Load DECA to head_model, or choose the FLAME file."
        )
    return HeadModel.bundled()
