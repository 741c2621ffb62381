"""The commands `evaluate pairs`, `run`, `results` and `forgery`. What they need is imported when they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError
from anifacediff_core.storage import replacing

from ..options import (
    add_checkpoint,
    add_command,
    add_device,
    add_face_files,
    add_sampling,
    add_windows,
    bar,
    checkpoint_path,
    positive,
)

if TYPE_CHECKING:
    import torch

    from ..evaluation.faces import FaceReader
    from ..evaluation.forgery import Score, Videos

VARIANT_NAMES = ("full", "no_fsa", "no_adapter", "neither")


def add_commands(kinds: Any) -> None:
    """Register the commands beside `evaluate avatars`."""
    _add_pairs(kinds)
    _add_run(kinds)
    _add_results(kinds)
    _add_forgery(kinds)


def _add_pairs(kinds: Any) -> None:
    parser = add_command(
        kinds, "pairs", write_list, "choose the paper's random pairs from a folder of videos"
    )
    parser.add_argument(
        "--videos", type=Path, required=True, help="folder with a test set: videos, or folders of frames"
    )
    parser.add_argument(
        "--protocol", choices=("same", "cross", "both"), default="both", help="same or cross identity"
    )
    parser.add_argument("--count", type=positive, default=100, help="pairs of each protocol")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--frames", type=int, default=0, help="driving frames at most; 0 for all")
    parser.add_argument(
        "--identity",
        metavar="REGEX",
        help="tells who is seen by a video's path, e.g. '^(id\\d+)'; folders or VoxCeleb's names by default",
    )
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")


def _add_run(kinds: Any) -> None:
    parser = add_command(kinds, "run", run_variants, "run AniFaceDiff over a list of pairs, with ablations")
    parser.add_argument("--pairs", type=Path, required=True, help="list that evaluate pairs wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder; each variant gets one of its own in it"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANT_NAMES,
        default=["full"],
        help="with and without facial shape alignment (fsa) and expression adapter",
    )
    add_windows(parser, "λ, where the adapter is on")
    parser.add_argument("--png", action="store_true", help="write folders of PNG, lossless, instead of mp4")
    add_sampling(parser)
    add_checkpoint(parser)
    add_face_files(parser, "for checkpoints of the head flame", "deca", "flame")
    add_device(parser)


def _add_results(kinds: Any) -> None:
    parser = add_command(kinds, "results", measure_results, "measure folders of results of any methods")
    parser.add_argument("--pairs", type=Path, required=True, help="list that evaluate pairs wrote")
    parser.add_argument(
        "--results",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER",
        help="videos or folders of frames, named after the pairs; or what evaluate run wrote. Repeat it",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for report.json, report.md and sheet.jpg"
    )
    parser.add_argument("--inception", type=Path, help="for FID: pt_inception-2015-12-05-6726825d.pth")
    parser.add_argument("--arcface", type=Path, help="for CSIM: model_ir_se50.pth, or an ONNX file")
    add_face_files(parser, "for APD and AED", "deca", "flame")
    parser.add_argument(
        "--bundled-encoder",
        action="store_true",
        help="also distances by the checkpoint's own face encoder, which knows avatars",
    )
    parser.add_argument(
        "--identity-crop",
        choices=("points", "fixed"),
        help="what CSIM sees: the face aligned by five points, or a fixed part of portraits; "
        "points where DECA or the bundled encoder is there",
    )
    parser.add_argument(
        "--reference", type=Path, help="folder of real videos for FID; those of the list when left out"
    )
    parser.add_argument("--every", type=positive, default=1, help="take every so many reference frames")
    parser.add_argument("--sheet-rows", type=positive, default=8, help="pairs on the contact sheet")
    add_checkpoint(parser)
    add_device(parser)


def _add_forgery(kinds: Any) -> None:
    parser = add_command(
        kinds, "forgery", measure_forgery, "how well detectors tell generated videos from real"
    )
    parser.add_argument("--real", type=Path, help="folder of real videos")
    parser.add_argument(
        "--fake", action="append", default=[], metavar="[NAME=]FOLDER", help="generated videos. Repeat it"
    )
    parser.add_argument(
        "--detector", action="append", default=[], metavar="[NAME=]FILE", help="an ONNX file. Repeat it"
    )
    parser.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="CSV: video, frame, score and, without folders, label and method. Repeat it",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for forgery.json, forgery.md, scores")
    parser.add_argument(
        "--input-size", type=positive, default=256, help="side, where the ONNX file leaves it free"
    )
    parser.add_argument("--mean", type=float, nargs=3, default=(0.5, 0.5, 0.5), help="of RGB in 0 to 1")
    parser.add_argument("--std", type=float, nargs=3, default=(0.5, 0.5, 0.5), help="of RGB in 0 to 1")
    parser.add_argument(
        "--face-margin", type=float, help="cut the face, so many times its box (1.3 is usual); else all"
    )
    parser.add_argument("--output", help="name of the ONNX file's output; its first when left out")
    parser.add_argument("--fake-class", type=int, default=1, help="which of several numbers says fake")
    parser.add_argument("--frames", type=int, default=0, help="frames of each video, evenly; 0 for all")
    add_checkpoint(parser)
    add_device(parser)


# ---- commands


def write_list(options: argparse.Namespace) -> None:
    from ..evaluation.pairs import PROTOCOLS, draw_pairs, write_pairs

    protocols = PROTOCOLS if options.protocol == "both" else (options.protocol,)
    pairs = draw_pairs(
        options.videos,
        protocols,
        count=options.count,
        seed=options.seed,
        frames=max(options.frames, 0),
        identity_pattern=options.identity,
    )
    write_pairs(options.out, pairs)
    people = {who for pair in pairs for who in (pair.source_identity, pair.driving_identity)}
    counts = ", ".join(f"{sum(p.protocol == name for p in pairs)} of {name} identity" for name in protocols)
    print(f"{options.out}: {counts}, {len(people)} identities.")


def run_variants(options: argparse.Namespace) -> None:
    from anifacediff_core.sampling.pipeline import Pipeline
    from anifacediff_core.sampling.settings import SamplingSettings
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import load_face_models

    from ..evaluation.generate import VARIANTS, Generator
    from ..evaluation.pairs import read_pairs

    pairs = read_pairs(options.pairs)
    device, path = pick_device(options.device), checkpoint_path(options)
    checkpoint = load_checkpoint(path)
    models = load_face_models(checkpoint, options.deca, flame=options.flame, device=device)
    pipeline = Pipeline.from_checkpoint(checkpoint, device, head=models.head)
    sampling = SamplingSettings(**pipeline.sampling.to_json()).but(
        size=options.size,
        steps=options.steps,
        cfg=options.cfg,
        seed=options.seed,
        window=options.window,
        overlap=options.overlap,
        expression_scale=options.expression_scale,
    )
    generator = Generator(pipeline, models, sampling, pictures=options.png)
    for name in dict.fromkeys(options.variants):
        problems = generator.run(VARIANTS[name], pairs, options.out / name, path.name, bar(name))
        for pair, why in problems.items():
            print(f"{name}, {pair}: {why}")
    print(f"{options.out}: measure it with evaluate results --pairs {options.pairs} --results {options.out}")


def measure_results(options: argparse.Namespace) -> None:
    from anifacediff_core.video import write_image

    from ..evaluation.faces import FaceReader
    from ..evaluation.frechet import Inception
    from ..evaluation.identity import FIXED, POINTS, Embedder
    from ..evaluation.pairs import find_clips, read_pairs
    from ..evaluation.results import Method, Networks, measure
    from ..evaluation.tables import results_markdown

    pairs = read_pairs(options.pairs)
    methods = [
        Method.of(name, folder)
        for name, folder in _unique(
            [found for text in options.results for found in _method_folders(*_named(text))]
        ).items()
    ]
    reference = find_clips(options.reference) if options.reference is not None else None
    if reference is not None and not reference:
        raise InputError(f"The folder {options.reference} holds no videos; name one with real ones.")
    device = pick_device(options.device)
    readers = [_deca_reader(options, device)]
    if options.bundled_encoder:
        readers.append(FaceReader.bundled(checkpoint_path(options), device))
    there = tuple(reader for reader in readers if reader is not None)
    networks = Networks(
        inception=Inception.load(options.inception, device) if options.inception else None,
        embedder=Embedder.load(options.arcface, device) if options.arcface else None,
        crop=options.identity_crop or (POINTS if there else FIXED),
        readers=there,
    )
    report, sheet = measure(
        methods,
        pairs,
        networks,
        reference=reference,
        every=options.every,
        sheet_pairs=options.sheet_rows,
        bar=bar,
    )
    text = results_markdown(report)
    _write_report(options.out, "report", report, text)
    if sheet is not None:
        write_image(options.out / "sheet.jpg", sheet)
    print(text)


def measure_forgery(options: argparse.Namespace) -> None:
    from ..evaluation.forgery import forgery_report, read_scores, write_scores
    from ..evaluation.tables import forgery_markdown

    videos = _videos(options)
    if not options.detector and not options.scores:
        raise InputError("There is no detector: name an ONNX file with --detector, or a CSV with --scores.")
    detectors, problems = _run_detectors(options, videos)
    for name, scores in detectors.items():
        write_scores(options.out / f"scores_{name}.csv", scores)
    for name, path in _unique([_named(text) for text in options.scores]).items():
        if name in detectors:
            raise InputError(f"Two detectors are called {name}: tell them apart with NAME=FILE.")
        detectors[name] = read_scores(path, videos)
    report = forgery_report(detectors, problems, "Higher scores mean fake; ties count half.")
    text = forgery_markdown(report)
    _write_report(options.out, "forgery", report, text)
    print(text)


# ---- helpers


def _deca_reader(options: argparse.Namespace, device: torch.device) -> FaceReader | None:
    from ..evaluation.faces import FaceReader

    if options.deca is None and options.flame is None:
        return None
    if options.deca is None or options.flame is None:
        raise InputError("DECA and FLAME belong together: name both, with --deca and --flame.")
    return FaceReader.deca(options.deca, options.flame, checkpoint_path(options), device)


def _videos(options: argparse.Namespace) -> Videos | None:
    from ..evaluation.forgery import Videos

    if options.real is None and not options.fake:
        if options.detector:
            raise InputError("A detector needs videos: name them with --real and --fake.")
        return None
    if options.real is None or not options.fake:
        raise InputError("Real and fake videos belong together: name both, with --real and --fake.")
    return Videos.of(options.real, _unique([_named(text) for text in options.fake]))


def _run_detectors(
    options: argparse.Namespace, videos: Videos | None
) -> tuple[dict[str, list[Score]], dict[str, str]]:
    from anifacediff_core.capture.locate import FindsFaces
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import face_finder

    from ..evaluation.forgery import Detector, Preprocessing, score_videos
    from ..evaluation.onnx_model import OnnxModel

    if not options.detector or videos is None:
        return {}, {}
    if min(options.std) <= 0:
        raise InputError("The deviations of --std must be above 0.")
    finder: FindsFaces | None = None
    if options.face_margin is not None:
        finder = face_finder(load_checkpoint(checkpoint_path(options)))
    preprocessing = Preprocessing(
        size=options.input_size,
        mean=tuple(options.mean),
        std=tuple(options.std),
        margin=options.face_margin,
        output=options.output,
        fake_class=options.fake_class,
        frames=max(options.frames, 0),
    )
    device = pick_device(options.device)
    problems: dict[str, str] = {}
    detectors: dict[str, list[Score]] = {}
    for name, path in _unique([_named(text) for text in options.detector]).items():
        detector = Detector(OnnxModel.load(path, device), preprocessing, finder)
        detectors[name], failed = score_videos(detector, videos, bar(name))
        problems |= {f"{name}, {clip}": why for clip, why in failed.items()}
        if failed and not detectors[name]:
            raise InputError(f"{path.name} could score no video: {next(iter(failed.values()))}")
    return detectors, problems


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


def _unique(named: list[tuple[str, Path]]) -> dict[str, Path]:
    for name, _ in named:
        if sum(other == name for other, _ in named) > 1:
            raise InputError(f"Two are called {name}: tell them apart with NAME=PATH.")
    return dict(named)


def _write_report(folder: Path, name: str, report: dict[str, Any], text: str) -> None:
    for ending, content in (("json", json.dumps(report, indent=1, allow_nan=False)), ("md", text)):
        with replacing(folder / f"{name}.{ending}") as temporary:
            Path(temporary).write_text(content, encoding="utf-8")
