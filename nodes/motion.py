"""Motion as material: Edit Motion, Combine Motion, Blend Motion, Smooth Motion and Retime Motion."""

from __future__ import annotations

from comfy_api.latest import io

from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion import edit, retime
from anifacediff_core.motion.mix import LENGTHS, combine, join, mix
from anifacediff_core.motion.parts import expression_names, require_motion
from anifacediff_core.motion.smoothing import smooth_motion

from .host.runtime import show_text
from .sockets import FaceParametersSocket, make_schema

MIX, JOIN = "mix", "one after the other"
GAINS = {
    "head": "How far the head turns, and moves and grows in the picture.",
    "jaw": "How far the jaw opens.",
    "brows": "How far the brows rise and fall.",
    "eyes": "How far the lids close, squint and widen.",
    "gaze": "How far the eyes look around.",
    "mouth": "How far lips, cheeks and nose move.",
}
SOURCES = {
    "head": "the turn of the head",
    "place": "the head's place and size in the picture",
    "mouth": "the motion of mouth and jaw",
    "brows": "the motion of the brows",
    "eyes": "the motion of the lids",
    "gaze": "the gaze",
}


def _motion_output(tooltip: str) -> io.Output:
    return FaceParametersSocket.Output(display_name="parameters", tooltip=tooltip)


def _frames_output() -> io.Int.Output:
    return io.Int.Output(display_name="frames", tooltip="How many frames there are.")


def _share_input(name: str, default: float, tooltip: str, most: float = 1.0) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.05, tooltip=tooltip)


def _count_input(name: str, default: int, tooltip: str, least: int = 0) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=least, max=retime.LONGEST, tooltip=tooltip)


def _length_input() -> io.Combo.Input:
    return io.Combo.Input(
        "length",
        options=list(LENGTHS),
        default="first",
        tooltip="How long the result is if the two differ. first: as the first; a shorter second one stays "
        "at its last frame. shorter: the longer one is cut. loop shorter: the shorter one repeats.",
    )


class EditMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffEditMotion",
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
                    _share_input(
                        part, 1.0, f"{text} 0 is none of it, 1 as the driver does, up to 3 is more.", 3.0
                    )
                    for part, text in GAINS.items()
                ],
                _count_input(
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
                io.Float.Input(
                    "neutralize",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much of the source's own expression to take away, so that a smile in the "
                    "picture doesn't stay in the whole video. Without effect when there is no source.",
                ),
            ],
            outputs=[
                _motion_output("The edited motion, as many frames as the driver's, for Facial Shape Align."),
                io.Int.Output(display_name="rest_frame", tooltip="The rest frame that was used."),
            ],
        )

    @classmethod
    def execute(
        cls,
        parameters: FaceParameters,
        motion: str,
        head: float,
        jaw: float,
        brows: float,
        eyes: float,
        gaze: float,
        mouth: float,
        rest_frame: int,
        source: FaceParameters | None = None,
        neutralize: float = 0.0,
    ) -> io.NodeOutput:
        driving = require_motion(parameters, "parameters")
        rest = rest_frame if rest_frame >= 0 else edit.rest_frame(driving)
        edited = edit.edit_motion(
            driving,
            expression_names(driving),
            {"head": head, "jaw": jaw, "brows": brows, "eyes": eyes, "gaze": gaze, "mouth": mouth},
            rest=rest,
            relative=motion == "relative",
            source=None if source is None else _one_face(source),
            neutralize=neutralize,
        )
        show_text(f"rest frame: {rest}")
        return io.NodeOutput(edited, rest)


def _one_face(source: FaceParameters) -> FaceParameters:
    """The first frame that shows a face."""
    require_motion(source, "source")
    if not source.valid.any():
        raise InputError("No face was found in the source: extract its parameters from a picture of a face.")
    return source[int(source.valid.int().argmax())]


class CombineMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffCombineMotion",
            display_name="Combine Motion",
            description="Put one motion together from two drivers: the pose of one video, the expression of "
            "another, or any other choice of parts.",
            search_aliases=["mix drivers", "pose from one video", "expression transfer", "retarget"],
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
            outputs=[_motion_output("The combined motion."), _frames_output()],
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
                _share_input("weight", 0.5, "For mix: 0 is the first, 1 the second, 0.5 halfway."),
                _count_input(
                    "overlap",
                    12,
                    "For one after the other: frames in which the first fades into the second. 0 cuts hard.",
                ),
                _length_input(),
            ],
            outputs=[
                _motion_output(
                    "The blended motion; one after the other it has the frames of both less the overlap."
                ),
                _frames_output(),
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


class SmoothMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSmoothMotion",
            display_name="Smooth Motion",
            description="Calm the tremble of a motion without making it lag: still moments become still, "
            "fast turns, speech and blinks stay sharp.",
            search_aliases=["jitter", "stabilize", "one euro filter", "denoise motion"],
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters of a video."),
                _share_input(
                    "head", 0.3, "How much to calm the head's turn and place: 0 not at all, 1 strongly."
                ),
                _share_input(
                    "expression",
                    0.3,
                    "How much to calm the face: 0 not at all, 1 strongly. Lids and gaze get a third of it, "
                    "since a blink lasts only a few frames.",
                ),
            ],
            outputs=[_motion_output("The calmed motion, as many frames.")],
        )

    @classmethod
    def execute(cls, parameters: FaceParameters, head: float, expression: float) -> io.NodeOutput:
        motion = require_motion(parameters, "parameters")
        return io.NodeOutput(smooth_motion(motion, expression_names(motion), head, expression))


class RetimeMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffRetimeMotion",
            display_name="Retime Motion",
            description="Bring a motion to another frame rate, make it faster or slower, cut a part out of "
            "it, play it backwards, or close it to a loop without a seam.",
            search_aliases=["frame rate", "speed", "trim", "reverse", "ping-pong", "loop", "fps"],
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters of a video."),
                _rate_input(
                    "fps",
                    24.0,
                    "Frames a second of the video that the motion was read from. 29.97 means 30000/1001.",
                ),
                _rate_input(
                    "new_fps", 24.0, "Frames a second to bring it to; the motion takes as long as before."
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
                _count_input(
                    "start",
                    0,
                    "First frame of the part to take, before everything else is done. A negative number "
                    "counts from the end.",
                    least=-retime.LONGEST,
                ),
                _count_input("length", 0, "Frames of the part to take; 0 is all to the end."),
                io.Combo.Input(
                    "direction",
                    options=list(retime.DIRECTIONS),
                    default="forward",
                    tooltip="forward, in reverse, or ping-pong: there and back again, which loops by itself.",
                ),
                _count_input(
                    "loop",
                    0,
                    "Closes a loop: the last frames of the result, this many, fade into its first ones, and "
                    "the result is shorter by as many. 0 leaves it open.",
                ),
            ],
            outputs=[
                _motion_output("The retimed motion."),
                _frames_output(),
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


def _rate_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=1.0, max=240.0, step=0.001, round=0.00001, tooltip=tooltip
    )
