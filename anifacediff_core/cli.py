"""The command line: python -m anifacediff_core. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .device import pick_device
from .errors import InputError
from .evaluation.commands import add_commands
from .options import (
    PICTURE,
    add_checkpoint,
    add_command,
    add_device,
    add_sampling,
    add_windows,
    bar,
    checkpoint_path,
    file_name,
    positive,
    rate,
)
from .progress import Progress
from .provenance.commands import add_provenance
from .scale import add_scale, scale_of

if TYPE_CHECKING:
    import torch


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Bad input ends with one sentence on standard error and code 2."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"anifacediff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("anifacediff: interrupted", file=sys.stderr)
        return 130
    return 0


# ---- parser


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anifacediff",
        description="Face reenactment: one source picture and one driving video give a video of the source "
        "that moves like the driver.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    _add_reenact(commands)
    _add_capture(commands)
    _add_render_normals(commands)
    _add_evaluate(commands)
    _add_train(commands)
    _add_prepare(commands)
    _add_avatars(commands)
    add_provenance(commands)
    _add_inspect(commands)
    _add_convert(commands)
    _add_assemble(commands)
    return parser


def _add_reenact(commands: Any) -> None:
    parser = add_command(commands, "reenact", reenact, "let a source picture move like a driving video")
    parser.add_argument("--source", type=Path, help="picture with one face")
    parser.add_argument("--driving", type=Path, help="video with one face")
    parser.add_argument(
        "--out", type=file_name(".mp4"), help="the mp4 to write; rate and sound are the driver's"
    )
    parser.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE",
        help="a list in place of the three: CSV with a header, or JSON lines, with source, driving, out, and "
        "any of size, seed, window, overlap, expression_scale, steps, cfg, max_frames, segment",
    )
    add_windows(parser, "strength of the expression adapter")
    parser.add_argument("--max-frames", type=positive, help="use only the first frames of the driving video")
    parser.add_argument(
        "--segment", type=positive, default=96, help="frames that are finished, saved and freed together"
    )
    add_sampling(parser)
    add_checkpoint(parser)
    add_device(parser)
    add_scale(parser)


def _add_capture(commands: Any) -> None:
    parser = add_command(commands, "capture", capture, "read face parameters from a video or picture")
    parser.add_argument("--input", type=Path, required=True, help="video or picture with one face")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file of face parameters")
    add_checkpoint(parser)
    add_device(parser)


def _add_render_normals(commands: Any) -> None:
    parser = add_command(
        commands, "render-normals", render_normals, "draw the head's normals of face parameters"
    )
    parser.add_argument(
        "--parameters", type=Path, required=True, help="face parameters, as capture writes them"
    )
    parser.add_argument(
        "--shape-from", type=Path, help="parameters whose face shape to use (facial shape alignment)"
    )
    parser.add_argument("--out", type=Path, required=True, help="mp4, or a folder for PNG files")
    parser.add_argument("--size", type=positive, default=256, help="side in pixels")
    parser.add_argument(
        "--fps", type=rate, default=Fraction(24), help="frame rate of the mp4, e.g. 30000/1001"
    )
    add_device(parser)


def _add_evaluate(commands: Any) -> None:
    group = commands.add_parser(
        "evaluate",
        help="measure a checkpoint, or results of any method",
        description="Measure a checkpoint, results of any method, or detectors of forgeries.",
    )
    kinds = group.add_subparsers(title="benchmarks", required=True, metavar="benchmark")
    parser = add_command(
        kinds,
        "avatars",
        evaluate_avatars,
        "cross-identity reenactment of unseen avatars, against the exact truth",
    )
    _add_avatar_benchmark(parser)
    compared = add_command(
        kinds,
        "compare",
        compare_avatars,
        "the difference of avatar benchmarks of several checkpoints, pair by pair",
    )
    compared.add_argument("reports", nargs="+", type=Path, help="JSON files; the first is compared with")
    compared.add_argument("--json", type=Path, help="write the differences here")
    add_commands(kinds)


def _add_avatar_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=positive, default=16, help="pairs of source and driver")
    parser.add_argument("--seed", type=int, default=0, help="of identities, motion and noise")
    parser.add_argument("--frames", type=positive, default=24, help="frames of each clip")
    parser.add_argument(
        "--protocol",
        choices=("cross", "same"),
        default="cross",
        help="another avatar drives, or the source is the first frame of its own track",
    )
    parser.add_argument("--batch", type=positive, help="pairs handled at once; 16 on a GPU and 4 elsewhere")
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="only these: full, no_adapter, driver_shape, …"
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        default=[],
        metavar="LAMBDA",
        help="also full with these strengths of the expression adapter, e.g. 0 0.5 1 1.5",
    )
    parser.add_argument(
        "--shared-noise",
        type=float,
        default=1.0,
        help="share of the initial noise that the frames of a clip have in common: 1, or 0 for none",
    )
    parser.add_argument(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="of the network on a GPU; bf16 flickers",
    )
    parser.add_argument("--judges", type=Path, help="networks that judge; the bundled ones when left out")
    parser.add_argument(
        "--read-back",
        choices=("capture", "encoder", "none"),
        default="capture",
        help="how the bundled encoder reads results: as videos are captured, or faster, from known places",
    )
    parser.add_argument(
        "--json", type=Path, help="write the report here; several checkpoints' get _1, _2, … in their names"
    )
    parser.add_argument(
        "--sheet", type=file_name(*PICTURE), help="write a contact sheet here (png or jpg); likewise"
    )
    parser.add_argument("--sheet-rows", type=positive, default=12, help="pairs on the contact sheet")
    add_sampling(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        help="weights; the bundled ones when left out. Several are measured on the same pairs and compared",
    )
    add_device(parser)


def _add_train(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        train,
        "train an experiment: all phases on all GPUs, or one phase here (also under accelerate launch)",
    )
    parser.add_argument(
        "--config", required=True, help="a YAML file, or paper, bundled, refine, judges or smoke"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log and pictures")
    parser.add_argument("--phase", help="train only this phase, here")
    parser.add_argument("--devices", type=int, help="number of GPUs to use; all when left out, 0 for the CPU")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, e.g. phases.stage1.loop.seconds=60",
    )


def _add_prepare(commands: Any) -> None:
    parser = add_command(
        commands,
        "prepare",
        prepare,
        "turn videos of faces into shards for training; the same command goes on after an interruption",
    )
    parser.add_argument(
        "--videos", type=Path, required=True, help="folder with videos or folders of pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--size", type=positive, default=256, help="side of the pictures in pixels")
    parser.add_argument("--picture", choices=("jpg", "png"), default="jpg", help="how they are stored")
    parser.add_argument("--quality", type=positive, default=95, help="of JPEG")
    parser.add_argument("--normals", action="store_true", help="store normals, too, instead of drawing them")
    parser.add_argument(
        "--mode",
        choices=("auto", "portrait", "whole"),
        default="auto",
        help="cut out the portrait, take the whole picture, or decide by the size of the face",
    )
    parser.add_argument("--fps", type=rate, default=Fraction(25), help="of folders of pictures")
    parser.add_argument(
        "--identity",
        metavar="EXPRESSION",
        help="regular expression that finds the identity in a clip's path below the folder; by default "
        "VoxCeleb's names, then the folder that the clip is in, then its name",
    )
    parser.add_argument(
        "--shares", type=float, nargs=3, default=(0.9, 0.05, 0.05), metavar=("TRAIN", "VAL", "TEST"),
        help="how identities are divided",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-split-folders", action="store_true", help="divide also what lies in train, val and test"
    )
    parser.add_argument("--chunk", type=positive, default=16, help="clips that a worker takes at a time")
    for option, text in (("deca", "deca_model.tar"), ("smirk", "SMIRK_em1.pt"), ("flame", "FLAME's head")):
        parser.add_argument(f"--{option}", type=Path, metavar="FILE", help=f"{text}, for real people")
    add_checkpoint(parser)
    add_device(parser)
    add_scale(parser)


def _add_avatars(commands: Any) -> None:
    group = commands.add_parser(
        "avatars", help="render avatars", description="Render avatars with the studio."
    )
    kinds = group.add_subparsers(title="kinds", required=True, metavar="kind")

    def kind(
        name: str,
        run: Callable[[argparse.Namespace], None],
        text: str,
        out: str,
        path: Callable[[str], Path] = Path,
    ) -> argparse.ArgumentParser:
        parser = add_command(kinds, name, run, text)
        parser.add_argument("--out", type=path, required=True, help=out)
        parser.add_argument("--size", type=positive, default=256, help="side in pixels")
        parser.add_argument("--seed", type=int, default=0, help="of identities and motion")
        add_device(parser)
        return parser

    gallery = kind(
        "gallery", avatar_gallery, "a sheet of different avatars", "png or jpg", file_name(*PICTURE)
    )
    gallery.add_argument("--rows", type=positive, default=4)
    gallery.add_argument("--columns", type=positive, default=6)
    clips = kind(
        "clips", avatar_clips, "videos of moving avatars", "folder for mp4 files and their parameters"
    )
    clips.add_argument("--count", type=positive, default=2, help="number of clips")
    clips.add_argument("--frames", type=positive, default=48, help="frames of each")
    clips.add_argument("--fps", type=rate, default=Fraction(24), help="frame rate")
    shards = kind("shards", avatar_shards, "shards of moving avatars, for training", "folder for the shards")
    shards.add_argument("--count", type=positive, required=True, help="number of avatars")
    shards.add_argument("--frames", type=positive, default=96, help="frames of each")
    shards.add_argument(
        "--fps", type=rate, default=Fraction(24), help="frame rate; 1 gives frames that differ"
    )
    shards.add_argument("--normals", action="store_true", help="store normals, too")
    add_scale(shards)
    data = kind("data", avatar_data, "pictures, normals and parameters of random avatars", "folder")
    data.add_argument("--count", type=positive, default=16, help="number of avatars")
    data.add_argument("--frames", type=positive, default=4, help="pictures of each")


def _add_inspect(commands: Any) -> None:
    parser = add_command(commands, "inspect", inspect, "tell what a weight file is and what is in it")
    parser.add_argument("file", type=Path, help="weights of any format, or a folder of them")
    parser.add_argument("--all", action="store_true", help="one line for each tensor as well")


def _add_convert(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert",
        convert,
        "write other projects' weights as an AniFaceDiff checkpoint, a FLAME file as a head",
    )
    parser.add_argument("file", type=Path, help="a weight file, or a folder with all files of a project")
    _add_output(parser)


def _add_assemble(commands: Any) -> None:
    parser = add_command(
        commands, "assemble", assemble, "join public weights into a checkpoint from which training can start"
    )
    for option, text in (
        ("unet", "Stable Diffusion 1.5: one file, or diffusers' folder"),
        ("motion", "AnimateDiff's motion modules"),
        ("image-encoder", "CLIP ViT-L/14 with its projection"),
        ("vae", "an autoencoder in place of the one that comes with the UNet"),
        ("reference", "a ReferenceNet; a copy of the UNet when left out"),
        ("pose-encoder", "a pose encoder for normals; an untrained one when left out"),
        ("expression-adapter", "an IP-Adapter to begin keys and values with; untrained when left out"),
        (
            "init-from",
            "folder of MagicPortrait, Champ or Moore-AnimateAnyone, for what is not named otherwise",
        ),
    ):
        names = (f"--{option}", "--checkpoint") if option == "unet" else (f"--{option}",)
        metavar = "FOLDER" if option == "init-from" else "FILE"
        parser.add_argument(*names, type=Path, metavar=metavar, help=text)
    parser.add_argument(
        "--head", default="flame", help="whose expressions to read: flame, bundled, or a head's file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the untrained parts")
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="type of the weights"
    )


# ---- commands


def train(options: argparse.Namespace) -> None:
    from .training.settings import read_experiment

    experiment = read_experiment(options.config, options.set)
    if options.phase is not None:
        from .training.phases import run_phase

        run_phase(options.phase, experiment, options.out)
        return
    from .training.conductor import Conductor

    Conductor(options.config, experiment, options.set, options.out, options.devices).run()


def evaluate_avatars(options: argparse.Namespace) -> None:
    from .evaluation.ablation import VARIANTS, markdown, scale_name
    from .evaluation.avatars import Protocol
    from .evaluation.report import comparisons, evaluate_checkpoint

    device = pick_device(options.device)
    variants = [*(options.variants or VARIANTS), *(scale_name(scale) for scale in options.scales)]
    protocol = Protocol(
        pairs=options.pairs,
        seed=options.seed,
        frames=options.frames,
        steps=options.steps,
        cfg=options.cfg,
        batch=options.batch or (16 if device.type == "cuda" else 4),
        variants=tuple(dict.fromkeys(variants)),
        protocol=options.protocol,
        shared_noise=options.shared_noise,
        precision=options.precision,
        read_back=options.read_back,
    )
    checkpoints = options.checkpoint or [checkpoint_path(options)]
    reports = {}
    for number, path in enumerate(checkpoints, start=1):
        found = evaluate_checkpoint(
            path,
            protocol,
            json_path=_numbered(options.json, number, len(checkpoints)),
            sheet=_numbered(options.sheet, number, len(checkpoints)),
            device=device,
            judges=options.judges,
            sheet_rows=options.sheet_rows,
            progress=bar("pairs"),
        )
        if found is not None:
            reports[str(path)] = found
            print(f"\n## {path}\n" if len(checkpoints) > 1 else "")
            print(markdown(found))
    if len(reports) > 1:
        print(f"\n{comparisons(reports)[1]}")


def _numbered(path: Path | None, number: int, count: int) -> Path | None:
    """One of several files where one was named: report.json, report_2.json."""
    return path if path is None or count == 1 else path.with_stem(f"{path.stem}_{number}")


def compare_avatars(options: argparse.Namespace) -> None:
    from .evaluation.report import comparisons, read_report

    if len(options.reports) < 2:
        raise InputError("There is one report and nothing to compare it with; name two or more.")
    found, text = comparisons({str(path): read_report(path) for path in options.reports})
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False))


def reenact(options: argparse.Namespace) -> None:
    from .sampling.jobs import PATHS, Reenacting, ReenactJob, run_jobs

    names = [field.name for field in fields(ReenactJob) if field.name not in PATHS]
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    files = {name: getattr(options, name) for name in ("source", "driving", "out")}
    missing = [f"--{name}" for name, value in files.items() if value is None]
    checkpoint = checkpoint_path(options)
    if options.jobs is not None:
        if len(missing) < len(files):
            raise InputError("Give either --jobs, or --source, --driving and --out.")
        scale = scale_of(options)
        print(run_jobs(options.jobs, checkpoint, options.device, scale, settings, progress=bar("jobs")))
        return
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing; give source, driving and out, or a list in --jobs."
        )
    job = ReenactJob(str(files["source"]), str(files["driving"]), str(files["out"]), **settings)
    Reenacting(checkpoint, pick_device(options.device), say=print, bars=bar).reenact(job)


def capture(options: argparse.Namespace) -> None:
    from .capture.capture import CaptureModels
    from .capture.capture import capture as read
    from .head.model import HeadModel
    from .video import IMAGE_ENDINGS, probe, read_frames, read_image
    from .weights.checkpoint import load_checkpoint

    head = HeadModel.bundled().to(pick_device(options.device))
    models = CaptureModels.from_checkpoint(load_checkpoint(checkpoint_path(options)), head)
    if options.input.suffix.lower() in IMAGE_ENDINGS:
        found = read(read_image(options.input), models, what="the picture")
    else:
        total = probe(options.input).frames
        frames = read_frames(options.input)
        found = read(frames, models, what="the video", total=total, progress=bar("capture"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found.parameters.save(options.out)
    left, top, side = found.square.tolist()
    print(found.note)
    print(f"{options.out}: {len(found.parameters)} frames, portrait square {left:.3f} {top:.3f} {side:.3f}.")


def render_normals(options: argparse.Namespace) -> None:
    from .head.alignment import align
    from .head.model import HeadModel
    from .head.parameters import FaceParameters
    from .head.render import render_normals as draw
    from .video import VideoWriter, write_image

    head = HeadModel.bundled().to(pick_device(options.device))
    params = FaceParameters.load(options.parameters)
    if options.shape_from is not None:
        params = align(FaceParameters.load(options.shape_from)[0], params)
    pictures = draw(head, params, options.size, progress=bar("normals"))
    if options.out.suffix.lower() == ".mp4":
        with VideoWriter(options.out, options.fps) as video:
            video.write(pictures)
        return
    for index, picture in enumerate(pictures):
        write_image(options.out / f"{index:05d}.png", picture)


def prepare(options: argparse.Namespace) -> None:
    from .training.prepare import Encoders, Recipe, describe
    from .training.prepare import prepare as write
    from .training.shard_chunks import Shares

    files = {name: getattr(options, name) for name in ("deca", "smirk", "flame")}
    encoders = Encoders(
        str(checkpoint_path(options).resolve()),
        **{name: str(path.resolve()) for name, path in files.items() if path is not None},
        device=options.device,
    )
    recipe = Recipe(
        size=options.size,
        picture=options.picture,
        quality=options.quality,
        normals=options.normals,
        mode=options.mode,
        fps=str(options.fps),
        identity=options.identity,
        split_folders=not options.ignore_split_folders,
        shares=Shares(*options.shares),
        chunk=options.chunk,
    )
    done = write(options.videos, options.out, encoders, recipe, scale_of(options), progress=bar("clips"))
    for line in describe(done, options.out):
        print(line)


def avatar_shards(options: argparse.Namespace) -> None:
    from .training.avatar_shards import AvatarRecipe, prepare_avatars

    recipe = AvatarRecipe(
        count=options.count,
        frames=options.frames,
        fps=str(options.fps),
        size=options.size,
        seed=options.seed,
        normals=options.normals,
    )
    scale = scale_of(options)
    count = prepare_avatars(options.out, recipe, options.device, scale, progress=bar("chunks"))
    print(f"{options.out}: {count} shards.")


def avatar_gallery(options: argparse.Namespace) -> None:
    import torch
    from einops import rearrange

    from .avatars.poses import random_frames
    from .video import write_image

    studio, head, identities, generator = _studio(options, options.rows * options.columns)
    params = random_frames(len(identities), generator, head)
    pictures = torch.cat(list(_render(studio, identities, params, options.size, bar("avatars"))))
    write_image(options.out, rearrange(pictures, "(y x) c h w -> c (y h) (x w)", x=options.columns))


def avatar_clips(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from .avatars.tracks import random_tracks
    from .video import VideoWriter

    studio, head, identities, generator = _studio(options, options.count)
    tracks = random_tracks(options.count, options.frames, float(options.fps), generator, head)
    for clip in range(options.count):
        identity = identities[clip].repeat_interleave(options.frames)
        params = tracks[clip * options.frames : (clip + 1) * options.frames]
        params = replace(params, shape=identity.shape)
        with VideoWriter(options.out / f"clip_{clip:04d}.mp4", options.fps) as video:
            for pictures in _render(studio, identity, params, options.size, bar(f"clip {clip + 1}")):
                video.write(pictures)
        params.to("cpu").save(options.out / f"clip_{clip:04d}.safetensors")


def avatar_data(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from .avatars.poses import random_frames
    from .head.render import render_normals as draw
    from .video import write_image

    studio, head, identities, generator = _studio(options, options.count)
    identities = identities.repeat_interleave(options.frames)
    params = replace(random_frames(len(identities), generator, head), shape=identities.shape)
    normals = draw(head, params, options.size, progress=bar("normals"))
    index = 0
    for pictures in _render(studio, identities, params, options.size, bar("avatars")):
        for picture in pictures:
            name = f"{index // options.frames:05d}_{index % options.frames:02d}"
            write_image(options.out / f"{name}.png", picture)
            write_image(options.out / f"{name}_normals.png", normals[index])
            index += 1
    params.to("cpu").save(options.out / "parameters.safetensors")
    names = {"head": head.name, "expression": head.expression_names, "frames_per_avatar": options.frames}
    (options.out / "data.json").write_text(json.dumps(names, indent=1))


def inspect(options: argparse.Namespace) -> None:
    from .weights.inspection import describe

    for line in describe(options.file, every=options.all):
        print(line)


def convert(options: argparse.Namespace) -> None:
    import torch

    from .weights.assembly import convert as write

    dtype = getattr(torch, options.dtype)
    print(write(options.file, options.out, dtype=dtype, progress=bar("tensors")))


def assemble(options: argparse.Namespace) -> None:
    import torch

    from .weights.assembly import Ingredients
    from .weights.assembly import assemble as write

    ingredients = Ingredients(
        unet=options.unet,
        motion=options.motion,
        image_encoder=options.image_encoder,
        vae=options.vae,
        reference=options.reference,
        pose_encoder=options.pose_encoder,
        expression_adapter=options.expression_adapter,
        init_from=options.init_from,
    )
    print(
        write(
            ingredients,
            options.out,
            head=options.head,
            dtype=getattr(torch, options.dtype),
            seed=options.seed,
            progress=bar("tensors"),
        )
    )


def _studio(options: argparse.Namespace, count: int) -> tuple[Any, Any, Any, torch.Generator]:
    import torch

    from .avatars.identity import Identity
    from .avatars.studio import Studio
    from .head.model import HeadModel

    head = HeadModel.bundled().to(pick_device(options.device))
    generator = torch.Generator().manual_seed(options.seed)
    identities = Identity.random(count, generator, head)
    return Studio(head), head, identities, generator


def _render(
    studio: Any, identities: Any, params: Any, size: int, progress: Progress
) -> Iterator[torch.Tensor]:
    """Pictures in batches, on the CPU."""
    from dataclasses import replace

    params = replace(params, shape=identities.shape.to(params.shape))
    for start in range(0, len(params), 8):
        part = slice(start, start + 8)
        yield studio.render(identities[part], params[part], size=size).cpu()
        progress(min(start + 8, len(params)), len(params))
