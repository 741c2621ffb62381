"""The commands `reenact`, `learn`, `capture`, `render-normals`. What they need is imported when they run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError
from anifacediff_core.provenance.export import form_of
from anifacediff_core.sampling.segments import SEGMENT
from anifacediff_core.sampling.settings import LearningSettings

from ..options import (
    Cache,
    Checkpoint,
    Device,
    FaceFiles,
    File,
    Positive,
    Rate,
    Sampling,
    Speed,
    bar,
    checkpoint_or_bundled,
    file_name,
)
from ..scale import Scale


def result(text: str) -> Path:
    """Reads a video to write, of any form, or a folder."""
    try:
        form_of(Path(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


Result = Annotated[Path, result]


def reenact(
    *,
    source: Annotated[Path | None, "picture with one face"] = None,
    driving: Annotated[
        Path | None,
        "video with one face, or a sound file: the face speaks what is heard, at 24 frames a second",
    ] = None,
    out: Annotated[
        Result | None,
        "the mp4, webm, mov (ProRes), gif or webp to write, or a new folder for PNG files; rate and sound "
        "are the driver's",
    ] = None,
    jobs: Annotated[
        File,
        "a list in place of the three: CSV with a header, or JSON lines, with source, driving, out, and "
        "any of size, seed, window, overlap, expression_scale, steps, cfg, max_frames, segment, "
        "cache_interval, cache_shallow",
    ] = None,
    sampling: Sampling,
    cache: Cache,
    max_frames: Annotated[Positive | None, "use only the first frames of the driving video"] = None,
    segment: Annotated[Positive, "frames that are finished, saved and freed together"] = SEGMENT,
    mark: Annotated[
        bool,
        "leave out what says in pixels and metadata that the result is synthetic",
        {"names": ("--no-mark",)},
    ] = True,
    lora: Annotated[File, "what learn has written, or another LoRA of the checkpoint's UNet"] = None,
    lora_strength: Annotated[float, "how strongly it changes the network: 1 as learned"] = 1.0,
    faces: FaceFiles,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    speed: Speed,
    scale: Scale,
) -> None:
    """Let a source picture move like a driving video."""
    from ..jobs import Reenacting, ReenactJob, run_jobs

    settings: dict[str, Any] = asdict(sampling) | asdict(cache)
    settings |= {"max_frames": max_frames, "segment": segment, "mark": mark}
    files = {"source": source, "driving": driving, "out": out}
    missing = [f"--{name}" for name, path in files.items() if path is None]
    checkpoint = checkpoint_or_bundled(checkpoint)
    loras = [] if lora is None else [(lora.resolve(), lora_strength)]
    if jobs is not None:
        if len(missing) < len(files):
            raise InputError("Give either --jobs, or --source, --driving and --out.")
        print(run_jobs(jobs, checkpoint, device, scale, settings, bar("jobs"), faces.named(), loras, speed))
        return
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing; give source, driving and out, or a list in --jobs."
        )
    job = ReenactJob(str(source), str(driving), str(out), **settings)
    Reenacting(checkpoint, device, faces.named(), print, bar, loras, speed).reenact(job)


def learn(
    pictures: Annotated[tuple[Path, ...], "one to five pictures of the same character"],
    out: Annotated[Path, file_name(".safetensors"), "the LoRA to write"],
    size: Annotated[Positive, "side in pixels; best that of the videos"] = LearningSettings.size,
    steps: Annotated[Positive, "of learning; more get closer"] = LearningSettings.steps,
    rank: Annotated[Positive, "of the LoRA; more hold more"] = LearningSettings.rank,
    learning_rate: Annotated[float, "at its highest"] = LearningSettings.learning_rate,
    seed: Annotated[int, "of everything random"] = LearningSettings.seed,
    *,
    faces: FaceFiles,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Tune a LoRA to pictures of one character, so that reenact --lora keeps its face better."""
    from anifacediff_core.sampling.learn import learn as tune
    from anifacediff_core.sampling.learn import lora_header
    from anifacediff_core.sampling.pipeline import Pipeline
    from anifacediff_core.video import read_image
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import load_face_models
    from anifacediff_core.weights.lora import save_lora

    opened, where = load_checkpoint(checkpoint_or_bundled(checkpoint)), pick_device(device)
    models = load_face_models(opened, **faces.named(), device=where)
    pipeline = Pipeline.from_checkpoint(opened, where, head=models.head)
    settings = LearningSettings(steps, rank, learning_rate, seed, size)
    progress = bar("learn")
    found = tune(
        pipeline,
        models,
        [read_image(picture)[0] for picture in pictures],
        settings,
        lambda done, total, _: progress(done, total),
    )
    save_lora(out, found, lora_header(settings, opened.path.name))
    print(f"{out}: use it with reenact --lora {out}, or in ComfyUI's models/loras with Load LoRA.")


def capture(
    input: Annotated[Path, "video or picture with one face"],
    out: Annotated[Path, "safetensors file of face parameters"],
    faces: FaceFiles,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Read face parameters from a video or picture."""
    from anifacediff_core.capture.extract import extract_parameters as read
    from anifacediff_core.video import is_still, probe, read_frames, read_image
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import load_face_models

    opened = load_checkpoint(checkpoint_or_bundled(checkpoint))
    models = load_face_models(opened, **faces.named(), device=pick_device(device))
    if is_still(input):
        found = read(read_image(input), models, what="the picture")
    else:
        frames, total = read_frames(input), probe(input).frames
        found = read(frames, models, what="the video", total=total, progress=bar("capture"))
    out.parent.mkdir(parents=True, exist_ok=True)
    found.parameters.save(out)
    left, top, side = found.square.tolist()
    print(found.note)
    print(f"{out}: {len(found.parameters)} frames, portrait square {left:.3f} {top:.3f} {side:.3f}.")


def render_normals(
    parameters: Annotated[Path, "face parameters, as capture writes them"],
    out: Annotated[Path, "mp4, or a folder for PNG files"],
    shape_from: Annotated[Path | None, "parameters whose face shape to use (facial shape alignment)"] = None,
    size: Annotated[Positive, "side in pixels"] = 256,
    fps: Annotated[Rate, "frame rate of the mp4, e.g. 30000/1001"] = Fraction(24),
    flame: Annotated[
        File, "FLAME's generic_model.pkl, the head of parameters that DECA or SMIRK have read"
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw the head's normals of face parameters."""
    from anifacediff_core.head.alignment import align, source_frame
    from anifacediff_core.head.model import HeadModel
    from anifacediff_core.head.parameters import FaceParameters
    from anifacediff_core.head.render import iterate_normals
    from anifacediff_core.video import VideoWriter, write_image
    from anifacediff_core.weights.faces import load_head

    head = HeadModel.bundled() if flame is None else load_head(flame)
    head.to(pick_device(device))
    params = FaceParameters.load(parameters)
    if shape_from is not None:
        params = align(source_frame(FaceParameters.load(shape_from)), params)
    parts = iterate_normals(head, params, size, progress=bar("normals"))
    if out.suffix.lower() == ".mp4":
        with VideoWriter(out, fps) as video:
            for part in parts:
                video.write(part)
        return
    for index, picture in enumerate(chain.from_iterable(parts)):
        write_image(out / f"{index:05d}.png", picture)
