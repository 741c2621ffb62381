"""The clips that become shards: what decides their content, where they are, whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anifacediff_core.errors import InputError
from anifacediff_core.video import IMAGE_ENDINGS, VIDEO_ENDINGS

from .shard_chunks import Shares, short_hash
from .shard_format import MOST_FRAMES, SEGMENT_FRAMES
from .shard_pictures import require_pictures

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# VoxCeleb's id10280, as a folder or as the beginning of FOMM's id10280#NXjT3732Ekg#001093#001192.mp4
VOXCELEB = re.compile(r"(?:^|/)(id\d{5})(?=[#/])")


@dataclass(frozen=True)
class Recipe:
    """What decides the content of the shards; all runs into a folder must agree on it.

    Arguments:
        size: side of the pictures in pixels, a multiple of 8.
        picture: "jpg" or "png".
        quality: of JPEG.
        segment: frames of a segment at most.
        normals: store them, too.
        mode: which part of the pictures is the portrait, see `capture.tracker.portrait_square`.
        fps: of folders of pictures.
        identity: regular expression whose first group, or whole match, in a clip's path is its identity. By
            default VoxCeleb's names, then the folder that the clip is in, then its name.
        split_folders: folders named train, val and test say which split it is.
        shares: how the other identities are divided.
        chunk: clips of a chunk.
    """

    size: int = 256
    picture: str = "jpg"
    quality: int = 95
    segment: int = SEGMENT_FRAMES
    normals: bool = False
    mode: str = "auto"
    fps: str = "25"
    identity: str | None = None
    split_folders: bool = True
    shares: Shares = field(default_factory=Shares)
    chunk: int = 16

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


def find_clips(root: Path, recipe: Recipe, leave_out: Path | None = None) -> list[Clip]:
    """All clips below a folder, in an order that mixes identities and is always the same.

    Raises:
        InputError: there are none, the expression does not fit one, or an identity lies in two splits.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root}; name the folder with the videos.")
    clips = [_clip(path, recipe) for path in _paths(root, leave_out)]
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


def _clip(path: str, recipe: Recipe) -> Clip:
    identity = _identity(path, recipe)
    named = SPLIT_FOLDERS.get(path.split("/")[0]) if recipe.split_folders and "/" in path else None
    return Clip(path, identity, named or recipe.shares.split(identity))


def _identity(path: str, recipe: Recipe) -> str:
    if recipe.identity is not None:
        found = re.search(recipe.identity, path)
        name = found and (found.group(1) if found.re.groups else found.group())
        if not name:
            raise InputError(f"The expression '{recipe.identity}' finds no identity in {path}; change it.")
        return name
    found = VOXCELEB.search(path)
    if found:
        return found.group(1)
    parts = path.split("/")
    if len(parts) > 1 and parts[-2] not in SPLIT_FOLDERS:
        return parts[-2]
    return Path(parts[-1]).stem
