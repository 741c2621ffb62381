"""Saying that a video is synthetic: Mark Synthetic Video, Detect Mark, Save Synthetic Video."""

from __future__ import annotations

from typing import Any

import torch

from anifacediff_core.errors import InputError
from anifacediff_core.provenance.detect import detect
from anifacediff_core.provenance.mark import MOST_STRENGTH, STRENGTH, mark
from anifacediff_core.provenance.pattern import IDENTIFIERS

from .host.api import io, ui
from .host.files import output_file, workflow_metadata
from .host.folders import C2PA, file_names
from .host.history import upstream
from .host.runtime import Progress, show_text
from .host.synthetic import QUALITY, frames_of, save_synthetic
from .host.video import preview_of
from .images import checked, to_core, to_host
from .sockets import make_schema, prefix_input

UNSIGNED = "none"


class MarkSyntheticVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffMark",
            stage="Result",
            display_name="Mark Synthetic Video",
            description="Put an invisible mark into the pixels that says: made by AniFaceDiff. Detect Mark "
            "finds it after compression, scaling and cropping. Place it right before Create Video.",
            search_aliases=["watermark", "invisible", "disclosure", "provenance", "synthetic media"],
            advanced="strength identifier",
            inputs=[
                io.Image.Input(
                    "image", tooltip="Finished video, at its final size: behind upscalers and Paste Back."
                ),
                io.Float.Input(
                    "strength",
                    default=STRENGTH,
                    min=0.1,
                    max=MOST_STRENGTH,
                    step=0.1,
                    tooltip="1 is invisible and was tested. More survives more, but may show in flat areas.",
                ),
                io.Int.Input(
                    "identifier",
                    default=0,
                    min=0,
                    max=IDENTIFIERS - 1,
                    optional=True,
                    tooltip="A number of yours that the mark carries: whose video it is, or which project.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The marked video, of the same size, for Create Video."
                )
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, strength: float, identifier: int = 0) -> io.NodeOutput:
        frames, plain = checked(image, "video")
        alpha = image[..., -1:] if image.shape[-1] in (2, 4) else None
        if not plain:
            colors = frames if alpha is None else frames[:, :-1]
            frames = colors.clamp(0, 1).expand(-1, 3, -1, -1)
        marked = to_host(mark(frames, identifier, strength, Progress(len(frames))))
        return io.NodeOutput(marked if alpha is None else torch.cat([marked, alpha], dim=-1))


class DetectMark(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffDetectMark",
            stage="Result",
            display_name="Detect Mark",
            description="Tell whether a picture or video carries the mark of Mark Synthetic Video, and which "
            "identifier. That nothing is found doesn't mean that a video is real.",
            search_aliases=["watermark", "read mark", "verify", "provenance", "deepfake"],
            inputs=[
                io.Image.Input("image", optional=True, tooltip="Picture or video to look at."),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="Video to look at, in place of image. It is read frame by frame, however long.",
                ),
            ],
            outputs=[
                io.Boolean.Output(display_name="found", tooltip="Whether there is a mark."),
                io.Int.Output(display_name="identifier", tooltip="The number in the mark; -1 without one."),
                io.String.Output(
                    display_name="report",
                    tooltip="What was found, how surely, in how many frames, and how much was cut off.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: torch.Tensor | None = None, video: Any = None) -> io.NodeOutput:
        if video is not None:
            chunks, count = frames_of(video)
        elif image is not None:
            frames = to_core(image, "picture or video")
            chunks, count = frames.split(1), len(frames)
        else:
            raise InputError("There is nothing to look for a mark in: connect image or video.")
        found = detect(chunks, count, Progress(count))
        identifier = -1 if found.identifier is None else found.identifier
        return io.NodeOutput(found.found, identifier, found.note, ui=ui.PreviewText(found.note))


class SaveSyntheticVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSaveVideo",
            stage="Result",
            display_name="Save Synthetic Video",
            description="Save a video as mp4 whose metadata says that it is synthetic, at its exact frame "
            "rate and with its sound; with a certificate of yours, signed by a C2PA manifest.",
            search_aliases=["c2pa", "content credentials", "metadata", "save video", "export mp4"],
            advanced="crf certificate private_key time_server",
            inputs=[
                io.Video.Input(
                    "video", tooltip="Video of Create Video or Load Video; mark its frames first."
                ),
                prefix_input("video/AniFaceDiff"),
                io.Int.Input(
                    "crf",
                    default=QUALITY,
                    min=0,
                    max=40,
                    tooltip="Compression of H.264: 18 looks like the original, more makes smaller files. A "
                    "video that is a file already is copied, not compressed again.",
                ),
                io.Combo.Input(
                    "certificate",
                    options=[UNSIGNED, *file_names(C2PA)],
                    default=UNSIGNED,
                    optional=True,
                    tooltip="For a C2PA manifest: your certificate chain, a PEM file in models/c2pa.",
                ),
                io.Combo.Input(
                    "private_key",
                    options=[UNSIGNED, *file_names(C2PA)],
                    default=UNSIGNED,
                    optional=True,
                    tooltip="For a C2PA manifest: the certificate's private key, a PEM file in models/c2pa. "
                    "Only its name goes into the workflow.",
                ),
                io.Video.Input(
                    "driving",
                    optional=True,
                    tooltip="The driving video, straight from Load Video. Frames of Create Video get its "
                    "exact frame times, and its sound in its exact place.",
                ),
                io.String.Input(
                    "time_server",
                    default="",
                    optional=True,
                    tooltip="For a C2PA manifest: address of a time stamp authority (RFC 3161), which is "
                    "asked over the network when the video is signed. Empty asks nobody.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The saved file as a video, to go on with."),
                io.String.Output(display_name="file", tooltip="The file below the output folder."),
                io.String.Output(
                    display_name="report", tooltip="What was saved, and whether it was signed or why not."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        video: Any,
        filename_prefix: str,
        crf: int,
        certificate: str = UNSIGNED,
        private_key: str = UNSIGNED,
        driving: Any = None,
        time_server: str = "",
    ) -> io.NodeOutput:
        path, name = output_file(filename_prefix, ".mp4")
        signed_with = [None if file == UNSIGNED else file for file in (certificate, private_key)]
        metadata = workflow_metadata(cls.hidden)
        prompt, number = (getattr(cls.hidden, name, None) for name in ("prompt", "unique_id"))
        saved, note = save_synthetic(
            video,
            path,
            metadata,
            crf,
            *signed_with,
            driving=driving,
            nodes=upstream(prompt or {}, number),
            time_server=time_server,
        )
        report = f"{name}: {note}"
        show_text(report)
        return io.NodeOutput(saved, name, report, ui=preview_of(name))
