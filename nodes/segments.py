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
from .host.parts import encode_pose
from .host.runtime import ModelPatcher, Progress
from .host.sampling import sample
from .images import checked
from .paste import require_picture_of
from .sampling import apply_video, context_of
from .sockets import Crop, Pose, Reference

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
class SegmentMaker:
    """Makes segments with the host's networks; see `segments.SegmentFn`.

    Attributes:
        turn, turns: which of several makers it is that work on each segment one after the other, and how many
            there are, for the progress.
    """

    model: ModelPatcher
    reference: Reference
    vae: Any
    encoder: ModelPatcher
    head: HeadModel
    parameters: FaceParameters
    sampling: dict[str, Any]
    finishing: Finishing
    progress: Progress
    turn: int = 0
    turns: int = 1

    def __call__(self, segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
        latents, after = self.sample(segment, state)
        return self._pictures(segment, latents, after["colors"]), after

    def sample(self, segment: Segment, state: SegmentState) -> tuple[Tensor, SegmentState]:
        """Latents of a segment's frames, and the state after it."""
        parameters = self.parameters[segment.sampled]
        window, overlap = self.sampling["window"], self.sampling["overlap"]
        pose = self._pose(parameters)
        model = apply_video(self.model, self.reference, pose, parameters, window, overlap)

        def report(done: int, total: int, image: Tensor | None) -> None:
            share = segment.position(self.turn * total + done, self.turns * total)
            self.progress.show(share, len(self.parameters), image)

        latents = sample(
            model,
            *context_of(self.reference),
            **self.sampling,
            first=segment.start,
            previous_latents=state.get("latents"),
            report=report,
        )["samples"]
        written = segment.stop - segment.start
        colors = state.get("colors")
        if colors is None:
            chosen = torch.linspace(0, written - 1, min(written, RING_FRAMES)).round().long()
            pasted = self.finishing.original is not None
            colors = self.finishing.colors(
                self.decode(latents[chosen], segment.start) if pasted else torch.empty(0)
            )
        return latents[:written], {"latents": latents[written:], "colors": colors}

    def _pose(self, parameters: FaceParameters) -> Pose:
        with on_device(self.head):
            normals = iterate_normals(self.head, parameters, self.reference.size)
            chunks = [encode_pose(self.encoder, part) for part in normals]
        return Pose(tuple(map(torch.cat, zip(*chunks, strict=True))))

    def _pictures(self, segment: Segment, latents: Tensor, colors: Tensor) -> Iterator[Tensor]:
        for number, part in enumerate(latents.split(DECODED)):
            frames = self.finishing.apply(self.decode(part, segment.start + DECODED * number), colors)
            self.progress.show(segment.stop, len(self.parameters), frames[-1])
            yield frames

    def decode(self, latents: Tensor, first: int) -> Tensor:
        """(frames, 3, height, width) in [0, 1]; `first` is the number of the first of them in the video."""
        return require_finite(self.vae.decode(latents).movedim(-1, 1).float(), first).clamp(0, 1)
