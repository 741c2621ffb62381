"""FLAME's files as heads: the pickles of FLAME 2020 and 2023, read without unpickling anything but arrays.

The two releases, and the male and female heads, have the same fields and sizes and carry no name, so all of
them are the head 'flame': one file is meant to serve a whole workflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import (
    EXPRESSIONS,
    FIRST_EXPRESSION,
    JOINTS,
    NAME,
    POSES,
    SHAPES,
    VERTICES,
)
from anifacediff_core.head.model import LANDMARKS, HeadModel
from anifacediff_core.weights.importers.recognition import Listing, Origin, Recognition, leave
from anifacediff_core.weights.reading import TensorFile, TensorInfo, open_tensors

FORMAT = "FLAME"
FIELDS = {
    "v_template": (VERTICES, 3),
    "shapedirs": (VERTICES, 3, None),
    "posedirs": (VERTICES, 3, POSES),
    "J_regressor": (JOINTS, VERTICES),
    "weights": (VERTICES, JOINTS),
    "kintree_table": (2, JOINTS),
    "f": (None, 3),
}
REASONS = {
    r"J$": "joints of the average head: they are regressed",
    r"bs_": "says how the skin is bound: linearly",
}
HEADER = {
    "name": NAME,
    "expressions": [],
    "joints_follow_expression": True,
    "license": "FLAME's own; see the file's source",
    "origin": "FLAME, https://flame.is.tue.mpg.de",
}


class Flame(Recognition):
    """Its tensors are not only renamed."""

    def tensors(self, part: str, file: TensorFile | None = None) -> Iterator[tuple[str, Tensor]]:
        with nullcontext(file) if file is not None else open_tensors(self.path) as opened:
            yield from flame_tensors(opened).items()


def recognize(listing: Listing) -> Recognition | None:
    if not set(FIELDS) <= set(listing.infos):
        return None
    _require_sizes(listing.infos, listing.path.name)
    triangles = listing.infos["f"].shape[0]
    # without landmarks: these are found, not stored
    head = {
        "template": Origin("v_template", (VERTICES, 3), torch.float32),
        "faces": Origin("f", (triangles, 3), torch.int64),
        "shape_basis": Origin("shapedirs", (VERTICES, 3, SHAPES), torch.float32),
        "expression_basis": Origin("shapedirs", (VERTICES, 3, EXPRESSIONS), torch.float32),
        "pose_basis": Origin("posedirs", (VERTICES, 3, POSES), torch.float32),
        "joint_regressor": Origin("J_regressor", (JOINTS, VERTICES), torch.float32),
        "skin_weights": Origin("weights", (VERTICES, JOINTS), torch.float32),
        "parents": Origin("kintree_table", (JOINTS,), torch.int64),
        "landmarks": Origin(None, (LANDMARKS,), torch.int64),
    }
    left = leave(listing, {"head": head}, REASONS, format=FORMAT)
    return Flame(listing.path, FORMAT, {"head": head}, left, head=NAME)


def load_flame(path: str | Path) -> HeadModel:
    """Read a FLAME pickle, or a safetensors or NumPy file with the same fields.

    Raises:
        InputError: the file is missing, damaged, hostile, or not FLAME.
    """
    with open_tensors(path) as file:
        return HeadModel(flame_tensors(file), dict(HEADER))


def flame_tensors(file: TensorFile) -> dict[str, Tensor]:
    """The tensors of :class:`.model.HeadModel` from those of a FLAME file.

    Raises:
        InputError: fields are missing or have other sizes than FLAME's.
    """
    name = file.path.name
    _require_sizes(file.infos, name)
    if not file.infos["f"].shape[0] or any(file.infos[field].dtype.is_complex for field in FIELDS):
        raise InputError(
            f"{name} is not FLAME: expected triangles of real numbers; choose generic_model.pkl."
        )
    modes = file.infos["shapedirs"].shape[-1]
    if modes < FIRST_EXPRESSION + EXPRESSIONS:
        raise InputError(
            f"{name} is not the whole FLAME: expected shapedirs with 400 modes, found {modes}; "
            "choose generic_model.pkl."
        )
    basis = file.read("shapedirs").float()
    tensors = {
        "template": file.read("v_template").float(),
        "faces": file.read("f").long(),
        "shape_basis": basis[..., :SHAPES].contiguous(),
        "expression_basis": basis[..., FIRST_EXPRESSION : FIRST_EXPRESSION + EXPRESSIONS].contiguous(),
        "pose_basis": file.read("posedirs").float(),
        "joint_regressor": file.read("J_regressor").float(),
        "skin_weights": file.read("weights").float(),
        "parents": _parents(file.read("kintree_table"), name),
    }
    if tensors["faces"].min() < 0 or tensors["faces"].max() >= VERTICES:
        raise InputError(f"{name} has triangles outside its {VERTICES} vertices; get a fresh copy.")
    return tensors | {"landmarks": landmarks_like_bundled(tensors["template"], tensors["joint_regressor"])}


def _require_sizes(infos: Mapping[str, TensorInfo], name: str) -> None:
    for field, sizes in FIELDS.items():
        found = list(infos[field].shape) if field in infos else "none"
        expected = ["any" if size is None else size for size in sizes]
        fits = len(found) == len(sizes) and all(a in (None, b) for a, b in zip(sizes, found, strict=True))
        if not fits:
            listed = str(expected).replace("'", "")
            raise InputError(
                f"{name} is not FLAME: expected {field} {listed}, found {found}; choose generic_model.pkl."
            )


def _parents(tree: Tensor, name: str) -> Tensor:
    """The parent of each joint; the root's is -1, whatever the file has there."""
    parents = tree[0].long().clone()
    parents[0] = -1
    if any(not 0 <= parent < joint for joint, parent in enumerate(parents.tolist()) if joint):
        raise InputError(
            f"{name} has a broken joint tree: expected a parent before each joint, found "
            f"{parents.tolist()}; get a fresh copy."
        )
    return parents


def landmarks_like_bundled(template: Tensor, regressor: Tensor) -> Tensor:
    """Vertices (68,) nearest to the bundled head's landmarks, once both heads' eyeballs are laid together.

    FLAME's own landmarks are in another file. These are good to some millimeters, which is enough for framing
    a face and for nothing else.
    """
    bundled = HeadModel.bundled()
    here, there = (regressor @ template)[3:5], bundled.joint_template[3:5]
    distance = (there[0] - there[1]).norm().clamp(min=1e-6)
    scale = (here[0] - here[1]).norm().clamp(min=1e-6) / distance
    points = (bundled.template[bundled.landmarks] - there.mean(0)) * scale + here.mean(0)
    return torch.cdist(points, template).argmin(dim=1)
