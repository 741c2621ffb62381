"""A motion's rate, length and direction: Retime Motion."""

from __future__ import annotations

from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion import retime
from anifacediff_core.motion.parts import require_motion

from .host.api import io
from .motion import count_input
from .sockets import FaceParametersSocket, frames_output, make_schema, parameters_output, rate_input


class RetimeMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffRetimeMotion",
            stage="Motion",
            display_name="Retime Motion",
            description="Bring a motion to another frame rate, make it faster or slower, cut a part out of "
            "it, play it backwards, or close it to a loop without a seam.",
            search_aliases=["frame rate", "speed", "trim", "reverse", "ping-pong", "loop", "fps"],
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters of a video."),
                rate_input(
                    "Frames a second of the video that the motion was read from. 29.97 means 30000/1001."
                ),
                rate_input(
                    "Frames a second to bring it to; the motion takes as long as before.", name="new_fps"
                ),
                io.Float.Input(
                    "speed",
                    default=1.0,
                    min=0.05,
                    max=20.0,
                    step=0.05,
                    round=0.0001,
                    tooltip="2 is twice as fast and half as long, 0.5 half as fast.",
                ),
                count_input(
                    "start",
                    0,
                    "First frame of the part to take, before everything else is done. A negative number "
                    "counts from the end.",
                    least=-retime.LONGEST,
                ),
                count_input("length", 0, "Frames of the part to take; 0 is all to the end."),
                io.Combo.Input(
                    "direction",
                    options=list(retime.DIRECTIONS),
                    default="forward",
                    tooltip="forward, in reverse, or ping-pong: there and back again, which loops by itself.",
                ),
                count_input(
                    "loop",
                    0,
                    "Closes a loop: the last frames of the result, this many, fade into its first ones, and "
                    "the result is shorter by as many. 0 leaves it open.",
                ),
            ],
            outputs=[
                parameters_output("The retimed motion."),
                frames_output(),
                io.Float.Output(
                    display_name="fps", tooltip="Frames a second of the result, for Create Video."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        parameters: FaceParameters,
        fps: float,
        new_fps: float,
        speed: float,
        start: int,
        length: int,
        direction: str,
        loop: int,
    ) -> io.NodeOutput:
        old, new = retime.exact_rate(fps), retime.exact_rate(new_fps)
        part = retime.trim(require_motion(parameters, "parameters"), start, length)
        played = retime.retime(retime.turn_back(part, direction), old, new, speed)
        retimed = retime.loop(played, loop)
        return io.NodeOutput(retimed, len(retimed), float(new))
