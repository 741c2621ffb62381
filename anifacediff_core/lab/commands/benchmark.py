"""The commands `evaluate avatars` and `compare`. What they need is imported when they run."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError
from anifacediff_core.sampling.settings import SamplingSettings

from ..options import (
    PICTURE,
    add_command,
    add_device,
    add_sampling,
    bar,
    checkpoint_path,
    file_name,
    positive,
)


def add_benchmark(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "avatars",
        evaluate_avatars,
        "cross-identity reenactment of unseen avatars, against the exact truth",
    )
    _add_avatars(parser)
    compared = add_command(
        kinds,
        "compare",
        compare_avatars,
        "the difference of avatar benchmarks of several checkpoints, pair by pair",
    )
    compared.add_argument("reports", nargs="+", type=Path, help="JSON files; the first is compared with")
    compared.add_argument("--json", type=Path, help="write the differences here")


def _add_avatars(parser: argparse.ArgumentParser) -> None:
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
        default=SamplingSettings.shared_noise,
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


def evaluate_avatars(options: argparse.Namespace) -> None:
    from anifacediff_core.weights.checkpoint import load_checkpoint

    from ..evaluation.ablation import VARIANTS, markdown, scale_name
    from ..evaluation.avatars import Protocol
    from ..evaluation.report import comparisons, evaluate_checkpoint

    device = pick_device(options.device)
    variants = [*(options.variants or VARIANTS), *(scale_name(scale) for scale in options.scales)]
    protocol = Protocol(
        pairs=options.pairs,
        seed=options.seed,
        frames=options.frames,
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
        wanted = load_checkpoint(path).sampling.but(steps=options.steps, cfg=options.cfg)
        found = evaluate_checkpoint(
            path,
            replace(protocol, steps=wanted.steps, cfg=wanted.cfg),
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
    from ..evaluation.report import comparisons, read_report

    if len(options.reports) < 2:
        raise InputError("There is one report and nothing to compare it with; name two or more.")
    found, text = comparisons({str(path): read_report(path) for path in options.reports})
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False))
