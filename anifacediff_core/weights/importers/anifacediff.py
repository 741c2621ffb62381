"""This project's own files: the checkpoint with all parts, and head models."""

from __future__ import annotations

from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import FORMAT as HEAD_FORMAT
from anifacediff_core.network.config import current_names
from anifacediff_core.weights.checkpoint import HEADER, read_header, sampling_of
from anifacediff_core.weights.importers.recognition import Listing, Origin, Origins, Recognition


def recognize(listing: Listing) -> Recognition | None:
    if HEAD_FORMAT in listing.metadata:
        name = _head_name(listing)
        origins = {"head": {name: _same(listing, name) for name in listing.infos}}
        return Recognition(listing.path, f"head model {name!r}", origins, head=name)
    if HEADER not in listing.metadata:
        return None
    header = read_header(listing.path, listing.metadata)
    parts: dict[str, Origins] = {}
    for name in listing.infos:
        part, _, ours = name.partition(".")
        parts.setdefault(part, {})[ours] = _same(listing, name)
    return Recognition(
        listing.path,
        "AniFaceDiff checkpoint",
        parts,
        config=current_names(header["network"]),
        head=header["head"],
        provenance=header.get("provenance", {}),
        sampling=sampling_of(listing.path, header),
    )


def _head_name(listing: Listing) -> str:
    try:
        return str(parse_json(listing.metadata[HEAD_FORMAT])["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{listing.path.name} has a damaged header: expected that of a head, fetch it again."
        ) from error


def _same(listing: Listing, name: str) -> Origin:
    info = listing.infos[name]
    return Origin(listing.originals[name], info.shape, info.dtype)
