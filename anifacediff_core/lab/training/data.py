"""Avatar pools: pictures with exact normals and parameters, rendered by the studio into the device's memory.

Every process renders its own identities. The reenactment tasks know of their data a `PairSource` only:
`PoolSource` is one over a pool, and `shards.ShardSource` one over videos.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.regions import SPOTS, face_spots
from anifacediff_core.head.render import draw_normals
from anifacediff_core.network.autoencoder import AutoEncoder, StableAutoEncoder
from anifacediff_core.network.encoders import CLIP_MEAN, CLIP_STD, clip_preprocess
from anifacediff_core.progress import Progress

from ..avatars.identity import Identity
from ..avatars.leaves import dead_leaves
from ..avatars.poses import random_frames
from ..avatars.studio import Studio
from ..avatars.styles import StyleShares, degrade, stylize_rows
from ..avatars.tracks import random_tracks
from ..avatars.variety import wander, widen


@dataclass(frozen=True)
class PoolPlan:
    """What to render.

    Args:
        identities: number of avatars, of each process.
        stills: independent frames of each avatar: any pose, expression, gaze and camera.
        track: consecutive frames of each avatar, from a motion track; they come before the stills.
        fps: frame rate of the tracks; about 1 gives frames that differ.
        size: side of the pictures in pixels.
        batch: frames rendered at once.
        normals: also render normals, and coarse normals of half the size whose expression is partly missing.
        renew_every: batches drawn before one render batch of the oldest avatars is replaced by new ones;
            0 is never.
        variety: share of the avatars that look, stand and turn unlike the gallery's (`avatars.variety`).
        styles: how often avatars are shown in which style; all frames of one are of the same.
        degraded: share of the frames that look blurred, small, noisy or compressed where they are the source.
        pictures: keep the pictures beside their latents, for losses in pixels.
        leaves: share of the avatars in whose place dead leaves are (`avatars.leaves`), for autoencoders.
    """

    identities: int
    stills: int = 6
    track: int = 0
    fps: float = 24.0
    size: int = 256
    batch: int = 144
    normals: bool = True
    renew_every: int = 0
    variety: float = 0.0
    styles: StyleShares = field(default_factory=StyleShares)
    degraded: float = 0.0
    pictures: bool = False
    leaves: float = 0.0

    @property
    def frames(self) -> int:
        return self.stills + self.track


def quantize(image: Tensor) -> Tensor:
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def clip_pixels(image: Tensor, size: int) -> Tensor:
    """What CLIP's preprocessing keeps of a picture before it normalizes: 8 bits hold it."""
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return clip_preprocess(image, size) * std + mean


def clip_normalize(pixels: Tensor) -> Tensor:
    """uint8 thumbnails (..., 3, i, i) to the image encoder's input."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels.float().div(255) - mean) / std


def random_motion(
    plan: PoolPlan, identities: int, head: HeadModel, generator: torch.Generator
) -> FaceParameters:
    """Poses, expressions and cameras for `identities` avatars, identity-major, tracks before stills."""
    parts: list[FaceParameters] = []
    if plan.track:
        parts.append(random_tracks(identities, plan.track, plan.fps, generator, head))
    if plan.stills:
        parts.append(random_frames(identities * plan.stills, generator, head))
    joined = FaceParameters.concatenate(parts)
    order = [torch.arange(len(part)).view(identities, -1) for part in parts]
    if len(order) == 2:
        order[1] = order[1] + len(parts[0])
    return joined[torch.cat(order, dim=1).flatten()]


def weaken_expression(params: FaceParameters, generator: torch.Generator) -> FaceParameters:
    """The same head with little or nothing of its expression, jaw and gaze: what a coarse mesh would show."""
    strength = torch.rand(len(params), 1, generator=generator) * 0.6
    strength = torch.where(strength < 0.2, torch.zeros_like(strength), strength).to(params.pose)
    pose = torch.cat([params.pose[:, :6], params.pose[:, 6:] * strength], dim=1)
    return replace(params, expression=params.expression * strength, pose=pose)


class Pool:
    """Avatars on the device, identity-major with `plan.frames` frames each (N = identities * frames).

    Attributes:
        params: true parameters of all N frames.
        spots: (N, 4, 3), where the face's parts are (`head.regions`).
        images: (N, 3, size, size) uint8; where latents are kept, only if the plan wants pictures.
        normals: (N, 3, size, size) uint8.
        coarse: (N, 3, size / 2, size / 2) uint8, normals of the same head with a weakened expression.
        latents: (N, C, size / 8, size / 8) float16, of C channels.
        source_latents: the same as they are where a frame is the source; empty if none is degraded.
        thumbnails: (N, 3, i, i) uint8, what the image encoder sees of a source.
        groups: numbers of the groups of identities that it holds, in their order.

    Args:
        seed: identities follow from it alone.
        autoencoder: when given, latents and thumbnails are kept and the pictures are not.
        image_size: side of the thumbnails.
        scaling_factor: factor from the autoencoder's output to latents.
    """

    def __init__(
        self,
        studio: Studio,
        head: HeadModel,
        plan: PoolPlan,
        seed: int,
        autoencoder: AutoEncoder | StableAutoEncoder | None = None,
        image_size: int = 0,
        scaling_factor: float = 1.0,
    ) -> None:
        self.studio, self.head, self.plan = studio, head, plan
        self.autoencoder, self.image_size, self.scaling_factor = autoencoder, image_size, scaling_factor
        self.seed = seed
        self.group = max(plan.batch // plan.frames, 1)  # identities rendered together
        # What a group shows follows from the pool's seed and its number; they are numbered as they are made.
        self.groups: list[int] = []
        self.made = 0
        self.oldest = 0
        self.drawn = 0
        device, total, size = head.template.device, plan.identities * plan.frames, plan.size
        self.params = head.neutral(1).expand(total).to(device)
        self.spots = torch.zeros(total, len(SPOTS), 3, device=device)

        def empty(needed: bool, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
            return torch.empty(total if needed else 0, *shape, dtype=dtype, device=device)

        encoded = autoencoder is not None
        self.images = empty(plan.pictures or not encoded, 3, size, size)
        channels = 0 if autoencoder is None else autoencoder.latent_channels
        self.latents = empty(encoded, channels, size // 8, size // 8, dtype=torch.float16)
        self.source_latents = torch.empty_like(self.latents) if plan.degraded else self.latents
        self.thumbnails = empty(encoded, 3, image_size, image_size)
        self.normals = empty(plan.normals, 3, size, size)
        self.coarse = empty(plan.normals, 3, size // 2, size // 2)

    @property
    def identities(self) -> int:
        """How many avatars have been rendered."""
        return min(len(self.groups) * self.group, self.plan.identities)

    def __len__(self) -> int:
        return self.identities * self.plan.frames

    def fill(self, progress: Progress | None = None) -> Pool:
        """Render all identities."""
        while self.identities < self.plan.identities:
            self.groups.append(self.made)
            self._render(len(self.groups) - 1)
            self.made += 1
            if progress is not None:
                progress(self.identities, self.plan.identities)
        return self

    def tick(self) -> None:
        """Count a batch drawn from the pool, and renew a part of it when that is due."""
        self.drawn += 1
        if self.plan.renew_every and self.drawn % self.plan.renew_every == 0:
            self.renew()

    def renew(self) -> None:
        """Put new identities in the place of the oldest group."""
        self.groups[self.oldest] = self.made
        self._render(self.oldest)
        self.made += 1
        self.oldest = (self.oldest + 1) % len(self.groups)

    def state_dict(self) -> dict[str, Any]:
        """Which avatars it holds: enough to render them again."""
        numbers = {"made": self.made, "oldest": self.oldest, "drawn": self.drawn}
        return {"groups": list(self.groups), "shape": self._shape(), **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold these avatars; only groups that are not there yet are rendered.

        Raises:
            InputError: they are those of another plan.
        """
        if state["shape"] != self._shape():
            raise InputError(
                "The training state is of another pool of avatars; set identities, stills, track, fps, size "
                "and batch as they were, or delete the folder of states to begin anew."
            )
        before, self.groups = self.groups, list(state["groups"])
        for place, number in enumerate(self.groups):
            if place >= len(before) or before[place] != number:
                self._render(place)
        self.made, self.oldest, self.drawn = state["made"], state["oldest"], state["drawn"]

    def _shape(self) -> list[float]:
        """What of the plan decides which avatar lies where."""
        plan = self.plan
        return [plan.identities, plan.stills, plan.track, plan.fps, plan.size, plan.batch]

    @torch.no_grad()
    def _render(self, place: int) -> None:
        frames, device = self.plan.frames, self.spots.device
        first = place * self.group
        count = min(self.group, self.plan.identities - first)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.groups[place])
        identity = Identity.random(count, generator, self.head)
        motion = random_motion(self.plan, count, self.head, generator)
        if self.plan.variety:
            identity = widen(identity, self.plan.variety, generator, self.head)
            motion = wander(motion, frames, self.plan.variety, generator, self.head)
        identity = identity.repeat_interleave(frames).to(device)
        motion = replace(motion.to(device), shape=identity.shape)
        weak = weaken_expression(motion, generator)
        step = max(self.plan.batch // frames, 1) * frames  # whole avatars: their frames share a style
        for start in range(0, len(motion), step):
            part = slice(start, min(start + step, len(motion)))
            where = slice(first * frames + part.start, first * frames + part.stop)
            pictures = self._picture(identity[part], motion[part])
            rows = pictures.unflatten(0, (-1, frames))
            if self.plan.leaves:
                self._put_leaves(rows, generator)
            pictures = stylize_rows(rows, self.plan.styles, generator).flatten(0, 1)
            self._store(where, pictures, generator)
            if self.plan.normals:
                self.normals[where] = quantize(draw_normals(self.head, motion[part], self.plan.size))
                self.coarse[where] = quantize(draw_normals(self.head, weak[part], self.plan.size // 2))
        where = slice(first * frames, (first + count) * frames)
        for name in ("shape", "expression", "pose", "camera"):
            getattr(self.params, name)[where] = getattr(motion, name)
        self.spots[where] = face_spots(self.head, motion, self.plan.size)

    def _put_leaves(self, pictures: Tensor, generator: torch.Generator) -> None:
        """Put dead leaves in the place of some avatars, (avatars, frames, 3, size, size)."""
        chosen = torch.nonzero(torch.rand(len(pictures), generator=generator) < self.plan.leaves).flatten()
        seed = int(torch.randint(2**62, (), generator=generator))
        if len(chosen):
            own = torch.Generator(pictures.device).manual_seed(seed)
            leaves = dead_leaves(len(chosen) * self.plan.frames, self.plan.size, own)
            pictures[chosen.to(pictures.device)] = leaves.unflatten(0, (len(chosen), -1))

    def _picture(self, identity: Identity, motion: FaceParameters) -> Tensor:
        # The cost of a small batch is that of launching its many small kernels.
        batch = self.plan.batch if self.spots.is_cuda else None
        return self.studio.render(identity, motion, size=self.plan.size, batch=batch)

    def _store(self, where: slice, image: Tensor, generator: torch.Generator) -> None:
        if len(self.images):
            self.images[where] = quantize(image)
        if self.autoencoder is None:
            return
        self.latents[where] = (self.autoencoder.encode(image) * self.scaling_factor).half()
        if self.plan.degraded:
            chosen = (torch.rand(len(image), generator=generator) < self.plan.degraded).to(image.device)
            own = torch.Generator(image.device).manual_seed(
                int(torch.randint(2**62, (), generator=generator))
            )
            image = torch.where(chosen.view(-1, 1, 1, 1), degrade(image, own), image)
            self.source_latents[where] = (self.autoencoder.encode(image) * self.scaling_factor).half()
        self.thumbnails[where] = quantize(clip_pixels(image, self.image_size))


@dataclass(frozen=True)
class Pairs:
    """Sources and the frames that drive them: S sources, R = S * frames rows, source-major.

    Args:
        source_latents: (S, C, h, w).
        source_pixels: (S, 3, i, i), CLIP-normalized.
        latents: (R, C, h, w), the truth.
        normals: (R, 3, H, W) in [0, 1].
        expression: (R, E).
        spots: (R, 4, 3), in pixels.
        pictures: (R, 3, H, W) uint8, the truth's, where the data keep them.
    """

    source_latents: Tensor
    source_pixels: Tensor
    latents: Tensor
    normals: Tensor
    expression: Tensor
    spots: Tensor
    pictures: Tensor | None = None


@dataclass(frozen=True)
class NormalsNoise:
    """Shares of the rows whose normals tell less, so that the expression adapter has something to add.

    Args:
        weakened: rows that get normals of half the size with a weakened expression.
        blurred: rows whose normals are reduced to an eighth of their size and enlarged again.
    """

    weakened: float = 0.2
    blurred: float = 0.15


class PairSource(Protocol):
    """Where the reenactment tasks get their batches."""

    @property
    def frames(self) -> int:
        """Rows of each source: 1, or the length of clips."""
        ...

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        ...

    def draw(self, rows: int) -> Pairs:
        """So many sources with the frames that drive them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands in the data, besides torch's own random numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class PoolSource:
    """Pairs, or whole tracks, of a pool's avatars.

    Args:
        clips: draw tracks instead of single frames.
        noise: of the normals.
        dtype: of the normals.
    """

    pool: Pool
    clips: bool
    noise: NormalsNoise
    dtype: torch.dtype

    def __post_init__(self) -> None:
        plan = self.pool.plan
        if self.clips and plan.track < 1:
            raise InputError("Clips need a pool with track above 0: the frames of a clip.")
        if not self.clips and plan.frames < 2:
            raise InputError(
                "Pairs need a pool with two frames or more of each avatar; raise stills or track."
            )

    @property
    def frames(self) -> int:
        return self.pool.plan.track if self.clips else 1

    @property
    def size(self) -> int:
        return self.pool.plan.size

    def draw(self, rows: int) -> Pairs:
        self.pool.tick()
        return (draw_clips if self.clips else draw_pairs)(self.pool, rows, self.noise, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        return self.pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state)


def draw_pairs(pool: Pool, rows: int, noise: NormalsNoise, dtype: torch.dtype) -> Pairs:
    """Two different frames of one identity each: the first is the source, the second drives."""
    device = pool.spots.device
    frames = pool.plan.frames
    identity = torch.randint(pool.identities, (rows,), device=device) * frames
    first = torch.randint(frames, (rows,), device=device)
    second = (first + torch.randint(1, frames, (rows,), device=device)) % frames
    return _pairs(pool, identity + first, identity + second, noise, dtype)


def draw_clips(pool: Pool, clips: int, noise: NormalsNoise, dtype: torch.dtype) -> Pairs:
    """Whole tracks with a source of the same identity: a still, or for one clip in four one of its frames."""
    device = pool.spots.device
    plan = pool.plan
    identity = torch.randint(pool.identities, (clips, 1), device=device) * plan.frames
    still = plan.track + torch.randint(max(plan.stills, 1), (clips, 1), device=device)
    inside = torch.randint(plan.track, (clips, 1), device=device)
    use_still = (torch.rand(clips, 1, device=device) < 0.75) & (plan.stills > 0)
    source = identity + torch.where(use_still, still, inside)
    driving = identity + torch.arange(plan.track, device=device)
    return _pairs(pool, source.flatten(), driving.flatten(), noise, dtype)


def _pairs(pool: Pool, source: Tensor, driving: Tensor, noise: NormalsNoise, dtype: torch.dtype) -> Pairs:
    return Pairs(
        source_latents=pool.source_latents[source].float(),
        source_pixels=clip_normalize(pool.thumbnails[source]),
        latents=pool.latents[driving].float(),
        normals=_normals(pool, driving, noise, len(driving) // len(source), dtype),
        expression=pool.params.expression[driving],
        spots=pool.spots[driving],
        pictures=pool.images[driving] if pool.plan.pictures else None,
    )


def _normals(pool: Pool, index: Tensor, noise: NormalsNoise, frames: int, dtype: torch.dtype) -> Tensor:
    """Normals of the driving frames; the first rows are weakened, the next blurred, whole clips at a time."""
    clips = len(index) // frames
    weakened = round(noise.weakened * clips) * frames
    blurred = weakened + round(noise.blurred * clips) * frames
    normals = torch.empty(len(index), *pool.normals.shape[1:], device=index.device, dtype=dtype)
    full = pool.normals[index[weakened:]].to(dtype).div(255)
    normals[weakened:] = full
    if weakened:
        coarse = pool.coarse[index[:weakened]].to(dtype).div(255)
        normals[:weakened] = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    if blurred > weakened:
        small = F.avg_pool2d(full[: blurred - weakened], 8)
        normals[weakened:blurred] = F.interpolate(small, scale_factor=8, mode="bilinear")
    return normals
