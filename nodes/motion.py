"""One motion, changed: Edit Motion and Smooth Motion."""

from __future__ import annotations

from anifacediff_core.head.alignment import source_frame
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion import edit
from anifacediff_core.motion.parts import expression_names, require_motion
from anifacediff_core.motion.retime import LONGEST
from anifacediff_core.motion.smoothing import smooth_motion

from .host.api import io
from .host.runtime import show_text
from .sockets import FaceParametersSocket, make_schema, parameters_output, share_input

GAINS = {
    "head": "How far the head turns, and moves and grows in the picture.",
    "jaw": "How far the jaw opens.",
    "brows": "How far the brows rise and fall.",
    "eyes": "How far the lids close, squint and widen.",
    "gaze": "How far the eyes look around.",
    "mouth": "How far lips, cheeks and nose move.",
}


def count_input(name: str, default: int, tooltip: str, least: int = 0) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=least, max=LONGEST, tooltip=tooltip)


class EditMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffEditMotion",
            stage="Motion",
            display_name="Edit Motion",
            description="Make a driver's motion stronger or weaker, part by part: expression without head "
            "motion, only the eyes, a wilder mouth. Or take only its changes and add them to the source's "
            "own pose and expression.",
            search_aliases=[
                "relative motion",
                "motion gain",
                "neutralize",
                "expression strength",
                "exaggerate",
            ],
            advanced="rest_frame",
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters of the driving video."),
                io.Combo.Input(
                    "motion",
                    options=["absolute", "relative"],
                    default="absolute",
                    tooltip="absolute: pose and expression are the driver's. relative: only what changes "
                    "from the driver's rest frame on, added to the source, or to a neutral face if none is "
                    "connected.",
                ),
                *[
                    share_input(
                        part, 1.0, f"{text} 0 is none of it, 1 as the driver does, up to 3 is more.", most=3.0
                    )
                    for part, text in GAINS.items()
                ],
                count_input(
                    "rest_frame",
                    -1,
                    "The driver's frame that counts as at rest, for relative motion and for its place in the "
                    "picture. -1 finds the calmest, most neutral one.",
                    least=-1,
                ),
                FaceParametersSocket.Input(
                    "source",
                    optional=True,
                    tooltip="Face parameters of the source picture: the pose and expression that a gain of 0 "
                    "leaves, and that relative motion starts from. By default a neutral face looking ahead.",
                ),
                share_input(
                    "neutralize",
                    0.0,
                    "How much of the source's own expression to take away, so that a smile in the picture "
                    "doesn't stay in the whole video. Without effect when there is no source.",
                    optional=True,
                ),
            ],
            outputs=[
                parameters_output(
                    "The edited motion, as many frames as the driver's, for Facial Shape Align."
                ),
                io.Int.Output(display_name="rest_frame", tooltip="The rest frame that was used."),
            ],
        )

    @classmethod
    def execute(
        cls,
        parameters: FaceParameters,
        motion: str,
        rest_frame: int,
        source: FaceParameters | None = None,
        neutralize: float = 0.0,
        **gains: float,
    ) -> io.NodeOutput:
        driving = require_motion(parameters, "parameters")
        rest = rest_frame if rest_frame >= 0 else edit.rest_frame(driving)
        edited = edit.edit_motion(
            driving,
            expression_names(driving),
            gains,
            rest=rest,
            relative=motion == "relative",
            source=None if source is None else source_frame(require_motion(source, "source")),
            neutralize=neutralize,
        )
        show_text(f"rest frame: {rest}")
        return io.NodeOutput(edited, rest)


class SmoothMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSmoothMotion",
            stage="Motion",
            display_name="Smooth Motion",
            description="Calm the tremble of a motion without making it lag: still moments become still, "
            "fast turns, speech and blinks stay sharp.",
            search_aliases=["jitter", "stabilize", "one euro filter", "denoise motion"],
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters of a video."),
                share_input(
                    "head", 0.3, "How much to calm the head's turn and place: 0 not at all, 1 strongly."
                ),
                share_input(
                    "expression",
                    0.3,
                    "How much to calm the face: 0 not at all, 1 strongly. Lids and gaze get a third of it, "
                    "since a blink lasts only a few frames.",
                ),
            ],
            outputs=[parameters_output("The calmed motion, as many frames.")],
        )

    @classmethod
    def execute(cls, parameters: FaceParameters, head: float, expression: float) -> io.NodeOutput:
        motion = require_motion(parameters, "parameters")
        return io.NodeOutput(smooth_motion(motion, expression_names(motion), head, expression))
