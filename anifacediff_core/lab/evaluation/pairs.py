"""The paper's two tasks as a list of pairs that any method can be run on (paper 4.1).

Same identity: random videos of a test set, their first frame as the source, the rest as the driving video,
which is also the truth. Cross identity: random pairs of a source picture and a driving video of another.
"""

from __future__ import annotations

import csv
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.storage import atomic_write
from anifacediff_core.video import IMAGE_ENDINGS, VIDEO_ENDINGS, numbered_pictures, read_frames, read_image

SAME, CROSS = "same", "cross"
PROTOCOLS = (SAME, CROSS)
PAPER_COUNT = 100
AT_ONCE = 16  # frames given to networks together
_NAME = re.compile(r"[\w.#-]{1,200}")


@dataclass(frozen=True)
class Pair:
    """One thing to reenact.

    Attributes:
        pair: its name; a result is `<pair>.mp4` or a folder of pictures of this name.
        protocol: "same" or "cross".
        source: video or picture, relative to the list or absolute.
        source_frame: which frame of it is the source picture.
        driving: the driving video.
        first: its first frame that drives.
        frames: how many of them do, 0 for all that follow.
    """

    pair: str
    protocol: str
    source: str
    source_frame: int
    driving: str
    first: int
    frames: int
    source_identity: str
    driving_identity: str


# ---- clips: video files, or folders of pictures


def find_clips(folder: Path) -> list[Path]:
    """All videos below a folder, and folders that hold pictures and nothing else, in order of their names."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: name one with videos.")
    clips = []
    seen: set[str] = set()  # links may lead back to a folder above them
    for place, folders, names in os.walk(folder, followlinks=True):
        if (here := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        endings = {Path(name).suffix.lower() for name in names if not name.startswith(".")}
        if endings & IMAGE_ENDINGS and not endings & VIDEO_ENDINGS and Path(place) != folder:
            clips.append(Path(place))
            folders.clear()
            continue
        clips += [Path(place) / n for n in names if Path(n).suffix.lower() in VIDEO_ENDINGS and n[0] != "."]
    return sorted(clips, key=lambda clip: clip.relative_to(folder).as_posix())


def clip_frames(clip: Path, first: int = 0, count: int = 0) -> Iterator[Tensor]:
    """Frames (3, height, width) of a video, a folder of pictures, or one picture.

    Args:
        first: the first one that is wanted.
        count: how many, 0 for all.

    Raises:
        InputError: it is missing, damaged, or empty.
    """
    stop = first + count if count else None
    if clip.is_dir():
        names = numbered_pictures(clip)
        if not names:
            raise InputError(f"The folder {clip} holds no pictures; give one with frames as PNG.")
        for name in names[first:stop]:
            yield read_image(name)[0]
    elif clip.suffix.lower() in IMAGE_ENDINGS:
        yield from islice([read_image(clip)[0]], first, stop)
    else:
        yield from islice(read_frames(clip), first, stop)


def one_frame(clip: Path, index: int) -> Tensor:
    """One frame (3, height, width)."""
    for frame in clip_frames(clip, index, 1):
        return frame
    raise InputError(f"{clip} has no frame {index}; it is shorter than the list says.")


def driving_frames(pair: Pair) -> Iterator[Tensor]:
    return clip_frames(Path(pair.driving), pair.first, pair.frames)


def count_frames(clip: Path, first: int = 0, limit: int = 0) -> tuple[int, tuple[int, int]]:
    """Number and size (height, width) of a clip's frames, by decoding all of them.

    Raises:
        InputError: it is damaged, empty, or its frames differ in size.
    """
    count, size = 0, (0, 0)
    for frame in clip_frames(clip, first, limit):
        found = (int(frame.shape[-2]), int(frame.shape[-1]))
        if count and found != size:
            raise InputError(f"The frames of {clip.name} differ in size.")
        count, size = count + 1, found
    if not count:
        raise InputError(f"{clip.name} has no frame from number {first} on.")
    return count, size


def batches(frames: Iterator[Tensor], size: int = AT_ONCE) -> Iterator[Tensor]:
    """Frames (3, height, width) in stacks (at most size, 3, height, width)."""
    while part := list(islice(frames, size)):
        yield torch.stack(part)


# ---- the list


def identity_of(clip: Path, folder: Path, pattern: str | None = None) -> str:
    """Who is seen in a clip: by a pattern, else the folder it lies in, else its name up to a "#" (VoxCeleb as
    FOMM prepares it: `id10280#NXjT3732Ekg#001093#001192.mp4`), else its whole name.

    Args:
        pattern: regular expression on the path below `folder`; its first group is the identity.
    """
    inner = clip.relative_to(folder)
    if pattern is not None:
        try:
            match = re.search(pattern, inner.as_posix())
        except re.error as error:
            raise InputError(f"The pattern {pattern} is no regular expression ({error}).") from error
        if match is None or not match.groups() or match[1] is None:
            raise InputError(f"The pattern {pattern} has no group that fits {inner}; mark one with ( ).")
        return match[1]
    if len(inner.parts) > 1:
        return inner.parts[0]
    stem = clip.name if clip.is_dir() else clip.stem
    return stem.split("#")[0] if "#" in stem else stem


def draw_pairs(
    folder: Path,
    protocols: tuple[str, ...],
    *,
    count: int = PAPER_COUNT,
    seed: int = 0,
    frames: int = 0,
    identity_pattern: str | None = None,
) -> list[Pair]:
    """Random pairs of the videos of a folder; the same seed and the same names give the same pairs.

    Args:
        count: pairs of each protocol; fewer where the folder does not have as many.
        frames: drive with at most so many frames, 0 for all.

    Raises:
        InputError: there are no videos, or for cross identity fewer than two identities.
    """
    clips = find_clips(folder)
    if not clips:
        raise InputError(
            f"The folder {folder} holds no videos; name one with mp4 files or folders of frames."
        )
    people = {clip: identity_of(clip, folder, identity_pattern) for clip in clips}
    pairs: list[Pair] = []
    if SAME in protocols:
        chosen = random.Random(f"{SAME} {seed}").sample(clips, min(count, len(clips)))
        for index, clip in enumerate(chosen):
            who = people[clip]
            pairs.append(Pair(f"same_{index:04d}", SAME, str(clip), 0, str(clip), 1, frames, who, who))
    if CROSS in protocols:
        for index, (source, driving) in enumerate(_strangers(clips, people, count, seed)):
            name, people_of_both = f"cross_{index:04d}", (people[source], people[driving])
            pairs.append(Pair(name, CROSS, str(source), 0, str(driving), 0, frames, *people_of_both))
    return pairs


def _strangers(clips: list[Path], people: dict[Path, str], count: int, seed: int) -> list[tuple[Path, Path]]:
    """Different pairs of clips of two people each."""
    if len(set(people.values())) < 2:
        raise InputError(
            "Cross-identity pairs need two identities but all videos seem to show the same one: sort them "
            "into a folder for each, or tell the identity with --identity."
        )
    sizes = Counter(people.values())
    possible = sum(len(clips) - sizes[who] for who in people.values())
    chance = random.Random(f"{CROSS} {seed}")
    chosen: dict[tuple[Path, Path], None] = {}
    if count * 2 >= possible:  # nearly all of them: drawing at random would repeat itself
        every = [(a, b) for a in clips for b in clips if people[a] != people[b]]
        return chance.sample(every, min(count, len(every)))
    while len(chosen) < count:
        source, driving = chance.choice(clips), chance.choice(clips)
        if people[source] != people[driving]:
            chosen[(source, driving)] = None
    return list(chosen)


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    """Write the list as CSV; files below its own folder are named relative to it, so that both can move."""
    here = path.resolve().parent

    def named(file: str) -> str:
        whole = Path(file).resolve()
        return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(whole)

    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [field.name for field in fields(Pair)])
        table.writeheader()
        for pair in pairs:
            table.writerow(asdict(pair) | {"source": named(pair.source), "driving": named(pair.driving)})


def read_pairs(path: Path) -> list[Pair]:
    """Read the list; files are made absolute.

    Raises:
        InputError: it is missing or not such a list.
    """
    names = [field.name for field in fields(Pair)]
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            if not set(names) <= set(table.fieldnames or []):
                raise InputError(f"{path} is no list of pairs: expected the columns {', '.join(names)}.")
            pairs = [_pair(row, path, line) for line, row in enumerate(table, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The list of pairs {path} could not be read ({error}).") from error
    if not pairs:
        raise InputError(f"The list {path} is empty: write one with evaluate pairs.")
    if len({pair.pair for pair in pairs}) < len(pairs):
        raise InputError(f"The list {path} names a pair twice; names must differ.")
    return pairs


def _pair(row: dict[str, str | None], path: Path, line: int) -> Pair:
    def number(name: str) -> int:
        text = (row[name] or "").strip()
        if not text.isdecimal() or len(text) > 9:
            raise InputError(f"{path}, line {line}: {name} is {text[:20]!r}, expected a number from 0 on.")
        return int(text)

    name, protocol = row["pair"] or "", row["protocol"] or ""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise InputError(f"{path}, line {line}: {name[:40]!r} is no name of a pair; use letters and digits.")
    if protocol not in PROTOCOLS:
        raise InputError(f"{path}, line {line}: the protocol is {protocol[:20]!r}, expected same or cross.")
    here = path.resolve().parent
    return Pair(
        name,
        protocol,
        str(here / (row["source"] or "")),
        number("source_frame"),
        str(here / (row["driving"] or "")),
        number("first"),
        number("frames"),
        row["source_identity"] or "",
        row["driving_identity"] or "",
    )
