"""Sets of shards that many workers write, each chunk of it once.

A chunk is the unit of work: some clips that become one or more shards, `<chunk>-000.tar` and so on. Names
follow from the chunk, files appear when they are whole, and `chunks/<chunk>.json` is written last: where it
lies, the chunk is done. A worker that is lost before that leaves shards which the next one replaces; a worker
that is lost after it has done all there was to do. What belongs to the set is what those records say.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.storage import atomic_write

from .shard_format import SPLITS, Segment, ShardWriter, write_manifest

PLAN = "plan.json"
RECORDS = "chunks"
SKIPPED = "skipped.jsonl"
SHARD_SEGMENTS = 64  # at most, in a shard: some 200 MB of 256² pictures
ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's any more


@dataclass(frozen=True)
class SplitRatios:
    """How identities are divided, as fractions of all."""

    train: float = 0.9
    val: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        values = (self.train, self.val, self.test)
        if min(values) < 0 or not 0.999 < sum(values) < 1.001:
            raise InputError(f"The shares {values} of train, val and test must add up to 1.")

    def split(self, identity: str) -> str:
        """The split of an identity: always the same, and its clips stay together."""
        number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big") / 2**48
        limits = (self.train, self.train + self.val, 2.0)
        return next(name for name, limit in zip(SPLITS, limits, strict=True) if number < limit)


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What a folder was begun with: settings ("recipe") and chunks; None for a new folder.

    Raises:
        InputError: it is damaged.
    """
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        plan = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(plan["recipe"], dict):
            return plan
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged; remove it and the shards beside it, and begin anew.")


def require_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on in a folder with other settings."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise InputError(
                f"{folder} was begun with {name} {before.get(name)} and not {now.get(name)}; go on with the "
                "same, or choose another folder."
            )


def done_chunk(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a chunk that is done, or None."""
    try:
        record = parse_json((folder / RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"name", "shards", "skipped"} <= record.keys() else None


def write_chunk(
    folder: Path,
    name: str,
    split: str,
    segments: Iterable[Segment],
    skipped: Sequence[dict[str, Any]],
    per_shard: int = SHARD_SEGMENTS,
) -> dict[str, Any]:
    """Write the shards of a chunk and then its record.

    Args:
        segments: taken one after the other.
        skipped: clip, reason, and how many segments of it are there all the same; read when all segments
            are written.
    """
    entries: list[dict[str, Any]] = []
    iterator = iter(segments)
    first = next(iterator, None)
    while first is not None:
        with ShardWriter(folder / f"{name}-{len(entries):03d}.tar") as shard:
            first = _fill(shard, first, iterator, per_shard)
        entries.append(shard.entry(split))
    written = {entry["file"] for entry in entries}
    for path in folder.glob(f"{name}-*.tar"):
        if path.name not in written:  # of an earlier, lost attempt that got further
            path.unlink(missing_ok=True)
    record = {"name": name, "shards": entries, "skipped": list(skipped)}
    with atomic_write(folder / RECORDS / f"{name}.json") as temporary:
        Path(temporary).write_text(json.dumps(record))
    return record


def _fill(shard: ShardWriter, first: Segment, rest: Iterator[Segment], most: int) -> Segment | None:
    """Write up to `most` segments; the one that did not fit any more, or None at the end."""
    segment: Segment | None = first
    while segment is not None and len(shard.segments) < most:
        shard.write(segment)
        segment = next(rest, None)
    return segment


def finish(folder: Path, names: Iterable[str], **about: Any) -> list[dict[str, Any]]:
    """Write the set's `shards.json` and `skipped.jsonl` from the records of its chunks.

    Args:
        names: of all chunks; those that are not done yet are left out.
        about: size, head and normals.

    Returns:
        what was skipped.
    """
    records = [record for name in names if (record := done_chunk(folder, name)) is not None]
    write_manifest(folder, (entry for record in records for entry in record["shards"]), **about)
    skipped = [entry for record in records for entry in record["skipped"]]
    with atomic_write(folder / SKIPPED) as temporary:
        Path(temporary).write_text("".join(json.dumps(entry) + "\n" for entry in skipped))
    return skipped


def remove_stale(folder: Path) -> None:
    """Remove what workers that were killed have left unfinished a while ago."""
    patterns = (".*.tar.*", ".*.json.*", ".*.jsonl.*", "*/.*.json.*", "*/.*.safetensors.*")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
        except OSError:  # gone already
            continue
