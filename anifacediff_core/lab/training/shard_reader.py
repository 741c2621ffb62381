"""What the loader's workers do for `ShardSource`: read shards, pick frames, mix them, make batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align
from anifacediff_core.head.parameters import FaceParameters

from .shard_format import Segment, Shard, read_shard, usable_frames
from .shard_pictures import decode_picture

T = TypeVar("T")


@dataclass(frozen=True)
class LoaderConfig:
    """All that decides which batches a process gets; travels to its workers.

    Attributes:
        worker_shards: the shards of each worker.
        frames: 1 for pairs of frames, else consecutive frames of a clip.
        rows: pairs or clips in a batch.
        size, head: what every segment must have.
        normals: whether to take the stored normals.
        split: other segments are passed over; None takes all.
        visits: how often a segment is picked from in an epoch.
        buffer: samples that are mixed.
    """

    worker_shards: tuple[tuple[Shard, ...], ...]
    frames: int
    rows: int
    size: int
    head: str
    normals: bool
    split: str | None
    seed: int
    rank: int
    visits: int
    buffer: int

    def usable(self, counts: tuple[int, int, int]) -> bool:
        """Whether a segment with these counts (`shard_format.usable_frames`) can be picked from."""
        _, valid, run = counts
        return valid >= 2 and run >= self.frames


class LoaderState(NamedTuple):
    """How far a worker is: the epoch, and the samples that it has given in it."""

    epoch: int
    samples: int


class Sample(NamedTuple):
    """A source and the frames that it shall move like, still encoded."""

    what: str
    source: bytes
    driving: list[bytes]
    normals: list[bytes]
    parameters: FaceParameters


class ShardBatch(NamedTuple):
    """What a worker yields.

    Attributes:
        sources: (S, 3, size, size) uint8.
        driving: (R, 3, size, size) uint8.
        normals: (R, 3, size, size) uint8, or none.
        shape, expression, pose, camera: (R, ...) of the driving frames; the shape is the source's.
        worker: whose batch it is.
        epoch, samples: the worker's state after it.
    """

    sources: Tensor
    driving: Tensor
    normals: Tensor
    shape: Tensor
    expression: Tensor
    pose: Tensor
    camera: Tensor
    worker: int
    epoch: int
    samples: int


class WorkerError(NamedTuple):
    """An `InputError` on its way from a worker, which would otherwise arrive with a traceback in its text."""

    sentence: str


class ShardBatches(IterableDataset):  # type: ignore[type-arg]
    """Endless batches; the workers take turns, beginning with the one whose turn it was."""

    def __init__(self, config: LoaderConfig, places: tuple[LoaderState, ...], batches: int) -> None:
        self.config, self.places, self.batches = config, places, batches

    def __iter__(self) -> Iterator[ShardBatch | WorkerError]:
        info = get_worker_info()
        worker = (self.batches + (info.id if info else 0)) % len(self.places)
        try:
            yield from read_batches(self.config, worker, self.places[worker])
        except InputError as error:
            yield WorkerError(str(error))


def read_batches(config: LoaderConfig, worker: int, place: LoaderState) -> Iterator[ShardBatch]:
    epoch, skipped = place
    shards = config.worker_shards[worker]
    waiting: list[Sample] = []
    while True:
        samples = skipped
        for sample in _epoch(config, worker, epoch, skipped):
            waiting.append(sample)
            samples += 1
            if len(waiting) == config.rows:
                yield _collate(config, waiting, worker, LoaderState(epoch, samples))
                waiting = []
        if not samples:
            raise InputError(
                f"No segment of {len(shards)} shards, {shards[0].url} first, has "
                f"{max(config.frames, 2)} usable frames of the split {config.split}; use other shards or "
                "fewer frames."
            )
        epoch, skipped = epoch + 1, 0


def _epoch(config: LoaderConfig, worker: int, epoch: int, skipped: int) -> Iterator[Sample]:
    """The samples of an epoch in their order, without the first `skipped`."""
    random = np.random.default_rng([config.seed, config.rank, worker, epoch])
    own = config.worker_shards[worker]
    shards = [own[index] for index in random.permutation(len(own))]
    if any(shard.segments is None for shard in shards):
        everything = (sample for _, sample in _samples(config, shards, epoch))
        yield from islice(mixed(everything, config.buffer, random), skipped, None)
        return
    names = (
        (number, index, visit)
        for number, shard in enumerate(shards)
        for index, counts in enumerate(shard.segments or ())
        if config.usable(counts)
        for visit in range(config.visits)
    )
    order = list(islice(mixed(names, config.buffer, random), skipped, None))
    yield from _fetch(config, shards, epoch, order)


Name = tuple[int, int, int]  # shard, segment, visit


def _fetch(config: LoaderConfig, shards: list[Shard], epoch: int, order: list[Name]) -> Iterator[Sample]:
    """The named samples in their order; shards of which none is wanted are not opened."""
    wanted = set(order)
    shard_of = {name[0] for name in order}
    stream = _samples(config, [shard if n in shard_of else None for n, shard in enumerate(shards)], epoch)
    held: dict[Name, Sample] = {}
    for name in order:
        while name not in held:
            found, sample = next(stream, (None, None))
            if found is None or sample is None:
                raise InputError(
                    f"The shard {shards[name[0]].url} holds other segments than its shards.json says; "
                    "prepare it again."
                )
            if found in wanted:
                held[found] = sample
        yield held.pop(name)


def _samples(
    config: LoaderConfig, shards: Sequence[Shard | None], epoch: int
) -> Iterator[tuple[Name, Sample]]:
    """All samples of an epoch as they lie in the shards."""
    for number, shard in enumerate(shards):
        if shard is None:
            continue
        for index, segment in enumerate(read_shard(shard.url)):
            if config.split not in (None, segment.info.split):
                continue
            if not config.usable(usable_frames(segment.parameters.valid)):
                continue
            for visit in range(config.visits):
                yield (number, index, visit), draw_sample(config, segment, epoch, visit)


def draw_sample(config: LoaderConfig, segment: Segment, epoch: int, visit: int) -> Sample:
    """Choose a source and driving frames, only valid ones, by seed, epoch, segment and visit alone."""
    what = f"{segment.key} ({segment.info.clip})"
    if (segment.info.size, segment.info.head) != (config.size, config.head):
        raise InputError(
            f"{what} has {segment.info.size}² pixels and the head '{segment.info.head}', the other segments "
            f"{config.size}² and '{config.head}'; prepare all of them alike."
        )
    if config.normals and not segment.normals:
        raise InputError(f"{what} has no stored normals; prepare it with them, or let them be rendered.")
    random = np.random.default_rng(stable_seed(segment.key, config.seed, epoch, visit))
    valid = torch.nonzero(segment.parameters.valid).flatten().numpy()
    if config.frames == 1:
        source, first = random.choice(valid, 2, replace=False).tolist()
    else:
        runs = np.convolve(segment.parameters.valid.numpy(), np.ones(config.frames, int), "valid")
        first = int(random.choice(np.flatnonzero(runs == config.frames)))
        source = int(random.choice(valid))
    driving = slice(first, first + config.frames)
    parameters = segment.parameters[driving]
    return Sample(
        what,
        segment.pictures[source],
        list(segment.pictures[driving]),
        list(segment.normals[driving]) if config.normals else [],
        align(segment.parameters[source], parameters),
    )


def _collate(config: LoaderConfig, samples: list[Sample], worker: int, place: LoaderState) -> ShardBatch:
    def decoded(parts: Iterable[tuple[bytes, str]]) -> Tensor:
        pictures = [decode_picture(data, config.size, what) for data, what in parts]
        return torch.stack(pictures) if pictures else torch.empty(0, dtype=torch.uint8)

    params = FaceParameters.concatenate([sample.parameters for sample in samples])
    return ShardBatch(
        decoded((sample.source, sample.what) for sample in samples),
        decoded((data, sample.what) for sample in samples for data in sample.driving),
        decoded((data, sample.what) for sample in samples for data in sample.normals),
        params.shape,
        params.expression,
        params.pose,
        params.camera,
        worker,
        *place,
    )


def mixed(items: Iterable[T], size: int, random: np.random.Generator) -> Iterator[T]:
    """The items in another order; no more than `size` of them are held back."""
    held: list[T] = []
    for item in items:
        if len(held) < size:
            held.append(item)
            continue
        place = int(random.integers(size))
        yield held[place]
        held[place] = item
    for place in random.permutation(len(held)):
        yield held[place]


def deal(
    shards: tuple[Shard, ...], frames: int, rank: int, world: int, workers: int
) -> tuple[tuple[Shard, ...], ...]:
    """The shards of each worker of a process. Shards that are known to hold nothing usable are left out."""

    def usable(shard: Shard) -> bool:
        return shard.segments is None or any(v >= 2 and run >= frames for _, v, run in shard.segments)

    useful = [shard for shard in shards if usable(shard)]
    if not useful:
        raise InputError(f"No shard holds {max(frames, 2)} usable frames of a clip; use fewer frames.")
    if len(useful) < world:
        raise InputError(
            f"There are {len(useful)} shards for {world} processes, and each needs one of its own; prepare "
            "the videos into more and smaller shards, or use fewer processes."
        )
    own = useful[rank::world]
    workers = min(max(workers, 1), len(own))
    return tuple(tuple(own[worker::workers]) for worker in range(workers))


def stable_seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
