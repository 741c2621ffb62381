"""Segments of a long video, made with the host's networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.capture.paste import RING_FRAMES, measure_colors, paste_back
from anifacediff_core.errors import InputError
from anifacediff_core.finite import require_finite
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import iterate_normals
from anifacediff_core.provenance.label import Label, put_label
from anifacediff_core.provenance.mark import mark
from anifacediff_core.sampling.segments import Segment, SegmentState

from .head import on_device
from .host.api import io
from .host.parts import encode_pose, pose_kinds
from .host.runtime import ModelPatcher, Progress
from .host.sampling import sample
from .host.stream import StreamMemory
from .images import checked
from .paste import require_picture_of
from .sampling import apply_video, context_of, model_input
from .sockets import (
    Crop,
    FaceParametersSocket,
    Pose,
    PoseEncoderSocket,
    Reference,
    ReferenceSocket,
    connected,
)

PLAIN = ("normals",)
DECODED = 8  # frames that are decoded, marked and pasted at a time


@dataclass(frozen=True)
class Finishing:
    """What happens to decoded pictures.

    Attributes:
        original: (1, channels, height, width) picture to paste into, and the square there.
    """

    original: Tensor | None
    square: Tensor | None
    feather: float
    match_color: float
    mark: bool
    label: Label | None = None

    @classmethod
    def of(
        cls,
        original: Tensor | None,
        crop: Crop | None,
        feather: float,
        match_color: float,
        mark: bool,
        label: Label | None,
    ) -> Finishing:
        if (original is None) != (crop is None):
            lacking, other = ("crop", "original") if crop is None else ("original", "crop")
            raise InputError(
                f"There is {other} but no {lacking}: connect both to paste the portrait back, or neither."
            )
        if original is None or crop is None:
            return cls(None, None, feather, match_color, mark, label)
        image = checked(original, "original")[0][:1]
        require_picture_of(crop, image)
        return cls(image, crop.square.reshape(-1, 3)[0], feather, match_color, mark, label)

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
        return self.disclosed(frames)

    def disclosed(self, frames: Tensor) -> Tensor:
        """Frames of the file with label and mark, where these are wanted."""
        frames = frames if self.label is None else put_label(frames, self.label)
        return mark(frames) if self.mark else frames


@dataclass(frozen=True)
class Networks:
    """What draws one source: the host's networks, its reference and its head, and how they sample.

    Attributes:
        sampling: what `host.sampling.sample` takes beside the conditions, with `window` and `overlap`.
        memory: what the temporal modules keep from frame to frame of a stream, where one is drawn.
    """

    model: ModelPatcher
    reference: Reference
    vae: Any
    encoder: ModelPatcher
    head: HeadModel
    sampling: dict[str, Any]
    memory: StreamMemory | None = None

    def pose(self, parameters: FaceParameters) -> Pose:
        """Of frames whose parameters are the source's already; the head is where the host computes."""
        normals = iterate_normals(self.head, parameters, self.reference.size)
        chunks = [encode_pose(self.encoder, part) for part in normals]
        return Pose(tuple(map(torch.cat, zip(*chunks, strict=True))))

    def sample(self, parameters: FaceParameters, pose: Pose, **more: Any) -> Tensor:
        """Latents (frames, channels, h, w); more of what `host.sampling.sample` takes."""
        window, overlap = self.sampling["window"], self.sampling["overlap"]
        model = apply_video(self.model, self.reference, pose, parameters, window, overlap, self.memory)
        positive, negative = context_of(self.reference)
        return sample(model, positive, negative, **self.sampling, **more)["samples"]

    def decode(self, latents: Tensor, first: int = 0) -> Tensor:
        """(frames, 3, height, width) in [0, 1]; `first` is the number of the first of them in the video."""
        return require_finite(self.vae.decode(latents).movedim(-1, 1).float(), first).clamp(0, 1)


def network_inputs() -> list[io.Input]:
    """Of what draws one source that is encoded already."""
    return [
        model_input(),
        ReferenceSocket.Input(
            "reference", tooltip="The source, from ReferenceNet Encode; the result gets its size."
        ),
        io.Vae.Input("vae", tooltip="VAE of Load AniFaceDiff, which turns latents into pictures."),
        PoseEncoderSocket.Input("pose_encoder", tooltip="Pose encoder of Load AniFaceDiff."),
        FaceParametersSocket.Input(
            "source", tooltip="Face parameters of the source picture, from DECA Extract; their shape is kept."
        ),
    ]


def require_plain(pose_encoder: ModelPatcher | None, node: str) -> ModelPatcher:
    """Refuse a pose encoder that is missing, or reads what a node does not draw."""
    encoder = connected(pose_encoder, "pose encoder", "load a checkpoint that has one")
    if pose_kinds(encoder) != PLAIN:
        raise InputError(
            f"This pose encoder reads more than normals, which {node} does not draw: use AniFaceDiff Sampler."
        )
    return encoder


@dataclass(frozen=True)
class SegmentMaker:
    """Makes segments of a video; see `segments.SegmentFn`.

    Attributes:
        turn, turns: which of several makers it is that work on each segment one after the other, and how many
            there are, for the progress.
    """

    networks: Networks
    parameters: FaceParameters
    finishing: Finishing
    progress: Progress
    turn: int = 0
    turns: int = 1

    def __call__(self, segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
        latents, after = self.sample(segment, state)
        return self._pictures(segment, latents, after["colors"]), after

    def sample(self, segment: Segment, state: SegmentState) -> tuple[Tensor, SegmentState]:
        """Latents of a segment's frames, and the state after it."""

        def report(done: int, total: int, image: Tensor | None) -> None:
            share = segment.position(self.turn * total + done, self.turns * total)
            self.progress.show(share, len(self.parameters), image)

        parameters = self.parameters[segment.sampled]
        with on_device(self.networks.head):
            pose = self.networks.pose(parameters)
        latents = self.networks.sample(
            parameters, pose, first=segment.start, previous_latents=state.get("latents"), report=report
        )
        written = segment.stop - segment.start
        colors = state.get("colors")
        if colors is None:
            chosen = torch.linspace(0, written - 1, min(written, RING_FRAMES)).round().long()
            pasted = self.finishing.original is not None
            colors = self.finishing.colors(
                self.networks.decode(latents[chosen], segment.start) if pasted else torch.empty(0)
            )
        return latents[:written], {"latents": latents[written:], "colors": colors}

    def _pictures(self, segment: Segment, latents: Tensor, colors: Tensor) -> Iterator[Tensor]:
        for number, part in enumerate(latents.split(DECODED)):
            portraits = self.networks.decode(part, segment.start + DECODED * number)
            frames = self.finishing.apply(portraits, colors)
            self.progress.show(segment.stop, len(self.parameters), frames[-1])
            yield frames
