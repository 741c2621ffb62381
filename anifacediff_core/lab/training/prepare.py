"""Videos of faces to shards: find the clips, split them by identity, capture, cut out, write.

Clips are videos, or folders of pictures, in any folder; VoxCeleb as FOMM preprocesses it is one. The first
run writes `plan.json`: which clips make up which chunk. Later runs go on with it, and put clips that are new
into chunks of their own. See :mod:`.shard_chunks` for how each chunk is written once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anifacediff_core.capture.extract import Models, crop_portrait, extract_parameters
from anifacediff_core.claims import parse_json
from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import NAME as FLAME
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FORMAT as PARAMETERS
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab.parsing import parse_rate
from anifacediff_core.progress import Progress
from anifacediff_core.storage import atomic_write
from anifacediff_core.video import numbered_pictures, probe, read_frames, read_image
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models

from ..scale import Scale, run
from .clips import Clip, PrepareConfig, find_clips
from .shard_chunks import (
    PLAN,
    done_chunk,
    finish,
    read_plan,
    remove_stale,
    require_same,
    short_hash,
    write_chunk,
)
from .shard_format import (
    SPLITS,
    Segment,
    SegmentInfo,
    usable_frames,
)
from .shard_pictures import encode_picture

PARAMETER_CACHE = "parameters"
FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class Encoders:
    """Files of what reads the faces; FLAME's encoders when there is a FLAME, else the checkpoint's.

    Attributes:
        checkpoint: with the face detector and the face encoder.
        deca, smirk: FLAME's encoders, at least one of them beside `flame`.
        flame: the head.
        device: where they run; "auto" is decided by the worker.
    """

    checkpoint: str
    deca: str | None = None
    smirk: str | None = None
    flame: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if (self.flame is None) != (self.deca is None and self.smirk is None):
            raise InputError("DECA and SMIRK need FLAME and FLAME needs one of them; name both files.")

    def describe(self) -> str:
        """Names and sizes of the files: what was captured with others is captured again."""
        files = [path for path in (self.checkpoint, self.deca, self.smirk, self.flame) if path]
        for path in files:
            if not Path(path).is_file():
                raise InputError(f"There is no file {path}; check the path.")
        return ", ".join(f"{Path(path).name} ({Path(path).stat().st_size})" for path in files)

    def load(self) -> Models:
        checkpoint = load_checkpoint(self.checkpoint)
        return load_face_models(checkpoint, self.deca, self.smirk, self.flame, pick_device(self.device))


# ---- planning


def make_plan(root: Path, out: Path, config: PrepareConfig, encoders: str) -> dict[str, Any]:
    """The folder's plan, with chunks for clips that it does not know yet; written to `plan.json`.

    Raises:
        InputError: the folder was prepared with other settings.
    """
    settings = {**asdict(config), "encoders": encoders}
    plan = read_plan(out)
    if plan is None:
        plan = {"recipe": settings, "chunks": []}
    require_same(out, plan["recipe"], settings)
    known = {path for chunk in plan["chunks"] for path, _ in chunk["clips"]}
    _add_chunks(
        plan["chunks"], [c for c in find_clips(root, config, out) if c.path not in known], config.chunk
    )
    with atomic_write(out / PLAN) as temporary:
        Path(temporary).write_text(json.dumps(plan))
    return plan


def _add_chunks(chunks: list[dict[str, Any]], clips: list[Clip], most: int) -> None:
    for split in SPLITS:
        here = iter([clip for clip in clips if clip.split == split])
        number = sum(chunk["split"] == split for chunk in chunks)
        while part := list(islice(here, most)):
            members = [[clip.path, clip.identity] for clip in part]
            chunks.append({"name": f"{split}-{number:05d}", "split": split, "clips": members})
            number += 1


# ---- working


class Preparer:
    """Makes a chunk's shards; a worker of `scale.run`.

    Args:
        root, out: folders that all workers see under the same path.
    """

    def __init__(self, root: str, out: str, config: PrepareConfig, encoders: Encoders) -> None:
        self.root, self.out, self.config = Path(root), Path(out), config
        self.stamp = f"{encoders.describe()}, {config.mode}"
        self.models = encoders.load()

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """The record of the chunk, from disk where it is done already."""
        done = done_chunk(self.out, job["name"])
        if done is not None:
            return done
        skipped: list[dict[str, Any]] = []
        segments = chain.from_iterable(
            self._clip(Clip(path, identity, job["split"]), skipped) for path, identity in job["clips"]
        )
        return write_chunk(self.out, job["name"], job["split"], segments, skipped)

    def _clip(self, clip: Clip, skipped: list[dict[str, Any]]) -> Iterator[Segment]:
        """Segments of a clip; one that cannot be read goes to `skipped`."""
        written = 0
        try:
            for segment in self._segments(clip):
                written += 1
                yield segment
            if not written:
                raise InputError("A face was found in fewer than two frames of every segment.")
        except _video_errors() as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            skipped.append({"clip": clip.path, "reason": reason, "segments": written})

    def _segments(self, clip: Clip) -> Iterator[Segment]:
        path = self.root / clip.path
        parameters, square, fps = self._captured(path, clip)
        # Cut, since names in a tar file take 100 bytes at most, with all that is added to this one.
        name = f"{re.sub(r'[^0-9A-Za-z_-]+', '_', Path(clip.path).stem)[-48:]}-{short_hash(clip.path)}"
        frames = self._pictures(path, square)
        for first in range(0, len(parameters), self.config.segment):
            part = parameters[first : first + self.config.segment]
            pictures = [
                encode_picture(f, self.config.picture, self.config.quality) for f in islice(frames, len(part))
            ]
            if len(pictures) < len(part):
                raise InputError(f"{clip.path} has become shorter since its face was captured.")
            if usable_frames(part.valid)[1] < 2:
                continue
            info = SegmentInfo(
                clip.identity, clip.path, fps, first, len(part), self.config.size, part.head, clip.split
            )
            yield Segment(f"{name}-{first:06d}", info, part, pictures, self._normals(part))

    def _normals(self, part: FaceParameters) -> list[bytes]:
        if not self.config.normals:
            return []
        return [
            encode_picture(image, "png") for image in render_normals(self.models.head, part, self.config.size)
        ]

    def _captured(self, path: Path, clip: Clip) -> tuple[FaceParameters, Tensor, Fraction]:
        """Parameters, portrait square and frame rate of a clip, captured once and kept."""
        cache = self.out / PARAMETER_CACHE / f"{short_hash(clip.path)}.safetensors"
        stamp = f"{self.stamp}; {_fingerprint(path)}"
        kept = _read_cache(cache, stamp)
        if kept is not None:
            return kept
        fps = Fraction(self.config.fps) if path.is_dir() else probe(path).rate
        if fps <= 0:
            raise InputError(f"{clip.path} says that it has {fps} frames a second.")
        found = extract_parameters(_frames(path), self.models, self.config.mode, what=clip.path)
        about = {"stamp": stamp, "square": json.dumps(found.square.tolist()), "fps": str(fps)}
        found.parameters.save(cache, about)
        return found.parameters, found.square, fps

    def _pictures(self, path: Path, square: Tensor) -> Iterator[Tensor]:
        """The portraits (3, size, size), one after the other."""
        frames, size = _frames(path), self.config.size
        while waiting := list(islice(frames, FRAMES_AT_ONCE)):
            whole = square.tolist() == [0.0, 0.0, 1.0]
            if whole and waiting[0].shape[-2:] == (size, size):
                yield from waiting  # already a portrait of that size: not resampled
            else:
                device = self.models.head.template.device
                yield from crop_portrait(torch.stack(waiting).to(device), square, size).cpu()


def _video_errors() -> tuple[type[Exception], ...]:
    """What a damaged video can raise; a full disk is not among them."""
    from av.error import FFmpegError

    return InputError, FFmpegError, ValueError


def _frames(path: Path) -> Iterator[Tensor]:
    """Frames (3, height, width) of a video or of a folder of pictures, in the order of the numbers in their
    names.
    """
    if not path.is_dir():
        yield from read_frames(path)
        return
    for picture in numbered_pictures(path):
        yield read_image(picture)[0]


def _fingerprint(path: Path) -> str:
    """Changes when the clip does."""
    if path.is_dir():
        pictures = numbered_pictures(path)
        for picture in pictures:
            if not picture.is_file():
                raise InputError(f"{path.name}/{picture.name} is not a file, or a link that leads nowhere.")
        return short_hash(repr([(picture.name, picture.stat().st_size) for picture in pictures]))
    if not path.is_file():
        raise InputError(f"{path.name} is not there any more.")
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}"


def _read_cache(path: Path, stamp: str) -> tuple[FaceParameters, Tensor, Fraction] | None:
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            about = parse_json((file.metadata() or {}).get(PARAMETERS, "{}"))
        if about.get("stamp") != stamp:
            return None
        return FaceParameters.load(path), torch.tensor(parse_json(about["square"])), parse_rate(about["fps"])
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError):
        return None  # damaged: captured again


# ---- the whole


@dataclass(frozen=True)
class Prepared:
    """What is in the folder now.

    Attributes:
        chunks, done: all of them, and those that are done.
        clips: per split, clips that are in the shards.
        skipped: clips that are not, with the reason.
    """

    chunks: int
    done: int
    clips: dict[str, int]
    skipped: list[dict[str, Any]]


def prepare(
    root: str | Path,
    out: str | Path,
    encoders: Encoders,
    config: PrepareConfig | None = None,
    scale: Scale | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Turn the videos of a folder into shards; call it again to go on after an interruption.

    Args:
        root: folder with the videos; `out`: folder for the shards. On a cluster all nodes see both.
        progress: called with clips (done, total).

    Raises:
        InputError: nothing is there to be prepared, or nothing could be.
    """
    root, out, config = Path(root).resolve(), Path(out).resolve(), config or PrepareConfig()
    plan = make_plan(root, out, config, encoders.describe())
    remove_stale(out)
    chunks = plan["chunks"]
    total, done = sum(len(chunk["clips"]) for chunk in chunks), 0
    waiting = []
    for chunk in chunks:
        if done_chunk(out, chunk["name"]) is not None:
            done += len(chunk["clips"])
        else:
            waiting.append(chunk)
    sizes = {chunk["name"]: len(chunk["clips"]) for chunk in chunks}
    make = partial(Preparer, str(root), str(out), config, encoders)
    try:
        for record in run(make, waiting, scale or Scale()):
            done += sizes[record["name"]]
            if progress is not None:
                progress(done, total)
    finally:
        prepared = _finish(out, chunks, config, encoders)
    if not any(prepared.clips.values()):
        first = prepared.skipped[0]
        raise InputError(
            f"No clip of {root} could be used; the first one, {first['clip']}: {first['reason']}"
        )
    return prepared


def _finish(out: Path, chunks: list[dict[str, Any]], config: PrepareConfig, encoders: Encoders) -> Prepared:
    names = [chunk["name"] for chunk in chunks]
    head = HeadModel.bundled().name if encoders.flame is None else FLAME
    skipped = finish(out, names, size=config.size, head=head, normals=config.normals)
    done = [chunk for chunk in chunks if done_chunk(out, chunk["name"]) is not None]
    lost = {entry["clip"] for entry in skipped if not entry["segments"]}
    clips = {
        split: sum(
            path not in lost for chunk in done if chunk["split"] == split for path, _ in chunk["clips"]
        )
        for split in SPLITS
    }
    return Prepared(len(chunks), len(done), clips, skipped)


def describe(prepared: Prepared, out: Path) -> Iterable[str]:
    """Sentences for people."""
    counts = ", ".join(f"{count} {split}" for split, count in prepared.clips.items())
    yield f"{out}: clips in shards: {counts}; {prepared.done} of {prepared.chunks} chunks are done."
    if prepared.skipped:
        yield f"{len(prepared.skipped)} clips were skipped; {out / 'skipped.jsonl'} says why."
