"""Face parameters on disk: Save and Load Face Parameters, Load Live Link Face, Load ARKit Curves."""

from __future__ import annotations

from anifacediff_core.capture.arkit_files import load_arkit_curves
from anifacediff_core.capture.live_link import load_live_link
from anifacediff_core.capture.timecode import RATES
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.motion.retime import exact_rate

from .host.api import io, ui
from .host.files import input_file, input_names, output_file, workflow_metadata
from .host.runtime import Progress
from .sockets import (
    FaceParametersSocket,
    frames_output,
    make_schema,
    parameters_output,
    prefix_input,
    rate_input,
)

SUFFIX, JSON_SUFFIX, CSV_SUFFIX = ".safetensors", ".json", ".csv"


class FileNode(io.ComfyNode):
    """A node that reads a file of its drop-down `file`, again when that has changed."""

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> float:
        return input_file(file).stat().st_mtime

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        try:
            input_file(file)
        except InputError as error:
            return str(error)
        return True


class SaveFaceParameters(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSaveFaceParameters",
            stage="Motion",
            display_name="Save Face Parameters",
            description="Write face parameters into the output folder, to use them again without the video.",
            search_aliases=["export motion", "write face parameters", "json"],
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters to save."),
                prefix_input("face_parameters/motion"),
                io.Combo.Input(
                    "format",
                    options=["safetensors", "json"],
                    default="safetensors",
                    optional=True,
                    tooltip="safetensors: small and fast. json: text, to read or to use in other programs; "
                    "larger, but just as exact.",
                ),
            ],
            outputs=[
                parameters_output("The same parameters, to go on with."),
                io.String.Output(display_name="file", tooltip="The file below the output folder."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, parameters: FaceParameters, filename_prefix: str, format: str = "safetensors"
    ) -> io.NodeOutput:
        path, name = output_file(filename_prefix, JSON_SUFFIX if format == "json" else SUFFIX)
        parameters.save(path, workflow_metadata(cls.hidden))
        return io.NodeOutput(parameters, name, ui=ui.PreviewText(f"{name}: {len(parameters)} frames"))


class LoadFaceParameters(FileNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLoadFaceParameters",
            stage="Motion",
            display_name="Load Face Parameters",
            description="Read face parameters that Save Face Parameters has written, from the input or the "
            "output folder.",
            search_aliases=["import motion", "read face parameters", "json"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*input_names(SUFFIX), *input_names(JSON_SUFFIX)],
                    tooltip="A file in the input folder, or in the output folder, where Save Face Parameters "
                    "puts it.",
                )
            ],
            outputs=[
                parameters_output("The saved face parameters."),
                frames_output(),
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        parameters = FaceParameters.load(input_file(file))
        return io.NodeOutput(parameters, len(parameters))


class LoadLiveLink(FileNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLoadLiveLink",
            stage="Motion",
            display_name="Load Live Link Face",
            description="Read a recording of Epic's Live Link Face app, the CSV file of a take: an iPhone's "
            "face capture drives the bundled head, without a video.",
            search_aliases=["live link face", "arkit", "iphone", "csv", "blendshapes", "unreal"],
            advanced="timecode_fps flip_yaw flip_pitch flip_roll",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=input_names(CSV_SUFFIX),
                    tooltip="The take's CSV file, in the input folder.",
                ),
                rate_input(
                    "Frames a second to bring it to, by its timecode. 29.97 means 30000/1001.", default=30.0
                ),
                io.Combo.Input(
                    "timecode_fps",
                    options=["auto", *map(str, RATES)],
                    default="auto",
                    optional=True,
                    tooltip="Frames a second that the timecode counts in. auto finds it in all lines. 1000 "
                    "is for milliseconds in place of frames.",
                ),
                *[
                    io.Boolean.Input(
                        f"flip_{angle}",
                        default=False,
                        optional=True,
                        tooltip=f"Turn the {angle} of the head the other way, should it be mirrored.",
                    )
                    for angle in ("yaw", "pitch", "roll")
                ],
            ],
            outputs=[
                parameters_output("Expression, gaze and head rotation of every frame; the shape is neutral."),
                frames_output(),
                io.Float.Output(display_name="fps", tooltip="Frames a second, for Create Video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        file: str,
        fps: float,
        timecode_fps: str = "auto",
        flip_yaw: bool = False,
        flip_pitch: bool = False,
        flip_roll: bool = False,
    ) -> io.NodeOutput:
        rate = exact_rate(fps)
        parameters = load_live_link(
            input_file(file),
            HeadModel.bundled(),
            rate,
            timecode_rate=0 if timecode_fps == "auto" else int(timecode_fps),
            flip=(flip_yaw, flip_pitch, flip_roll),
            progress=Progress(1),
        )
        return io.NodeOutput(parameters, len(parameters), float(rate))


class LoadARKitCurves(FileNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLoadARKitCurves",
            stage="Motion",
            display_name="Load ARKit Curves",
            description="Read the blend shapes over time that programs write which make a face talk: "
            "Audio2Face-3D's and LAM-A2E's files, and others with a column for each of ARKit's names.",
            search_aliases=[
                "audio2face",
                "a2f",
                "lam a2e",
                "blendshapes",
                "arkit",
                "lip sync",
                "csv",
                "json",
            ],
            advanced="file_fps",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*input_names(CSV_SUFFIX), *input_names(JSON_SUFFIX)],
                    tooltip="The CSV or JSON file, in the input or the output folder.",
                ),
                rate_input("Frames a second to bring it to. 29.97 means 30000/1001."),
                io.Float.Input(
                    "file_fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=0.00001,
                    optional=True,
                    tooltip="Frames a second of the file, for one that doesn't say it, or says it wrongly. 0 "
                    "believes the file.",
                ),
            ],
            outputs=[
                parameters_output("Expression and gaze of every frame; shape and head are neutral."),
                frames_output(),
                io.Float.Output(display_name="fps", tooltip="Frames a second, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, file: str, fps: float, file_fps: float = 0.0) -> io.NodeOutput:
        rate = exact_rate(fps)
        parameters = load_arkit_curves(
            input_file(file), HeadModel.bundled(), rate, file_fps=file_fps, progress=Progress(1)
        )
        return io.NodeOutput(parameters, len(parameters), float(rate))
