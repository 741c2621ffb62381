"""Training from shards: batches of `Pairs` that follow from a seed, and go on exactly where they stopped.

The shards of a set are dealt to the processes, and those of a process to its loader workers, once and for
all, so nobody sees what another one sees. Every worker reads its shards in a new order each epoch, picks
frames of every segment, and mixes what it picked in a buffer. Which frames are picked follows from the seed,
the epoch and the segment alone, and the order from the seed, the epoch and the worker's state: where a worker
is in its epoch says what comes next. That state travels with each batch, so what workers have read ahead
does not count. :mod:`.shard_format` says what a shard holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.regions import SPOTS, face_spots
from anifacediff_core.head.render import draw_normals
from anifacediff_core.network.autoencoder import AutoEncoder, StableAutoEncoder
from anifacediff_core.network.encoders import clip_preprocess

from .data import NormalsNoise, Pairs, weaken_expression
from .shard_format import find_shards, read_shard
from .shard_reader import (
    LoaderConfig,
    LoaderState,
    ShardBatch,
    ShardBatches,
    WorkerError,
    deal,
    read_batches,
    stable_seed,
)

FACE_REGIONS = ("left_eye", "right_eye", "lips", "head_skin")  # what `face_spots` needs of a head
NOWHERE = -1e6  # pixels; a disk of this radius covers nothing
DOWNSAMPLING = 8  # of the autoencoder


class ShardSource:
    """Batches of `Pairs` from shards. Nothing here draws from the global random numbers.

    Args:
        urls: see `shard_format.find_shards`.
        frames: 1 for stage 1: two different frames of one clip each. N for stage 2: N consecutive frames and
            a source of the same clip.
        rows: pairs or clips in a batch of this process.
        head: the head of the parameters, on the device that the batches shall be on.
        autoencoder: on the same device, of any floating type.
        image_size: side of the source as the image encoder sees it.
        noise: see `NormalsNoise`; its rows come first, as in `data.draw_pairs`.
        dtype: of the normals.
        seed: all batches follow from it; the same for all processes.
        scaling_factor: factor from the autoencoder's output to latents, `NetworkConfig.scaling_factor`.
        split: train, val or test; None takes all segments.
        rank, world: which of how many processes this is.
        workers: processes that read and decode; 0 does it here.
        visits: how often a segment is picked from in an epoch. A pair needs two frames of the 96 that have
            to be read.
        buffer: frames that a worker holds encoded in order to mix them.
        normals: "stored", "rendered", or "auto" for stored ones where the set says that it has them.
        chunk: pictures that are encoded and drawn at once.

    Attributes:
        size: side of the pictures.
        frames, rows: as given.
        batches: drawn so far.

    Raises:
        InputError: there are no shards, fewer than processes, or of another head.
    """

    def __init__(
        self,
        urls: str | Path | Sequence[str | Path],
        *,
        frames: int,
        rows: int,
        head: HeadModel,
        autoencoder: AutoEncoder | StableAutoEncoder,
        image_size: int,
        noise: NormalsNoise,
        dtype: torch.dtype,
        seed: int,
        scaling_factor: float = 1.0,
        split: str | None = "train",
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        visits: int = 4,
        buffer: int = 2048,
        normals: str = "auto",
        chunk: int = 64,
    ) -> None:
        if min(frames, rows, visits, chunk) < 1 or workers < 0:
            raise InputError(
                f"There is nothing to read with {frames} frames, {rows} rows, {visits} visits and {workers} "
                "workers; choose at least 1, for workers 0."
            )
        found = find_shards(urls, split)
        size, owner, stored = found.size, found.head, found.normals
        worker_shards = deal(found.shards, frames, rank, world, workers)
        if size is None or owner is None:
            first = next(read_shard(worker_shards[0][0].url), None)
            if first is None:
                raise InputError(f"The shard {worker_shards[0][0].url} is empty; prepare it again.")
            size, owner, stored = first.info.size, first.info.head, bool(first.normals)
        if owner != head.name:
            raise InputError(
                f"The shards' parameters belong to the head '{owner}' but the network to '{head.name}'; "
                "prepare the videos with that head."
            )
        if size % DOWNSAMPLING:
            raise InputError(f"The shards' pictures have {size}² pixels; prepare them with a multiple of 8.")
        if normals not in ("stored", "rendered", "auto"):
            raise InputError(f"There are no '{normals}' normals; choose stored, rendered or auto.")
        use_stored = {"stored": True, "rendered": False, "auto": bool(stored)}[normals]
        self.config = LoaderConfig(
            worker_shards=worker_shards,
            frames=frames,
            rows=rows,
            size=size,
            head=owner,
            normals=use_stored,
            split=split,
            seed=seed,
            rank=rank,
            visits=visits,
            buffer=max(buffer // (frames + 1), 2),
        )
        self.head, self.autoencoder, self.image_size = head, autoencoder, image_size
        self.noise, self.dtype, self.scaling_factor, self.chunk = noise, dtype, scaling_factor, chunk
        self.frames, self.rows, self.size = frames, rows, size
        self.workers = min(workers, len(worker_shards))
        self.world = world
        self.batches = 0
        self._places = [LoaderState(0, 0) for _ in worker_shards]
        self._iterator: Iterator[ShardBatch | WorkerError] | None = None

    # ---- drawing

    @torch.no_grad()
    def draw(self, rows: int | None = None) -> Pairs:
        """The next batch, on the head's device: S = rows sources and R = rows * frames driving frames.

        Args:
            rows: must be those that the source was made with.

        Raises:
            InputError: a shard cannot be read, or there is nothing to pick from.
        """
        if rows not in (None, self.rows):
            raise ValueError(f"This source has batches of {self.rows} rows, not {rows}.")
        if self._iterator is None:
            self._iterator = self._load()
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            self._iterator = None
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                "A process that reads shards was ended from outside, perhaps for want of memory; use fewer "
                "workers or a smaller buffer."
            ) from error
        if isinstance(batch, WorkerError):
            self._iterator = None
            raise InputError(batch.sentence)
        pairs = self._encode(batch)
        self._places[batch.worker] = LoaderState(batch.epoch, batch.samples)
        self.batches += 1
        return pairs

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Pairs]:
        """The first batch with its pictures in [0, 1], sources (S, 3, size, size) and driving frames
        (R, 3, size, size); it counts as not drawn.
        """
        batch = next(read_batches(self.config, 0, LoaderState(0, 0)))
        return self._pixels(batch.sources), self._pixels(batch.driving), self._encode(batch)

    @property
    def epoch(self) -> int:
        """Epochs that all workers have begun, from 0."""
        return min(place.epoch for place in self._places)

    def state_dict(self) -> dict[str, Any]:
        """What comes next, as JSON can hold it; of this process, the others have their own."""
        return {
            "batches": self.batches,
            "places": [list(place) for place in self._places],
            "reading": self._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called: the following batches are bit for bit the same.

        Raises:
            InputError: the state is that of other shards, another seed, or another number of processes,
                workers, rows or frames.
        """
        expected = self._fingerprint()
        for name, value in expected.items():
            if state["reading"].get(name) != value:
                raise InputError(
                    f"The data were read with {name} {state['reading'].get(name)} and now with {value}; "
                    "go on with the same, or start anew."
                )
        self.batches = int(state["batches"])
        self._places = [LoaderState(int(epoch), int(samples)) for epoch, samples in state["places"]]
        self._iterator = None

    def close(self) -> None:
        """End the workers; drawing begins them anew."""
        self._iterator = None

    def _fingerprint(self) -> dict[str, Any]:
        config = self.config
        names = [[Path(shard.url).name for shard in shards] for shards in config.worker_shards]
        return {
            "seed": config.seed,
            "process": f"{config.rank + 1} of {self.world}",
            "workers": len(config.worker_shards),
            "rows": config.rows,
            "frames": config.frames,
            "visits": config.visits,
            "buffer": config.buffer,
            "shards": hashlib.sha256(repr(names).encode()).hexdigest()[:16],
        }

    def _load(self) -> Iterator[ShardBatch | WorkerError]:
        on_cuda = self.head.template.device.type == "cuda"
        loader = DataLoader(
            ShardBatches(self.config, tuple(self._places), self.batches),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=on_cuda,
            generator=torch.Generator(),  # or the loader would draw its workers' seeds from the global one
        )
        return iter(loader)

    # ---- from bytes to what the networks take

    def _encode(self, batch: ShardBatch) -> Pairs:
        device = self.head.template.device
        sources, driving = (self._pixels(part) for part in (batch.sources, batch.driving))
        rows = len(driving)
        params = FaceParameters(
            shape=batch.shape.to(device),
            expression=batch.expression.to(device),
            pose=batch.pose.to(device),
            camera=batch.camera.to(device),
            valid=torch.ones(rows, dtype=torch.bool, device=device),
            head=self.config.head,
        )
        self.head.require(params)
        return Pairs(
            source_latents=self._latents(sources),
            source_pixels=clip_preprocess(sources, self.image_size),
            latents=self._latents(driving),
            normals=self._normals(params, batch.normals),
            expression=params.expression,
            spots=spots(self.head, params, self.size),
        )

    def _pixels(self, pictures: Tensor) -> Tensor:
        return pictures.to(self.head.template.device, non_blocking=True).float().div(255)

    def _latents(self, pictures: Tensor) -> Tensor:
        dtype = next(self.autoencoder.parameters()).dtype
        parts = [self.autoencoder.encode(part.to(dtype)).float() for part in pictures.split(self.chunk)]
        return torch.cat(parts) * self.scaling_factor

    def _normals(self, params: FaceParameters, stored: Tensor) -> Tensor:
        """The first rows are weakened, the next blurred, whole clips at a time; see `data.draw_pairs`."""
        rows, frames, size = len(params), self.frames, self.size
        weakened = round(self.noise.weakened * self.rows) * frames
        blurred = weakened + round(self.noise.blurred * self.rows) * frames
        parts = []
        if weakened:
            generator = torch.Generator().manual_seed(stable_seed("weakened", self._seeds(), self.batches))
            weak = weaken_expression(params[:weakened], generator)
            parts.append(F.interpolate(self._draw(weak, size // 2), scale_factor=2, mode="bilinear"))
        if len(stored):
            full = self._pixels(stored[weakened:])
        else:
            full = self._draw(params[weakened:], size)
        if blurred > weakened:
            small = F.avg_pool2d(full[: blurred - weakened], 8)
            parts.append(F.interpolate(small, scale_factor=8, mode="bilinear"))
        parts.append(full[blurred - weakened :])
        normals = torch.cat(parts)
        assert len(normals) == rows
        return normals.to(self.dtype)

    def _draw(self, params: FaceParameters, size: int) -> Tensor:
        """Normals (frames, 3, size, size), with 8 bits as stored ones have."""
        parts = [
            draw_normals(self.head, params[start : start + self.chunk], size)
            for start in range(0, len(params), self.chunk)
        ]
        drawn = torch.cat(parts) if parts else params.pose.new_empty(0, 3, size, size)
        return drawn.mul(255).round().div(255)

    def _seeds(self) -> tuple[int, int]:
        return self.config.seed, self.config.rank


def spots(head: HeadModel, params: FaceParameters, size: int) -> Tensor:
    """Where the face's parts are (frames, 4, 3), see `regions.face_spots`.

    A head that does not name its eyes and lips gets disks that cover nothing: the loss counts all pixels
    alike.
    """
    if set(FACE_REGIONS) <= head.regions.keys():
        return face_spots(head, params, size)
    nothing = params.pose.new_zeros(len(params), len(SPOTS), 3)
    nothing[..., 2] = NOWHERE
    return nothing
