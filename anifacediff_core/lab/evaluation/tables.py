"""Reports as Markdown, in the layout of the paper's Tables 1 to 3."""

from __future__ import annotations

from typing import Any

from .pairs import CROSS, PROTOCOLS, SAME

TITLES = {SAME: "Same-identity reconstruction", CROSS: "Cross-identity reenactment"}
# Title, digits, factor, and whether more is better: None where it is neither.
COLUMNS: dict[str, tuple[str, int, float, bool | None]] = {
    "psnr": ("PSNR↑", 2, 1, True),
    "ssim": ("SSIM↑", 3, 1, True),
    "fid": ("FID↓", 2, 1, False),
    "csim": ("CSIM↑", 3, 1, True),
    "apd": ("APD↓", 4, 1, False),
    "aed": ("AED↓", 4, 1, False),
    "pose_bundled": ("pose (bundled encoder)↓", 4, 1, False),
    "expression_bundled": ("expression (bundled encoder)↓", 4, 1, False),
    "flicker": ("flicker →1", 2, 1, None),
    "warping": ("warping error ×10³↓", 2, 1000, False),
}
ABLATION = ("csim", "apd", "aed", "pose_bundled", "expression_bundled")


def results_markdown(report: dict[str, Any]) -> str:
    """The report of `results.measure` for people."""
    parts = ["# Results\n"]
    if any(any(m["protocols"].values()) for m in report["methods"].values()):
        for protocol in PROTOCOLS:
            if protocol in report["pairs"]:
                parts += [f"## {TITLES[protocol]}\n", comparison(report, protocol), ""]
    checkpoints = dict.fromkeys(m["checkpoint"] for m in report["methods"].values())
    tables = {c: table for c in checkpoints if (table := ablation_table(report, c))}
    if tables:
        parts.append("## Ablation (the paper's Table 2)\n")
    for checkpoint, table in tables.items():
        parts += [f"### {checkpoint}\n", table, ""] if len(tables) > 1 else [table, ""]
    parts += ["## How it was measured\n", *_notes(report), ""]
    problems = [
        f"- {name}, {pair}: {reason}"
        for name, method in report["methods"].items()
        for pair, reason in method["problems"].items()
    ]
    if problems:
        parts += ["## Not measured\n", *problems, ""]
    return "\n".join(parts)


def comparison(report: dict[str, Any], protocol: str) -> str:
    """One half of Table 1: the best in bold, the second underlined."""
    shown = _shown(report, protocol)
    rows = [["", *(COLUMNS[metric][0] for metric in shown), "results"]]
    methods = {
        n: m["protocols"][protocol] for n, m in report["methods"].items() if protocol in m["protocols"]
    }
    cells = {metric: _ranked(methods, metric, report["missing"]) for metric in shown}
    for name, values in methods.items():
        count = f"{values['results']} of {report['pairs'][protocol]}"
        rows.append([name, *(cells[metric][name] for metric in shown), count])
    return _table(rows)


def ablation_table(report: dict[str, Any], checkpoint: str) -> str:
    """Table 2 of one checkpoint, where at least two methods of it say what was switched off; empty otherwise.

    Facial shape alignment belongs to cross identity alone, so the rows with it have no same-identity cells.
    """
    chosen = {
        name: m
        for name, m in report["methods"].items()
        if m["checkpoint"] == checkpoint and m["fsa"] is not None and m["adapter"] is not None
    }
    if len(chosen) < 2:
        return ""
    protocols = [p for p in PROTOCOLS if p in report["pairs"]]
    columns = [(p, metric) for p in protocols for metric in _shown(report, p) if metric in ABLATION]
    short = {SAME: "same", CROSS: "cross"}
    rows = [["FSA", "EA", *(f"{short[p]} {COLUMNS[metric][0]}" for p, metric in columns)]]
    for method in sorted(chosen.values(), key=lambda m: m["adapter"] * 2 + m["fsa"]):
        cells = []
        for protocol, metric in columns:
            values = method["protocols"].get(protocol)
            if protocol == SAME:
                values = None if method["fsa"] else _same_identity(chosen, method["adapter"])
            cells.append(_cell(values, metric, report["missing"]) if values else "–")
        rows.append([_tick(method["fsa"]), _tick(method["adapter"]), *cells])
    return _table(rows)


def _same_identity(methods: dict[str, Any], adapter: bool) -> dict[str, Any] | None:
    """Without alignment, whatever a method does about it across identities."""
    fitting = [m["protocols"].get(SAME) for m in methods.values() if m["adapter"] == adapter]
    return next((values for values in fitting if values), None)


def forgery_markdown(report: dict[str, Any]) -> str:
    """Table 3, one for each method that made the fakes; AUC in percent."""
    parts = ["# Forgery detection\n"]
    for method, rows in report["methods"].items():
        if len(report["methods"]) > 1:
            parts.append(f"## {method}\n")
        table = [["Model", "Frame-AUC", "Video-AUC", "Frame-EER", "Video-EER", "frames", "videos"]]
        for name, row in rows.items():
            numbers = [
                f"{100 * row[key]:.2f}" for key in ("frame_auc", "video_auc", "frame_eer", "video_eer")
            ]
            frames = f"{row['real_frames']} real, {row['fake_frames']} fake"
            table.append([name, *numbers, frames, f"{row['real_videos']} real, {row['fake_videos']} fake"])
        if len(rows) > 1:
            means = [
                f"{100 * sum(row[key] for row in rows.values()) / len(rows):.2f}"
                for key in ("frame_auc", "video_auc", "frame_eer", "video_eer")
            ]
            table.append(["Average", *means, "", ""])
        parts += [_table(table), ""]
    parts.append(f"A video's score is the mean of its frames' scores. {report['note']}".strip())
    if report["problems"]:
        parts += ["", "## Not measured\n", *(f"- {name}: {why}" for name, why in report["problems"].items())]
    return "\n".join([*parts, ""])


# ---- parts


def tally_markdown(report: dict[str, Any]) -> str:
    """What `study.tally` counted: a row for each method, a column for each question."""
    methods: dict[str, Any] = report["methods"]
    kinds = list(next(iter(methods.values())))
    rows = [["method", *kinds]]
    for name, row in methods.items():
        cells = [row[kind] for kind in kinds]
        rows.append(
            [name, *(f"{cell['share']:.1%} [{cell['low']:.1%}, {cell['high']:.1%}]" for cell in cells)]
        )
    people = f"{report['participants']} participants, {report['pairs']} pairs"
    return f"{_table(rows)}\n\n{people}. Share of the choices, with Wilson's 95 % interval.\n"


def _shown(report: dict[str, Any], protocol: str) -> list[str]:
    """The paper's columns always; the others where they were measured or say why they were not."""
    methods = [m["protocols"].get(protocol) or {} for m in report["methods"].values()]
    always = ("fid", "csim", "apd", "aed", "warping")
    measured = [metric for metric in COLUMNS if any(m.get(metric) is not None for m in methods)]
    return [metric for metric in COLUMNS if metric in always or metric in measured]


def _cell(values: dict[str, Any] | None, metric: str, missing: dict[str, str]) -> str:
    if metric in missing:
        return missing[metric]
    if values is None or values.get(metric) is None:
        return "–"
    _, digits, factor, _ = COLUMNS[metric]
    return f"{values[metric] * factor:.{digits}f}"


def _ranked(methods: dict[str, Any], metric: str, missing: dict[str, str]) -> dict[str, str]:
    """Cells of a column, best and second marked as in the paper."""
    cells = {name: _cell(values, metric, missing) for name, values in methods.items()}
    more = COLUMNS[metric][3]
    numbers = {n: v[metric] for n, v in methods.items() if v and v.get(metric) is not None}
    if more is None or metric in missing or len(numbers) < 2:
        return cells
    ranks = sorted({cells[n] for n in numbers}, key=float, reverse=more)
    for name in numbers:
        if cells[name] == ranks[0]:
            cells[name] = f"**{cells[name]}**"
        elif len(numbers) > 2 and cells[name] == ranks[1]:
            cells[name] = f"<u>{cells[name]}</u>"
    return cells


def _notes(report: dict[str, Any]) -> list[str]:
    lines = [f"- {metric.upper()}: {name}." for metric, name in report["networks"].items()]
    reference = report["reference"]
    if reference["frames"] is not None:
        lines.append(
            f"- FID compares with {reference['frames']} frames of {reference['videos']} real videos, "
            f"{reference['chosen']}. It depends on the number of frames: compare only equal ones."
        )
    for name, method in report["methods"].items():
        for protocol, values in method["protocols"].items():
            for what, count in values["frames_without_face"].items():
                if count:
                    lines.append(
                        f"- {name}, {protocol} identity: {count} of {values['frames']} frames were left out "
                        f"by {what}, as no face was found in the result or the driving video."
                    )
    lines.append(
        "- Flicker is the frame-to-frame difference as a multiple of the truth's (same identity only)."
    )
    return lines


def _tick(value: bool) -> str:
    return "✓" if value else "–"


def _table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines)
