"""Running the avatar benchmark on a checkpoint, on one process or many, and writing its report."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.capture.detector import face_square
from anifacediff_core.capture.encoder import CROP
from anifacediff_core.capture.extract import crop_resize, extract_parameters
from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.progress import Progress
from anifacediff_core.video import contact_sheet, write_image
from anifacediff_core.weights.checkpoint import Checkpoint, load_autoencoder, load_checkpoint, load_network
from anifacediff_core.weights.faces import own_face_models

from ..avatars.studio import Studio
from .ablation import compare, difference_table
from .avatars import (
    FaceReader,
    KnownReader,
    Record,
    Reenactor,
    evaluate,
    sheet_columns,
    summarize,
)
from .judges import Judges, bundled_path, load_judges
from .protocol import Protocol


def run(
    reenact: Reenactor,
    head: HeadModel,
    studio: Studio,
    protocol: Protocol,
    *,
    read_face: FaceReader | None = None,
    sheet: Path | None = None,
    sheet_rows: int = 12,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The benchmark in this process alone."""
    record = evaluate(
        reenact, head, studio, protocol, read_face=read_face, sheet_rows=sheet_rows, progress=progress
    )
    if sheet is not None:
        write_image(sheet, contact_sheet(sheet_columns([record], sheet_rows)))
    return summarize([record], head, protocol)


def evaluate_checkpoint(
    path: Path,
    protocol: Protocol,
    *,
    json_path: Path | None,
    sheet: Path | None,
    device: torch.device,
    judges: Path | None = None,
    sheet_rows: int = 12,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """The benchmark of a checkpoint. When launched as several processes, they divide the pairs among them.

    Args:
        judges: file of the networks that tell identity, pose and expression; default the bundled one, if the
            package has it. Without them these stay unknown.

    Returns:
        the report on the main process, None on the others.
    """
    started = time.monotonic()
    jury = find_judges(judges, device)
    checkpoint = load_checkpoint(path)
    head = HeadModel.bundled().to(device)
    if checkpoint.head != head.name:
        raise InputError(
            f"{path.name} was trained on the head {checkpoint.head!r} and the benchmark's avatars are of "
            f"{head.name!r}; measure it on videos, with `evaluate pairs`, `run` and `results`."
        )
    rank, world = _processes()
    edges = [round(i * protocol.pairs / world) for i in range(world + 1)]
    record = evaluate(
        load_reenactor(checkpoint, device),
        head,
        Studio(head),
        protocol,
        read_face=face_reader(checkpoint, head),
        read_known=known_reader(checkpoint, head),
        judges=jury,
        share=(edges[rank], edges[rank + 1]),
        sheet_rows=sheet_rows,
        progress=progress,
    )
    records = _gather(record, world)
    if rank:
        return None
    found = summarize(records, head, protocol)
    found["checkpoint"] = path.name
    found["judges"] = None if jury is None else jury.provenance | {"file": (judges or bundled_path()).name}
    found["seconds"] = round(time.monotonic() - started, 1)
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(finite(found), indent=1, allow_nan=False))
    if sheet is not None:
        write_image(sheet, contact_sheet(sheet_columns(records, sheet_rows)))
    return found


def load_reenactor(checkpoint: Checkpoint, device: torch.device) -> Reenactor:
    return Reenactor(load_network(checkpoint).to(device), load_autoencoder(checkpoint).to(device))


def face_reader(checkpoint: Checkpoint, head: HeadModel) -> FaceReader | None:
    """Captures clips with the checkpoint's own networks, or None when it has none."""
    models = own_face_models(checkpoint, head)
    if models is None:
        return None

    def read(clip: Tensor) -> FaceParameters:
        try:
            return extract_parameters(clip, models, "whole", least_confidence=0.0).parameters
        except InputError:  # no face in any frame
            neutral = head.neutral(len(clip)).to("cpu")
            return replace(neutral, valid=torch.zeros_like(neutral.valid))

    return read


def known_reader(checkpoint: Checkpoint, head: HeadModel) -> KnownReader | None:
    """The checkpoint's face encoder alone, at the faces' true places; None when it has none."""
    models = own_face_models(checkpoint, head)
    if models is None:
        return None
    encoder = models.encoder

    def read(pictures: Tensor, where: FaceParameters) -> FaceParameters:
        squares = face_square(head, where)
        parts = zip(pictures.split(128), squares.split(128), strict=True)
        readings = [encoder.read(crop_resize(part, square, CROP)) for part, square in parts]
        expression, neck = (
            torch.cat([getattr(r, name) for r in readings]) for name in ("expression", "neck")
        )
        rest = torch.zeros_like(neck)
        pose = torch.cat([rest, neck, rest, rest, rest], dim=1)
        return replace(where, expression=expression, pose=pose).to("cpu")

    return read


def find_judges(path: Path | None, device: torch.device) -> Judges | None:
    """The judges named, or the bundled ones, or None when there are none."""
    if path is None and not bundled_path().is_file():
        return None
    return load_judges(path or bundled_path()).to(device)


def comparisons(reports: dict[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Every report, by a name for people, against the first, pair by pair.

    Returns:
        comparisons, each with both names and the differences of every variant; the same as Markdown.

    Raises:
        InputError: they are not about the same pairs.
    """
    (first, before), *others = reports.items()
    found, texts = [], []
    for name, after in others:
        variants = compare(before, after)
        found.append({"before": first, "after": name, "variants": finite(variants)})
        texts.append(
            f"{name} minus {first}, pair by pair, with 95 % intervals; bold where 0 lies outside:\n\n"
            + difference_table(variants, "variant")
        )
    return found, "\n\n".join(texts)


def read_report(path: Path) -> dict[str, Any]:
    try:
        report = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = None
    if not isinstance(report, dict):
        raise InputError(
            f"The report '{path.name}' cannot be read; name a file that `evaluate avatars --json` wrote."
        )
    return report


def finite(value: Any) -> Any:
    """NaN has no place in JSON: None stands for what could not be measured."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processes() -> tuple[int, int]:
    """This process's number and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _gather(record: Record, world: int) -> list[Record]:
    if world == 1:
        return [record]
    records: list[Any] = [None] * world
    torch.distributed.all_gather_object(records, record)
    return records
