"""Two motions made one: Combine Motion and Blend Motion."""

from __future__ import annotations

from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.mix import LENGTHS, combine, join, mix
from anifacediff_core.motion.parts import expression_names, require_motion

from .host.api import io
from .motion import count_input
from .sockets import FaceParametersSocket, frames_output, make_schema, parameters_output, share_input

MIX, JOIN = "mix", "one after the other"
SOURCES = {
    "head": "the turn of the head",
    "place": "the head's place and size in the picture",
    "mouth": "the motion of mouth and jaw",
    "brows": "the motion of the brows",
    "eyes": "the motion of the lids",
    "gaze": "the gaze",
}


def _length_input() -> io.Combo.Input:
    return io.Combo.Input(
        "length",
        options=list(LENGTHS),
        default="first",
        tooltip="How long the result is if the two differ. first: as the first; a shorter second one stays "
        "at its last frame. shorter: the longer one is cut. loop shorter: the shorter one repeats.",
    )


class CombineMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffCombineMotion",
            stage="Motion",
            display_name="Combine Motion",
            description="Put one motion together from two drivers: the pose of one video, the expression of "
            "another, or any other choice of parts.",
            search_aliases=["lip sync", "dubbing", "mix drivers", "expression transfer", "retarget"],
            inputs=[
                FaceParametersSocket.Input("first", tooltip="Face parameters of the first driver."),
                FaceParametersSocket.Input("second", tooltip="Face parameters of the second driver."),
                *[
                    io.Combo.Input(
                        f"{part}_from",
                        options=["first", "second"],
                        default="first" if part in ("head", "place") else "second",
                        tooltip=f"Whose is {text}: the first's or the second's.",
                    )
                    for part, text in SOURCES.items()
                ],
                _length_input(),
            ],
            outputs=[parameters_output("The combined motion."), frames_output()],
        )

    @classmethod
    def execute(
        cls, first: FaceParameters, second: FaceParameters, length: str, **choices: str
    ) -> io.NodeOutput:
        first, second = require_motion(first, "first"), require_motion(second, "second")
        from_second = {part: choices[f"{part}_from"] == "second" for part in SOURCES}
        from_second["jaw"] = from_second["mouth"]
        combined = combine(first, second, expression_names(first), from_second, length)
        return io.NodeOutput(combined, len(combined))


class BlendMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffBlendMotion",
            stage="Motion",
            display_name="Blend Motion",
            description="Mix two motions, or play one after the other with a soft transition.",
            search_aliases=["cross-fade", "join motion", "concatenate", "interpolate", "lerp"],
            inputs=[
                FaceParametersSocket.Input("first", tooltip="Face parameters to start from."),
                FaceParametersSocket.Input(
                    "second", tooltip="Face parameters to blend with, of the same head."
                ),
                io.Combo.Input(
                    "mode",
                    options=[MIX, JOIN],
                    default=MIX,
                    tooltip="mix: both at once, by weight. one after the other: one, then the other.",
                ),
                share_input("weight", 0.5, "For mix: 0 is the first, 1 the second, 0.5 halfway."),
                count_input(
                    "overlap",
                    12,
                    "For one after the other: frames in which the first fades into the second. 0 cuts hard.",
                ),
                _length_input(),
            ],
            outputs=[
                parameters_output(
                    "The blended motion; one after the other it has the frames of both less the overlap."
                ),
                frames_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        first: FaceParameters,
        second: FaceParameters,
        mode: str,
        weight: float,
        overlap: int,
        length: str,
    ) -> io.NodeOutput:
        first, second = require_motion(first, "first"), require_motion(second, "second")
        blended = join(first, second, overlap) if mode == JOIN else mix(first, second, weight, length)
        return io.NodeOutput(blended, len(blended))
