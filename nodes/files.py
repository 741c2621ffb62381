"""Face parameters on disk: Save Face Parameters and Load Face Parameters."""

from __future__ import annotations

from comfy_api.latest import io, ui

from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters

from .host.files import input_file, input_names, output_file, workflow_metadata
from .sockets import FaceParametersSocket, make_schema

SUFFIX = ".safetensors"


class SaveFaceParameters(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSaveFaceParameters",
            display_name="Save Face Parameters",
            description="Write face parameters into the output folder, to use them again without the video.",
            search_aliases=["export motion", "write face parameters"],
            inputs=[
                FaceParametersSocket.Input("parameters", tooltip="Face parameters to save."),
                io.String.Input(
                    "filename_prefix",
                    default="face_parameters/motion",
                    tooltip="Folder below output, and the start of the file's name; a number is added.",
                ),
            ],
            outputs=[
                FaceParametersSocket.Output(
                    display_name="parameters", tooltip="The same parameters, to go on with."
                ),
                io.String.Output(display_name="file", tooltip="The file below the output folder."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, parameters: FaceParameters, filename_prefix: str) -> io.NodeOutput:
        path, name = output_file(filename_prefix, SUFFIX)
        parameters.save(path, workflow_metadata(cls.hidden))
        return io.NodeOutput(parameters, name, ui=ui.PreviewText(f"{name}: {len(parameters)} frames"))


class LoadFaceParameters(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLoadFaceParameters",
            display_name="Load Face Parameters",
            description="Read face parameters that Save Face Parameters has written, from the input or the "
            "output folder.",
            search_aliases=["import motion", "read face parameters"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=input_names(SUFFIX),
                    tooltip="A file in the input folder, or in the output folder, where Save Face Parameters "
                    "puts it.",
                )
            ],
            outputs=[
                FaceParametersSocket.Output(display_name="parameters", tooltip="The saved face parameters."),
                io.Int.Output(display_name="frames", tooltip="How many frames there are."),
            ],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        parameters = FaceParameters.load(input_file(file))
        return io.NodeOutput(parameters, len(parameters))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        return input_file(file).stat().st_mtime

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        try:
            input_file(file)
        except InputError as error:
            return str(error)
        return True
