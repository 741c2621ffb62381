"""What the commands of the command line share: options, their types, bars, and the bundled checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from anifacediff_core.claims import parse_rate
from anifacediff_core.progress import Progress
from anifacediff_core.sampling.settings import SamplingSettings

PICTURE = (".png", ".jpg", ".jpeg")
FACE_FILES = {"deca": "deca_model.tar", "smirk": "SMIRK_em1.pt", "flame": "FLAME's generic_model.pkl"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default == []
        return action.help if empty else super()._get_help_string(action)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
    parser.set_defaults(run=run)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto for the best that is there"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="weights; the bundled ones when left out")


def add_face_files(parser: argparse.ArgumentParser, text: str, *names: str) -> None:
    """Files that read faces in place of the checkpoint's networks; all of FACE_FILES, or only `names`."""
    for name in names or FACE_FILES:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"{FACE_FILES[name]}, {text}")


def face_files(options: argparse.Namespace) -> dict[str, Path]:
    """Those of them that were named, as arguments of `weights.faces.load_face_models`."""
    named = {name: getattr(options, name, None) for name in FACE_FILES}
    return {name: path.resolve() for name, path in named.items() if path is not None}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    left_out = "as the checkpoint wants it when left out, which for the bundled one is"
    bundled = SamplingSettings()
    parser.add_argument("--steps", type=positive, help=f"sampling steps; {left_out} {bundled.steps}")
    parser.add_argument(
        "--cfg", type=float, help=f"guidance, 1 is none and twice as fast; {left_out} {bundled.cfg:g}"
    )


def add_windows(parser: argparse.ArgumentParser, scale_help: str) -> None:
    """What else decides a reenacted video: size, noise, windows, and λ, of which `scale_help` speaks."""
    usual = SamplingSettings()
    parser.add_argument("--size", type=positive, default=usual.size, help="side of the result in pixels")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the initial noise")
    parser.add_argument("--window", type=positive, default=usual.window, help="frames sampled together")
    parser.add_argument(
        "--overlap", type=int, default=usual.overlap, help="frames that neighboring windows share"
    )
    parser.add_argument("--expression-scale", type=float, default=usual.expression_scale, help=scale_help)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def file_name(*endings: str) -> Callable[[str], Path]:
    """The type of a file to write: what it is shows in its name, and is asked for before the work begins."""

    def named(text: str) -> Path:
        if Path(text).suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{text} has to end in {' or '.join(endings)}")
        return Path(text)

    return named


def rate(text: str) -> Fraction:
    """A frame rate such as 24 or 30000/1001."""
    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no frame rate; give one like 30000/1001") from error


def bar(text: str) -> Progress:
    """A progress callback that draws a bar on the terminal, once there is progress."""
    from tqdm import tqdm

    drawn: tqdm | None = None

    def progress(done: int, total: int) -> None:
        nonlocal drawn
        drawn = tqdm(desc=text, leave=True, total=total) if drawn is None else drawn
        drawn.update(done - drawn.n)
        if done >= total:
            drawn.close()

    return progress


def checkpoint_path(options: argparse.Namespace) -> Path:
    """The checkpoint named, or the bundled one."""
    from anifacediff_core.weights.checkpoint import bundled_checkpoint

    return bundled_checkpoint() if options.checkpoint is None else options.checkpoint
