"""Where a model's weights come from: our one-file checkpoint, or a folder of other projects' files.

A folder is read as its project's instructions have it filled: every weight file in it, also in folders
inside, is recognized by its tensors, and each part is taken from one file. Among several files for a part

- one of the part's own goes before a whole Stable Diffusion, which is what others were made from;
- temporal modules in the UNet's file go before a file of their own, as the projects' code has it;
- then the one nearest to the top of the folder goes first (the project's UNet before that of a base model);
- and of the same weights in two formats, safetensors.

Two files that are equal in all of this are refused: nothing tells which is meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import NAME as FLAME
from anifacediff_core.network.config import ConfigError, NetworkConfig
from anifacediff_core.weights.checkpoint import HEADER, PARTS, Checkpoint, load_checkpoint
from anifacediff_core.weights.fill import misfits
from anifacediff_core.weights.importers import Recognition, Unrecognized, recognize_file
from anifacediff_core.weights.importers.motion_modules import TABLE
from anifacediff_core.weights.layout import (
    Layout,
    expression_adapter_layout,
    image_encoder_layout,
    motion_layout,
    pose_encoder_layout,
    reference_layout,
    unet_layout,
)
from anifacediff_core.weights.reading import TensorInfo, TorchScriptError, open_tensors

ENDINGS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".tar", ".pkl")
MAX_DEPTH = 4  # folders inside folders
# Words of diffusers behind the name of a file, of the same weights.
VARIANT = re.compile(r"\.(fp16|fp32|bf16|ema|non_ema)$")
POSE = "pose_encoder"
LAYOUTS = {
    "unet": unet_layout,
    "reference": reference_layout,
    "motion": motion_layout,
    POSE: pose_encoder_layout,
    "image_encoder": image_encoder_layout,
    "expression_adapter": expression_adapter_layout,
}
# What the public relatives of the method have in common, and what each has of its own.
FAMILY: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "zero_terminal_snr": True,
    "beta_schedule": "linear",
    "motion_norm": "frame",
}
PROFILES: dict[str, dict[str, Any]] = {
    "magicportrait": {"pose_inputs": ("depth", "normals", "render"), "context": "text"},
    "champ": {"pose_inputs": ("depth", "normals", "semantic_map", "skeleton")},
    "aniportrait": {"pose_inputs": ("landmarks",)},
    "moore": {"pose_inputs": ("skeleton",)},
}

Parts = dict[str, tuple[Recognition, ...]]  # a pose encoder for several pictures comes from several files


@dataclass(frozen=True)
class Folder:
    """What the files in a folder are.

    Args:
        parts: the files that each part comes from.
        passed: why the other files are not used, by their names relative to the folder.
    """

    path: Path
    parts: Parts
    passed: dict[str, str]


@dataclass(frozen=True)
class FolderCheckpoint(Checkpoint):
    """A folder of other projects' files as a checkpoint.

    Args:
        folder: where each part comes from.
    """

    folder: Folder = field(default_factory=lambda: Folder(Path(), {}, {}))

    def tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        return chain.from_iterable(found.tensors(name) for found in self.folder.parts[name])

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        self._require(name)
        return {key: info.shape for key, info in part_infos(name, self.folder.parts[name]).items()}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A model by its name: a checkpoint of ours, or a folder of another project's files.

    Raises:
        InputError: it is neither, a file in the folder is damaged, or the files don't fit together.
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        _require_own(path)
    checkpoint = load_checkpoint(path)
    _check_claims(checkpoint)
    return checkpoint


def _check_claims(checkpoint: Checkpoint) -> None:
    """Hold the network of the header against the file, before anybody takes memory for what it claims.

    What a file has beyond that is for the loaders to judge, and position tables may be left out.
    """
    for part in filter(LAYOUTS.__contains__, checkpoint.parts):
        found, layout = checkpoint.shapes(part), _layout(part, checkpoint.config, checkpoint.path)
        expected = {
            name: shape for name, shape in layout.items() if name in found or not name.endswith(TABLE)
        }
        known = {name: shape for name, shape in found.items() if name in expected}
        for misfit in misfits(expected, known, f"{part}."):
            raise InputError(f"{checkpoint.path.name} does not fit its own header: {misfit}; fetch it again.")


def open_folder(path: Path) -> FolderCheckpoint:
    folder = read_folder(path)
    if "unet" not in folder.parts:
        seen = ", ".join(sorted(folder.parts)) or "no weights"
        passed = "".join(f"; {name}: {reason}" for name, reason in list(folder.passed.items())[:3])
        raise InputError(
            f"The folder {path.name} has no denoising UNet: expected denoising_unet.pth or another Stable "
            f"Diffusion 1.5 UNet, found {seen}{passed}."
        )
    config = folder_config(folder)
    check_parts(config, folder.parts)
    own = next((found.head for found in folder.parts["unet"] if found.head), None)
    return FolderCheckpoint(
        path=path,
        config=config,
        head=own or (FLAME if config.profile in ("anifacediff", "magicportrait") else ""),
        parts=tuple(part for part in PARTS if part in folder.parts),
        provenance={"folder": {part: describe_sources(found) for part, found in folder.parts.items()}},
        wish=next((found.sampling for found in folder.parts["unet"] if found.sampling), None),
        folder=folder,
    )


def read_folder(path: Path) -> Folder:
    """Recognize every file of a folder and choose one for each part.

    Raises:
        InputError: a file is damaged, does not fit its kind, or two files are equally good for a part.
    """
    passed: dict[str, str] = {}
    found: list[Recognition] = []
    for file in weight_files(path):
        name = str(file.relative_to(path))
        try:
            found.append(recognize_file(file))
        except TorchScriptError:
            passed[name] = "a TorchScript program: it is never run"
        except Unrecognized as reason:
            passed[name] = str(reason).removeprefix(f"{file.name} ").rstrip(".")
    parts: Parts = {}
    for part in PARTS:
        candidates = [r for r in found if part in r.parts and part not in r.partial]
        kinds = dict.fromkeys(_picture(candidate, part) for candidate in candidates)
        chosen = [_choose(path, part, [c for c in candidates if _picture(c, part) == kind]) for kind in kinds]
        if chosen:
            parts[part] = tuple(chosen)
        for candidate in candidates:
            if candidate not in chosen:
                name = str(candidate.path.relative_to(path))
                other = next(c for c in chosen if _picture(c, part) == _picture(candidate, part))
                loser = f"its {part} gives way to {other.path.relative_to(path)}"
                passed[name] = f"{passed[name]}, {loser}" if name in passed else loser
    for recognition in found:
        if not any(part in parts and part not in recognition.partial for part in recognition.parts):
            passed[str(recognition.path.relative_to(path))] = f"{recognition.format}: not a part of a model"
    return Folder(path, parts, passed)


def weight_files(folder: Path) -> list[Path]:
    """Files with a usual ending, in folders and links inside as well, but in no hidden one."""
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):  # the depth ends links that go in circles
        deep = len(Path(place).relative_to(folder).parts) + 1 == MAX_DEPTH
        folders[:] = [] if deep else [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        files += [path for path in paths if path.suffix.lower() in ENDINGS and path.is_file()]
    return sorted(files)


def folder_config(folder: Folder) -> NetworkConfig:
    """The config of what a folder holds; the pose encoder tells the profile."""
    fields = merge_config(chain.from_iterable(folder.parts.values()))
    encoders = folder.parts.get(POSE, ())
    if not encoders or fields.get("profile"):
        return complete_config(fields)
    kinds = [kind for encoder in encoders for kind in encoder.config.get("pose_inputs", ())]
    profile = _profile(folder.path, fields["pose_encoder"], kinds)
    fields |= FAMILY | PROFILES[profile] | {"profile": profile}
    if profile == "champ":
        fields["pose_inputs"] = tuple(kind for kind in fields["pose_inputs"] if kind in kinds)
    return complete_config(fields)


def _profile(folder: Path, pose_encoder: str, kinds: list[str]) -> str:
    if pose_encoder != "attention":
        return {"multiscale": "aniportrait", "convolution": "moore"}[pose_encoder]
    wanted = PROFILES["magicportrait"]["pose_inputs"]
    if "render" not in kinds:
        return "champ"
    missing = [kind for kind in wanted if kind not in kinds]
    if missing:
        raise InputError(
            f"The folder {folder.name} has a guidance encoder for render, as MagicPortrait has it: expected "
            f"those for {', '.join(wanted)}, found none for {', '.join(missing)}."
        )
    return "magicportrait"


def merge_config(found: Iterable[Recognition]) -> dict[str, Any]:
    """What several files tell, that of the UNet first; whether they agree shows in `check_parts`."""
    order = {"unet": 0, "reference": 1, "motion": 2}
    fields: dict[str, Any] = {}
    for recognition in sorted(found, key=lambda r: min((order.get(part, 3) for part in r.parts), default=3)):
        fields = {**recognition.config, **fields}
    return fields


def complete_config(fields: dict[str, Any]) -> NetworkConfig:
    """A config with as many entries for each level as there are levels, also where no file states them."""
    levels = len(fields.get("block_out_channels", NetworkConfig.block_out_channels))
    default = NetworkConfig()
    for name in ("attention_levels", "attention_heads", "motion_heads"):
        if name not in fields and levels != len(getattr(default, name)):
            fields = {**fields, name: (getattr(default, name)[0],) * levels}
    return NetworkConfig.from_json(fields)


def check_parts(config: NetworkConfig, parts: Parts) -> None:
    """Refuse parts that don't fit together, by name and shape of the first tensor that doesn't.

    Raises:
        InputError: naming the file, and the one that it has to fit.
    """
    for part, found in parts.items():
        if part not in LAYOUTS or any(part in recognition.partial for recognition in found):
            continue
        shapes = {name: info.shape for name, info in part_infos(part, found).items()}
        for misfit in misfits(_layout(part, config, found[0].path), shapes, f"{part}."):
            unet = parts.get("unet", found)[0].path.name
            raise InputError(f"{found[0].path.name} does not fit {unet}: {misfit}.")


def _layout(part: str, config: NetworkConfig, path: Path) -> Layout:
    try:
        return LAYOUTS[part](config)
    except ConfigError as error:
        raise InputError(
            f"{path.name} describes a {part} that cannot be built: fetch it again or choose another file."
        ) from error


def part_infos(part: str, found: Iterable[Recognition]) -> dict[str, TensorInfo]:
    return {name: info for recognition in found for name, info in recognition.infos(part).items()}


def describe_sources(found: Iterable[Recognition]) -> list[dict[str, Any]]:
    """Which files a part comes from."""
    return [
        {
            "file": recognition.path.name,
            "format": recognition.format,
            "used": len(recognition.used),
            "left": len(recognition.left),
        }
        for recognition in found
    ]


def _require_own(path: Path) -> None:
    """Refuse a file of another project with a word of what it is."""
    with open_tensors(path) as file:
        if HEADER in file.metadata:
            return
    recognition = recognize_file(path)
    raise InputError(
        f"{path.name} is only a part of a model ({recognition.format}): expected a whole checkpoint or "
        "the folder with all of a project's files; 'python -m anifacediff_core assemble' makes a checkpoint "
        "from parts."
    )


def _picture(recognition: Recognition, part: str) -> tuple[str, ...]:
    """What a guidance encoder reads: there is one for each picture."""
    guidance = part == POSE and recognition.config.get("pose_encoder") == "attention"
    return recognition.config["pose_inputs"] if guidance else ()


def _choose(folder: Path, part: str, candidates: list[Recognition]) -> Recognition:
    def rank(recognition: Recognition) -> tuple[bool, bool, int]:
        base = {"unet", "vae"} <= set(recognition.parts)
        apart = part == "motion" and "unet" not in recognition.parts
        return base, apart, len(recognition.path.relative_to(folder).parts)

    best = min(map(rank, candidates))
    first, *others = sorted(
        (c for c in candidates if rank(c) == best),
        key=lambda c: (c.path.suffix != ".safetensors", len(c.path.name), c.path.name),
    )
    for other in others:
        if _twin_name(other.path) != _twin_name(first.path):
            names = sorted(str(c.path.relative_to(folder)) for c in (first, other))
            raise InputError(
                f"The folder {folder.name} has two files for {part}: expected one, found {names[0]} and "
                f"{names[1]}; move one of them away."
            )
    return first


def _twin_name(path: Path) -> tuple[Path, str]:
    """The same for the same weights in another format or precision: model.safetensors, pytorch_model.bin,
    model.fp16.safetensors."""
    return path.parent, VARIANT.sub("", path.stem).replace("pytorch_model", "model")
