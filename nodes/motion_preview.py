"""Motion as a picture: Motion Preview."""

from __future__ import annotations

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.parts import expression_names, require_motion
from anifacediff_core.motion.plot import preview

from .head import head_input, load_head, on_device
from .host.api import io, ui
from .host.runtime import Progress
from .images import to_host
from .sockets import FaceParametersSocket, head_model_input, make_schema


class MotionPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffMotionPreview",
            stage="Motion",
            display_name="Motion Preview",
            description="See a motion at a glance: curves of head, mouth, lids, brows and gaze over time, "
            "and the head at evenly spaced moments. Connect a second motion to compare before and after.",
            search_aliases=["plot", "curves", "graph", "compare motion", "inspect parameters"],
            advanced="head",
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters to look at."),
                head_input(),
                FaceParametersSocket.Input(
                    "before",
                    optional=True,
                    tooltip="Face parameters to compare with, for example those before smoothing: dark, thin "
                    "curves, and a row of heads above.",
                ),
                head_model_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="preview", tooltip="The picture that the node shows, for saving it."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        parameters: FaceParameters,
        head: str,
        before: FaceParameters | None = None,
        head_model: HeadModel | None = None,
    ) -> io.NodeOutput:
        motion = require_motion(parameters, "parameters")
        if before is not None:
            motion.require_same_head(require_motion(before, "before"), "parameters and before")
        model = head_model or load_head(head, motion)
        with on_device(model):
            picture = preview(model, motion, expression_names(motion), before, Progress(1))
        image = to_host(picture[None])
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
