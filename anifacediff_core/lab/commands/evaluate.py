"""The commands of `evaluate` on videos. What they need is imported when they run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError
from anifacediff_core.storage import atomic_write

from ..options import Checkpoint, Device, File, Positive, Sampling, bar, checkpoint_or_bundled, file_name

if TYPE_CHECKING:
    from ..evaluation.results import MetricModels

Pairs = Annotated[Path, "list that evaluate pairs wrote"]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Measuring:
    """The files of the networks that measure, and how they are used."""

    inception: Annotated[Path | None, "for FID: pt_inception-2015-12-05-6726825d.pth"] = None
    arcface: Annotated[Path | None, "for CSIM: model_ir_se50.pth, or an ONNX file"] = None
    deca: Annotated[File, "deca_model.tar, for APD and AED"] = None
    flame: Annotated[File, "FLAME's generic_model.pkl, for APD and AED"] = None
    bundled_encoder: Annotated[
        bool, "also distances by the checkpoint's own face encoder, which knows avatars"
    ] = False
    identity_crop: Annotated[
        Literal["points", "fixed"] | None,
        "what CSIM sees: the face aligned by five points, or a fixed part of portraits; "
        "points where DECA or the bundled encoder is there",
    ] = None
    reference: Annotated[Path | None, "folder of real videos for FID; those of the list when left out"] = None
    every: Annotated[Positive, "take every so many reference frames"] = 1
    sheet_rows: Annotated[Positive, "pairs on the contact sheet"] = 8

    def networks(self, checkpoint: Path, device: Any) -> MetricModels:
        """The networks whose files are named, on a device."""
        from ..evaluation.faces import FaceReader
        from ..evaluation.frechet import Inception
        from ..evaluation.identity import FIXED, POINTS, Embedder
        from ..evaluation.results import MetricModels

        if (self.deca is None) != (self.flame is None):
            raise InputError("DECA and FLAME belong together: name both, with --deca and --flame.")
        readers = []
        if self.deca and self.flame:
            readers.append(FaceReader.deca(self.deca, self.flame, checkpoint, device))
        if self.bundled_encoder:
            readers.append(FaceReader.bundled(checkpoint, device))
        return MetricModels(
            inception=Inception.load(self.inception, device) if self.inception else None,
            embedder=Embedder.load(self.arcface, device) if self.arcface else None,
            crop=self.identity_crop or (POINTS if readers else FIXED),
            readers=tuple(readers),
        )


def pairs(
    videos: Annotated[Path, "folder with a test set: videos, or folders of frames"],
    out: Annotated[Path, "the CSV to write"],
    protocol: Annotated[Literal["same", "cross", "both"], "same or cross identity"] = "both",
    count: Annotated[Positive, "pairs of each protocol"] = 100,
    seed: Annotated[int, "of the choice"] = 0,
    frames: Annotated[int, "driving frames at most; 0 for all"] = 0,
    identity: Annotated[
        str | None,
        "tells who is seen by a video's path, e.g. '^(id\\d+)'; folders or VoxCeleb's names by default",
        {"metavar": "REGEX"},
    ] = None,
) -> None:
    """Choose the paper's random pairs from a folder of videos."""
    from ..evaluation.pairs import PROTOCOLS, draw_pairs, write_pairs

    protocols = PROTOCOLS if protocol == "both" else (protocol,)
    drawn = draw_pairs(
        videos, protocols, count=count, seed=seed, frames=max(frames, 0), identity_pattern=identity
    )
    write_pairs(out, drawn)
    people = {who for pair in drawn for who in (pair.source_identity, pair.driving_identity)}
    counts = ", ".join(f"{sum(p.protocol == name for p in drawn)} of {name} identity" for name in protocols)
    print(f"{out}: {counts}, {len(people)} identities.")


def run(
    pairs: Pairs,
    out: Annotated[Path, "folder; each variant gets one of its own in it"],
    sampling: Sampling,
    variants: Annotated[
        tuple[Literal["full", "no_fsa", "no_adapter", "neither"], ...],
        "with and without facial shape alignment (fsa) and expression adapter",
    ] = ("full",),
    png: Annotated[bool, "write folders of PNG, lossless, instead of mp4"] = False,
    checkpoint: Checkpoint = None,
    deca: Annotated[File, "deca_model.tar, for checkpoints of the head flame"] = None,
    flame: Annotated[File, "FLAME's generic_model.pkl, for checkpoints of the head flame"] = None,
    device: Device = "auto",
) -> None:
    """Run AniFaceDiff over a list of pairs, with ablations."""
    from anifacediff_core.sampling.pipeline import Pipeline
    from anifacediff_core.sampling.settings import SamplingSettings
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import load_face_models

    from ..evaluation.generate import VARIANTS, Generator
    from ..evaluation.pairs import read_pairs

    listed = read_pairs(pairs)
    where, path = pick_device(device), checkpoint_or_bundled(checkpoint)
    opened = load_checkpoint(path)
    models = load_face_models(opened, deca, flame=flame, device=where)
    pipeline = Pipeline.from_checkpoint(opened, where, head=models.head)
    settings = SamplingSettings(**pipeline.sampling.to_json()).but(**asdict(sampling))
    generator = Generator(pipeline, models, settings, pictures=png)
    for name in dict.fromkeys(variants):
        problems = generator.run(VARIANTS[name], listed, out / name, path.name, bar(name))
        for pair, why in problems.items():
            print(f"{name}, {pair}: {why}")
    print(f"{out}: measure it with evaluate results --pairs {pairs} --results {out}")


def results(
    pairs: Pairs,
    results: Annotated[
        Sequence[str],
        "videos or folders of frames, named after the pairs; or what evaluate run wrote. Repeat it",
        {"metavar": "[NAME=]FOLDER"},
    ],
    out: Annotated[Path, "folder for report.json, report.md and sheet.jpg"],
    measuring: Measuring,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Measure folders of results of any methods."""
    from anifacediff_core.video import write_image

    from ..evaluation.pairs import find_clips, read_pairs
    from ..evaluation.results import Method, measure
    from ..evaluation.tables import results_markdown

    listed = read_pairs(pairs)
    folders = _unique([found for text in results for found in _method_folders(*_named(text))])
    methods = [Method.of(name, folder) for name, folder in folders.items()]
    real = find_clips(measuring.reference) if measuring.reference is not None else None
    if real is not None and not real:
        raise InputError(f"The folder {measuring.reference} holds no videos; name one with real ones.")
    networks = measuring.networks(checkpoint_or_bundled(checkpoint), pick_device(device))
    report, sheet = measure(
        methods,
        listed,
        networks,
        reference=real,
        every=measuring.every,
        sheet_pairs=measuring.sheet_rows,
        bar=bar,
    )
    text = results_markdown(report)
    _write_report(out, "report", report, text)
    if sheet is not None:
        write_image(out / "sheet.jpg", sheet)
    print(text)


def clips(
    videos: Annotated[Path, "folder with square portraits: videos, or folders of frames"],
    out: Annotated[Path, "folder for pairs.csv, the results and the report"],
    sampling: Sampling,
    measuring: Measuring,
    protocol: Annotated[Literal["same", "cross", "both"], "same or cross identity"] = "both",
    count: Annotated[Positive, "pairs of each protocol at most"] = 100,
    frames: Annotated[int, "driving frames at most; 0 for all"] = 0,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Reenact a folder of clips and measure it: PSNR, SSIM, flicker, and what your networks see."""
    listed, made = out / "pairs.csv", out / "results"
    pairs(videos, listed, protocol, count, frames=frames)
    run(
        listed,
        made,
        sampling,
        png=True,
        checkpoint=checkpoint,
        deca=measuring.deca,
        flame=measuring.flame,
        device=device,
    )
    results(listed, [f"AniFaceDiff={made}"], out, measuring, checkpoint, device)


def study(
    pairs: Pairs,
    results: Annotated[
        Sequence[str],
        "videos or folders of frames, named after the pairs; or what evaluate run wrote. Repeat it",
        {"metavar": "[NAME=]FOLDER"},
    ],
    out: Annotated[Path, file_name(".html"), "the page to write; the key to its numbers comes beside it"],
) -> None:
    """Write a page on which people choose blindly between methods, by the paper's three questions."""
    from ..evaluation.pairs import read_pairs
    from ..evaluation.results import Method
    from ..evaluation.study import write_study

    folders = _unique([found for text in results for found in _method_folders(*_named(text))])
    methods = [Method.of(name, folder) for name, folder in folders.items()]
    key = write_study(out, read_pairs(pairs), methods, bar("pairs"))
    print(f"{out}: give it to people. Then: evaluate tally --key {key} --answers FILE...")


def tally(
    key: Annotated[Path, "what evaluate study wrote beside its page"],
    answers: Annotated[tuple[Path, ...], "files that people have saved"],
    out: Annotated[Path, "folder for tally.json and tally.md"],
) -> None:
    """Count the answers to a study: how often people preferred each method, with intervals."""
    from ..evaluation.study import tally as count
    from ..evaluation.tables import tally_markdown

    report = count(key, answers)
    text = tally_markdown(report)
    _write_report(out, "tally", report, text)
    print(text)


def forgery(
    *,
    real: Annotated[Path | None, "folder of real videos"] = None,
    fake: Annotated[Sequence[str], "generated videos. Repeat it", {"metavar": "[NAME=]FOLDER"}] = (),
    detector: Annotated[Sequence[str], "an ONNX file. Repeat it", {"metavar": "[NAME=]FILE"}] = (),
    scores: Annotated[
        Sequence[str],
        "CSV: video, frame, score and, without folders, label and method. Repeat it",
        {"metavar": "[NAME=]FILE"},
    ] = (),
    out: Annotated[Path, "folder for forgery.json, forgery.md, scores"],
    input_size: Annotated[Positive, "side, where the ONNX file leaves it free"] = 256,
    mean: Annotated[Color, "of RGB in 0 to 1"] = (0.5, 0.5, 0.5),
    std: Annotated[Color, "of RGB in 0 to 1"] = (0.5, 0.5, 0.5),
    face_margin: Annotated[
        float | None, "cut the face, so many times its box (1.3 is usual); else all"
    ] = None,
    output: Annotated[str | None, "name of the ONNX file's output; its first when left out"] = None,
    fake_class: Annotated[int, "which of several numbers says fake"] = 1,
    frames: Annotated[int, "frames of each video, evenly; 0 for all"] = 0,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """How well detectors tell generated videos from real."""
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import face_finder

    from ..evaluation.forgery import (
        Detector,
        Preprocessing,
        Score,
        Videos,
        forgery_report,
        read_scores,
        score_videos,
        write_scores,
    )
    from ..evaluation.onnx_model import OnnxModel
    from ..evaluation.tables import forgery_markdown

    if bool(fake) != (real is not None):
        raise InputError("Real and fake videos belong together: name both, with --real and --fake.")
    if detector and real is None:
        raise InputError("A detector needs videos: name them with --real and --fake.")
    videos = None if real is None else Videos.of(real, _unique(map(_named, fake)))
    if not detector and not scores:
        raise InputError("There is no detector: name an ONNX file with --detector, or a CSV with --scores.")
    if min(std) <= 0:
        raise InputError("The deviations of --std must be above 0.")
    finds_faces = None
    if face_margin is not None and detector:
        finds_faces = face_finder(load_checkpoint(checkpoint_or_bundled(checkpoint)))
    wanted = Preprocessing(input_size, mean, std, face_margin, output, fake_class, max(frames, 0))
    where = pick_device(device)
    problems: dict[str, str] = {}
    found: dict[str, list[Score]] = {}
    if videos is not None:
        for name, path in _unique(map(_named, detector)).items():
            model = Detector(OnnxModel.load(path, where), wanted, finds_faces)
            found[name], failed = score_videos(model, videos, bar(name))
            problems |= {f"{name}, {clip}": why for clip, why in failed.items()}
            if failed and not found[name]:
                raise InputError(f"{path.name} could score no video: {next(iter(failed.values()))}")
            write_scores(out / f"scores_{name}.csv", found[name])
    for name, path in _unique(map(_named, scores)).items():
        if name in found:
            raise InputError(f"Two detectors are called {name}: tell them apart with NAME=FILE.")
        found[name] = read_scores(path, videos)
    report = forgery_report(found, problems, "Higher scores mean fake; ties count half.")
    text = forgery_markdown(report)
    _write_report(out, "forgery", report, text)
    print(text)


# ---- helpers


def _named(text: str) -> tuple[str, Path]:
    """NAME=PATH, or a path that names itself."""
    name, equals, rest = text.partition("=")
    if equals and name and "/" not in name and "\\" not in name and not Path(text).exists():
        return name, Path(rest)
    path = Path(text)
    return (path.resolve().name if path.is_dir() else path.stem), path


def _method_folders(name: str, folder: Path) -> list[tuple[str, Path]]:
    """A folder of results, or those that `evaluate run` wrote into it."""
    from ..evaluation.results import METHOD_FILE

    inner = sorted(path.parent for path in folder.glob(f"*/{METHOD_FILE}"))
    if not inner or (folder / METHOD_FILE).exists():
        return [(name, folder)]
    return [(f"{name} {path.name}", path) for path in inner]


def _unique(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for name, path in named:
        if name in paths:
            raise InputError(f"Two are called {name}: tell them apart with NAME=PATH.")
        paths[name] = path
    return paths


def _write_report(folder: Path, name: str, report: dict[str, Any], text: str) -> None:
    for ending, content in (("json", json.dumps(report, indent=1, allow_nan=False)), ("md", text)):
        with atomic_write(folder / f"{name}.{ending}") as temporary:
            Path(temporary).write_text(content, encoding="utf-8")
