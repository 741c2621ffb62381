"""Measuring the results of any method: FID, CSIM, APD, AED and flicker over a list of pairs (paper 4.1).

Frames are streamed, so memory does not grow with the length or number of videos. A result that is missing,
broken or of another length than its driving video is listed with the reason and the rest goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.claims import parse_json, shown
from anifacediff_core.errors import InputError
from anifacediff_core.progress import Progress
from anifacediff_core.video import VIDEO_ENDINGS

from ..metrics import psnr, ssim
from .faces import FaceReader, ReadFaces, face_distances
from .frechet import Features, RunningGaussian, frechet_distance
from .identity import FIXED, POINTS, Embedder, cut_points, cut_portrait
from .pairs import PROTOCOLS, SAME, Pair, batches, clip_frames, count_frames, driving_frames, one_frame
from .sheet import results_sheet, small
from .steadiness import Flicker, WarpingMetric, has_opencv

METHOD_FILE = "method.json"  # in a folder of results, what `evaluate run` tells about them
LEAST_SIDE = 12  # pixels that OpenCV's optical flow needs
METRICS = (
    "psnr",
    "ssim",
    "fid",
    "csim",
    "apd",
    "aed",
    "pose_bundled",
    "expression_bundled",
    "flicker",
    "warping",
)


@dataclass(frozen=True)
class MetricModels:
    """The networks that measure, as far as the user named their files.

    Attributes:
        inception: for FID.
        embedder: for CSIM.
        crop: which part of a picture CSIM looks at: "points" or "fixed".
        readers: of faces: DECA for APD and AED, the bundled encoder for distances of its own.
    """

    inception: Features | None = None
    embedder: Embedder | None = None
    crop: str = FIXED
    readers: tuple[FaceReader, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """What measures each metric, for the report."""
        names = {}
        if self.inception is not None:
            names["fid"] = self.inception.name
        if self.embedder is not None:
            crop = "five points" if self.crop == POINTS else "fixed part of the portrait"
            names["csim"] = f"{self.embedder.name}, {crop}"
        for reader in self.readers:
            names["apd, aed" if reader.is_deca else "pose, expression"] = reader.name
        return names

    @property
    def missing(self) -> dict[str, str]:
        """Why a metric of the paper is not measured at all."""
        reasons = {}
        if self.inception is None:
            reasons["fid"] = "no Inception file"
        if self.embedder is None:
            reasons["csim"] = "no ArcFace file"
        if not any(reader.is_deca for reader in self.readers):
            reasons |= dict.fromkeys(("apd", "aed"), "no DECA file")
        if not has_opencv():
            reasons["warping"] = "no OpenCV"
        return reasons

    @property
    def aligner(self) -> FaceReader | None:
        """Who tells the five points, when CSIM is to look at them."""
        if self.embedder is None or self.crop != POINTS:
            return None
        if not self.readers:
            raise InputError("CSIM by five points needs DECA or the bundled encoder to find them; name one.")
        return self.readers[0]


@dataclass
class MetricAccumulator:
    """What a method has shown in one protocol so far."""

    gaussian: RunningGaussian = field(default_factory=RunningGaussian)
    clips: dict[str, dict[str, float]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    results: int = 0
    frames: int = 0
    without_face: dict[str, int] = field(default_factory=dict)

    def add(self, pair: str, metric: str, values: Tensor) -> None:
        """Values of single frames; their mean over all frames of all pairs is the metric."""
        self.sums[metric] = self.sums.get(metric, 0.0) + float(values.double().sum())
        self.counts[metric] = self.counts.get(metric, 0) + len(values)
        if len(values):
            self.clips.setdefault(pair, {})[metric] = float(values.double().mean())

    def add_clip(self, pair: str, metric: str, value: float) -> None:
        """A value of a whole clip; their mean over the pairs is the metric."""
        if math.isfinite(value):
            self.clips.setdefault(pair, {})[metric] = value
            self.sums[metric] = self.sums.get(metric, 0.0) + value
            self.counts[metric] = self.counts.get(metric, 0) + 1

    def mean(self, metric: str) -> float | None:
        return self.sums[metric] / self.counts[metric] if self.counts.get(metric) else None


@dataclass(frozen=True)
class DrivingFaces:
    """What is the same for all methods about a pair, read once."""

    frames: int
    size: tuple[int, int]
    faces: tuple[ReadFaces, ...]


class Truth:
    """Sources and driving videos: what the networks see in them, kept for the next method.

    Kept are parameters and embeddings, never pictures.
    """

    def __init__(self, models: MetricModels) -> None:
        self.models = models
        self._driving_faces: dict[tuple[str, int, int], DrivingFaces] = {}
        self._embeddings: dict[tuple[str, int], Tensor] = {}

    def driving(self, pair: Pair) -> DrivingFaces:
        key = (pair.driving, pair.first, pair.frames)
        if key not in self._driving_faces:
            count, size = count_frames(Path(pair.driving), pair.first, pair.frames)
            faces = tuple(
                reader(driving_frames(pair), "the driving video", count) for reader in self.models.readers
            )
            self._driving_faces[key] = DrivingFaces(count, size, faces)
        return self._driving_faces[key]

    def source_embedding(self, pair: Pair) -> Tensor:
        """(1, features)."""
        assert self.models.embedder is not None
        key = (pair.source, pair.source_frame)
        if key not in self._embeddings:
            picture = one_frame(Path(pair.source), pair.source_frame)[None]
            aligner = self.models.aligner
            if aligner is None:
                face = cut_portrait(picture)
            else:
                seen = aligner(picture, "the source picture", 1)
                if not seen.parameters.valid.all():
                    raise InputError(f"No face was found in the source {Path(pair.source).name}.")
                face = cut_points(picture, seen.points)
            self._embeddings[key] = self.models.embedder(face)
        return self._embeddings[key]


def find_result(folder: Path, pair: str) -> Path:
    """A pair's result: a video, or a folder of pictures."""
    for ending in sorted(VIDEO_ENDINGS, key=lambda e: e != ".mp4"):
        if (folder / (pair + ending)).is_file():
            return folder / (pair + ending)
    if (folder / pair).is_dir():
        return folder / pair
    raise InputError("there is no result of this name")


# ---- measuring


@dataclass(frozen=True)
class Method:
    """A folder of results.

    Attributes:
        fsa, adapter: whether facial shape alignment and expression adapter were on; None where nobody says.
        protocols: those that it was run on; empty for all.
        checkpoint: that it was run with, where that is known: its variants belong to one table.
    """

    name: str
    folder: Path
    fsa: bool | None = None
    adapter: bool | None = None
    protocols: tuple[str, ...] = ()
    checkpoint: str = ""

    @classmethod
    def of(cls, name: str, folder: Path) -> Method:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder} with the results of {name}.")
        try:
            settings = parse_json((folder / METHOD_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(name, folder)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder / METHOD_FILE} could not be read ({shown(error)}); remove it."
            ) from error
        settings = settings if isinstance(settings, dict) else {}
        flags = [
            settings.get(key) if isinstance(settings.get(key), bool) else None for key in ("fsa", "adapter")
        ]
        protocols = settings.get("protocols")
        known = tuple(str(p) for p in protocols) if isinstance(protocols, list) else ()
        return cls(name, folder, flags[0], flags[1], known, str(settings.get("checkpoint", "")))


@dataclass
class Measured:
    """A method's metrics by protocol, what went wrong by pair, and small pictures for the contact sheet."""

    method: Method
    metrics: dict[str, MetricAccumulator] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


def measure_method(
    method: Method,
    pairs: list[Pair],
    models: MetricModels,
    truth: Truth,
    *,
    sheet_pairs: int = 8,
    progress: Progress | None = None,
) -> Measured:
    """Measure one folder of results.

    Args:
        truth: kept between methods.
        sheet_pairs: of how many pairs to keep a picture.
        progress: called with pairs (done, total).
    """
    measured = Measured(method)
    wanted = [pair for pair in pairs if not method.protocols or pair.protocol in method.protocols]
    for index, pair in enumerate(wanted):
        metrics = measured.metrics.setdefault(pair.protocol, MetricAccumulator())
        try:
            clip = find_result(method.folder, pair.pair)
            driving_faces = truth.driving(pair)
            count, size = count_frames(clip)
            if max(size) < LEAST_SIDE:
                raise InputError(f"its frames have only {size[1]}x{size[0]} pixels")
            if count != driving_faces.frames:
                raise InputError(f"it has {count} frames where {driving_faces.frames} drive")
            _measure_pair(clip, pair, driving_faces, size, models, truth, metrics)
        except InputError as error:
            measured.problems[pair.pair] = str(error)
        else:
            if len(measured.pictures) < sheet_pairs:
                measured.pictures[pair.pair] = small(one_frame(clip, count // 2))
        if progress is not None:
            progress(index + 1, len(wanted))
    return measured


def _measure_pair(
    clip: Path,
    pair: Pair,
    driving_faces: DrivingFaces,
    size: tuple[int, int],
    models: MetricModels,
    truth: Truth,
    metrics: MetricAccumulator,
) -> None:
    """Measure one result; a failure leaves the metrics as they were, as far as reading can fail."""
    source = truth.source_embedding(pair) if models.embedder is not None else None
    faces = tuple(reader(clip_frames(clip), "the result", driving_faces.frames) for reader in models.readers)
    for reader, found, driving in zip(models.readers, faces, driving_faces.faces, strict=True):
        distances = face_distances(found.parameters, driving.parameters, reader.is_deca)
        names = ("apd", "aed") if reader.is_deca else ("pose_bundled", "expression_bundled")
        metrics.add(pair.pair, names[0], distances.pose)
        metrics.add(pair.pair, names[1], distances.expression)
        metrics.add(pair.pair, f"rotation_{'deca' if reader.is_deca else 'bundled'}", distances.rotation)
        metrics.without_face[reader.name] = metrics.without_face.get(reader.name, 0) + distances.missing
    flicker = Flicker() if pair.protocol == SAME else None
    warping = WarpingMetric() if has_opencv() else None
    true_frames = driving_frames(pair)
    nearness: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    similarities: list[Tensor] = []
    done = 0
    for frames in batches(clip_frames(clip)):
        if models.inception is not None:
            metrics.gaussian.update(models.inception(frames))
        if models.embedder is not None and source is not None:
            part = faces[0][done : done + len(frames)] if models.aligner is not None else None
            similarities.append(_similarity(frames, part, source, models.embedder))
        if flicker is not None:
            true = torch.stack(list(islice(true_frames, len(frames))))
            for frame, other in zip(frames, true, strict=True):
                flicker.update(frame, other)
            fitted = _fitted(true, frames.shape[-2:])
            nearness["psnr"].append(psnr(frames, fitted))
            nearness["ssim"].append(ssim(frames, fitted))
        if warping is not None:
            for frame in frames:
                warping.update(frame)
        done += len(frames)
    metrics.results += 1
    metrics.frames += done
    if similarities:
        values = torch.cat(similarities)
        metrics.add(pair.pair, "csim", values)
        if models.aligner is not None:
            name = "the alignment of CSIM"
            metrics.without_face[name] = metrics.without_face.get(name, 0) + done - len(values)
    if flicker is not None:
        for metric, parts in nearness.items():
            metrics.add(pair.pair, metric, torch.cat(parts))
        metrics.add_clip(pair.pair, "flicker", flicker.value)
    if warping is not None:
        metrics.add_clip(pair.pair, "warping", warping.value)


def _fitted(frames: Tensor, size: torch.Size) -> Tensor:
    """True frames in the size of the results."""
    if frames.shape[-2:] == size:
        return frames
    return F.interpolate(frames, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def _similarity(frames: Tensor, faces: ReadFaces | None, source: Tensor, embed: Embedder) -> Tensor:
    """Cosine similarity of each frame with the source (frames with a face,)."""
    if faces is None:
        return (embed(cut_portrait(frames)) * source).sum(1)
    seen = faces.parameters.valid
    if not seen.any():
        return source.new_zeros(0)
    return (embed(cut_points(frames[seen], faces.points[seen])) * source).sum(1)


def reference_features(
    clips: list[Path], inception: Features, every: int = 1, progress: Progress | None = None
) -> RunningGaussian:
    """Features of the real videos that FID compares with, every so many frames.

    Raises:
        InputError: one of them cannot be read: the reference has to be whole.
    """
    found = RunningGaussian()
    for index, clip in enumerate(clips):
        for frames in batches(islice(clip_frames(clip), 0, None, every)):
            found.update(inception(frames))
        if progress is not None:
            progress(index + 1, len(clips))
    return found


def measure(
    methods: list[Method],
    pairs: list[Pair],
    models: MetricModels,
    *,
    reference: list[Path] | None = None,
    every: int = 1,
    sheet_pairs: int = 8,
    bar: Callable[[str], Progress] | None = None,
) -> tuple[dict[str, Any], Tensor | None]:
    """Measure all methods.

    Args:
        reference: real videos for FID; those that the pairs name when None.
        every: take every so many frames of the reference.
        bar: makes a progress callback of a text.

    Returns:
        the report, and the contact sheet (3, height, width), None where there is nothing to show.
    """
    bar = bar or (lambda text: lambda done, total: None)
    models.aligner  # noqa: B018 - refuse early what cannot be aligned
    real, clips = None, reference or named_clips(pairs)
    if models.inception is not None:
        real = reference_features(clips, models.inception, every, bar("reference"))
    truth = Truth(models)
    found = [
        measure_method(method, pairs, models, truth, sheet_pairs=sheet_pairs, progress=bar(method.name))
        for method in methods
    ]
    report: dict[str, Any] = {
        "networks": models.names,
        "missing": models.missing,
        "pairs": {p: count for p in PROTOCOLS if (count := sum(pair.protocol == p for pair in pairs))},
        "reference": {
            "videos": len(clips),
            "frames": real.count if real is not None else None,
            "chosen": "named by the user" if reference else "all videos of the list of pairs",
        },
        "methods": {item.method.name: _summary(item, models, real) for item in found},
    }
    return report, results_sheet([item.pictures for item in found], pairs, sheet_pairs)


def named_clips(pairs: list[Pair]) -> list[Path]:
    """Every video that a list names, once."""
    return sorted({Path(name) for pair in pairs for name in (pair.source, pair.driving)})


def _summary(measured: Measured, models: MetricModels, real: RunningGaussian | None) -> dict[str, Any]:
    method = measured.method
    summary: dict[str, Any] = {"fsa": method.fsa, "adapter": method.adapter, "checkpoint": method.checkpoint}
    summary["protocols"] = {}
    for protocol, metrics in measured.metrics.items():
        values: dict[str, float | None] = {
            metric: metrics.mean(metric) for metric in METRICS if metric != "fid"
        }
        extra = {name: metrics.mean(name) for name in metrics.sums if name not in METRICS}
        if real is not None:
            distance = frechet_distance(metrics.gaussian, real)
            values["fid"] = distance if math.isfinite(distance) else None
        summary["protocols"][protocol] = {
            "results": metrics.results,
            "frames": metrics.frames,
            "frames_without_face": metrics.without_face,
            **values,
            **extra,
            "pairs": metrics.clips,
        }
    summary["problems"] = measured.problems
    return summary
