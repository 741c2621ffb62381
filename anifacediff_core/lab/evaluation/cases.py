"""The cases of the avatar benchmark: pairs of unseen avatars, and their pictures with the exact truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anifacediff_core.head.alignment import align
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import draw_normals

from ..avatars.identity import Identity
from ..avatars.poses import random_frames
from ..avatars.studio import Studio
from ..avatars.styles import stylize
from ..avatars.tracks import random_tracks
from .protocol import Protocol

SEED_OFFSET = 500_000_000  # far from the seeds of training pools


@dataclass(frozen=True)
class Cases:
    """P pairs of source A and driver B with F frames each, as parameters.

    Args:
        sources, drivers: P identities each.
        still: (P) A's parameters in the source picture.
        motion: (P * F) the driver's track; its shape is B's.
    """

    sources: Identity
    drivers: Identity
    still: FaceParameters
    motion: FaceParameters
    frames: int

    def __len__(self) -> int:
        return len(self.still)

    def part(self, start: int, stop: int, device: torch.device) -> Cases:
        return Cases(
            self.sources[slice(start, stop)].to(device),
            self.drivers[slice(start, stop)].to(device),
            self.still[start:stop].to(device),
            self.motion[start * self.frames : stop * self.frames].to(device),
            self.frames,
        )

    @property
    def aligned(self) -> FaceParameters:
        """The driver's motion on the source's shape (equation 2)."""
        each = torch.arange(len(self), device=self.still.shape.device).repeat_interleave(self.frames)
        return align(self.still[each], self.motion)


@dataclass(frozen=True)
class Pictures:
    """Rendered cases: source (P, 3, H, W), the others (P * F, 3, H, W); foreign normals have B's shape."""

    source: Tensor
    driving: Tensor
    truth: Tensor
    normals: Tensor
    foreign_normals: Tensor


def draw_cases(protocol: Protocol, head: HeadModel) -> Cases:
    """Random pairs, on the CPU: they depend on the seed and their number, not on the machine."""
    generator = torch.Generator().manual_seed(SEED_OFFSET + protocol.seed)
    count, frames = protocol.pairs, protocol.frames
    sources = Identity.random(count, generator, head)
    if protocol.protocol == "same":
        motion = random_tracks(count, frames + 1, protocol.fps, generator, head)
        motion = replace(motion, shape=sources.shape.repeat_interleave(frames + 1, 0))
        place = torch.arange(len(motion)).view(count, -1)
        return Cases(sources, sources, motion[place[:, 0]], motion[place[:, 1:].flatten()], frames)
    drivers = Identity.random(count, generator, head)
    still = random_frames(count, generator, head)
    # A source picture is a calm portrait.
    still = replace(still, shape=sources.shape, expression=still.expression * 0.5, pose=still.pose * 0.6)
    motion = random_tracks(count, frames, protocol.fps, generator, head)
    motion = replace(motion, shape=drivers.shape.repeat_interleave(frames, 0))
    return Cases(sources, drivers, still, motion, frames)


@torch.no_grad()
def render_cases(cases: Cases, studio: Studio, head: HeadModel, size: int, batch: int = 96) -> Pictures:
    def avatars(identity: Identity, params: FaceParameters) -> Tensor:
        parts = [slice(i, i + batch) for i in range(0, len(params), batch)]
        return torch.cat([studio.render(identity[p], params[p], size=size) for p in parts])

    def normals(params: FaceParameters) -> Tensor:
        return torch.cat(
            [draw_normals(head, params[i : i + batch], size) for i in range(0, len(params), batch)]
        )

    return Pictures(
        source=avatars(cases.sources, cases.still),
        driving=avatars(cases.drivers.repeat_interleave(cases.frames), cases.motion),
        truth=avatars(cases.sources.repeat_interleave(cases.frames), cases.aligned),
        normals=normals(cases.aligned),
        foreign_normals=normals(cases.motion),
    )


def stylize_cases(pictures: Pictures, protocol: Protocol, first: int) -> Pictures:
    """Every pair in a look of its own, the source and the truth in the same one, the driver in another.

    Args:
        first: number of the first pair: looks follow from the seed and the pairs' numbers alone.
    """
    if protocol.style == "plain":
        return pictures
    count = len(pictures.source)
    seen = torch.cat([pictures.source[:, None], pictures.truth.unflatten(0, (count, -1))], 1)
    driving = pictures.driving.unflatten(0, (count, -1))
    for pair in range(count):
        generator = torch.Generator(seen.device)
        generator.manual_seed((SEED_OFFSET + protocol.seed) * 1_000_003 + first + pair)
        for rows in (seen, driving):
            rows[pair : pair + 1] = stylize(rows[pair : pair + 1], protocol.style, generator)
    return replace(
        pictures, source=seen[:, 0], truth=seen[:, 1:].flatten(0, 1), driving=driving.flatten(0, 1)
    )
