"""Reenactment while it happens: a driver's frames go in one by one, and for each comes a picture of the
source.

Nothing waits for frames to come, and nothing grows with their number. Every picture is sampled for itself,
from one and the same noise; its temporal modules see what they have kept of the latest frames, which is as
steady as windows of them and takes hardly longer than one frame: docs/live.md has figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from anifacediff_core.capture.confidence import LEAST
from anifacediff_core.capture.detector import face_square
from anifacediff_core.capture.extract import SMOOTHING, Models, prepare, read_faces
from anifacediff_core.capture.tracker import Tracker, portrait_square
from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.camera import crop_camera
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.motion.causal import CausalSmoother
from anifacediff_core.motion.edit import edit_motion
from anifacediff_core.motion.parts import PARTS
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.temporal import TemporalMemory
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.sampler import sample
from anifacediff_core.sampling.settings import SamplingSettings
from anifacediff_core.sampling.windows import initial_noise

KEPT = 3  # frames


class LiveMotion:
    """A driver's frames, or their parameters, one by one, to those that the source is drawn with.

    The motion is the driver's own, as offline, until :meth:`neutral` is called: from then on it counts from
    that frame and is added to the source's pose and expression. A face that is lost, or read too unsurely,
    keeps its last parameters until it is back; before the first one the source rests. All attributes may be
    set anew between two frames.

    Args:
        head: the head that the parameters belong to.
        source: parameters of the source picture, camera of its portrait.
        models: what reads frames; not needed for parameters.
        mode: which part of the frames is the portrait, see `tracker.portrait_square`. It is chosen in the
            first frame with a face, and again after :meth:`neutral`.
        face: which of several faces, see `Tracker`.
        smoothing: 0 to 1, see `CausalSmoother`.
        expression_gain, head_gain: how far expression and head move, see `edit_motion`.
        least_confidence: readings that are less sure count as a lost face, once one was surer.

    Attributes:
        lost: whether the last frame showed no face, or not for sure.
    """

    def __init__(
        self,
        head: HeadModel,
        source: FaceParameters,
        models: Models | None = None,
        *,
        mode: str = "auto",
        face: int = 0,
        smoothing: float = SMOOTHING,
        expression_gain: float = 1.0,
        head_gain: float = 1.0,
        least_confidence: float = LEAST,
    ) -> None:
        self.head, self.models, self.mode, self.face = head, models, mode, face
        self.source = source
        self.expression_gain, self.head_gain = expression_gain, head_gain
        self.least_confidence = least_confidence
        self.lost = True
        self._smoother = CausalSmoother(head.expression_names, smoothing)
        self._tracker, self._size = Tracker(face=face), (0, 0)
        self._square: Tensor | None = None
        self._sure = self._asked = False
        self._driver: FaceParameters | None = None
        self._rest: FaceParameters | None = None

    @property
    def source(self) -> FaceParameters:
        """One frame, on the CPU."""
        return self._source

    @source.setter
    def source(self, parameters: FaceParameters) -> None:
        self._source = source_frame(parameters).to("cpu")

    @property
    def smoothing(self) -> float:
        return self._smoother.strength

    @smoothing.setter
    def smoothing(self, strength: float) -> None:
        self._smoother.strength = strength

    def neutral(self) -> None:
        """Let motion count from the next frame with a face, and cut the portrait anew by it."""
        self._asked, self._square = True, None

    def read(self, frame: Tensor) -> FaceParameters:
        """Parameters (1) to draw the source with for the next frame (1 to 4, height, width) in [0, 1].

        Raises:
            InputError: no picture of a usable form, or of too few pixels.
        """
        if self.models is None:
            raise InputError(
                "There is nothing that reads faces: give face models, or parameters of the driver."
            )
        pixels = prepare(frame, "the frame")
        height, width = (int(side) for side in pixels.shape[-2:])
        if (height, width) != self._size:  # another camera, or the same one turned
            self._size, self._tracker, self._square = (height, width), Tracker(face=self.face), None
        found, _ = read_faces(pixels, self._tracker, self.models, None)
        if not self._is_sure(found):
            self.lost = True
            return self._drawn()
        calm = self._smoother(found)
        if self._square is None:
            longer = max(height, width)
            squares = face_square(self.head, calm.to(self.head.template.device)).cpu()
            self._square = portrait_square(squares, calm.valid, width / longer, height / longer, self.mode)
        return self._go_on(replace(calm, camera=crop_camera(calm.camera, self._square)))

    def follow(self, params: FaceParameters) -> FaceParameters:
        """As `read`, from parameters (1) of the driver, camera of the portrait, such as of coefficients."""
        if not params.valid.any():
            self.lost = True
            return self._drawn()
        return self._go_on(self._smoother(params.to("cpu")))

    def _is_sure(self, found: FaceParameters) -> bool:
        """As offline, where no reading at all is sure, as of a drawing, all of them count."""
        assert found.confidence is not None
        sure = bool(found.valid) and float(found.confidence) >= self.least_confidence
        self._sure = self._sure or sure
        return sure or (bool(found.valid) and not self._sure)

    def _go_on(self, driver: FaceParameters) -> FaceParameters:
        self.lost, self._driver = False, driver
        if self._asked:
            self._rest, self._asked = driver, False
        return self._drawn()

    def _drawn(self) -> FaceParameters:
        """The source's shape with the driver's motion as it was seen last (eq. 2)."""
        if self._driver is None:
            return self.source
        rest, gains = self._rest, self._gains()
        if rest is None and set(gains.values()) == {1.0}:
            return align(self.source, self._driver)
        clip = FaceParameters.concatenate([self._driver if rest is None else rest, self._driver])
        relative, names = rest is not None, self.head.expression_names
        edited = edit_motion(clip, names, gains, relative=relative, rest=0, source=self.source)
        return align(self.source, edited[1])

    def _gains(self) -> Mapping[str, float]:
        return {"head": self.head_gain, **dict.fromkeys(PARTS, self.expression_gain)}


class Stream:
    """Frames of a driver to pictures of the source, one by one.

    The source is encoded once. The first picture is about that of `Pipeline.reenact` for a still face.

    Args:
        pipeline: networks and head.
        models: what reads frames, with the same head; None if only parameters will drive.
        portrait: of the source, (1, 3, size, size) in [0, 1].
        source: its parameters, camera of the portrait.
        steps, cfg: of sampling; as the weights want it when None.
        seed: of the noise.
        expression_scale: lambda of eq. 3.
        kept: how many of the latest frames the temporal modules see; none where they are replayed (CUDA
            graphs), which write over what they gave before.
        motion: what `LiveMotion` takes beside these.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        models: Models | None,
        portrait: Tensor,
        source: FaceParameters,
        *,
        steps: int | None = None,
        cfg: float | None = None,
        seed: int = SamplingSettings.seed,
        expression_scale: float = SamplingSettings.expression_scale,
        kept: int = KEPT,
        **motion: float | int | str,
    ) -> None:
        self.pipeline = pipeline
        self.sampling = pipeline.sampling.but(steps=steps, cfg=cfg)
        self.seed, self.expression_scale = seed, expression_scale
        self.kept = 0 if pipeline.replays else min(kept, pipeline.model.config.motion_max_frames - 1)
        self.motion = LiveMotion(pipeline.head, source, models, **motion)  # type: ignore[arg-type]
        self.change_source(portrait, source)

    def change_source(self, portrait: Tensor, source: FaceParameters) -> None:
        """Go on with another picture, of any size, see the class; the driver's neutral frame stays.

        Raises:
            InputError: no such square, or no face in it.
        """
        self.motion.source = source
        resting = self.motion.source
        self._source = self.pipeline.conditioning(portrait, resting, resting)
        height, width = self._source.pose[0].shape[-2:]
        channels = self.pipeline.model.config.latent_channels
        self._noise = initial_noise(1, channels, height, width, self.seed)
        self._side = portrait.shape[-1]
        self._memories = [TemporalMemory(self.kept) for _ in range(self.sampling.steps)]

    def neutral(self) -> None:
        """See `LiveMotion.neutral`."""
        self.motion.neutral()

    def __call__(self, frame: Tensor) -> Tensor:
        """The picture (3, size, size) float32 in [0, 1] on the CPU, for a frame (1 to 4, height, width)."""
        return self.draw(self.motion.read(frame))

    def follow(self, params: FaceParameters) -> Tensor:
        """The picture for parameters (1) of the driver, camera of the portrait."""
        return self.draw(self.motion.follow(params))

    @torch.no_grad()
    def draw(self, params: FaceParameters) -> Tensor:
        """The picture for parameters (1) that are the source's already."""
        pipeline, model = self.pipeline, self.pipeline.model
        normals = render_normals(pipeline.head, params, self._side)
        weight = model.unet.conv_in.weight
        conditioning = VideoConditioning(
            self._source.reference,
            self._source.context,
            model.encode_pose(normals),
            model.encode_expression(params.expression.to(weight)),
        )
        latents = sample(
            model,
            conditioning,
            self._noise,
            steps=self.sampling.steps,
            cfg=self.sampling.cfg,
            window=1,
            overlap=0,
            expression_scale=self.expression_scale,
            memories=self._memories if self.kept else None,
            device=pipeline.device,
            dtype=pipeline.dtype,
        )
        return next(pipeline.decode(latents))[0]
