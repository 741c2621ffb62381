"""What an importer says about a file: its parts, the tensors that it uses, those that it leaves.

An importer never looks at a file's name. It sees a `Listing`, the file's names, shapes and types, and answers
with a `Recognition`, which tells for each tensor of ours where it comes from; the numbers are read later, one
tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.network.sampling_config import SamplingConfig
from anifacediff_core.weights.layout import Layout
from anifacediff_core.weights.reading import TensorFile, TensorInfo, open_tensors

# What training scripts put around a network's own names.
WRAPPERS = ("state_dict.", "module.", "model_state_dict.")


@dataclass(frozen=True)
class Listing:
    """A file's tensors by their names without wrappers.

    Args:
        infos: shape and type of each tensor.
        originals: each tensor's name in the file.
    """

    path: Path
    infos: dict[str, TensorInfo]
    originals: dict[str, str]
    metadata: dict[str, str]

    @classmethod
    def of(cls, file: TensorFile) -> Listing:
        originals: dict[str, str] = {}
        for original in file.infos:
            name = original
            while wrapper := next((w for w in WRAPPERS if name.startswith(w)), ""):
                name = name[len(wrapper) :]
            # two wrapped networks of the same kind in one file: the second keeps its whole name
            originals[original if name in originals else name] = original
        infos = {name: file.infos[original] for name, original in originals.items()}
        return cls(file.path, infos, originals, dict(file.metadata))

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def shape(self, name: str) -> tuple[int, ...] | None:
        info = self.infos.get(name)
        return None if info is None else info.shape


@dataclass(frozen=True)
class Origin:
    """Where one tensor of ours comes from.

    Args:
        name: the tensor in the file; None for one that is computed.
        shape: of ours: the file's may have further axes of length one.
        dtype: as stored in the file.
        rows: the part of the file's first axis that is ours, all when None.
        transposed: whether the file's two axes are the other way round.
        times: a tensor of the file with one number to multiply by.
        same: tensors of the file that have to be equal to this one, as our network has only one.
        compute: makes a tensor that the file need not hold.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: tuple[int, int] | None = None
    transposed: bool = False
    times: str | None = None
    same: tuple[str, ...] = ()
    compute: Callable[[], Tensor] | None = None

    def names(self) -> list[str]:
        """Every tensor of the file that this takes."""
        return [name for name in (self.name, self.times, *self.same) if name is not None]

    def read(self, file: TensorFile) -> Tensor:
        if self.name is None:
            assert self.compute is not None
            return self.compute()
        tensor = file.read(self.name)
        for other in self.same:
            if not torch.equal(tensor, file.read(other)):
                raise InputError(
                    f"{file.path.name} does not fit: expected {other} equal to {self.name}, found another."
                )
        if self.rows is not None:
            tensor = tensor[slice(*self.rows)]
        if self.transposed:
            tensor = tensor.T
        if self.times is not None:
            tensor = tensor * file.read(self.times).to(tensor)
        return tensor.reshape(self.shape).contiguous()


Origins = dict[str, Origin]  # by our names


@dataclass(frozen=True)
class Recognition:
    """A recognized file.

    Args:
        format: what people call it.
        origins: for each part that the file gives, where each of its tensors comes from.
        left: names of the tensors that are not used, and why.
        config: what the tensors tell of a NetworkConfig.
        head: name of the head model that an AniFaceDiff checkpoint was trained on.
        provenance: what an AniFaceDiff checkpoint tells about itself.
        partial: parts of which the file gives only some tensors: initializers for training.
        sampling: how an AniFaceDiff checkpoint says that it wants to be sampled.
    """

    path: Path
    format: str
    origins: dict[str, Origins] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    head: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()
    sampling: SamplingConfig | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.origins)

    @property
    def used(self) -> list[str]:
        """Names in the file of all tensors that some part uses."""
        origins = (origin for part in self.origins.values() for origin in part.values())
        return list(dict.fromkeys(name for origin in origins for name in origin.names()))

    def infos(self, part: str) -> dict[str, TensorInfo]:
        """Our names of a part's tensors with their shapes, and the types as the file stores them."""
        return {name: TensorInfo(origin.shape, origin.dtype) for name, origin in self.origins[part].items()}

    def tensors(self, part: str, file: TensorFile | None = None) -> Iterator[tuple[str, Tensor]]:
        """A part's tensors by our names, one at a time.

        Args:
            file: the file when it is open already.
        """
        with nullcontext(file) if file is not None else open_tensors(self.path) as opened:
            for name, origin in self.origins[part].items():
                yield name, origin.read(opened)


def take(
    listing: Listing,
    layout: Layout,
    their_name: Callable[[str], str],
    *,
    format: str,
    absent: Iterable[str] = (),
) -> Origins:
    """Find every tensor of ours in a file.

    Args:
        layout: our names and shapes.
        their_name: ours -> the file's (without wrappers).
        format: what the file was taken for, for the refusal.
        absent: our names that the file need not have; they are skipped.

    Raises:
        InputError: one is missing or has another shape.
    """
    origins: Origins = {}
    optional = set(absent)
    for name, shape in layout.items():
        theirs = their_name(name)
        if theirs not in listing and name in optional:
            continue
        require_shape(listing, theirs, shape, format)
        info = listing.infos[theirs]
        origins[name] = Origin(listing.originals[theirs], shape, info.dtype)
    return origins


def require_shape(listing: Listing, name: str, shape: tuple[int, ...], format: str) -> None:
    """Refuse a file in which a tensor is missing or of another shape; last axes of length one are free."""
    found = listing.shape(name)
    if found is None or _trimmed(found) != _trimmed(shape):
        there = "none" if found is None else str(list(found))
        raise InputError(
            f"{listing.path.name} looks like {format} but is incomplete, damaged or a variant of it: "
            f"expected {name} {list(shape)}, found {there}; fetch it again or choose another file."
        )


def leave(
    listing: Listing,
    origins: Mapping[str, Origins],
    reasons: Mapping[str, str],
    *,
    own: str = "(?!)",
    format: str,
) -> dict[str, str]:
    """Account for the tensors that no part uses.

    Args:
        reasons: why a tensor is left, by a regular expression that its name starts with.
        own: regular expression of the names that belong to the network: one that is not used is refused, as
            the file is then of another network than it seems.

    Returns: the file's names of the tensors left, with the reason.
    """
    used = {name for part in origins.values() for origin in part.values() for name in origin.names()}
    left = {}
    for name, original in listing.originals.items():
        if original in used:
            continue
        reason = next((text for pattern, text in reasons.items() if re.match(pattern, name)), None)
        if reason is None and re.match(own, name):
            raise InputError(
                f"{listing.path.name} looks like {format} but is a variant of it: expected no "
                f"{name}, found {list(listing.infos[name].shape)}; choose another file."
            )
        left[original] = reason or "no part of this network"
    return left


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length one at the end, so that a 1×1 convolution equals a linear layer."""
    end = len(shape)
    while end > 1 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]
