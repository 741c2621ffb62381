"""The model card of a trained checkpoint, from what the run itself wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from anifacediff_core.weights.checkpoint import load_checkpoint

from ..evaluation.ablation import markdown

LIMITS = """\
- It has seen rendered avatars only, of many looks. Photographs, paintings and drawings keep their person, but
  are softer than avatars: skin, teeth, irises and wisps of hair smear, and what the source hides is guessed.
- Heads turned by more than about 60 degrees to the side or 30 degrees up or down were not in its data.
- 256 x 256 pixels; thin structures (frames of glasses, lashes, single strands) soften.
- It imitates faces: use it on characters and people who agreed, and say that a video is made."""


def write_card(folder: Path, command: str) -> Path:
    """Write `MODEL_CARD.md` into a run's folder, from its log, its report and its checkpoint's header."""
    checkpoint = load_checkpoint(folder / "anifacediff.safetensors")
    experiment = checkpoint.provenance.get("experiment", {})
    size = checkpoint.path.stat().st_size / 2**20
    holds = f"`{checkpoint.path.name}`, {size:.1f} MiB, holds {', '.join(checkpoint.parts)}."
    data = "All data are avatars that the studio rendered during the run: no photographs, no other weights."
    before = checkpoint.provenance.get("start", {}).get("provenance", {}).get("experiment")
    if before:
        data += (
            " It goes on from the result of "
            f"`python -m anifacediff_core train --config {before.get('name')}`, "
            f"seed {before.get('seed')}, made in the same way."
        )
    settings = yaml.safe_dump(experiment, sort_keys=False, width=110)
    parts = [
        "# AniFaceDiff, the bundled weights",
        f"{holds} Head model: `{checkpoint.head}`. License: that of this project, Apache-2.0.",
        "## Training",
        f"`{command}`, seed {experiment.get('seed')}. {data}",
        _phase_table(folder),
        _results(folder),
        "## Limits",
        LIMITS,
        "## Settings",
        f"```yaml\n{settings}```",
    ]
    card = folder / "MODEL_CARD.md"
    card.write_text("\n\n".join(part for part in parts if part) + "\n")
    return card


def _phase_table(folder: Path) -> str:
    """One line per phase: devices, steps, seconds, frames rendered, last loss."""
    facts: dict[str, dict[str, Any]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        facts.setdefault(entry["phase"], {}).setdefault(entry["event"], entry)
        facts[entry["phase"]][entry["event"]] = entry
    lines = ["| phase | processes | avatar frames of each | steps | seconds | weights |", "|---" * 6 + "|"]
    for phase, events in facts.items():
        start, step, pool = (events.get(name, {}) for name in ("start", "step", "pool"))
        if not start:
            continue
        lines.append(
            f"| {phase} | {start['processes']} | {pool.get('frames', 0):,} | {step.get('step', 0):,} "
            f"| {step.get('seconds', 0):.0f} | {start['parameters'] / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def _results(folder: Path) -> str:
    path = folder / "evaluation.json"
    if not path.exists():
        return ""
    report = json.loads(path.read_text())
    protocol = report["protocol"]
    return (
        "## Results\n\n"
        f"`evaluate avatars`: {protocol['pairs']} pairs of unseen avatars, seed {protocol['seed']}, "
        f"{protocol['frames']} frames each, {protocol['steps']} steps, guidance {protocol['cfg']}, "
        f"on {report.get('device', 'cpu')}. The driver's parameters are the true ones, except in the line of "
        "captured parameters. Expression r is the mean correlation over the "
        f"{len(report.get('visible_actions', []))} actions that are used and visible, as the bundled encoder "
        "reads them back.\n\n" + markdown(report)
    )
