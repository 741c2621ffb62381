"""Small sets of shards whose frames tell what they are: identity in red, clip in green, frame in blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab.training.shard_format import (
    Segment,
    SegmentInfo,
    ShardWriter,
    write_manifest,
)
from anifacediff_core.lab.training.shard_pictures import encode_picture

SIZE = 32


def make_parameters(head: HeadModel, identity: int, frames: int, seed: int = 0) -> FaceParameters:
    """A turning, talking head with a shape of its own."""
    generator = torch.Generator().manual_seed(1000 * seed + identity)
    neutral = head.neutral(frames)
    pose = neutral.pose.clone()
    pose[:, 3:6] = torch.rand(frames, 3, generator=generator) * 0.4 - 0.2
    return replace(
        neutral,
        shape=torch.randn(1, head.n_shape, generator=generator).expand(frames, -1).contiguous() * 0.5,
        expression=torch.rand(frames, head.n_expression, generator=generator),
        pose=pose,
    )


def make_segment(
    head: HeadModel,
    identity: int,
    clip: int = 0,
    frames: int = 6,
    invalid: Sequence[int] = (),
    split: str = "train",
    normals: bool = False,
    kind: str = "png",
    size: int = SIZE,
) -> Segment:
    params = make_parameters(head, identity, frames, clip)
    params.valid[list(invalid)] = False
    colors = [torch.tensor([identity, clip, frame]) * 8 / 255 for frame in range(frames)]
    pictures = [encode_picture(color.view(3, 1, 1).expand(3, size, size), kind) for color in colors]
    drawn: list[Tensor] = list(render_normals(head, params, size)) if normals else []
    info = SegmentInfo(
        f"person{identity}", f"{identity}_{clip}.mp4", Fraction(24), 0, frames, size, head.name, split
    )
    stored = [encode_picture(image, "png") for image in drawn]
    return Segment(f"{identity:03d}_{clip:03d}", info, params, pictures, stored)


def write_set(folder: Path, shards: Sequence[Sequence[Segment]], manifest: bool = True) -> Path:
    """Shards 0.tar, 1.tar, … and their list."""
    entries = []
    for number, segments in enumerate(shards):
        with ShardWriter(folder / f"{number}.tar") as writer:
            for segment in segments:
                writer.write(segment)
        entries.append(writer.entry(segments[0].info.split))
    if manifest:
        first = shards[0][0]
        write_manifest(
            folder, entries, size=first.info.size, head=first.info.head, normals=bool(first.normals)
        )
    return folder


def told(picture: Tensor) -> tuple[int, int, int]:
    """Identity, clip and frame of a picture (3, height, width) in [0, 1]."""
    identity, clip, frame = (picture.mean((1, 2)) * 255 / 8).round().int().tolist()
    return identity, clip, frame
