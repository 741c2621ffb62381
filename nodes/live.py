"""A face that moves while its driver does: Live Reenactment. Its panel is in web/live."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.sampling.pace import Meter
from anifacediff_core.sampling.stream import KEPT, LiveMotion

from .capture import face_input, on_device, region_input, smoothing_input
from .head import head_input, load_head
from .head import on_device as head_on_device
from .host.api import io
from .host.compile import replays
from .host.live import LiveSession, live_session
from .host.runtime import ModelPatcher, device, show_text
from .host.stream import StreamMemory
from .sampling import seed_input, step_inputs
from .segments import Networks, network_inputs, require_plain
from .sockets import (
    FaceCaptureSocket,
    Reference,
    connected,
    head_model_input,
    make_schema,
    share_input,
)

MOST_STEPS = 4  # with which the temporal modules keep frames: each step takes memory for them
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
            inputs=[*network_inputs(), *_motion_inputs(), *_recording_inputs()],
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
        region: str,
        face: int,
        smoothing: float,
        expression: float,
        head_motion: float,
        most_frames: int,
        head: str,
        head_model: HeadModel | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        vae = connected(vae, "VAE", "load a checkpoint that has one, or a VAE of Stable Diffusion 1.5")
        encoder = require_plain(pose_encoder, "Live Reenactment")
        sampling = {"sampler": settings.pop("sampler_name"), **settings, "window": 1, "overlap": 0}
        drawn = head_model or load_head(head, source)
        keeps = settings["steps"] <= MOST_STEPS and not replays(model)
        memory = StreamMemory(KEPT) if keeps else None
        networks = Networks(model, reference, vae, encoder, drawn, sampling, memory)
        recording = Recording(most_frames)
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
            last, report = _perform(session, motion, networks, recording)
        if last is None:
            raise InputError(
                "No frame came from the page: press Start in the node, and let the browser use the camera, "
                "or choose a video file."
            )
        show_text(report)
        image = recording.image() if recording.images else last.movedim(0, -1)[None].contiguous()
        return io.NodeOutput(image, recording.rate, report)


def _perform(
    session: LiveSession, motion: LiveMotion, networks: Networks, recording: Recording
) -> tuple[Tensor | None, str]:
    """Draw frames until the session ends: the last image (3, size, size), if any, and how it went."""
    meter, last = Meter(), None
    for came, frame in session.frames():
        asked = session.asked()
        if "neutral" in asked:
            motion.neutral()
        if asked & {"record", "pause"}:
            recording.running = "record" in asked and len(recording.images) < recording.most
        last = _draw(networks, motion.read(frame.to(device())))
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
                "most": recording.most,
                "lost": motion.lost,
            },
        )
    return last, f"{meter.shown} pictures, {meter.describe(session.newest.dropped)}."


def _draw(networks: Networks, parameters: FaceParameters) -> Tensor:
    """The image (3, size, size) in [0, 1] for one frame of parameters that are the source's already."""
    pose = networks.pose(parameters)
    latents = networks.sample(parameters, pose, report=lambda done, total, image: None, quiet=True)
    return networks.decode(latents)[0].cpu()


def _motion_inputs() -> list[io.Input]:
    return [
        FaceCaptureSocket.Input(
            "face_capture",
            tooltip="What reads your face: face detector and encoder of Load AniFaceDiff, or DECA of Load "
            "DECA.",
        ),
        seed_input(control=False),
        *step_inputs(),
        region_input(),
        face_input(),
        smoothing_input(),
        share_input(
            "expression",
            1.0,
            "How far the expression moves. 0 is none of it, 1 as you do, up to 3 is more.",
            most=3.0,
        ),
        share_input(
            "head_motion",
            1.0,
            "How far the head turns, and moves and grows in the picture. 0 is none of it, 1 as you do, up to "
            "3 is more.",
            most=3.0,
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
        head_model_input(),
    ]
