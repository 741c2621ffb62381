"""Importers of public checkpoint formats: one module for each, distinguished by the tensors of a file.

`recognize_file` is the entry. To add a format, write a module with `recognize(listing)` that answers None for
every other file, and add it to `IMPORTERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import UNBUILDABLE, ConfigError
from anifacediff_core.weights.importers import (
    anifacediff,
    autoencoder,
    clip_vision,
    diffusers_unet,
    face_encoders,
    flame,
    ip_adapter,
    motion_modules,
    others,
    pose_encoders,
    stable_diffusion,
)
from anifacediff_core.weights.importers.recognition import Listing, Origin, Recognition
from anifacediff_core.weights.reading import TensorFile, open_tensors

IMPORTERS: tuple[Callable[[Listing], Recognition | None], ...] = tuple(
    module.recognize
    for module in (
        stable_diffusion,
        diffusers_unet,
        motion_modules,
        pose_encoders,
        autoencoder,
        clip_vision,
        ip_adapter,
        face_encoders.DECA,
        face_encoders.SMIRK,
        flame,
    )
)

__all__ = ["IMPORTERS", "Origin", "Recognition", "Unrecognized", "recognize", "recognize_file"]


class Unrecognized(InputError):
    """A sound file of a kind that is not read here."""


def recognize_file(path: str | Path) -> Recognition:
    """Tell what a file is, by its tensors.

    Raises:
        InputError: it cannot be read, or its tensors don't fit the kind that it seems to be of.
        Unrecognized: it is of no kind that is read here; the message says of which, where that is known.
    """
    with open_tensors(path) as file:
        return recognize(file)


def recognize(file: TensorFile) -> Recognition:
    """`recognize_file` for an open file."""
    listing = Listing.of(file)
    own = anifacediff.recognize(listing)
    if own is not None:
        return own
    other = others.describe(listing)
    if other is not None:
        raise Unrecognized(f"{file.path.name} is {other}.")
    for importer in IMPORTERS:
        try:
            found = importer(listing)
        except UNBUILDABLE as error:
            if isinstance(error, InputError) and not isinstance(error, ConfigError):
                raise
            kind = importer.__module__.rpartition(".")[2].replace("_", " ")
            raise InputError(
                f"{file.path.name} does not fit its kind ({kind}): it has sizes of no such "
                "network, fetch it again or choose another file."
            ) from error
        if found is not None:
            return found
    raise Unrecognized(
        f"{file.path.name} is of no known kind: expected Stable Diffusion 1.5 or a part that goes with it, "
        f"found {len(file.infos)} tensors, the first is {min(file.infos, default='missing')}; choose another "
        "file."
    )
