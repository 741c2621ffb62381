"""Many drivers in one run: Load Videos from Folder."""

from __future__ import annotations

from anifacediff_core.errors import InputError
from anifacediff_core.video import VIDEO_ENDINGS

from .host.api import io
from .host.files import input_folder, input_folders
from .host.video import video_of
from .sockets import make_schema

MOST = 10_000


class LoadVideosFromFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffVideosFromFolder",
            stage="Faces",
            display_name="Load Videos from Folder",
            description="A whole folder of driving videos in one run: every node behind it runs once for "
            "each video, and each result gets its video's name.",
            search_aliases=["batch", "list", "queue", "several drivers", "directory", "load video"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=input_folders(),
                    tooltip="A folder in the input folder. New ones show after a press of R.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/",
                    tooltip="What the names of the results begin with; the video's own name follows.",
                ),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=MOST,
                    tooltip="The first video to take, counted from 0 in the order of their names.",
                ),
                io.Int.Input(
                    "count", default=0, min=0, max=MOST, tooltip="How many videos to take; 0 is all the rest."
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The videos, one after the other, for driving. They are read only when needed.",
                    is_output_list=True,
                ),
                io.String.Output(
                    display_name="filename_prefix",
                    tooltip="A name for each result, for filename_prefix of the node that saves it.",
                    is_output_list=True,
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: object) -> list[tuple[str, int, int]]:
        files = (path for path in input_folder(folder).iterdir() if path.is_file())
        return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        try:
            input_folder(folder)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, folder: str, filename_prefix: str, start: int, count: int) -> io.NodeOutput:
        found = sorted(
            path
            for path in input_folder(folder).iterdir()
            if path.suffix.lower() in VIDEO_ENDINGS and path.is_file() and path.name[0] != "."
        )
        taken = found[start : start + count] if count else found[start:]
        if not taken:
            raise InputError(
                f"The folder {folder} has {len(found)} videos and none from number {start} on: choose "
                "another one."
            )
        stems = [path.stem for path in taken]
        # of files that differ in their ending only, the whole names
        names = [path.stem if stems.count(path.stem) == 1 else path.name for path in taken]
        return io.NodeOutput([video_of(path) for path in taken], [filename_prefix + name for name in names])
