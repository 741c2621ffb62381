"""Commands from typed functions: a parameter is an option, and its annotation and default say all about it.

    def mark(input: Annotated[Path, "video"], crf: Annotated[int, "compression of H.264"] = 18) -> None:
        '''Say in pixels that a video is synthetic.'''

In `Annotated`, text is the option's help, a function reads its value, and a dict holds what else
`ArgumentParser.add_argument` takes, with `names` in place of --input. Parameters before `/` have no dashes;
`Sequence` is an option that can be repeated, a tuple one with several values. A dataclass stands for those of
its fields that have a help.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from fractions import Fraction
from inspect import BoundArguments, Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from anifacediff_core.lab.parsing import parse_rate
from anifacediff_core.progress import Progress
from anifacediff_core.sampling.settings import SamplingSettings

PICTURE = (".png", ".jpg", ".jpeg")

# ---- kinds of values


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def file_name(*endings: str) -> Callable[[str], Path]:
    """Reads a file to write: what it is shows in its name, and is asked for before the work begins."""

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


def rate_text(text: str) -> str:
    return str(rate(text))


# ---- options of several commands

_LEFT_OUT = "as the checkpoint wants it when left out, which for the bundled one is"

Positive = Annotated[int, positive]
Rate = Annotated[Fraction, rate]
Mp4 = Annotated[Path, file_name(".mp4")]
Picture = Annotated[Path, file_name(*PICTURE)]
File = Annotated[Path | None, {"metavar": "FILE"}]
Device = Annotated[str, "cpu, cuda, cuda:1, mps, or auto for the best that is there"]
Checkpoint = Annotated[Path | None, "weights; the bundled ones when left out"]
Steps = Annotated[Positive | None, f"sampling steps; {_LEFT_OUT} {SamplingSettings.steps}"]
Style = Literal[  # the keys of FAMILIES and HELD_OUT in `avatars.styles`
    "plain",
    "graded",
    "convolved",
    "painted",
    "posterized",
    "drawn",
    "filtered",
    "cel",
    "duotone",
    "watercolor",
]
Cfg = Annotated[float | None, f"guidance, 1 is none and twice as fast; {_LEFT_OUT} {SamplingSettings.cfg:g}"]


@dataclass(frozen=True)
class Sampling:
    """What is asked of `SamplingSettings`."""

    size: Annotated[int, positive, "side of the result in pixels"] = SamplingSettings.size
    seed: Annotated[int, "of the initial noise"] = SamplingSettings.seed
    window: Annotated[int, positive, "frames sampled together"] = SamplingSettings.window
    overlap: Annotated[int, "frames that neighboring windows share"] = SamplingSettings.overlap
    expression_scale: Annotated[float, "λ, strength of the expression adapter"] = (
        SamplingSettings.expression_scale
    )
    steps: Steps = None
    cfg: Cfg = None


@dataclass(frozen=True)
class FaceFiles:
    """Files that read faces in place of the checkpoint's networks."""

    deca: Annotated[File, "deca_model.tar, for real people"] = None
    smirk: Annotated[File, "SMIRK_em1.pt, for real people"] = None
    flame: Annotated[File, "FLAME's generic_model.pkl, for real people"] = None

    def named(self) -> dict[str, Path]:
        """Those that were named, as arguments of `weights.faces.load_face_models`."""
        return {name: path.resolve() for name, path in vars(self).items() if path is not None}


# ---- parsers from functions


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.nargs == 0 or action.default is None or action.default in ([], ())
        return action.help if empty else super()._get_help_string(action)


def add_command(commands: Any, name: str, run: Callable[..., None]) -> None:
    """Add a command to argparse's subparsers; its docstring is its description."""
    text = " ".join((run.__doc__ or "").split())
    text = text[:1].lower() + text[1:].removesuffix(".")
    parser = commands.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
    parser.set_defaults(run=run)
    for parameter, kind, notes in _options(run):
        _add_option(parser, parameter, kind, notes)


def call(run: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Call a command, or make a dataclass of its options, with those of the parsed values that it takes."""
    parameters = signature(run, eval_str=True)
    given: dict[str, Any] = {}
    for name, parameter in parameters.parameters.items():
        kind, notes = _unfolded(parameter.annotation)
        if is_dataclass(kind) and not _help(notes):
            given[name] = call(kind, values)  # type: ignore[arg-type]
        elif _help(notes):
            several = get_origin(kind) is tuple and values[name] is not None
            given[name] = tuple(values[name]) if several else values[name]
    bound = BoundArguments(parameters, given)  # type: ignore[arg-type]
    return run(*bound.args, **bound.kwargs)


def _options(run: Callable[..., Any]) -> Iterator[tuple[Parameter, Any, tuple[Any, ...]]]:
    for parameter in signature(run, eval_str=True).parameters.values():
        kind, notes = _unfolded(parameter.annotation)
        if _help(notes):
            yield parameter, kind, notes
        elif is_dataclass(kind):
            yield from _options(kind)  # type: ignore[arg-type]


def _unfolded(hint: Any, notes: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...]]:
    """Type and notes of `Annotated[X | None, ...]`, whichever is inside the other."""
    if get_origin(hint) is Annotated:
        inner, *own = get_args(hint)
        return _unfolded(inner, (*own, *notes))
    if get_origin(hint) in (Union, UnionType):
        (kind,) = (kind for kind in get_args(hint) if kind is not NoneType)
        return _unfolded(kind, notes)
    return hint, notes


def _help(notes: tuple[Any, ...]) -> str | None:
    return next((note for note in notes if isinstance(note, str)), None)


def _add_option(
    parser: argparse.ArgumentParser, parameter: Parameter, kind: Any, notes: tuple[Any, ...]
) -> None:
    given: dict[str, Any] = {"help": _help(notes), "dest": parameter.name}
    names: Sequence[str] = [f"--{parameter.name.replace('_', '-')}"]
    if get_origin(kind) is tuple:
        kind, *others = get_args(kind)
        given["nargs"] = "+" if ... in others else 1 + len(others)
    elif get_origin(kind) is Sequence:
        (kind,) = get_args(kind)
        given["action"] = "append"
    if get_origin(kind) is Literal:
        given["choices"] = get_args(kind)
    elif kind is bool:
        given["action"] = "store_false" if parameter.default else "store_true"
    else:
        given["type"] = next(filter(callable, notes), kind)
    if parameter.default is parameter.empty:
        given["required"] = True
    else:
        repeated = given.get("action") == "append" and parameter.default is not None
        given["default"] = list(parameter.default) if repeated else parameter.default
    for note in notes:
        given |= note if isinstance(note, dict) else {}
    names = given.pop("names", names)
    if parameter.kind is parameter.POSITIONAL_ONLY:
        names = [given.pop("dest")]
        given.pop("required")
    parser.add_argument(*names, **given)


# ---- what commands share


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


def checkpoint_or_bundled(path: Path | None) -> Path:
    from anifacediff_core.weights.checkpoint import bundled_checkpoint

    return bundled_checkpoint() if path is None else path
