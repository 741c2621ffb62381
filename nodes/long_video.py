"""Minutes of footage in bounded memory: Reenact Long Video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from anifacediff_core.capture.confidence import LEAST
from anifacediff_core.capture.extract import extract_parameters
from anifacediff_core.capture.paste import FEATHER
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
from .host.runtime import ModelPatcher, Notes, Progress
from .host.video import file_of, preview_of, video_of
from .label import UNLABELED, label_input, label_of
from .sampling import seed_input, shared_noise_input, step_inputs, window_inputs
from .segments import Finishing, Networks, SegmentMaker, network_inputs, require_plain
from .sockets import (
    Crop,
    CropSocket,
    FaceCaptureSocket,
    FaceParametersSocket,
    Reference,
    connected,
    head_model_input,
    make_schema,
    paste_inputs,
)

# Arguments of `sample`, and the widgets that they come from.
SAMPLING = {name: name for name in ("seed", "steps", "cfg", "scheduler", "window", "overlap", "shared_noise")}
SAMPLING["sampler"] = "sampler_name"


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
                *network_inputs(),
                io.Video.Input(
                    "driving",
                    tooltip="The driving video, straight from Load Video: it is read frame by frame and "
                    "never as a whole.",
                ),
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
        sampling, reading = sampling_of(settings), {"mode": settings["region"], "face": settings["face"]}
        reading |= reading_of(settings)
        finishing = Finishing.of(original, crop, feather, match_color, mark, label_of(label))
        if mark:  # now, rather than when the first segment is made
            require_size(*finishing.size_of(reference.size))
        path, notes = file_of(driving), Notes()
        # in a workflow the workflow counts: on a GPU, networks give not quite the same tensors every time
        tensors = [facts_of_model(model), reference, source, driving_parameters, finishing]
        given = workflow_fingerprint(cls.hidden) or tensors
        # one workflow may have a list of sources; so coarse that what a GPU rounds otherwise hardly counts
        given = [given, [round(value, 1) for value in source.shape[0, :8].tolist()]]
        key = fingerprint(given, [sampling, reading, camera, segment], path)
        result = Result(filename_prefix, key, VideoTiming.of(path), notes)
        with result.video.begin() as work:
            motion = driving_parameters
            if motion is None:
                cache_key = fingerprint(path, reading, workflow_fingerprint(cls.hidden, "face_capture"))
                motion, note = work.parameters(cache_key, lambda: read_driver(path, face_capture, reading))
                notes(note)
            parameters = align(source_frame(source), motion, camera)
            head_model = head_model or load_head(head, parameters)
            networks = Networks(model, reference, vae, encoder, head_model, sampling)
            make = SegmentMaker(networks, parameters, finishing, Progress(len(parameters)))
            segments = plan_segments(len(parameters), segment, sampling["overlap"])
            frames = work.run(result.file, segments, make, make.progress)
        return result.output(frames, work.timing.rate)


class Result:
    """The file that a node makes segment by segment, and goes on with where it was cancelled.

    Args:
        prefix: the node's filename_prefix.
        key: the fingerprint of all that the result depends on.
        timing: of the file's frames.
        notes: the report.

    Attributes:
        file: in the output folder, not there before.
    """

    def __init__(self, prefix: str, key: str, timing: VideoTiming, notes: Notes) -> None:
        self.file, self.name = output_file(prefix, ".mp4")
        unnumbered = self.file.with_name(f"{self.file.name.rsplit('_', 2)[0]}.mp4")
        work, partial = beside(unnumbered, ".work"), beside(unnumbered, ".partial.mp4")
        self.video, self.notes = ResumableVideo(work, partial, key, timing, notes), notes

    def output(self, frames: int, rate: Fraction) -> io.NodeOutput:
        """What the node gives when it has made so many frames."""
        self.notes(f"{self.name}: {frames} frames at {float(rate):g} frames a second.")
        return io.NodeOutput(video_of(self.file), str(self.notes), ui=preview_of(self.name))


def sampling_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `sample` among the widgets of `video_inputs`."""
    return {name: settings[entry] for name, entry in SAMPLING.items()}


def reading_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `extract_parameters` among the widgets."""
    given = {"least_confidence": LEAST, **settings}
    return {name: given[name] for name in ("smoothing", "missing", "least_confidence")}


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
        *paste_inputs(optional=True),
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
