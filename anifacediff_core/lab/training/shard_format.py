"""Shards: face videos as tar files that WebDataset reads, with the face parameters of every frame.

A sample is a *segment*: at most 96 consecutive frames of one clip, cut to the portrait square and scaled to
size². Its members share a key and come in this order::

    <key>.json                      {"version": 1, "identity": …, "clip": …, "fps": "30000/1001", "first": 96,
                                     "frames": 96, "size": 256, "head": …, "split": "train"}
    <key>.parameters.safetensors    FaceParameters of the frames, camera of the portrait square
    <key>.0000.jpg …                the frames, JPEG or PNG
    <key>.0000.normals.png …        their normals, where they were stored

A shard holds segments of one split only. Beside the shards of a folder lies `shards.json`, which lists them::

    {"format": "anifacediff-shards", "version": 1, "size": 256, "head": …, "normals": false,
     "shards": [{"file": "train-00000-000.tar", "split": "train", "identities": [...],
                 "segments": [[frames, valid frames, longest run of valid frames], ...]}, ...]}

With it an epoch's length is known and training resumes without reading what it has seen. A set without it, a
list of URLs say, works too. Nothing in a shard is ever unpickled: members are read by what they are named.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from anifacediff_core.claims import parse_json, shown
from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.parsing import parse_rate
from anifacediff_core.storage import atomic_write

from .shard_pictures import LARGEST_SIDE, PICTURES

FORMAT, VERSION = "anifacediff-shards", 1
MANIFEST = "shards.json"
SPLITS = ("train", "val", "test")
SEGMENT_FRAMES = 96
LARGEST_MEMBER = 1 << 27  # bytes; a frame has some ten thousand
LARGEST_SEGMENT = 1 << 31
MOST_FRAMES = 10_000
FURTHEST_FRAME = 10**9
FRAME_MEMBER = re.compile(r"(\d{4,})\.(jpg|png|normals\.png)")


@dataclass(frozen=True)
class SegmentInfo:
    """What a segment's JSON says.

    Attributes:
        identity: whose face it is; the same person in different clips has the same.
        clip: name of the video.
        fps: frames a second, an exact fraction.
        first: index of the segment's first frame in the clip.
        frames: their number.
        size: side of the pictures in pixels.
        head: the head that the parameters belong to.
        split: train, val or test.
    """

    identity: str
    clip: str
    fps: Fraction
    first: int
    frames: int
    size: int
    head: str
    split: str

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self), "fps": str(self.fps)})

    @classmethod
    def from_json(cls, data: bytes, what: str) -> SegmentInfo:
        try:
            found = parse_json(data)
            if found["version"] > VERSION:
                raise InputError(f"{what} was written by a newer version; update this one.")
            texts = [str(found[name]) for name in ("identity", "clip", "head", "split")]
            first, frames, size = (int(found[name]) for name in ("first", "frames", "size"))
            fps = parse_rate(found["fps"])
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{what} has a damaged description; prepare the shard again.") from error
        if not (0 < frames <= MOST_FRAMES and 0 < size <= LARGEST_SIDE and 0 <= first < FURTHEST_FRAME):
            raise InputError(f"{what} has impossible numbers in its description; prepare the shard again.")
        identity, clip, head, split = texts
        return cls(identity, clip, fps, first, frames, size, head, split)


@dataclass(frozen=True)
class Segment:
    """A sample, pictures still encoded.

    Attributes:
        key: its name, without dots and slashes.
        parameters: (frames).
        pictures: JPEG or PNG bytes of each frame.
        normals: PNG bytes of each frame's normals, or none.
    """

    key: str
    info: SegmentInfo
    parameters: FaceParameters
    pictures: Sequence[bytes]
    normals: Sequence[bytes] = ()


@dataclass(frozen=True)
class Shard:
    """A tar file of a set.

    Attributes:
        url: what is opened: a path, or anything that WebDataset opens.
        split: of its segments, or None where only they know.
        segments: (frames, valid frames, longest run of valid frames) of each, or None where only they know.
    """

    url: str
    split: str | None = None
    segments: tuple[tuple[int, int, int], ...] | None = None


@dataclass(frozen=True)
class ShardSet:
    """Shards that belong together; size, head and normals are None where only the segments know."""

    shards: tuple[Shard, ...]
    size: int | None = None
    head: str | None = None
    normals: bool | None = None


# ---- writing


class ShardWriter:
    """Writes a shard that appears under its name when it is complete, and byte for byte the same each time.

    Use it as a context manager. Nothing is left behind when the body raises.

    Attributes:
        segments: of each one written: (frames, valid frames, longest run of valid frames).
        identities: of all of them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.segments: list[tuple[int, int, int]] = []
        self.identities: set[str] = set()
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            self._tar = stack.enter_context(tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, segment: Segment) -> None:
        frames = segment.info.frames
        if {len(segment.parameters), len(segment.pictures), len(segment.normals) or frames} != {frames}:
            raise ValueError(f"Segment {segment.key} says {frames} frames and holds others.")
        if segment.key in self._keys or not re.fullmatch(r"[\w-]+", segment.key, re.ASCII):
            raise ValueError(f"{segment.key} is no key, or was written before.")
        self._keys.add(segment.key)
        self._add(f"{segment.key}.json", segment.info.to_json().encode())
        self._add(f"{segment.key}.parameters.safetensors", segment.parameters.to_bytes())
        for index, data in enumerate(segment.pictures):
            ending = "png" if data.startswith(b"\x89PNG") else "jpg"
            self._add(f"{segment.key}.{index:04d}.{ending}", data)
        for index, data in enumerate(segment.normals):
            self._add(f"{segment.key}.{index:04d}.normals.png", data)
        self.segments.append(usable_frames(segment.parameters.valid))
        self.identities.add(segment.info.identity)

    def entry(self, split: str) -> dict[str, Any]:
        """The shard's entry in the manifest."""
        return {
            "file": self.path.name,
            "split": split,
            "identities": sorted(self.identities),
            "segments": self.segments,
        }

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # no time and no owner: the same content is the same file
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def usable_frames(valid: Tensor) -> tuple[int, int, int]:
    """Number of frames, of valid frames, and length of the longest run of these."""
    longest = run = 0
    for flag in valid.tolist():
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return len(valid), int(valid.sum()), longest


def write_manifest(folder: Path, entries: Iterable[Mapping[str, Any]], **about: Any) -> None:
    """Write `shards.json`.

    Args:
        entries: as `ShardWriter.entry` gives them.
        about: size, head, normals.
    """
    shards = sorted(entries, key=lambda entry: entry["file"])
    with atomic_write(folder / MANIFEST) as temporary:
        text = json.dumps({"format": FORMAT, "version": VERSION, **about, "shards": shards})
        Path(temporary).write_text(text + "\n")


# ---- reading


def find_shards(urls: str | Path | Sequence[str | Path], split: str | None) -> ShardSet:
    """The shards of a set.

    Args:
        urls: a folder with or without `shards.json`; the path or URL of a `shards.json`; or patterns with
            braces (`train-{00000..00015}-000.tar`) of paths, URLs and `pipe:` commands.
        split: only these, where that is known; None for all.

    Raises:
        InputError: there are none, or the manifest cannot be read.
    """
    given = [urls] if isinstance(urls, (str, Path)) else list(urls)
    if len(given) == 1 and os.path.isdir(given[0]):  # Path's would stumble over a long command
        folder = Path(given[0])
        if (folder / MANIFEST).is_file():
            given = [folder / MANIFEST]
        else:
            found = sorted(folder.glob("*.tar"))
            if not found:
                raise InputError(f"There are no shards in {folder}; make some with 'prepare'.")
            return ShardSet(tuple(Shard(str(path)) for path in found))
    if len(given) == 1 and str(given[0]).endswith(MANIFEST):
        return _read_manifest(str(given[0]), split)
    from braceexpand import braceexpand

    try:
        expanded = [url for pattern in given for url in braceexpand(str(pattern))]
    except ValueError as error:
        raise InputError(f"The braces of {', '.join(map(str, given))} do not match.") from error
    if not expanded:
        raise InputError("There are no shards to read; name a folder, a pattern or URLs.")
    if len(set(expanded)) < len(expanded):
        raise InputError("A shard is named twice; name each once.")
    return ShardSet(tuple(Shard(url) for url in expanded))


def _read_manifest(url: str, split: str | None) -> ShardSet:
    try:
        with _opened(url) as file:
            found = parse_json(file.read(LARGEST_MEMBER))
        if found["format"] != FORMAT or found["version"] > VERSION:
            raise InputError(f"{url} is not a list of shards that this version knows.")
        base = url[: -len(MANIFEST)]
        shards = tuple(
            Shard(
                base + _plain(entry["file"]),
                str(entry["split"]),
                tuple((int(a), int(b), int(c)) for a, b, c in entry["segments"]),
            )
            for entry in found["shards"]
            if split in (None, entry["split"])
        )
        known = ShardSet(shards, int(found["size"]), str(found["head"]), bool(found["normals"]))
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise InputError(f"{url} could not be read as a list of shards; prepare the set again.") from error
    if not shards:
        raise InputError(f"{url} lists no shards of the split '{split}'; choose another split.")
    return known


def _plain(name: str) -> str:
    """A file's name from a list; no path and no command that would be run."""
    if not re.fullmatch(r"\w[\w.-]*\.tar", name, re.ASCII):
        raise InputError(
            f"The list of shards names {shown(name)!r}, which is no shard; prepare the set again."
        )
    return name


def read_shard(url: str) -> Iterator[Segment]:
    """The segments of a shard, one in memory at a time.

    Raises:
        InputError: the shard is missing, damaged or incomplete.
    """
    what = f"the shard {url}"
    key, members, held = "", dict[str, bytes](), 0
    for name, data in _members(url, what):
        prefix, _, rest = name.partition(".")
        if prefix != key:
            if members:
                yield _segment(key, members, what)
            key, members, held = prefix, {}, 0
        held = held - len(members.get(rest, b"")) + len(data)
        if held > LARGEST_SEGMENT:
            raise InputError(f"{key} in {what} is too large to be a segment; prepare the shard again.")
        members[rest] = data
    if members:
        yield _segment(key, members, what)


def _segment(key: str, members: Mapping[str, bytes], what: str) -> Segment:
    what = f"{key} in {what}"
    try:
        info = SegmentInfo.from_json(members["json"], what)
        parameters = FaceParameters.from_bytes(members["parameters.safetensors"], what)
        pictures, normals = list[bytes](), list[bytes]()
        for index in range(info.frames):
            name = next(f"{index:04d}.{kind}" for kind in PICTURES if f"{index:04d}.{kind}" in members)
            pictures.append(members[name])
        if "0000.normals.png" in members:
            normals = [members[f"{index:04d}.normals.png"] for index in range(info.frames)]
    except (KeyError, StopIteration) as error:
        raise InputError(f"{what} is incomplete; prepare the shard again.") from error
    if len(parameters) != info.frames or parameters.head != info.head:
        raise InputError(f"{what} has parameters that do not belong to its frames; prepare the shard again.")
    return Segment(key, info, parameters, pictures, normals)


def _members(url: str, what: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members that a segment is made of; others are passed over."""
    try:
        with _opened(url) as opened:
            file = _Watched(opened)
            # No compression: a small file could hide one that fills the memory.
            with tarfile.open(fileobj=file, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                    ending = member.name.partition(".")[2]
                    if not member.isreg() or not _is_known(ending):
                        continue
                    if member.size > LARGEST_MEMBER:
                        raise InputError(f"{what[:1].upper()}{what[1:]} holds a member too large to be true.")
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
            while file.read(1 << 16):  # a command that is not listened to to its end would fail
                pass
            if file.tail.strip(b"\0"):  # tarfile takes a cut between two members for the end
                raise tarfile.ReadError("it ends too early")
    except InputError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise InputError(
            f"{what[:1].upper()}{what[1:]} is missing or damaged ({reason}); check it or prepare it again."
        ) from error


class _Watched:
    """A stream that remembers its last bytes: a whole tar file ends with two blocks of zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.tail = file, b""

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.tail = (self.tail + data)[-2 * tarfile.BLOCKSIZE :]
        return data


def _is_known(ending: str) -> bool:
    return ending in ("json", "parameters.safetensors") or FRAME_MEMBER.fullmatch(ending) is not None


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    """A stream of a local path or of any URL that WebDataset opens."""
    if os.path.isfile(url):
        with Path(url).open("rb") as file:
            yield file
        return
    if ":" not in url:
        raise FileNotFoundError("no such file")
    from webdataset.gopen import gopen

    stream = gopen(url)
    try:
        yield stream
    except BaseException:
        with suppress(OSError):  # a command complains when nobody listens any more
            stream.close()
        raise
    stream.close()
