"""What is in a weight file or in a folder of them, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anifacediff_core.weights.importers import Recognition, Unrecognized, recognize
from anifacediff_core.weights.reading import TensorFile, TensorInfo, open_tensors
from anifacediff_core.weights.sources import open_folder

SHOWN = 3  # examples of a long list
LONGEST = 400  # characters of what a checkpoint tells about itself


def describe(path: Path, *, every: bool = False) -> Iterator[str]:
    """Lines about a file or a folder.

    Args:
        every: also one line for each tensor of a file.

    Raises:
        InputError: it cannot be read, or does not fit the kind that it seems to be of.
    """
    if path.is_dir():
        yield from _describe_folder(path)
        return
    with open_tensors(path) as file:
        try:
            found = recognize(file)
        except Unrecognized as reason:
            yield str(reason)
            yield from _contents(file)
            if every:
                yield from (_tensor(name, info) for name, info in file.infos.items())
            return
        yield f"{path.name}: {found.format}"
        yield from _contents(file)
        yield from _recognition(found, file)
        if every:
            yield from _tensors(found, file)


def _describe_folder(path: Path) -> Iterator[str]:
    checkpoint = open_folder(path)
    yield f"{path.name}: a model of the profile {checkpoint.config.profile}"
    for part, sources in checkpoint.folder.parts.items():
        for found in sources:
            yield _line(part, f"{found.path.relative_to(path)}: {found.format}, {_numbers(found, part)}")
    for name, reason in checkpoint.folder.passed.items():
        yield _line("not used", f"{name}: {reason}")
    yield _line("config", _fields(checkpoint.config.to_json()))


def _contents(file: TensorFile) -> Iterator[str]:
    kinds = Counter(str(info.dtype).removeprefix("torch.") for info in file.infos.values())
    types = ", ".join(f"{count} {dtype}" for dtype, count in kinds.most_common())
    yield _line("file", f"{file.kind}, {_size(file.path.stat().st_size)}, {len(file.infos)} tensors: {types}")
    if file.scaled:
        yield _line("scaled", f"{file.scaled} layers are in fp8 with a scale, which is applied")
    if file.ignored:
        yield _line("other", f"{len(file.ignored)} values that are no tensors: {_some(file.ignored)}")


def _recognition(found: Recognition, file: TensorFile) -> Iterator[str]:
    for part in found.parts:
        initial = " (an initializer: only some of its tensors)" if part in found.partial else ""
        yield _line("part", f"{part}: {_numbers(found, part)}{initial}")
    yield _line("used", f"{len(found.used)} of {len(file.infos)} tensors")
    for reason, count in Counter(found.left.values()).most_common():
        names = [name for name, why in found.left.items() if why == reason]
        yield _line("left", f"{count}: {reason} ({_some(names)})")
    if found.config:
        yield _line("config", _fields(found.config))
    if found.head:
        yield _line("head", found.head)
    if found.sampling is not None:
        yield _line("sampling", _fields(found.sampling.to_json()))
    if found.provenance:
        yield _line("made", _shortened(_fields(found.provenance)))


def _tensors(found: Recognition, file: TensorFile) -> Iterator[str]:
    ours: dict[str, list[str]] = {}
    for part, origins in found.origins.items():
        for name, origin in origins.items():
            for theirs in origin.names():
                ours.setdefault(theirs, []).append(f"{part}.{name}")
    for name, info in file.infos.items():
        yield f"{_tensor(name, info)} {', '.join(ours[name]) if name in ours else found.left[name]}"


def _tensor(name: str, info: TensorInfo) -> str:
    return f"  {name} {list(info.shape)} {str(info.dtype).removeprefix('torch.')}"


def _numbers(found: Recognition, part: str) -> str:
    infos = found.infos(part).values()
    return f"{len(infos)} tensors, {sum(math.prod(info.shape) for info in infos) / 1e6:.1f} M numbers"


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return "/".join(map(str, value))
    return str(value)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _line(label: str, text: str) -> str:
    return f"  {label:13} {text}"
