"""The driving video on its way into a graph: Video Frames."""

from __future__ import annotations

from typing import Any

from .host.api import io
from .host.synthetic import components_of
from .sockets import make_schema


class VideoFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffVideoFrames",
            stage="Faces",
            display_name="Video Frames",
            description="Frames, sound and frame rate of a video, as players show it: turned upright, with "
            "square pixels, HDR as on a common screen, and sound that starts later or earlier in its place. "
            "Use it instead of Get Video Components.",
            search_aliases=["get video components", "load video", "rotation", "hdr", "anamorphic", "driving"],
            inputs=[
                io.Video.Input("video", tooltip="Video of Load Video, also behind Trim Video."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="All frames, as players show them."),
                io.Audio.Output(
                    display_name="audio",
                    tooltip="The sound, which begins and ends with the frames; nothing without sound.",
                ),
                io.Float.Output(
                    display_name="fps", tooltip="Frames a second, for Create Video; the mean if it varies."
                ),
            ],
        )

    @classmethod
    def execute(cls, video: Any) -> io.NodeOutput:
        return io.NodeOutput(*components_of(video))
