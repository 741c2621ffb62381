"""FLAME's pickles: a head model. What they hold is brought into our format by `head.flame`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import (
    EXPRESSIONS,
    FIELDS,
    JOINTS,
    NAME,
    POSES,
    SHAPES,
    VERTICES,
    flame_tensors,
)
from anifacediff_core.weights.importers.recognition import Listing, Origin, Recognition, leave
from anifacediff_core.weights.reading import TensorFile, open_tensors

FORMAT = "FLAME"
REASONS = {
    r"J$": "joints of the average head: they are regressed",
    r"bs_": "says how the skin is bound: linearly",
}


class Flame(Recognition):
    """Its tensors are not only renamed."""

    def tensors(self, part: str, file: TensorFile | None = None) -> Iterator[tuple[str, Tensor]]:
        with nullcontext(file) if file is not None else open_tensors(self.path) as opened:
            yield from flame_tensors(opened).items()


def recognize(listing: Listing) -> Recognition | None:
    if not set(FIELDS) <= set(listing.infos):
        return None
    for field, sizes in FIELDS.items():
        found = listing.infos[field].shape
        if len(found) != len(sizes) or any(a not in (None, b) for a, b in zip(sizes, found, strict=True)):
            expected = str(["any" if size is None else size for size in sizes]).replace("'", "")
            raise InputError(
                f"{listing.path.name} looks like {FORMAT} but has other sizes: "
                f"expected {field} {expected}, found {list(found)}; choose generic_model.pkl."
            )
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
        "landmarks": Origin(None, (68,), torch.int64),
    }
    left = leave(listing, {"head": head}, REASONS, format=FORMAT)
    return Flame(listing.path, FORMAT, {"head": head}, left, head=NAME)
