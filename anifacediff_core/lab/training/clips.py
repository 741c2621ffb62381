"""The clips that become shards: what decides their content, where they are, whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from anifacediff_core.errors import InputError
from anifacediff_core.video import IMAGE_ENDINGS, VIDEO_ENDINGS

from ..options import Positive, rate_text
from .shard_chunks import SplitRatios, short_hash
from .shard_format import MOST_FRAMES, SEGMENT_FRAMES
from .shard_pictures import require_pictures

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# VoxCeleb's id10280, as a folder or as the beginning of FOMM's id10280#NXjT3732Ekg#001093#001192.mp4
VOXCELEB = re.compile(r"(?:^|/)(id\d{5})(?=[#/])")


@dataclass(frozen=True)
class PrepareConfig:
    """What decides the content of the shards; all runs into a folder must agree on it.

    Options of `prepare` (`options`), and `segment`, the frames of a segment at most. `size` is a multiple of
    8, `mode` that of `capture.tracker.portrait_square`, `identity` is the first group, or the whole match.
    """

    size: Annotated[Positive, "side of the pictures in pixels"] = 256
    picture: Annotated[Literal["jpg", "png"], "how they are stored"] = "jpg"
    quality: Annotated[Positive, "of JPEG"] = 95
    segment: int = SEGMENT_FRAMES
    normals: Annotated[bool, "store normals, too, instead of drawing them"] = False
    mode: Annotated[
        Literal["auto", "portrait", "whole"],
        "cut out the portrait, take the whole picture, or decide by the size of the face",
    ] = "auto"
    fps: Annotated[str, rate_text, "of folders of pictures"] = "25"
    identity: Annotated[
        str | None,
        "regular expression that finds the identity in a clip's path below the folder; by default VoxCeleb's "
        "names, then the folder that the clip is in, then its name",
        {"metavar": "EXPRESSION"},
    ] = None
    split_folders: Annotated[
        bool, "divide also what lies in train, val and test", {"names": ("--ignore-split-folders",)}
    ] = True
    shares: SplitRatios = field(default_factory=SplitRatios)
    chunk: Annotated[Positive, "clips that a worker takes at a time"] = 16

    def __post_init__(self) -> None:
        require_pictures(self.size, self.picture, self.quality, self.fps)
        if not 2 <= self.segment <= MOST_FRAMES or self.chunk < 1:
            raise InputError(f"Segments need 2 to {MOST_FRAMES} frames, and chunks a clip.")
        try:
            re.compile(self.identity or "")
        except re.error as error:
            raise InputError(f"'{self.identity}' is no regular expression ({error}).") from error


@dataclass(frozen=True)
class Clip:
    """A video or a folder of pictures.

    Attributes:
        path: below the folder that was searched, with forward slashes.
    """

    path: str
    identity: str
    split: str


def find_clips(root: Path, config: PrepareConfig, leave_out: Path | None = None) -> list[Clip]:
    """All clips below a folder, in an order that mixes identities and is always the same.

    Raises:
        InputError: there are none, the expression does not fit one, or an identity lies in two splits.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root}; name the folder with the videos.")
    clips = [_clip(path, config) for path in _paths(root, leave_out)]
    if not clips:
        raise InputError(f"There are no videos and no folders of pictures in {root}.")
    splits: dict[str, Clip] = {}
    for clip in clips:
        other = splits.setdefault(clip.identity, clip)
        if other.split != clip.split:
            raise InputError(
                f"The identity '{clip.identity}' lies in the folders of two splits ({other.path}, "
                f"{clip.path}); move one of them, or leave the folders' names out of account."
            )
    return sorted(clips, key=lambda clip: short_hash(clip.path))


def _paths(root: Path, leave_out: Path | None) -> Iterator[str]:
    """Paths of clips below `root`; a folder that holds pictures is a clip, whatever its name."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen or (leave_out is not None and here == os.path.realpath(leave_out)):
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [name for name in files if not name.startswith(".")]
        if any(Path(name).suffix.lower() in IMAGE_ENDINGS for name in files):
            yield Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if Path(name).suffix.lower() in VIDEO_ENDINGS:
                yield (Path(folder) / name).relative_to(root).as_posix()


def _clip(path: str, config: PrepareConfig) -> Clip:
    identity = _identity(path, config)
    named = SPLIT_FOLDERS.get(path.split("/")[0]) if config.split_folders and "/" in path else None
    return Clip(path, identity, named or config.shares.split(identity))


def _identity(path: str, config: PrepareConfig) -> str:
    if config.identity is not None:
        found = re.search(config.identity, path)
        name = found and (found.group(1) if found.re.groups else found.group())
        if not name:
            raise InputError(f"The expression '{config.identity}' finds no identity in {path}; change it.")
        return name
    found = VOXCELEB.search(path)
    if found:
        return found.group(1)
    parts = path.split("/")
    if len(parts) > 1 and parts[-2] not in SPLIT_FOLDERS:
        return parts[-2]
    return Path(parts[-1]).stem
