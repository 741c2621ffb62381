"""Minutes of footage in bounded memory: Reenact Long Video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from anifacediff_core.capture.capture import capture
from anifacediff_core.capture.missing import MISSING
from anifacediff_core.capture.paste import FEATHER, RING_FRAMES, measure_colors, paste_back
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.provenance.mark import mark as mark_frames
from anifacediff_core.provenance.mark import require_size
from anifacediff_core.sampling.fingerprint import fingerprint
from anifacediff_core.sampling.segments import SEGMENT, Carried, Footage, Segment, Work, plan_segments
from anifacediff_core.video import probe, read_frames

from .capture import face_input, on_device, region_input, smoothing_input
from .head import CHUNK, FacialShapeAlign, head_input, load_head
from .head import on_device as head_on_device
from .host.files import output_file
from .host.parts import encode_pose, pose_kinds
from .host.runtime import ModelPatcher, Progress, tell
from .host.sampling import sample
from .host.video import file_of, input_path, video_of
from .images import checked
from .loading import origin_of
from .paste import require_picture_of
from .sampling import (
    apply_video,
    context_of,
    seed_input,
    shared_noise_input,
    step_inputs,
    window_inputs,
)
from .sockets import (
    Crop,
    CropSocket,
    FaceCaptureSocket,
    FaceParametersSocket,
    HeadSocket,
    Pose,
    PoseEncoderSocket,
    Reference,
    ReferenceSocket,
    connected,
    make_schema,
)

DECODED = 8  # frames that are decoded, marked and pasted at a time
PLAIN = ("normals",)


class ReenactLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffReenactLongVideo",
            display_name="Reenact Long Video",
            description="Everything from the driving video to the finished file, segment by segment, in "
            "memory that does not grow with the video. Cancel at any time: what is finished stays a video "
            "that plays, and the next run goes on behind it.",
            search_aliases=["minutes", "low memory", "resume", "face reenactment", "batch"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            inputs=[*_network_inputs(), *_motion_inputs(), *_video_inputs(), *_paste_inputs()],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The finished file, with the driver's frames, frame rate and sound.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many frames show a face, what was there from an earlier run, and where the "
                    "file is.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reference: Reference,
        vae: Any,
        pose_encoder: ModelPatcher | None,
        source: FaceParameters,
        driving: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        window: int,
        overlap: int,
        shared_noise: float,
        segment: int,
        region: str,
        face: int,
        smoothing: float,
        missing: str,
        camera: str,
        head: str,
        mark: bool,
        filename_prefix: str,
        face_capture: Any = None,
        driving_parameters: FaceParameters | None = None,
        head_model: HeadModel | None = None,
        original: Tensor | None = None,
        crop: Crop | None = None,
        feather: float = FEATHER,
        match_color: float = 0.0,
    ) -> io.NodeOutput:
        vae = connected(vae, "VAE", "load a checkpoint that has one, or a VAE of Stable Diffusion 1.5")
        encoder = connected(pose_encoder, "pose encoder", "load a checkpoint that has one")
        if pose_kinds(encoder) != PLAIN:
            raise InputError(
                "This pose encoder reads more than normals, which Reenact Long Video does not draw: use "
                "AniFaceDiff Sampler."
            )
        sampling = {
            "seed": seed,
            "steps": steps,
            "cfg": cfg,
            "sampler": sampler_name,
            "scheduler": scheduler,
            "window": window,
            "overlap": overlap,
            "shared_noise": shared_noise,
        }
        reading = {"mode": region, "face": face, "smoothing": smoothing, "missing": missing}
        finishing = _Finishing.of(original, crop, feather, match_color, mark)
        if mark:  # now, rather than when the first segment is made
            require_size(*finishing.size_of(reference.size))
        path = file_of(driving)
        out, name = output_file(filename_prefix, ".mp4")
        told: list[str] = []

        def say(text: str) -> None:
            told.append(text)
            tell(text)

        # in a workflow the workflow counts: on a GPU, networks give not quite the same tensors every time
        given = _graph(cls.hidden) or [_of_model(model), reference, source, driving_parameters, finishing]
        settings = [sampling, reading, camera, segment]
        beside = out.name.rsplit("_", 2)[0]  # without the number
        work = Work.begin(
            out.with_name(f"{beside}.work"),
            out.with_name(f"{beside}.partial.mp4"),
            fingerprint(given, settings, path),
            Footage.of(path),
            say,
        )
        if driving_parameters is None:
            decisive = fingerprint(path, reading, _graph(cls.hidden, "face_capture"))
            driving_parameters, note = work.parameters(decisive, lambda: _read(path, face_capture, reading))
            say(note)
        parameters = FacialShapeAlign.execute(source, driving_parameters, camera).args[0]
        make = _Maker(
            model, reference, vae, encoder, head_model or load_head(head, parameters), parameters, sampling,
            finishing, Progress(len(parameters)),
        )  # fmt: skip
        frames = work.run(out, plan_segments(len(parameters), segment, overlap), make, make.progress)
        say(f"{name}: {frames} frames at {float(work.footage.rate):g} frames a second.")
        folder, _, file = name.rpartition("/")
        shown = ui.PreviewVideo([ui.SavedResult(file, folder, io.FolderType.output)])
        return io.NodeOutput(video_of(out), " ".join(told), ui=shown)


# ---- inputs


def _network_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="MODEL of Load AniFaceDiff, with the Expression Adapter Loader and whatever else "
            "behind it.",
        ),
        ReferenceSocket.Input(
            "reference", tooltip="The source, from ReferenceNet Encode; the video gets its size."
        ),
        io.Vae.Input("vae", tooltip="VAE of Load AniFaceDiff, which turns latents into pictures."),
        PoseEncoderSocket.Input("pose_encoder", tooltip="Pose encoder of Load AniFaceDiff."),
        FaceParametersSocket.Input(
            "source", tooltip="Face parameters of the source picture, from DECA Extract; their shape is kept."
        ),
        io.Video.Input(
            "driving",
            tooltip="The driving video, straight from Load Video: it is read frame by frame and never as a "
            "whole.",
        ),
    ]


def _motion_inputs() -> list[io.Input]:
    return [
        FaceCaptureSocket.Input(
            "face_capture",
            optional=True,
            tooltip="What reads the driver: face detector and encoder of Load AniFaceDiff, or DECA of Load "
            "DECA. Not needed with driving_parameters.",
        ),
        FaceParametersSocket.Input(
            "driving_parameters",
            optional=True,
            tooltip="Motion that was read or edited before, in place of reading it from the driving video; "
            "frame rate and sound are still the video's.",
        ),
        region_input(),
        face_input(),
        smoothing_input(),
        io.Combo.Input(
            "missing",
            options=[way for way in MISSING if way != "skip"],
            default="interpolate",
            tooltip="What becomes of frames without a face. interpolate: filled in from both neighbors. "
            "hold: as last seen. stop: an error that names them.",
        ),
        io.Combo.Input(
            "camera",
            options=["driving", "source"],
            default="driving",
            tooltip="Whose place in the picture the head takes: the driver's, which moves, or the source's, "
            "where the head only turns.",
        ),
        head_input(),
        HeadSocket.Input(
            "head_model",
            optional=True,
            tooltip="Head of Load DECA, for parameters that were read with it.",
        ),
    ]


def _video_inputs() -> list[io.Input]:
    return [
        # a seed that changes by itself would start anew what was cancelled
        seed_input(control=False),
        *step_inputs(),
        *window_inputs(),
        shared_noise_input(),
        io.Int.Input(
            "segment",
            default=SEGMENT,
            min=1,
            max=4096,
            tooltip="Frames that are finished, saved and freed together. Memory grows with it, and so does "
            "what a cancelled run loses; a few windows are a good length.",
        ),
        io.Boolean.Input(
            "mark",
            default=True,
            tooltip="Put the invisible mark of synthetic video into every frame.",
        ),
        io.String.Input(
            "filename_prefix",
            default="video/AniFaceDiff",
            tooltip="Name of the file in the output folder, without number and ending. A cancelled run is "
            "continued under the same name.",
        ),
    ]


def _paste_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "original",
            optional=True,
            tooltip="The whole source picture, to paste the portrait back into, frame by frame; needs crop.",
        ),
        CropSocket.Input(
            "crop", optional=True, tooltip="Where the portrait belongs in the original, from DECA Extract."
        ),
        io.Float.Input(
            "feather",
            default=FEATHER,
            min=0.0,
            max=0.5,
            step=0.01,
            optional=True,
            tooltip="Width of the soft edge when pasting back, as a share of the square's side.",
        ),
        io.Float.Input(
            "match_color",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="How much to bring the portrait's colors to those of the picture around it when pasting "
            "back: 0 leaves them.",
        ),
    ]


# ---- parts of a run


def _read(path: Path, face_capture: Any, reading: dict[str, Any]) -> tuple[FaceParameters, str]:
    """The driver's motion, its frames streamed."""
    frames = max(probe(path).frames, 1)
    with on_device(face_capture) as models:
        found = capture(
            read_frames(path),
            models,
            what="the driving video",
            total=frames,
            progress=Progress(frames),
            **reading,
        )
    return found.parameters, found.note


@dataclass(frozen=True)
class _Finishing:
    """What happens to decoded pictures.

    Attributes:
        original: (1, channels, height, width) picture to paste into, and the square there.
        mark: whether to mark the frames.
    """

    original: Tensor | None
    square: Tensor | None
    feather: float
    match_color: float
    mark: bool

    @classmethod
    def of(
        cls, original: Tensor | None, crop: Crop | None, feather: float, match_color: float, mark: bool
    ) -> _Finishing:
        if (original is None) != (crop is None):
            lacking, other = ("crop", "original") if crop is None else ("original", "crop")
            raise InputError(
                f"There is {other} but no {lacking}: connect both to paste the portrait back, or neither."
            )
        if original is None or crop is None:
            return cls(None, None, feather, match_color, mark)
        picture = checked(original, "original")[0][:1]
        require_picture_of(crop, picture)
        return cls(picture, crop.square.reshape(-1, 3)[0], feather, match_color, mark)

    def size_of(self, side: int) -> tuple[int, int]:
        """Height and width of the frames of the file, of portraits with such a side."""
        if self.original is None:
            return side, side
        height, width = self.original.shape[-2:]
        return height, width

    def colors(self, portraits: Tensor) -> Tensor:
        """The correction for the whole video from some of its portraits; empty where nothing is pasted."""
        if self.original is None or self.square is None:
            return torch.empty(0)
        return measure_colors(portraits, self.original, self.square, self.feather, self.match_color)

    def apply(self, portraits: Tensor, colors: Tensor) -> Tensor:
        """Portraits (frames, 3, size, size) to the frames of the file (frames, 3, height, width)."""
        frames = portraits
        if self.original is not None and self.square is not None:
            frames, _ = paste_back(portraits, self.original, self.square, feather=self.feather, colors=colors)
        return mark_frames(frames) if self.mark else frames


@dataclass(frozen=True)
class _Maker:
    """Makes segments with the host's networks; see `segments.Make`."""

    model: ModelPatcher
    reference: Reference
    vae: Any
    encoder: ModelPatcher
    head: HeadModel
    parameters: FaceParameters
    sampling: dict[str, Any]
    finishing: _Finishing
    progress: Progress

    def __call__(self, segment: Segment, carried: Carried) -> tuple[Iterator[Tensor], Carried]:
        parameters = self.parameters[segment.sampled]
        window, overlap = self.sampling["window"], self.sampling["overlap"]
        pose = self._pose(parameters)
        model = apply_video(self.model, self.reference, pose, parameters, window, overlap)

        def report(done: int, total: int, picture: Tensor | None) -> None:
            self.progress.show(segment.position(done, total), len(self.parameters), picture)

        latents = sample(
            model,
            *context_of(self.reference),
            **self.sampling,
            first=segment.start,
            finished=carried.get("latents"),
            report=report,
        )["samples"]
        written = segment.stop - segment.start
        colors = carried.get("colors")
        if colors is None:
            chosen = torch.linspace(0, written - 1, min(written, RING_FRAMES)).round().long()
            pasted = self.finishing.original is not None
            colors = self.finishing.colors(self._decode(latents[chosen]) if pasted else torch.empty(0))
        return self._pictures(segment, latents[:written], colors), {
            "latents": latents[written:],
            "colors": colors,
        }

    def _pose(self, parameters: FaceParameters) -> Pose:
        self.head.require(parameters)
        chunks = []
        with head_on_device(self.head):
            for start in range(0, len(parameters), CHUNK):
                part = parameters[start : start + CHUNK]
                normals = render_normals(self.head, part, self.reference.size, batch=CHUNK)
                chunks.append(encode_pose(self.encoder, normals))
        return Pose(tuple(map(torch.cat, zip(*chunks, strict=True))))

    def _pictures(self, segment: Segment, latents: Tensor, colors: Tensor) -> Iterator[Tensor]:
        for part in latents.split(DECODED):
            frames = self.finishing.apply(self._decode(part), colors)
            self.progress.show(segment.stop, len(self.parameters), frames[-1])
            yield frames

    def _decode(self, latents: Tensor) -> Tensor:
        """(frames, 3, height, width) in [0, 1]."""
        return self.vae.decode(latents).movedim(-1, 1).float().clamp(0, 1)


# ---- what decides the result


def _graph(hidden: Any, *inputs: str) -> str | None:
    """A fingerprint of the part of the workflow that leads to the node that runs, or to some of its inputs:
    kinds of nodes, values, files in the input folder. Not their numbers, which may change. None outside of a
    workflow.
    """
    prompt = None if hidden is None else hidden.prompt
    if not prompt or str(hidden.unique_id) not in prompt:
        return None

    def value_of(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt:
            return digest(value[0]), value[1]
        return input_path(value) or value

    @cache
    def digest(node: str, names: tuple[str, ...] = ()) -> str:
        given = prompt[node]["inputs"]
        chosen = {name: value_of(value) for name, value in given.items() if not names or name in names}
        return fingerprint(prompt[node]["class_type"], chosen)

    return digest(str(hidden.unique_id), inputs)


def _of_model(model: ModelPatcher) -> list[Any]:
    """What can be told of a MODEL itself: its checkpoint and the LoRAs on it."""
    origin = origin_of(model)
    return [None if origin is None else str(origin.checkpoint.path), model.patches]
