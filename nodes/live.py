"""A face that moves while its driver does: Live Reenactment. Its panel is in web/live."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.finite import require_finite
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.sampling.pace import Meter
from anifacediff_core.sampling.stream import LiveMotion

from .capture import face_input, on_device, region_input, smoothing_input
from .head import head_input, load_head
from .head import on_device as head_on_device
from .host.api import io
from .host.live import live_session
from .host.parts import encode_pose, pose_kinds
from .host.runtime import ModelPatcher, device, show_text
from .host.sampling import sample
from .sampling import apply_video, context_of, seed_input, step_inputs
from .sockets import (
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

PLAIN = ("normals",)
USUAL_RATE = 25.0  # of a recording of a single picture, which has none


@dataclass
class Recording:
    """Pictures that are kept, as bytes: a quarter of the memory of the host's IMAGE.

    Attributes:
        most: no more are kept.
        running: whether pictures are kept now.
    """

    most: int
    running: bool = False
    images: list[Tensor] = field(default_factory=list)
    _seconds: float = 0.0
    _steps: int = 0
    _before: float | None = None

    def add(self, image: Tensor, time: float) -> None:
        """A picture (3, height, width) in [0, 1] of a frame that came at that time in seconds."""
        if not self.running:
            self._before = None
            return
        self.images.append(_bytes(image))
        if self._before is not None:
            self._seconds, self._steps = self._seconds + time - self._before, self._steps + 1
        self._before = time
        self.running = len(self.images) < self.most

    @property
    def rate(self) -> float:
        """Pictures a second while it ran, for a video that lasts as long."""
        return self._steps / self._seconds if self._seconds > 0 else USUAL_RATE

    def image(self) -> Tensor:
        """The host's IMAGE."""
        result = torch.empty(len(self.images), *self.images[0].shape)
        for target, image in zip(result, self.images, strict=True):
            torch.div(image, 255, out=target)
        return result


def _bytes(image: Tensor) -> Tensor:
    """(3, height, width) in [0, 1] to (height, width, 3) of bytes."""
    return image.clamp(0, 1).mul(255).round().to("cpu", torch.uint8).movedim(0, -1).contiguous()


@dataclass(frozen=True)
class Artist:
    """Draws the source with the host's networks, one picture at a time."""

    model: ModelPatcher
    reference: Reference
    vae: Any
    encoder: ModelPatcher
    head: HeadModel
    sampling: dict[str, Any]

    def draw(self, parameters: FaceParameters) -> Tensor:
        """The picture (3, size, size) in [0, 1] for one frame of parameters that are the source's already."""
        normals = render_normals(self.head, parameters, self.reference.size)
        pose = Pose(encode_pose(self.encoder, normals))
        model = apply_video(self.model, self.reference, pose, parameters, 1, 0)
        latents = sample(
            model,
            *context_of(self.reference),
            **self.sampling,
            window=1,
            overlap=0,
            report=lambda done, total, image: None,
            quiet=True,
        )["samples"]
        return require_finite(self.vae.decode(latents).movedim(-1, 1).float()).clamp(0, 1)[0].cpu()


class LiveReenactment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLive",
            stage="Sampling",
            display_name="Live Reenactment",
            description="The source moves while you do: choose a camera or a video file in the node and "
            "press Start. Record keeps what you see for the rest of the workflow, Stop ends the run.",
            search_aliases=["webcam", "camera", "realtime", "live portrait", "puppet", "vtuber"],
            hidden=[io.Hidden.unique_id],
            advanced="seed cfg sampler_name scheduler region smoothing most_frames head",
            inputs=[*_network_inputs(), *_motion_inputs(), *_recording_inputs()],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="What was recorded; if nothing was, the last picture alone.",
                ),
                io.Float.Output(
                    display_name="fps",
                    tooltip="Pictures a second while it was recorded, for Create Video: they come as fast as "
                    "the computer is.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How many pictures there were, how late they were, how many frames were dropped.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Nobody moves twice in the same way: it always runs."""
        return secrets.token_hex()

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reference: Reference,
        vae: Any,
        pose_encoder: ModelPatcher | None,
        source: FaceParameters,
        face_capture: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        region: str,
        face: int,
        smoothing: float,
        expression: float,
        head_motion: float,
        most_frames: int,
        head: str,
        head_model: HeadModel | None = None,
    ) -> io.NodeOutput:
        vae = connected(vae, "VAE", "load a checkpoint that has one, or a VAE of Stable Diffusion 1.5")
        encoder = connected(pose_encoder, "pose encoder", "load a checkpoint that has one")
        if pose_kinds(encoder) != PLAIN:
            raise InputError(
                "This pose encoder reads more than normals, which Live Reenactment does not draw: use "
                "AniFaceDiff Sampler."
            )
        sampling = {
            "seed": seed,
            "steps": steps,
            "cfg": cfg,
            "sampler": sampler_name,
            "scheduler": scheduler,
        }
        drawn = head_model or load_head(head, source)
        artist = Artist(model, reference, vae, encoder, drawn, sampling)
        recording, meter = Recording(most_frames), Meter()
        last: Tensor | None = None
        with (
            on_device(face_capture) as models,
            head_on_device(drawn),
            live_session(str(cls.hidden.unique_id)) as session,
        ):
            motion = LiveMotion(
                models.head,
                source,
                models,
                mode=region,
                face=face,
                smoothing=smoothing,
                expression_gain=expression,
                head_gain=head_motion,
            )
            for came, frame in session.frames():
                asked = session.asked()
                if "neutral" in asked:
                    motion.neutral()
                if asked & {"record", "pause"}:
                    recording.running = "record" in asked and len(recording.images) < most_frames
                last = artist.draw(motion.read(frame.to(device())))
                recording.add(last, came)
                meter.show(came)
                session.show(
                    last,
                    {
                        "fps": meter.rate,
                        "latency": meter.latency(0.5),
                        "dropped": session.newest.dropped,
                        "recording": recording.running,
                        "recorded": len(recording.images),
                        "most": most_frames,
                        "lost": motion.lost,
                    },
                )
            report = f"{meter.shown} pictures, {meter.describe(session.newest.dropped)}."
        if last is None:
            raise InputError(
                "No frame came from the page: press Start in the node, and let the browser use the camera, "
                "or choose a video file."
            )
        show_text(report)
        if not recording.images:
            return io.NodeOutput(last.movedim(0, -1)[None].contiguous(), recording.rate, report)
        return io.NodeOutput(recording.image(), recording.rate, report)


def _network_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="MODEL of Load AniFaceDiff, with the Expression Adapter Loader and whatever else "
            "behind it.",
        ),
        ReferenceSocket.Input(
            "reference", tooltip="The source, from ReferenceNet Encode; the pictures get its size."
        ),
        io.Vae.Input("vae", tooltip="VAE of Load AniFaceDiff, which turns latents into pictures."),
        PoseEncoderSocket.Input("pose_encoder", tooltip="Pose encoder of Load AniFaceDiff."),
        FaceParametersSocket.Input(
            "source", tooltip="Face parameters of the source picture, from DECA Extract; their shape is kept."
        ),
        FaceCaptureSocket.Input(
            "face_capture",
            tooltip="What reads your face: face detector and encoder of Load AniFaceDiff, or DECA of Load "
            "DECA.",
        ),
        seed_input(control=False),
        *step_inputs(),
    ]


def _motion_inputs() -> list[io.Input]:
    return [
        region_input(),
        face_input(),
        smoothing_input(),
        io.Float.Input(
            "expression",
            default=1.0,
            min=0.0,
            max=3.0,
            step=0.05,
            tooltip="How far the expression moves. 0 is none of it, 1 as you do, up to 3 is more.",
        ),
        io.Float.Input(
            "head_motion",
            default=1.0,
            min=0.0,
            max=3.0,
            step=0.05,
            tooltip="How far the head turns, and moves and grows in the picture. 0 is none of it, 1 as you "
            "do, up to 3 is more.",
        ),
    ]


def _recording_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "most_frames",
            default=600,
            min=1,
            max=10000,
            tooltip="Recording stops by itself at so many pictures, since each takes memory.",
        ),
        head_input(),
        HeadSocket.Input(
            "head_model",
            optional=True,
            tooltip="Head of Load DECA, for parameters that were read with it.",
        ),
    ]
