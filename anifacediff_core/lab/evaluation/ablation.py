"""Variants of the method on the avatar benchmark, and how they compare: intervals, differences, tables.

Every variant handles the same pairs with the same noise. So the difference of two is taken pair by pair,
which is far more exact than the difference of two means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anifacediff_core.errors import InputError

QUANTILE = 1.96  # of the normal distribution: 95 % of the values lie within so many standard errors
SWEEP = "scale_"

# Title, digits and whether more is better (None: neither), of what is measured on every clip.
MEASURES: dict[str, tuple[str, int, bool | None]] = {
    "frechet": ("Fréchet distance (judges' features) ↓", 3, False),
    "csim": ("CSIM (avatar judge) ↑", 3, True),
    "csim_truth": ("CSIM to the truth (avatar judge) ↑", 3, True),
    "apd": ("APD (avatar judge) ↓", 4, False),
    "aed": ("AED (avatar judge) ↓", 4, False),
    "apd_exact": ("APD to the exact truth (avatar judge) ↓", 4, False),
    "aed_exact": ("AED to the exact truth (avatar judge) ↓", 4, False),
    "camera": ("camera (avatar judge) ↓", 2, False),
    "psnr": ("PSNR ↑", 2, True),
    "ssim": ("SSIM ↑", 3, True),
    "head": ("head ↑", 2, True),
    "eyes": ("eyes ↑", 2, True),
    "mouth": ("mouth ↑", 2, True),
    "flicker": ("flicker →1", 3, None),
    "flicker_off": ("flicker, off 1 ↓", 3, False),
}
JUDGED = ("csim", "csim_truth", "apd", "aed", "apd_exact", "aed_exact", "camera")
SHOWN = ("frechet", "csim", "csim_truth", "apd", "aed", "psnr", "eyes", "flicker", "flicker_off")


@dataclass(frozen=True)
class Variant:
    """How the results of one line of the table are made.

    Args:
        title: for people.
        generated: by the network; the others are what it is compared with.
        aligned: the normals have the source's shape (FSA); otherwise the driver's.
        scale: λ of the expression adapter (EA), 0 for none.
        temporal: the temporal modules of stage 2 take part.
        captured: parameters are read from pictures; otherwise they are the true ones.
    """

    title: str
    generated: bool = True
    aligned: bool = True
    scale: float = 1.0
    temporal: bool = True
    captured: bool = False


VARIANTS = {
    "full": Variant("full"),
    "no_adapter": Variant("without expression adapter", scale=0.0),
    "driver_shape": Variant("driver's shape", aligned=False),
    "no_fsa_no_adapter": Variant("driver's shape, without expression adapter", aligned=False, scale=0.0),
    "no_temporal": Variant("without temporal modules", temporal=False),
    "captured": Variant("captured parameters", captured=True),
    "source": Variant("source copied", generated=False),
    "autoencoder": Variant("autoencoder on the truth", generated=False),
}
TABLE_2 = ("no_fsa_no_adapter", "no_adapter", "driver_shape", "full")
# What is on one side more than on the other; the paper's questions.
COMPARED = (
    ("full", "driver_shape", "FSA, with the adapter"),
    ("no_adapter", "no_fsa_no_adapter", "FSA, without the adapter"),
    ("full", "no_adapter", "expression adapter, with FSA"),
    ("driver_shape", "no_fsa_no_adapter", "expression adapter, without FSA"),
    ("full", "no_temporal", "temporal modules (stage 2 against stage 1)"),
)


def find_variant(name: str) -> Variant:
    """One of `VARIANTS`, or `scale_0.5` and the like: full with another strength of the adapter.

    Raises:
        InputError: there is none of that name.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    try:
        scale = float(name.removeprefix(SWEEP)) if name.startswith(SWEEP) else math.nan
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise InputError(
            f"There is no variant {name}; choose from {', '.join(VARIANTS)}, or {SWEEP}0.5 and the like."
        )
    return Variant(f"expression adapter × {scale:g}", scale=scale)


def scale_name(scale: float) -> str:
    """The variant's name of a strength λ; 0 and 1 have names of their own."""
    return {0.0: "no_adapter", 1.0: "full"}.get(scale, f"{SWEEP}{scale:g}")


# ---- statistics


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval by the normal approximation: 1.96 s / √n.

    Values that are not finite are left out; less than two have no width (NaN).
    """
    kept = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    if not len(kept):
        return math.nan, math.nan
    half = QUANTILE * float(kept.std()) / len(kept) ** 0.5 if len(kept) > 1 else math.nan
    return float(kept.mean()), half


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean difference first − second over the same pairs and half the width of its 95 % interval."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


Columns = dict[str, list[float]]
"""What was measured -> its values, one of each pair."""


def columns_of(clips: list[dict[str, float]]) -> Columns:
    return {name: [clip[name] for clip in clips] for name in (clips[0] if clips else ())}


def differences(pairs: dict[str, Columns]) -> list[dict[str, Any]]:
    """The paper's questions, as far as their variants were run; the sweep against full."""
    asked = [question for question in COMPARED if question[0] in pairs and question[1] in pairs]
    asked += [
        (name, "full", f"{find_variant(name).title} against × 1")
        for name in pairs
        if name.startswith(SWEEP) and "full" in pairs
    ]
    return [
        {"of": of, "minus": minus, "question": question, "measures": _differences(pairs[of], pairs[minus])}
        for of, minus, question in asked
    ]


def _differences(first: Columns, second: Columns) -> dict[str, tuple[float, float]]:
    return {name: paired(first[name], second[name]) for name in first if name in second}


SAME_CASES = ("protocol", "pairs", "seed", "frames", "fps", "size", "style")


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Two reports of the benchmark, after − before, pair by pair, for every variant that both have.

    Raises:
        InputError: they are not about the same pairs.
    """
    for report in (before, after):
        if not isinstance(report.get("pairs"), dict) or "protocol" not in report:
            raise InputError(
                "A report to compare has no values of single pairs; write both anew with "
                "`evaluate avatars --json`."
            )
    plain = {"style": "plain"}  # of reports from before there were styles
    cases = [{key: (plain | r["protocol"]).get(key) for key in SAME_CASES} for r in (before, after)]
    unlike = [key for key in SAME_CASES if cases[0][key] != cases[1][key]]
    if unlike:
        differences = ", ".join(f"{key} {cases[0][key]} and {cases[1][key]}" for key in unlike)
        raise InputError(
            f"The reports are about different pairs ({differences}); measure both with the same options."
        )
    old, new = ({name: _numbers(c) for name, c in report["pairs"].items()} for report in (before, after))
    return [
        {
            "of": name,
            "minus": name,
            "question": find_variant(name).title,
            "measures": _differences(new[name], old[name]),
        }
        for name in new
        if name in old
    ]


def _numbers(columns: dict[str, list[float | None]]) -> Columns:
    """As they were before JSON, which knows no NaN."""
    return {name: [math.nan if v is None else v for v in values] for name, values in columns.items()}


# ---- tables


def markdown(report: dict[str, Any]) -> str:
    """The whole report for people: results, the paper's Table 2, differences, the sweep of λ."""
    table_2 = (
        "With and without Facial Shape Alignment (FSA) and expression adapter (EA), the paper's Table 2; "
        "± is half the width of the 95 % interval over the pairs:"
    )
    parts = [
        ("", table(report)),
        (table_2, ablation_table(report)),
        (
            "Differences pair by pair, with their 95 % intervals; bold where 0 lies outside:",
            difference_table(report.get("differences", [])),
        ),
        ("Strength λ of the expression adapter:", sweep_table(report)),
    ]
    shown = [f"{text}\n\n{part}" if text else part for text, part in parts if part]
    return "\n\n".join([*shown, judges_note(report)])


def judges_note(report: dict[str, Any]) -> str:
    """Who judged, or why nobody did."""
    if not report.get("judges"):
        return (
            "CSIM, APD and AED were not measured: there are no judges; train them with "
            "`train --config judges` and name their file with --judges."
        )
    note = (
        "CSIM, APD and AED are the avatar judges', networks that take no part in making the results; they "
        "can't be compared with the paper's numbers, which come from other networks on photographs."
    )
    held_out = report["judges"].get("held_out") or {}
    known = ("auc_anyone", "auc_shape", "expression_r", "rotation")
    if any(name not in held_out for name in known):
        return note
    anyone, shape, expression, turn = (held_out[name] for name in known)
    return (
        f"{note} On unseen avatars they tell the same face from any other with an area under the ROC curve "
        f"of {anyone:.4f}, from another face shape under the same look with {shape:.4f}, and read expression "
        f"with r {expression:.2f} and the head's rotation to {turn:.1f}°."
    )


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    columns = {
        "psnr": ("PSNR", 1),
        "ssim": ("SSIM", 3),
        "head": ("head", 1),
        "eyes": ("eyes", 1),
        "mouth": ("mouth", 1),
        "flicker": ("flicker", 2),
        "flicker_off": ("off 1", 3),
        "frechet": ("Fréchet (judges)", 2),
        "csim": ("CSIM (judge)", 3),
        "csim_truth": ("CSIM to truth (judge)", 3),
        "apd": ("APD (judge)", 4),
        "aed": ("AED (judge)", 4),
    }
    titles = ["unseen avatars", *(title for title, _ in columns.values()), "expression r", "rotation °"]
    rows = [titles, ["---"] * len(titles)]
    read = report.get("read_back", {})
    for variant, values in report["results"].items():
        cells = [_plain(values.get(name), digits) for name, (_, digits) in columns.items()]
        rows.append([find_variant(variant).title, *cells, *_read_cells(read.get(variant, {}))])
    judged = report.get("judged_truth") or {}
    if "truth" in read or judged:
        cells = [_plain(judged.get(name), digits) for name, (_, digits) in columns.items()]
        rows.append(["truth, read back", *cells, *_read_cells(read.get("truth", {}))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def styles_table(reports: dict[str, dict[str, Any]]) -> str:
    """How well the full method does in each style: {style: report}."""
    rows = [["style of all pictures", *(MEASURES[name][0] for name in SHOWN)]]
    rows += [[style, *_with_intervals(report, "full", SHOWN)] for style, report in reports.items()]
    return _markdown(rows)


def _read_cells(read: dict[str, Any]) -> list[str]:
    return [_plain(read.get("correlation"), 3), _plain(read.get("rotation"), 2)]


def _plain(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def ablation_table(report: dict[str, Any]) -> str:
    """The paper's Table 2: identity, pose and expression with and without FSA and the adapter (EA)."""
    run = [name for name in TABLE_2 if name in report["results"]]
    if report["protocol"].get("protocol") == "same":
        run = [name for name in run if find_variant(name).aligned]
    if len(run) < 2:
        return ""
    rows = [["FSA", "EA", *(MEASURES[name][0] for name in SHOWN)]]
    for name in run:
        variant = find_variant(name)
        marks = ["✓" if on else "–" for on in (variant.aligned, variant.scale > 0)]
        rows.append([*marks, *_with_intervals(report, name, SHOWN)])
    return _markdown(rows)


def sweep_table(report: dict[str, Any]) -> str:
    """λ against identity and expression; empty unless strengths besides 0 and 1 were run."""
    names = [name for name in report["results"] if name.startswith(SWEEP) or name in ("full", "no_adapter")]
    if not any(name.startswith(SWEEP) for name in names):
        return ""
    rows = [["λ", *(MEASURES[name][0] for name in SHOWN)]]
    for name in sorted(names, key=lambda name: find_variant(name).scale):
        rows.append([f"{find_variant(name).scale:g}", *_with_intervals(report, name, SHOWN)])
    return _markdown(rows)


def difference_table(found: list[dict[str, Any]], title: str = "what it changes") -> str:
    """Paired differences with their intervals; bold where 0 lies outside."""
    measured = [name for name in SHOWN if any(name in entry["measures"] for entry in found)]
    rows = [[title, *(MEASURES[name][0] for name in measured)]]
    for entry in found:
        values = (entry["measures"].get(name) for name in measured)
        rows.append([entry["question"], *(_change(v, MEASURES[n][1]) for v, n in zip(values, measured))])
    return _markdown(rows) if found and measured else ""


def _with_intervals(report: dict[str, Any], variant: str, names: Iterable[str]) -> list[str]:
    values, halves = report["results"][variant], report.get("intervals", {}).get(variant, {})
    return [_cell(values.get(name), halves.get(name), MEASURES[name][1]) for name in names]


def _cell(value: float | None, half: float | None, digits: int) -> str:
    if value is None or value != value:
        return "–"
    width = "" if half is None or half != half else f" ± {half:.{digits}f}"
    return f"{value:.{digits}f}{width}"


def _change(value: Sequence[float | None] | None, digits: int) -> str:
    mean, half = value or (None, None)
    if mean is None or mean != mean:
        return "–"
    if half is None or half != half:
        return f"{mean:+.{digits}f}"
    text = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if abs(mean) > half else text


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
