"""The commands `evaluate avatars` and `compare`. What they need is imported when they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from anifacediff_core.device import pick_device
from anifacediff_core.errors import InputError

from ..evaluation.ablation import VARIANTS, scale_name
from ..evaluation.protocol import Protocol
from ..options import Cfg, Device, Picture, Positive, Steps, Style, bar, checkpoint_or_bundled


def avatars(
    *,
    protocol: Protocol,
    pairs: Annotated[Positive, "pairs of source and driver"] = 16,
    batch: Annotated[Positive | None, "pairs handled at once; 16 on a GPU and 4 elsewhere"] = None,
    variants: Annotated[
        tuple[str, ...] | None, "only these: full, no_adapter, driver_shape, …", {"metavar": "NAME"}
    ] = None,
    scales: Annotated[
        tuple[float, ...],
        "also full with these strengths of the expression adapter, e.g. 0 0.5 1 1.5",
        {"metavar": "LAMBDA"},
    ] = (),
    style: Annotated[
        tuple[Style, ...],
        "look of all pictures, each one's report by itself; nothing is trained on cel, duotone, watercolor",
    ] = ("plain",),
    steps: Steps = None,
    cfg: Cfg = None,
    judges: Annotated[Path | None, "networks that judge; the bundled ones when left out"] = None,
    json: Annotated[
        Path | None, "write the report here; those of several checkpoints or styles get _1, _2, …"
    ] = None,
    sheet: Annotated[Picture | None, "write a contact sheet here (png or jpg); likewise"] = None,
    sheet_rows: Annotated[Positive, "pairs on the contact sheet"] = 12,
    checkpoint: Annotated[
        Sequence[Path] | None,
        "weights; the bundled ones when left out. Several are measured on the same pairs and compared",
    ] = None,
    device: Device = "auto",
) -> None:
    """Cross-identity reenactment of unseen avatars, against the exact truth."""
    from anifacediff_core.weights.checkpoint import load_checkpoint

    from ..evaluation.ablation import markdown, styles_table
    from ..evaluation.report import comparisons, evaluate_checkpoint

    where = pick_device(device)
    names = dict.fromkeys([*(variants or VARIANTS), *map(scale_name, scales)])
    batch = batch or (16 if where.type == "cuda" else 4)
    protocol = replace(protocol, pairs=pairs, batch=batch, variants=tuple(names))
    checkpoints = checkpoint or [checkpoint_or_bundled(None)]
    runs = [(look, path) for look in style for path in checkpoints]
    reports: dict[str, dict[str, Any]] = {look: {} for look in style}
    for number, (look, path) in enumerate(runs, start=1):
        wanted = load_checkpoint(path).sampling.but(steps=steps, cfg=cfg)
        found = evaluate_checkpoint(
            path,
            replace(protocol, style=look, steps=wanted.steps, cfg=wanted.cfg),
            json_path=_numbered(json, number, len(runs)),
            sheet=_numbered(sheet, number, len(runs)),
            device=where,
            judges=judges,
            sheet_rows=sheet_rows,
            progress=bar("pairs"),
        )
        if found is not None:
            reports[look][str(path)] = found
            print(f"\n## {path}, {look}\n" if len(runs) > 1 else "")
            print(markdown(found))
    for look in style:
        if len(reports[look]) > 1:
            print(f"\n{comparisons(reports[look])[1]}")
    for path in checkpoints if len(style) > 1 and "full" in names else ():
        shown = {look: found[str(path)] for look, found in reports.items() if str(path) in found}
        print(f"\n{path.name} in several styles:\n\n{styles_table(shown)}" if shown else "")


def _numbered(path: Path | None, number: int, count: int) -> Path | None:
    """One of several files where one was named: report.json, report_2.json."""
    return path if path is None or count == 1 else path.with_stem(f"{path.stem}_{number}")


def compare(
    reports: Annotated[tuple[Path, ...], "JSON files; the first is compared with"],
    /,
    json: Annotated[Path | None, "write the differences here"] = None,
) -> None:
    """The difference of avatar benchmarks of several checkpoints, pair by pair."""
    from ..evaluation.report import comparisons, read_report

    if len(reports) < 2:
        raise InputError("There is one report and nothing to compare it with; name two or more.")
    found, text = comparisons({str(path): read_report(path) for path in reports})
    print(text)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(dumps(found, indent=1, allow_nan=False))
