"""Reenactment from files to a file: one job, or a list of them wherever `scale.run` runs it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..capture.capture import CaptureModels, crop_portrait
from ..capture.capture import capture as read
from ..device import pick_device
from ..errors import InputError
from ..head.parameters import FaceParameters
from ..progress import Progress
from ..scale import Scale, run
from ..storage import replacing
from ..video import probe, read_frames, read_image
from ..weights.checkpoint import load_checkpoint
from .fingerprint import fingerprint
from .pipeline import Pipeline
from .segments import SEGMENT, Carried, Footage, Make, Segment, Work, plan_segments
from .settings import SamplingSettings

PATHS = ("source", "driving", "out")
NUMBERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float}


@dataclass(frozen=True)
class ReenactJob:
    """Arguments: files, and settings as the command line has them.

    Arguments:
        source: picture with one face.
        driving: video with one face.
        out: mp4 to write; rate and sound are the driver's.
        size: side of the result in pixels.
        steps, cfg: of sampling; as the checkpoint wants it when None.
        max_frames: use only the first frames of the driving video.
        segment: frames that are finished, saved and freed together.
    """

    source: str
    driving: str
    out: str
    size: int = SamplingSettings.size
    seed: int = SamplingSettings.seed
    window: int = SamplingSettings.window
    overlap: int = SamplingSettings.overlap
    expression_scale: float = SamplingSettings.expression_scale
    steps: int | None = None
    cfg: float | None = None
    max_frames: int | None = None
    segment: int = SEGMENT


def no_bars(text: str) -> Progress | None:
    return None


class Reenacting:
    """Carries out jobs; a worker of `scale.run`.

    Arguments:
        checkpoint: networks, face detector and encoder.
        device: a name, or "auto".
        say: called with sentences for people.
        bars: makes a progress callback from its name.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device = "auto",
        say: Callable[[str], None] = lambda text: None,
        bars: Callable[[str], Progress | None] = no_bars,
    ) -> None:
        self.checkpoint = Path(checkpoint)
        self.pipeline = Pipeline.from_checkpoint(checkpoint, pick_device(str(device)))
        self.models = CaptureModels.from_checkpoint(load_checkpoint(checkpoint), self.pipeline.head)
        self.say, self.bars = say, bars

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job's `out` with what went wrong, if anything did. A result that is there is left alone."""
        if Path(job["out"]).exists():
            return {"out": job["out"]}
        try:
            self.reenact(ReenactJob(**job))
        except Exception as error:  # one bad job must not end the others; it is told at the end
            told = " ".join(str(error).split())
            return {
                **job,
                "error": told if isinstance(error, InputError) else f"{type(error).__name__}: {told}",
            }
        return {"out": job["out"]}

    def reenact(self, job: ReenactJob) -> int:
        """Write the result, which appears when it is whole; returns its number of frames.

        Memory does not grow with the video. What was stopped goes on from its work folder, see `segments`.
        """
        wanted = self.pipeline.sampling.but(steps=job.steps, cfg=job.cfg)
        job = replace(job, steps=wanted.steps, cfg=wanted.cfg)
        step = self.pipeline.model.config.downsampling
        if job.size < 1 or job.size % step:
            raise InputError(f"The size of the result is {job.size}: give a multiple of {step}.")
        picture = read_image(job.source)
        source = read(picture, self.models, what="the source picture")
        self.say(source.note)
        footage = Footage.of(job.driving, job.max_frames)
        portrait = crop_portrait(picture, source.square, job.size)
        with self._work(job, footage) as work:
            decisive = fingerprint(Path(job.driving), job.max_frames, self.checkpoint)
            driving, note = work.parameters(decisive, partial(self._capture, job))
            self.say(note)
            bar = self.bars("frames")
            make = self._maker(job, portrait, source.parameters, driving, bar)
            frames = work.run(Path(job.out), plan_segments(len(driving), job.segment, job.overlap), make, bar)
        self.say(f"{job.out}: {frames} frames at {float(footage.rate):g} frames a second.")
        return frames

    def _maker(
        self,
        job: ReenactJob,
        portrait: Tensor,
        source: FaceParameters,
        driving: FaceParameters,
        bar: Progress | None,
    ) -> Make:
        def make(segment: Segment, carried: Carried) -> tuple[Iterator[Tensor], Carried]:
            def within(done: int, total: int) -> None:
                if bar is not None:
                    bar(segment.position(done, total), len(driving))

            conditioning = self.pipeline.conditioning(portrait, source, driving[segment.sampled])
            latents = self.pipeline.sample(
                conditioning,
                steps=job.steps,
                cfg=job.cfg,
                seed=job.seed,
                window=job.window,
                overlap=job.overlap,
                expression_scale=job.expression_scale,
                first=segment.start,
                finished=carried.get("latents"),
                progress=within,
            )
            written = segment.stop - segment.start
            return self.pipeline.decode(latents[:written]), {"latents": latents[written:]}

        return make

    def _work(self, job: ReenactJob, footage: Footage) -> AbstractContextManager[Work]:
        out = Path(job.out)
        settings = {name: value for name, value in asdict(job).items() if name not in PATHS}
        decisive = fingerprint(settings, Path(job.source), Path(job.driving), self.checkpoint)
        partial_video = out.with_name(f"{out.stem}.partial{out.suffix}")
        return Work.begin(out.with_name(f"{out.name}.work"), partial_video, decisive, footage, self.say)

    def _capture(self, job: ReenactJob) -> tuple[FaceParameters, str]:
        frames = probe(job.driving).frames
        found = read(
            islice(read_frames(job.driving), job.max_frames),
            self.models,
            what="the driving video",
            total=min(frames, job.max_frames) if job.max_frames else frames,
            progress=self.bars("capture"),
        )
        return found.parameters, found.note


# ---- lists


def read_jobs(path: Path, defaults: dict[str, Any] | None = None) -> list[ReenactJob]:
    """Jobs of a CSV file with a header line, or of JSON lines: source, driving, out, and settings if wanted.

    Arguments:
        defaults: settings of jobs that do not have their own.

    Returns:
        jobs whose paths are absolute: relative ones are counted from the list's folder.

    Raises:
        InputError: the list cannot be read, or two jobs would write the same file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows: list[Any] = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} could not be read as CSV or JSON lines ({error}).") from error
    jobs = [
        _job(row, f"Job {n} of {path.name}", path.parent, defaults or {}) for n, row in enumerate(rows, 1)
    ]
    if not jobs:
        raise InputError(f"{path} has no jobs; give source, driving and out in each line.")
    seen: set[str] = set()
    for number, job in enumerate(jobs, 1):
        if job.out in seen:
            raise InputError(f"Job {number} of {path.name} writes {job.out} like one before it; rename one.")
        seen.add(job.out)
    return jobs


def _job(row: Any, what: str, folder: Path, defaults: dict[str, Any]) -> ReenactJob:
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in fields(ReenactJob)}
    if not isinstance(row, dict) or not set(row) <= kinds.keys():
        unknown = sorted(set(map(str, row)) - kinds.keys()) if isinstance(row, dict) else [str(row)]
        raise InputError(f"{what} has {', '.join(unknown)}; known are {', '.join(kinds)}.")
    given = {name: value for name, value in row.items() if value not in (None, "")}
    missing = [name for name in PATHS if name not in given]
    if missing:
        raise InputError(f"{what} lacks {', '.join(missing)}.")
    values: dict[str, Any] = {name: str((folder / str(given[name])).resolve()) for name in PATHS}
    for name in given.keys() - set(PATHS):
        try:
            values[name] = NUMBERS[kinds[name]](given[name])
            if isinstance(given[name], bool) or not math.isfinite(values[name]):
                raise ValueError
            if isinstance(given[name], float) and values[name] != given[name]:
                raise ValueError  # half a frame
        except (TypeError, ValueError, OverflowError) as error:
            kind = "number" if kinds[name] == "float" else "whole number"
            raise InputError(f"{what} has {name} {given[name]!r}, which is no {kind}.") from error
    if values["out"] in (values["source"], values["driving"]):
        raise InputError(f"{what} would write its result over {given['out']}; name another one.")
    if Path(values["out"]).suffix.lower() != ".mp4":
        raise InputError(f"{what} has out {given['out']!r}, which has to end in .mp4.")
    return ReenactJob(**{**defaults, **values})


def run_jobs(
    path: Path,
    checkpoint: str | Path,
    device: str = "auto",
    scale: Scale | None = None,
    defaults: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> str:
    """Carry out a list of jobs; results that are there already are left alone.

    Returns:
        a sentence about what was done.

    Raises:
        InputError: the list is not usable, or some of its jobs failed: `<list>.failed.jsonl` has them.
    """
    jobs = read_jobs(path, defaults)
    waiting = [asdict(job) for job in jobs if not Path(job.out).exists()]
    there = done = len(jobs) - len(waiting)
    failed: list[dict[str, Any]] = []
    report = path.with_name(f"{path.name}.failed.jsonl")
    report.unlink(missing_ok=True)
    for result in run(
        partial(Reenacting, str(Path(checkpoint).resolve()), device), waiting, scale or Scale()
    ):
        done += 1
        if "error" in result:
            failed.append(result)
            with replacing(report) as temporary:
                Path(temporary).write_text("".join(json.dumps(entry) + "\n" for entry in failed))
        if progress is not None:
            progress(done, len(jobs))
    if failed:
        raise InputError(
            f"{len(failed)} of {len(jobs)} jobs failed, the first with: {failed[0]['error']} All of them are "
            f"in {report}; run the list again for those."
        )
    return f"{len(jobs)} results, {there} of them were there before."
