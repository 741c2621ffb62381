"""Files in the form of FLAME's, around the bundled head: its face with FLAME's numbers of everything."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from anifacediff_core.head.flame import EXPRESSIONS, FIRST_EXPRESSION, POSES, VERTICES
from anifacediff_core.head.model import HeadModel

TRIANGLES, MODES = 9976, 400
Fields = dict[str, np.ndarray]


def make_fields(seed: int = 0) -> Fields:
    """FLAME's fields: the bundled head's, filled up with copies of vertices and triangles, and small random
    modes where it has none.
    """
    head, noise = HeadModel.bundled(), np.random.default_rng(seed)
    count = len(head.template)
    copied = np.concatenate([np.arange(count), noise.integers(0, count, VERTICES - count)])
    faces = np.concatenate([head.faces.numpy(), head.faces.numpy()[: TRIANGLES - len(head.faces)]])
    modes = noise.normal(0, 1e-4, (VERTICES, 3, MODES))
    modes[..., : head.n_shape] = head.shape_basis.numpy()[copied]
    last = FIRST_EXPRESSION + EXPRESSIONS
    modes[..., FIRST_EXPRESSION:last] = head.expression_basis.numpy()[copied][..., :EXPRESSIONS]
    regressor = np.zeros((5, VERTICES))
    regressor[:, :count] = head.joint_regressor.numpy()
    tree = np.array([head.parents, range(5)], dtype=np.int64)
    return {
        "v_template": head.template.numpy()[copied].astype(np.float64),
        "f": faces.astype(np.uint32),
        "shapedirs": modes.astype(np.float32),  # in doubles the files are twice as large
        "posedirs": noise.normal(0, 1e-3, (VERTICES, 3, POSES)),
        "J_regressor": regressor,
        "weights": head.skin_weights.numpy()[copied].astype(np.float64),
        "kintree_table": tree.astype(np.uint32),
    }


def write_pickle(path: Path, fields: Fields) -> None:
    """As FLAME is given out: variables of chumpy and a sparse regressor of SciPy, which need not be there."""
    import pickle  # noqa: TID251 - to write what is read without it

    stand_ins = [_stand_in("chumpy.ch", "Ch"), _stand_in("scipy.sparse.csc", "csc_matrix")]
    variable, sparse = stand_ins
    content: dict[str, Any] = dict(fields)
    for name in {"v_template", "shapedirs", "posedirs", "weights"} & set(fields):
        content[name] = variable()
        content[name].__dict__.update(x=fields[name], _dirty_vars=set(), _itr=None)
    content["J_regressor"] = sparse()
    content["J_regressor"].__dict__.update(_by_columns(fields["J_regressor"]))
    content |= {"bs_style": "lbs", "bs_type": "lrotmin", "J": np.zeros((5, 3))}
    hidden = {name: sys.modules.get(name) for kind in stand_ins for name in _parents(kind.__module__)}
    try:
        for kind in stand_ins:
            for name in _parents(kind.__module__):
                sys.modules[name] = ModuleType(name)
            setattr(sys.modules[kind.__module__], kind.__name__, kind)
        with path.open("wb") as file:
            pickle.dump(content, file, protocol=2)
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_hostile(path: Path, evidence: Path) -> None:
    """A pickle that writes a file when it is unpickled."""
    import pickle  # noqa: TID251

    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (evidence,)

    with path.open("wb") as file:
        pickle.dump({"v_template": Hostile()}, file, protocol=2)


def _stand_in(module: str, name: str) -> type:
    return type(name, (), {"__module__": module})


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _by_columns(matrix: np.ndarray) -> dict[str, Any]:
    """What a csc_matrix keeps."""
    columns, rows = np.nonzero(matrix.T)
    counts = np.bincount(columns, minlength=matrix.shape[1])
    return {
        "_shape": matrix.shape,
        "data": matrix.T[columns, rows],
        "indices": rows.astype(np.int32),
        "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "maxprint": 50,
    }
