"""The avatar studio as a source of shards: moving avatars with their true parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.render import render_normals
from anifacediff_core.progress import Progress
from anifacediff_core.storage import atomic_write

from ..avatars.identity import Identity
from ..avatars.studio import Studio
from ..avatars.tracks import random_tracks
from ..scale import Scale, run
from .shard_chunks import (
    PLAN,
    SplitRatios,
    done_chunk,
    finish,
    read_plan,
    remove_stale,
    require_same,
    write_chunk,
)
from .shard_format import SEGMENT_FRAMES, SPLITS, Segment, SegmentInfo
from .shard_pictures import encode_picture, require_pictures


@dataclass(frozen=True)
class AvatarShardsConfig:
    """What decides the content of the shards.

    Args:
        count: avatars, each with one clip.
        frames: of each clip.
        fps: frame rate; about 1 gives frames that differ, for stage 1.
        size: side of the pictures in pixels.
        seed: identities and motion follow from it and their number.
        normals: store them, too.
        shares: how the avatars are divided.
        chunk: avatars of a chunk.
    """

    count: int
    frames: int = SEGMENT_FRAMES
    fps: str = "24"
    size: int = 256
    picture: str = "jpg"
    quality: int = 95
    seed: int = 0
    normals: bool = False
    shares: SplitRatios = field(default_factory=SplitRatios)
    chunk: int = 16

    def __post_init__(self) -> None:
        require_pictures(self.size, self.picture, self.quality, self.fps)
        if self.frames < 2 or self.count < 1 or self.chunk < 1:
            raise InputError("Shards need one avatar and two frames of it; raise the numbers.")

    def identity(self, number: int) -> str:
        return f"avatar-{self.seed}-{number:06d}"


class AvatarPreparer:
    """Makes a chunk's shards; a worker of `scale.run`."""

    def __init__(self, out: str, config: AvatarShardsConfig, device: str) -> None:
        self.out, self.config = Path(out), config
        self.head = HeadModel.bundled().to(pick_device(device))
        self.studio = Studio(self.head)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        done = done_chunk(self.out, job["name"])
        if done is not None:
            return done
        segments = (s for number in job["avatars"] for s in self._segments(number, job["split"]))
        return write_chunk(self.out, job["name"], job["split"], segments, [])

    def _segments(self, number: int, split: str) -> Iterator[Segment]:
        r = self.config
        generator = torch.Generator().manual_seed(r.seed * 1_000_003 + number)
        identity = Identity.random(1, generator, self.head)
        track = random_tracks(1, r.frames, float(Fraction(r.fps)), generator, self.head).to("cpu")
        track = replace(track, shape=identity.shape.to(track.shape).expand(r.frames, -1).contiguous())
        for first in range(0, r.frames, SEGMENT_FRAMES):
            part = track[first : first + SEGMENT_FRAMES]
            pictures = self.studio.render(identity, part, r.size)
            normals: Iterable[Tensor] = render_normals(self.head, part, r.size) if r.normals else ()
            name = r.identity(number)
            info = SegmentInfo(name, name, Fraction(r.fps), first, len(part), r.size, part.head, split)
            yield Segment(
                f"{name}-{first:06d}",
                info,
                part,
                [encode_picture(picture, r.picture, r.quality) for picture in pictures],
                [encode_picture(picture, "png") for picture in normals],
            )


def prepare_avatars(
    out: str | Path,
    config: AvatarShardsConfig,
    device: str = "auto",
    scale: Scale | None = None,
    progress: Progress | None = None,
) -> int:
    """Write shards of avatars; call it again to go on after an interruption. Returns the number of shards.

    Args:
        progress: called with chunks (done, total).

    Raises:
        InputError: the folder was begun with other settings.
    """
    out = Path(out).resolve()
    plan = read_plan(out)
    if plan is not None:
        require_same(out, plan["recipe"], asdict(config))
    with atomic_write(out / PLAN) as temporary:
        Path(temporary).write_text(json.dumps({"recipe": asdict(config)}))
    remove_stale(out)
    chunks = _chunks(config)
    waiting = [chunk for chunk in chunks if done_chunk(out, chunk["name"]) is None]
    done = len(chunks) - len(waiting)
    try:
        for _ in run(partial(AvatarPreparer, str(out), config, device), waiting, scale or Scale()):
            done += 1
            if progress is not None:
                progress(done, len(chunks))
    finally:
        about = {"size": config.size, "head": HeadModel.bundled().name, "normals": config.normals}
        finish(out, [chunk["name"] for chunk in chunks], **about)
    return len(list(out.glob("*.tar")))


def _chunks(config: AvatarShardsConfig) -> list[dict[str, Any]]:
    chunks = []
    for split in SPLITS:
        own = [n for n in range(config.count) if config.shares.split(config.identity(n)) == split]
        for number, start in enumerate(range(0, len(own), config.chunk)):
            avatars = own[start : start + config.chunk]
            chunks.append({"name": f"{split}-{number:05d}", "split": split, "avatars": avatars})
    return chunks
