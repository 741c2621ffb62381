"""Minutes of footage in bounded memory: Reenact Long Video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from anifacediff_core.capture.confidence import LEAST
from anifacediff_core.capture.extract import extract_parameters
from anifacediff_core.capture.paste import FEATHER
from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.provenance.mark import require_size
from anifacediff_core.sampling.fingerprint import fingerprint
from anifacediff_core.sampling.segments import SEGMENT, ResumableVideo, VideoTiming, plan_segments
from anifacediff_core.storage import beside
from anifacediff_core.video import probe, read_frames

from .capture import (
    face_input,
    least_confidence_input,
    missing_input,
    on_device,
    region_input,
    smoothing_input,
)
from .fingerprints import facts_of_model, workflow_fingerprint
from .head import camera_input, head_input, load_head
from .host.api import io
from .host.files import output_file
from .host.parts import pose_kinds
from .host.runtime import ModelPatcher, Progress, notify
from .host.video import file_of, preview_of, video_of
from .label import UNLABELED, label_input, label_of
from .sampling import model_input, seed_input, shared_noise_input, step_inputs, window_inputs
from .segments import Finishing, SegmentMaker
from .sockets import (
    Crop,
    CropSocket,
    FaceCaptureSocket,
    FaceParametersSocket,
    PoseEncoderSocket,
    Reference,
    ReferenceSocket,
    connected,
    head_model_input,
    make_schema,
    share_input,
)

PLAIN = ("normals",)
# Arguments of `sample` and of `capture`, and the widgets that they come from.
SAMPLING = {name: name for name in ("seed", "steps", "cfg", "scheduler", "window", "overlap", "shared_noise")}
SAMPLING["sampler"] = "sampler_name"
READING = {"mode": "region"} | {name: name for name in ("face", "smoothing", "missing", "least_confidence")}


class ReenactLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffReenactLongVideo",
            stage="Sampling",
            display_name="Reenact Long Video",
            description="Everything from the driving video to the finished file, segment by segment, in "
            "memory that does not grow with the video. Cancel at any time: what is finished stays a video "
            "that plays, and the next run goes on behind it.",
            search_aliases=["minutes", "low memory", "resume", "face reenactment", "portrait animation"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            advanced="region smoothing missing camera head sampler_name scheduler window "
            "overlap shared_noise segment feather match_color least_confidence",
            inputs=[
                *_network_inputs(),
                *_motion_inputs(),
                *video_inputs(),
                *_paste_inputs(),
                least_confidence_input(),
                label_input(),
            ],
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
        segment: int,
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
        label: str = UNLABELED,
        **settings: Any,
    ) -> io.NodeOutput:
        vae = connected(vae, "VAE", "load a checkpoint that has one, or a VAE of Stable Diffusion 1.5")
        encoder = require_plain(pose_encoder, "Reenact Long Video")
        settings = {"least_confidence": LEAST, **settings}
        sampling, reading = (
            {name: settings[entry] for name, entry in names.items()} for names in (SAMPLING, READING)
        )
        finishing = Finishing.of(original, crop, feather, match_color, mark, label_of(label))
        if mark:  # now, rather than when the first segment is made
            require_size(*finishing.size_of(reference.size))
        path = file_of(driving)
        out, name = output_file(filename_prefix, ".mp4")
        notes: list[str] = []

        def say(text: str) -> None:
            notes.append(text)
            notify(text)

        # in a workflow the workflow counts: on a GPU, networks give not quite the same tensors every time
        tensors = [facts_of_model(model), reference, source, driving_parameters, finishing]
        given = workflow_fingerprint(cls.hidden) or tensors
        # one workflow may have a list of sources; so coarse that what a GPU rounds otherwise hardly counts
        given = [given, [round(value, 1) for value in source.shape[0, :8].tolist()]]
        unnumbered = out.with_name(f"{out.name.rsplit('_', 2)[0]}.mp4")
        video = ResumableVideo(
            beside(unnumbered, ".work"),
            beside(unnumbered, ".partial.mp4"),
            fingerprint(given, [sampling, reading, camera, segment], path),
            VideoTiming.of(path),
            say,
        )
        with video.begin() as work:
            motion = driving_parameters
            if motion is None:
                cache_key = fingerprint(path, reading, workflow_fingerprint(cls.hidden, "face_capture"))
                motion, note = work.parameters(cache_key, lambda: read_driver(path, face_capture, reading))
                say(note)
            parameters = align(source_frame(source), motion, camera)
            head_model = head_model or load_head(head, parameters)
            make = SegmentMaker(
                model, reference, vae, encoder, head_model, parameters, sampling, finishing,
                Progress(len(parameters)),
            )  # fmt: skip
            segments = plan_segments(len(parameters), segment, sampling["overlap"])
            frames = work.run(out, segments, make, make.progress)
        say(f"{name}: {frames} frames at {float(work.timing.rate):g} frames a second.")
        return io.NodeOutput(video_of(out), " ".join(notes), ui=preview_of(name))


def require_plain(pose_encoder: ModelPatcher | None, node: str) -> ModelPatcher:
    """Refuse a pose encoder that is missing, or reads what a node does not draw."""
    encoder = connected(pose_encoder, "pose encoder", "load a checkpoint that has one")
    if pose_kinds(encoder) != PLAIN:
        raise InputError(
            f"This pose encoder reads more than normals, which {node} does not draw: use AniFaceDiff Sampler."
        )
    return encoder


def _network_inputs() -> list[io.Input]:
    return [
        model_input(),
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
        missing_input(skip=False),
        camera_input(),
        head_input(),
        head_model_input(),
    ]


def video_inputs() -> list[io.Input]:
    """How the video is sampled and where it goes."""
    return [
        # a seed that changes by itself would start anew what was cancelled
        seed_input(control=False),
        *step_inputs(),
        *window_inputs(),
        shared_noise_input(),
        *output_inputs(),
    ]


def output_inputs() -> list[io.Input]:
    return [
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
        share_input(
            "feather",
            FEATHER,
            "Width of the soft edge when pasting back, as a share of the square's side.",
            most=0.5,
            step=0.01,
            optional=True,
        ),
        share_input(
            "match_color",
            0.0,
            "How much to bring the portrait's colors to those of the picture around it when pasting back: 0 "
            "leaves them.",
            optional=True,
        ),
    ]


def read_driver(path: Path, face_capture: Any, reading: dict[str, Any]) -> tuple[FaceParameters, str]:
    """The driver's motion, its frames streamed."""
    frames = max(probe(path).frames, 1)
    with on_device(face_capture) as models:
        found = extract_parameters(
            read_frames(path),
            models,
            what="the driving video",
            total=frames,
            progress=Progress(frames),
            **reading,
        )
    return found.parameters, found.note
