"""The command line: python -m anifacediff_core. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from anifacediff_core.errors import FAULTS, InputError, printable, refusal_of
from anifacediff_core.provenance.export import FORMS
from anifacediff_core.storage import require_writable

from .commands import avatars, benchmark, evaluate, live, mark, reenact, speech, train, weights
from .options import PICTURE, add_command, call

COMMANDS: dict[str, Callable[..., None]] = {
    "reenact": reenact.reenact,
    "live": live.live,
    "learn": reenact.learn,
    "capture": reenact.capture,
    "render-normals": reenact.render_normals,
    "evaluate avatars": benchmark.avatars,
    "evaluate compare": benchmark.compare,
    "evaluate pairs": evaluate.pairs,
    "evaluate run": evaluate.run,
    "evaluate results": evaluate.results,
    "evaluate clips": evaluate.clips,
    "evaluate study": evaluate.study,
    "evaluate tally": evaluate.tally,
    "evaluate forgery": evaluate.forgery,
    "train": train.train,
    "prepare": train.prepare,
    "avatars gallery": avatars.gallery,
    "avatars clips": avatars.clips,
    "avatars data": avatars.data,
    "avatars shards": avatars.shards,
    "speech train": speech.train,
    "speech evaluate": speech.evaluate,
    "mark": mark.mark,
    "label": mark.label,
    "detect": mark.detect,
    "inspect": weights.inspect,
    "convert": weights.convert,
    "assemble": weights.assemble,
}
GROUPS = {
    "evaluate": ("benchmark", "measure a checkpoint, results of any method, or detectors of forgeries"),
    "avatars": ("kind", "render avatars with the studio"),
    "speech": ("job", "train and measure what reads a voice"),
}
# endings with which --out names no folder
VIDEO = {form.suffix for form in FORMS.values() if form.suffix}
FILES = {".safetensors", ".json", ".csv", ".html", *VIDEO, *PICTURE}


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
            call(options.run, vars(options))
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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anifacediff",
        description="Face reenactment: one source picture and one driving video give a video of the source "
        "that moves like the driver.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    groups = {}
    for name, run in COMMANDS.items():
        group, _, kind = name.partition(" ")
        if kind and group not in groups:
            what, text = GROUPS[group]
            below = commands.add_parser(group, help=text, description=text)
            groups[group] = below.add_subparsers(title=f"{what}s", required=True, metavar=what)
        add_command(groups[group] if kind else commands, kind or name, run)
    return parser
