"""Other projects' files into ours, one tensor after the other: conversion, and the start of a training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import EXPRESSIONS
from anifacediff_core.head.flame import NAME as FLAME
from anifacediff_core.head.model import FORMAT as HEAD_FORMAT
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.checkpoint_stream import TensorStream, part_stream, stream_checkpoint
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import ExpressionAdapter, make_pose_encoder
from anifacediff_core.network.model import PARTS as NETWORK_PARTS
from anifacediff_core.progress import Progress
from anifacediff_core.storage import file_digest, write_tensors
from anifacediff_core.weights.faces import load_head
from anifacediff_core.weights.importers import Recognition, recognize_file
from anifacediff_core.weights.importers.flame import HEADER as FLAME_HEADER
from anifacediff_core.weights.layout import Layout, block_channels, reference_layout
from anifacediff_core.weights.reading import open_tensors
from anifacediff_core.weights.sources import (
    POSE,
    Parts,
    check_parts,
    complete_config,
    describe_sources,
    merge_config,
    open_folder,
    read_folder,
)

BUNDLED = "bundled"
NORMALS = ("normals",)


def convert(
    path: Path, out: Path, *, dtype: torch.dtype = torch.float16, progress: Progress | None = None
) -> str:
    """A file or folder of any known format → our checkpoint with its parts, or a head file.

    Args:
        dtype: floating-point weights of a checkpoint are stored in this; heads stay in float32.

    Returns: what was written, in one sentence.

    Raises:
        InputError: the file is damaged, of no known kind, or gives only an initializer.
    """
    if path.is_dir():
        folder = open_folder(path)
        parts, config, head, sampling = folder.folder.parts, folder.config, folder.head, folder.wish
    else:
        found = recognize_file(path)
        if "head" in found.parts:
            return _convert_head(found, out)
        if found.partial:
            raise InputError(
                f"{path.name} ({found.format}) gives only some tensors of {', '.join(found.partial)}: "
                "hand it to assemble, with --expression-adapter."
            )
        parts = dict.fromkeys(found.parts, (found,))
        config, head, sampling = complete_config(found.config), found.head, found.sampling
        check_parts(config, parts)
    streams = {part: part_stream(part, sources) for part, sources in parts.items()}
    provenance = {"converted": _provenance(parts)}
    stream_checkpoint(
        out,
        streams,
        config,
        head=head,
        provenance=provenance,
        sampling=sampling,
        dtype=dtype,
        progress=progress,
    )
    return f"{out}: {', '.join(streams)}."


@dataclass(frozen=True)
class Ingredients:
    """Files or folders to assemble a checkpoint from.

    Args:
        unet: Stable Diffusion 1.5, one file or diffusers' folder; its autoencoder is used as well.
        motion: temporal modules.
        image_encoder: CLIP's.
        vae: an autoencoder in place of the UNet's own.
        reference: of the ReferenceNet; a copy of the UNet when None.
        pose_encoder: for normals; an untrained one when None.
        expression_adapter: an IP-Adapter for its keys and values; an untrained one when None.
        init_from: a folder of the Animate-Anyone family, for whatever is not given otherwise.
    """

    unet: Path | None = None
    motion: Path | None = None
    image_encoder: Path | None = None
    vae: Path | None = None
    reference: Path | None = None
    pose_encoder: Path | None = None
    expression_adapter: Path | None = None
    init_from: Path | None = None


def assemble(
    ingredients: Ingredients,
    out: Path,
    *,
    head: str = FLAME,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    progress: Progress | None = None,
) -> str:
    """Write a checkpoint from which training can start.

    Args:
        head: "flame", "bundled", or a head's file: whose expressions the adapter reads.
        seed: of the parts that nothing is given for.

    Returns: what was written, in one sentence.

    Raises:
        InputError: a part is missing, or the parts don't fit together.
    """
    parts, fields = _gather(ingredients)
    name, expressions = _head(head)
    config = complete_config({**fields, "n_expression": expressions})
    if "reference" not in parts:
        unet = parts["unet"][0]
        parts["reference"] = (_as_reference(unet, reference_layout(config)),)
    check_parts(config, parts)
    streams = {part: part_stream(part, found) for part, found in parts.items()}
    provenance = _provenance(parts)
    for part, module in _untrained(config, seed).items():
        weights = TensorStream.of(module.state_dict())
        if part not in streams:
            streams[part] = weights
            provenance[part] = [{"untrained": seed}]
        elif part == "expression_adapter":
            streams[part] = _over(weights, streams[part])
            provenance[part].append({"untrained": seed})
    stream_checkpoint(
        out,
        streams,
        config,
        head=name,
        provenance={"assembled": provenance},
        dtype=dtype,
        progress=progress,
    )
    return f"{out}: {', '.join(streams)}."


def _gather(ingredients: Ingredients) -> tuple[Parts, dict[str, Any]]:
    """The recognized files for each part, and what they tell of the config."""
    parts: Parts = {}
    fields: dict[str, Any] = {}
    if ingredients.init_from is not None:
        parts = _initial(ingredients.init_from)
        fields["beta_schedule"] = "linear"  # as the whole family is trained
    given = {
        "unet": ingredients.unet,
        "motion": ingredients.motion,
        "image_encoder": ingredients.image_encoder,
        "vae": ingredients.vae,
        POSE: ingredients.pose_encoder,
        "expression_adapter": ingredients.expression_adapter,
    }
    for part, path in given.items():
        if path is not None:
            parts[part] = _find_part(path, part)
    if ingredients.unet is not None and ingredients.vae is None:
        parts |= _vae_beside(ingredients.unet)
    if ingredients.reference is not None:
        parts["reference"] = _reference(ingredients.reference)
    for part, option in (("unet", "--unet"), ("motion", "--motion"), ("image_encoder", "--image-encoder")):
        if part not in parts:
            raise InputError(f"There is no {part}: expected a file or folder for it, name one with {option}.")
    for encoder in parts.get(POSE, ()):
        kinds = encoder.config.get("pose_inputs", NORMALS)
        if kinds != NORMALS:
            raise InputError(
                f"{encoder.path.name} reads {', '.join(kinds)}: expected a pose encoder for normals, name "
                "another with --pose-encoder."
            )
    return parts, fields | merge_config(chain.from_iterable(parts.values()))


def _initial(folder: Path) -> Parts:
    """What of a folder of the family can begin our own method: of several pose encoders that for normals."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} to begin from: expected one with a project's files.")
    parts = dict(read_folder(folder).parts)
    encoders = [
        encoder for encoder in parts.pop(POSE, ()) if encoder.config.get("pose_inputs", NORMALS) == NORMALS
    ]
    parts = {part: found for part, found in parts.items() if part in (*NETWORK_PARTS, "vae")}
    return parts | ({POSE: (encoders[0],)} if encoders else {})


def _vae_beside(path: Path) -> Parts:
    """The autoencoder in the UNet's own file or folder, if there is one."""
    try:
        return {"vae": _find_part(path, "vae")}
    except InputError:
        return {}


def _reference(path: Path) -> tuple[Recognition, ...]:
    """A ReferenceNet, or a whole UNet as one."""
    try:
        return _find_part(path, "reference")
    except InputError:
        unet = _find_part(path, "unet")[0]
        return (_as_reference(unet, reference_layout(complete_config(unet.config))),)


def _find_part(path: Path, part: str) -> tuple[Recognition, ...]:
    """The files of one part: the file named, or those in a folder.

    Raises:
        InputError: there is no such part.
    """
    if path.is_dir():
        folder = read_folder(path)
        found, seen = folder.parts.get(part, ()), ", ".join(folder.parts) or "no weights"
    else:
        recognition = recognize_file(path)
        found, seen = (recognition,) if part in recognition.parts else (), recognition.format
    if not found:
        raise InputError(f"{path.name} has no {part}: expected that part, found {seen}.")
    return found


def _as_reference(unet: Recognition, layout: Layout) -> Recognition:
    """A denoising UNet as the ReferenceNet that begins as its copy (section 3.2)."""
    whole = unet.origins["unet"]
    origins = {"reference": {name: whole[name] for name in layout}}
    copied = Recognition(unet.path, unet.format, origins, dict(unet.left), unet.config)
    taken = set(copied.used)
    copied.left.update((name, "no part of the ReferenceNet") for name in unet.used if name not in taken)
    return copied


def _untrained(config: NetworkConfig, seed: int) -> dict[str, nn.Module]:
    """The small parts of the method that no public file has."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return {
            POSE: make_pose_encoder(config),
            "expression_adapter": ExpressionAdapter(config, block_channels(config)),
        }


def _over(untrained: TensorStream, given: TensorStream) -> TensorStream:
    """All tensors of the one, with those of the other in their places."""
    for name, info in given.infos.items():
        if name not in untrained.infos or untrained.infos[name].shape != info.shape:
            expected = untrained.infos.get(name)
            raise InputError(
                f"The IP-Adapter does not fit the UNet: expected {name} "
                f"{list(expected.shape) if expected else 'absent'}, found {list(info.shape)}."
            )

    def read() -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor) for name, tensor in untrained.read() if name not in given.infos)
        yield from given.read()

    return TensorStream({**untrained.infos, **given.infos}, read)


def _head(name: str) -> tuple[str, int]:
    """Name and number of expressions of a head."""
    if name == FLAME:
        return FLAME, EXPRESSIONS
    head = HeadModel.bundled() if name == BUNDLED else load_head(name)
    return head.name, head.n_expression


def _convert_head(found: Recognition, out: Path) -> str:
    with open_tensors(found.path) as file:
        tensors = dict(found.tensors("head", file))
        theirs = {**FLAME_HEADER, "sha256": file_digest(found.path)}
        metadata = file.metadata.get(HEAD_FORMAT) or json.dumps(theirs)
    write_tensors(out, tensors, {HEAD_FORMAT: metadata})
    return f"{out}: the head {found.head!r}."


def _provenance(parts: Mapping[str, Iterable[Recognition]]) -> dict[str, list[dict[str, Any]]]:
    """Of each part: file, its SHA-256, format and how many of its tensors are used."""
    digests: dict[Path, str] = {}
    provenance = {}
    for part, found in parts.items():
        provenance[part] = describe_sources(found)
        for entry, recognition in zip(provenance[part], found, strict=True):
            if recognition.path not in digests:
                digests[recognition.path] = file_digest(recognition.path)
            entry["sha256"] = digests[recognition.path]
            if recognition.provenance:
                entry["made"] = recognition.provenance
    return provenance
