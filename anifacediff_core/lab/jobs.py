"""Reenactment from files to a file: one job, or a list of them wherever `scale.run` runs it."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.capture.extract import crop_portrait
from anifacediff_core.capture.extract import extract_parameters as read
from anifacediff_core.device import pick_device, pick_dtype
from anifacediff_core.errors import FAULTS, InputError, printable, refusal_of
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.media import is_sound
from anifacediff_core.progress import Progress
from anifacediff_core.provenance.container import copy_declared
from anifacediff_core.provenance.export import convert, form_of
from anifacediff_core.provenance.mark import LEAST_SIDE, mark
from anifacediff_core.sampling.fingerprint import fingerprint
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.segments import (
    SEGMENT,
    ResumableVideo,
    Segment,
    SegmentFn,
    SegmentState,
    VideoTiming,
    plan_segments,
)
from anifacediff_core.sampling.settings import CacheSettings, SamplingSettings
from anifacediff_core.speech.motion import SpeechSettings, file_to_motion
from anifacediff_core.storage import atomic_write, beside, require_writable
from anifacediff_core.video import probe, read_frames, read_image
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from anifacediff_core.weights.lora import merge_lora

from .options import Speed
from .scale import Scale, run

PATHS = ("source", "driving", "out")
NUMBERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float}
MANY = 10**9
SPEECH_RATE = Fraction(24)  # frames a second of a face that speaks what it hears
RANGES = {
    "size": (1, 8192),
    "seed": (-(2**63), 2**64 - 1),
    "window": (1, MANY),
    "overlap": (0, MANY),
    "expression_scale": (-100, 100),
    "steps": (1, 1000),
    "cfg": (-100, 100),
    "max_frames": (1, MANY),
    "segment": (1, MANY),
    "cache_interval": (1, 1000),
    "cache_shallow": (1, 64),
}


@dataclass(frozen=True)
class ReenactJob:
    """Arguments: files, and settings as the command line has them.

    Args:
        source: picture with one face.
        driving: video with one face, or a sound file with a voice.
        out: video to write, in the form of `export.form_of`; rate and sound are the driver's.
        size: side of the result in pixels.
        steps, cfg: of sampling; as the checkpoint wants it when None.
        max_frames: use only the first frames of the driving video.
        segment: frames that are finished, saved and freed together.
        cache_interval, cache_shallow: see `sampler.sample`.
        mark: say in pixels and metadata that the result is synthetic.

    Raises:
        InputError: a number is out of its range, NaN included.
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
    cache_interval: int = CacheSettings.cache_interval
    cache_shallow: int = CacheSettings.cache_shallow
    mark: bool = True

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"The {name} is {value}: give a number from {least} to {most}.")
        if self.overlap >= self.window:
            raise InputError(
                f"Windows of {self.window} frames cannot overlap by {self.overlap}: the overlap must be "
                "shorter."
            )


def no_bars(text: str) -> Progress | None:
    return None


class Reenacting:
    """Carries out jobs; a worker of `scale.run`.

    Args:
        checkpoint: networks, face detector and encoder.
        device: a name, or "auto".
        faces: files of DECA, SMIRK and FLAME in place of the checkpoint's face detector and encoder, as
            arguments of `load_face_models`.
        say: called with sentences for people.
        bars: makes a progress callback from its name.
        loras: files to merge into the UNet, and how strongly, see `merge_lora`.
        speed: precision, and whether to compile.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device = "auto",
        faces: Mapping[str, Path] | None = None,
        say: Callable[[str], None] = lambda text: None,
        bars: Callable[[str], Progress | None] = no_bars,
        loras: Sequence[tuple[Path, float]] = (),
        speed: Speed = Speed(),  # noqa: B008 - it is frozen
    ) -> None:
        self.checkpoint, self.faces, self.loras = Path(checkpoint), faces or {}, loras
        where, opened = pick_device(str(device)), load_checkpoint(checkpoint)
        self.models = load_face_models(opened, **self.faces, device=where)
        dtype = pick_dtype(speed.precision, where)
        self.pipeline = Pipeline.from_checkpoint(opened, where, dtype, self.models.head)
        for path, strength in loras:
            merge_lora(self.pipeline.model.unet, path, strength)
        if speed.compiled:
            self.pipeline.compile(speed.replay)
        self.say, self.bars = say, bars

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job's `out` with what went wrong, if anything did. A result that is there is left alone."""
        if os.path.exists(job["out"]):  # never raises, whatever the name
            return {"out": job["out"]}
        try:
            self.reenact(ReenactJob(**job))
        except (InputError, *FAULTS) as error:
            return {**job, "error": str(refusal_of(error))}
        except Exception as error:  # one bad job must not end the others; it is reported at the end
            return {**job, "error": printable(f"{type(error).__name__}: {error}")}
        return {"out": job["out"]}

    def reenact(self, job: ReenactJob) -> int:
        """Write the result, which appears when it is whole; returns its number of frames.

        Memory does not grow with the video. What was stopped goes on from its work folder, see `segments`.
        """
        out = Path(job.out)
        require_writable(out)
        if form_of(out) == "png" and out.exists():
            raise InputError(f"{out} is there already: choose another folder.")
        wanted = self.pipeline.sampling.but(steps=job.steps, cfg=job.cfg)
        job = replace(job, steps=wanted.steps, cfg=wanted.cfg)
        step = self.pipeline.model.config.downsampling
        if job.size < 1 or job.size % step:
            raise InputError(f"The size of the result is {job.size}: give a multiple of {step}.")
        picture = read_image(job.source)
        source = read(picture, self.models, what="the source picture")
        self.say(source.note)
        speech = is_sound(job.driving)
        timing = self._timing(job, speech)
        portrait = crop_portrait(picture, source.square, job.size)
        if job.mark and job.size < LEAST_SIDE:
            self.say(f"A mark needs {LEAST_SIDE} pixels: only the metadata say that it is synthetic.")
        with self._work(job, timing) as work:
            seed = (job.seed,) if speech else ()  # of the gestures
            cache_key = fingerprint(Path(job.driving), job.max_frames, self.checkpoint, self.faces, *seed)
            driving, note = work.parameters(cache_key, partial(self._speak if speech else self._capture, job))
            self.say(note)
            if speech:  # which says nothing of the head's place: it stays
                driving = align(source_frame(source.parameters), driving, "source")
            bar = self.bars("frames")
            make = self._maker(job, portrait, source.parameters, driving, bar)
            frames = work.run(out, plan_segments(len(driving), job.segment, job.overlap), make, bar)
        self.say(f"{job.out}: {frames} frames at {float(timing.rate):g} frames a second.")
        return frames

    def _maker(
        self,
        job: ReenactJob,
        portrait: Tensor,
        source: FaceParameters,
        driving: FaceParameters,
        bar: Progress | None,
    ) -> SegmentFn:
        def make(segment: Segment, state: SegmentState) -> tuple[Iterator[Tensor], SegmentState]:
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
                cache_interval=job.cache_interval,
                cache_shallow=job.cache_shallow,
                first=segment.start,
                previous_latents=state.get("latents"),
                progress=within,
            )
            written = segment.stop - segment.start
            frames = self.pipeline.decode(latents[:written])
            if job.mark and job.size >= LEAST_SIDE:
                frames = map(mark, frames)
            return frames, {"latents": latents[written:]}

        return make

    def _work(self, job: ReenactJob, timing: VideoTiming) -> AbstractContextManager[ResumableVideo]:
        out = Path(job.out)
        settings = {name: value for name, value in asdict(job).items() if name not in PATHS}
        files = Path(job.source), Path(job.driving), self.checkpoint, self.faces
        cache_key = fingerprint(settings, *files, *self.loras)
        folder, partial_video = beside(out, f"{out.suffix}.work"), beside(out, f".partial{out.suffix}")
        declare, other = self._declare if job.mark else None, None
        if form_of(out) != "mp4":
            partial_video = beside(out, f"{out.suffix}.partial.mp4")
            other = partial(convert, declare=job.mark, say=self.say, progress=self.bars("export"))
        return ResumableVideo(folder, partial_video, cache_key, timing, self.say, declare, other).begin()

    def _declare(self, video: Path) -> None:
        copy_declared(video, video, say=self.say)

    @staticmethod
    def _timing(job: ReenactJob, speech: bool) -> VideoTiming:
        if speech:
            return VideoTiming(SPEECH_RATE, str(Path(job.driving).resolve()))
        return VideoTiming.of(job.driving, job.max_frames)

    def _speak(self, job: ReenactJob) -> tuple[FaceParameters, str]:
        made = file_to_motion(
            job.driving,
            self.models.head,
            SPEECH_RATE,
            SpeechSettings(seed=job.seed),
            most=job.max_frames,
            progress=self.bars("listen"),
        )
        return made, f"The face speaks {Path(job.driving).name}."

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


def read_jobs(
    path: Path, defaults: dict[str, Any] | None = None, refused: list[dict[str, Any]] | None = None
) -> list[ReenactJob]:
    """Jobs of a CSV file with a header line, or of JSON lines: source, driving, out, and settings if wanted.

    Args:
        defaults: settings of jobs that do not have their own.
        refused: takes the number, the text and the error of every line that is no job; without it, the
            first of them raises.

    Returns:
        jobs whose paths are absolute: relative ones are counted from the list's folder.

    Raises:
        InputError: the list cannot be read, a line is no job, or two jobs would write the same file.
    """
    try:
        # bytes that are not UTF-8 become surrogates, which only their own line's paths are refused for
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        lines = [line for line in re.split("\r\n|\r|\n", text) if line.strip()]
        parse: Callable[[str], Any] = json.loads
        if path.suffix.lower() == ".csv":
            names = next(csv.reader(lines[:1]), [])
            lines, parse = lines[1:], lambda line: next(csv.DictReader([line], names))
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} could not be read as CSV or JSON lines ({error}).") from error
    if not lines:
        raise InputError(f"{path} has no jobs; give source, driving and out in each line.")
    jobs: dict[str, ReenactJob] = {}
    for number, line in enumerate(lines, 1):
        what = f"Job {number} of {path.name}"
        try:
            job = _job(_parsed(parse, line, what), what, path.parent, defaults or {})
            if job.out in jobs:
                raise InputError(f"{what} writes {job.out} like one before it; rename one.")
            jobs[job.out] = job
        except InputError as error:
            if refused is None:
                raise
            refused.append({"job": number, "line": printable(line), "error": str(error)})
    return list(jobs.values())


def _parsed(parse: Callable[[str], Any], line: str, what: str) -> Any:
    try:
        line.encode()  # fails where it is not UTF-8
        return parse(line)
    except (*FAULTS, ValueError, csv.Error, StopIteration) as error:
        raise InputError(f"{what} could not be read as CSV or JSON lines ({error}).") from error


def _job(row: Any, what: str, folder: Path, defaults: dict[str, Any]) -> ReenactJob:
    settings = (field for field in fields(ReenactJob) if field.type != "bool")  # which the command has
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in settings}
    if not isinstance(row, dict) or not set(row) <= kinds.keys():
        unknown = sorted(set(map(str, row)) - kinds.keys()) if isinstance(row, dict) else [str(row)]
        raise InputError(f"{what} has {', '.join(unknown)}; known are {', '.join(kinds)}.")
    given = {name: value for name, value in row.items() if value not in (None, "")}
    missing = [name for name in PATHS if name not in given]
    if missing:
        raise InputError(f"{what} lacks {', '.join(missing)}.")
    try:
        values: dict[str, Any] = {name: str((folder / str(given[name])).resolve()) for name in PATHS}
        json.dumps(values, ensure_ascii=False).encode()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, half a surrogate pair, links in a circle
        raise InputError(f"{what} has names that no file can have ({error}).") from error
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
    try:
        form_of(Path(values["out"]))
        return ReenactJob(**{**defaults, **values})
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def run_jobs(
    path: Path,
    checkpoint: str | Path,
    device: str = "auto",
    scale: Scale | None = None,
    defaults: dict[str, Any] | None = None,
    progress: Progress | None = None,
    faces: Mapping[str, Path] | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    speed: Speed = Speed(),  # noqa: B008 - it is frozen
) -> str:
    """Carry out a list of jobs; results that are there already are left alone.

    Returns:
        a sentence about what was done.

    Raises:
        InputError: the list is not usable, or some of its jobs failed: `<list>.failed.jsonl` has them.
    """
    failed: list[dict[str, Any]] = []
    jobs = read_jobs(path, defaults, failed)
    total, done = len(jobs) + len(failed), len(failed)
    waiting = [asdict(job) for job in jobs if not os.path.exists(job.out)]
    there = len(jobs) - len(waiting)
    done += there
    report = beside(path, f"{path.suffix}.failed.jsonl")
    report.unlink(missing_ok=True)
    _report(report, failed)
    worker = partial(Reenacting, str(Path(checkpoint).resolve()), device, faces, loras=loras, speed=speed)
    for result in run(worker, waiting, scale or Scale()):
        done += 1
        if "error" in result:
            failed.append(result)
            _report(report, failed)
        if progress is not None:
            progress(done, total)
    if failed:
        raise InputError(
            f"{len(failed)} of {total} jobs failed, the first with: {failed[0]['error']} All of them are "
            f"in {report}; run the list again for those."
        )
    return f"{total} results, {there} of them were there before."


def _report(path: Path, failed: list[dict[str, Any]]) -> None:
    """Write what failed; that it cannot be written must not end the jobs."""
    if failed:
        with suppress(*FAULTS), atomic_write(path) as temporary:
            Path(temporary).write_text("".join(json.dumps(entry) + "\n" for entry in failed))
