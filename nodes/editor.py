"""Face parameters dialed by hand: Expression Editor. Its sliders and its head are in web/."""

from __future__ import annotations

from typing import Any

from anifacediff_core.head.editing import edit, read_edits, without_motion
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.parts import require_motion

from .host.api import io
from .sockets import FaceParametersSocket, make_schema, parameters_output


class ExpressionEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffExpressionEditor",
            stage="Motion",
            display_name="Expression Editor",
            description="Dial an expression, gaze and head pose with sliders while a 3D head shows them, "
            "from nothing or on top of a captured motion.",
            search_aliases=["face pose", "blendshapes", "ARKit", "puppet", "smile", "gaze", "head rotation"],
            inputs=[
                io.Combo.Input(
                    "apply",
                    options=["add", "replace"],
                    default="add",
                    tooltip="What happens to connected parameters: the sliders are added to every frame, or "
                    "replace its expression and head rotation.",
                ),
                io.String.Input(
                    "expression",
                    default="{}",
                    tooltip="The sliders that are not at rest, as JSON: ARKit's names from 0 to 1 (down to "
                    "-1 to take away), headYaw, headPitch, headRoll in degrees, zoom, shiftX, shiftY.",
                ),
                FaceParametersSocket.Input(
                    "parameters",
                    optional=True,
                    tooltip="Face parameters to edit, all frames alike; without them the neutral bundled "
                    "head is dialed.",
                ),
            ],
            outputs=[
                parameters_output("What is dialed: one frame, or as many as the connected parameters have.")
            ],
        )

    @classmethod
    def execute(cls, apply: str, expression: str, parameters: FaceParameters | None = None) -> io.NodeOutput:
        head = HeadModel.bundled()
        edits = read_edits(expression, head)
        if parameters is None:
            return io.NodeOutput(edit(head, head.neutral(), edits), ui={"first_frame": []})
        require_motion(parameters, "parameters")
        if apply == "replace":
            parameters = without_motion(parameters)
        edited = edit(head, parameters, edits)
        return io.NodeOutput(edited, ui={"first_frame": [_motion(parameters)]})


def _motion(params: FaceParameters) -> dict[str, Any]:
    """What the head in the node starts from: the first frame without the sliders."""
    first = params[0]
    return {name: getattr(first, name)[0].float().tolist() for name in ("expression", "pose", "camera")}
