"""The command line: python -m anifacediff_core. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

from anifacediff_core.device import pick_device
from anifacediff_core.errors import FAULTS, InputError, printable, refusal_of
from anifacediff_core.storage import require_writable

from .commands.avatars import add_avatars
from .commands.benchmark import add_benchmark
from .commands.evaluate import add_commands
from .commands.mark import add_provenance
from .commands.prepare import add_avatar_shards, add_prepare
from .options import (
    PICTURE,
    add_checkpoint,
    add_command,
    add_device,
    add_face_files,
    add_sampling,
    add_windows,
    bar,
    checkpoint_path,
    face_files,
    file_name,
    positive,
    rate,
)
from .scale import add_scale, scale_of

FILES = {".mp4", ".safetensors", ".json", ".csv", *PICTURE}  # endings with which --out names no folder


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Bad input and faults of the system end with a sentence on standard error and code 2."""
    options = make_parser().parse_args(arguments)
    out: Path | None = getattr(options, "out", None)
    try:
        if out is not None:
            if out.suffix.lower() in FILES and out.is_dir():
                raise InputError(f"{out} is a folder: name the file to write.")
            require_writable(out)
        with redirect_stdout(_Printable(sys.stdout)):
            options.run(options)
    except (InputError, *FAULTS) as error:
        if getattr(options, "phase", None) is not None and not isinstance(error, InputError):
            raise  # code 2 would say that starting this phase again cannot help
        print(f"anifacediff: {refusal_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("anifacediff: interrupted", file=sys.stderr)
        return 130
    return 0


class _Printable:
    """A stream that shows its lines and obeys nothing in them, since there are strangers' names in them."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        shown = "\n".join(printable(line, longest=None) for line in text.split("\n"))
        encoding = self.stream.encoding or "utf-8"
        return self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


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
    add_prepare(commands)
    add_avatar_shards(add_avatars(commands))
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
    add_face_files(parser, "for real people, with a checkpoint for FLAME")
    add_checkpoint(parser)
    add_device(parser)
    add_scale(parser)


def _add_capture(commands: Any) -> None:
    parser = add_command(commands, "capture", capture, "read face parameters from a video or picture")
    parser.add_argument("--input", type=Path, required=True, help="video or picture with one face")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file of face parameters")
    add_face_files(parser, "for real people")
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
    add_face_files(parser, "the head of parameters that DECA or SMIRK have read", "flame")
    add_device(parser)


def _add_evaluate(commands: Any) -> None:
    group = commands.add_parser(
        "evaluate",
        help="measure a checkpoint, or results of any method",
        description="Measure a checkpoint, results of any method, or detectors of forgeries.",
    )
    kinds = group.add_subparsers(title="benchmarks", required=True, metavar="benchmark")
    add_benchmark(kinds)
    add_commands(kinds)


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
        help="change a setting, e.g. phases.stage1.loop.steps=60",
    )


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
    from .training.launch import run_all

    settings = [part for setting in options.set for part in ("--set", setting)]
    arguments = ["train", "--config", options.config, "--out", str(options.out), *settings]
    run_all(experiment, options.out, arguments, options.devices)


def reenact(options: argparse.Namespace) -> None:
    from .jobs import PATHS, Reenacting, ReenactJob, run_jobs

    names = [field.name for field in fields(ReenactJob) if field.name not in PATHS]
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    files = {name: getattr(options, name) for name in ("source", "driving", "out")}
    missing = [f"--{name}" for name, value in files.items() if value is None]
    checkpoint, faces = checkpoint_path(options), face_files(options)
    if options.jobs is not None:
        if len(missing) < len(files):
            raise InputError("Give either --jobs, or --source, --driving and --out.")
        scale, progress = scale_of(options), bar("jobs")
        print(run_jobs(options.jobs, checkpoint, options.device, scale, settings, progress, faces))
        return
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing; give source, driving and out, or a list in --jobs."
        )
    job = ReenactJob(str(files["source"]), str(files["driving"]), str(files["out"]), **settings)
    Reenacting(checkpoint, options.device, faces, print, bar).reenact(job)


def capture(options: argparse.Namespace) -> None:
    from anifacediff_core.capture.capture import capture as read
    from anifacediff_core.video import is_still, probe, read_frames, read_image
    from anifacediff_core.weights.checkpoint import load_checkpoint
    from anifacediff_core.weights.faces import load_face_models

    checkpoint, device = load_checkpoint(checkpoint_path(options)), pick_device(options.device)
    models = load_face_models(checkpoint, **face_files(options), device=device)
    if is_still(options.input):
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
    from anifacediff_core.head.alignment import align, source_frame
    from anifacediff_core.head.model import HeadModel
    from anifacediff_core.head.parameters import FaceParameters
    from anifacediff_core.head.render import iterate_normals
    from anifacediff_core.video import VideoWriter, write_image
    from anifacediff_core.weights.faces import load_head

    head = HeadModel.bundled() if options.flame is None else load_head(options.flame)
    head.to(pick_device(options.device))
    params = FaceParameters.load(options.parameters)
    if options.shape_from is not None:
        params = align(source_frame(FaceParameters.load(options.shape_from)), params)
    parts = iterate_normals(head, params, options.size, progress=bar("normals"))
    if options.out.suffix.lower() == ".mp4":
        with VideoWriter(options.out, options.fps) as video:
            for part in parts:
                video.write(part)
        return
    for index, picture in enumerate(chain.from_iterable(parts)):
        write_image(options.out / f"{index:05d}.png", picture)


def inspect(options: argparse.Namespace) -> None:
    from .inspection import describe

    for line in describe(options.file, every=options.all):
        print(line)


def convert(options: argparse.Namespace) -> None:
    import torch

    from .assembly import convert as write

    dtype = getattr(torch, options.dtype)
    print(write(options.file, options.out, dtype=dtype, progress=bar("tensors")))


def assemble(options: argparse.Namespace) -> None:
    import torch

    from .assembly import Ingredients
    from .assembly import assemble as write

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
