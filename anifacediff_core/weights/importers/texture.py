"""FLAME's texture space: ``FLAME_texture.npz``, which users own.

It is large: it is read row by row, and only what is used is kept.
"""

from __future__ import annotations

import lzma
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from anifacediff_core.claims import is_finite, shown
from anifacediff_core.errors import InputError
from anifacediff_core.head.texture import CODES, SIDE, TextureModel
from anifacediff_core.weights.reading import READ_ERRORS, numbers_of

TEMPLATE = "head_template.obj"
MOST_DIRECTIONS, MOST_PLACES = 1000, 100_000  # more is no texture space
LARGEST_TEMPLATE = 64 * 2**20  # bytes


def load_texture(path: str | Path, faces: Tensor) -> TextureModel:
    """Read ``FLAME_texture.npz``.

    If ``head_template.obj`` (of DECA's data) lies beside it, the triangles' places are taken from there.

    Args:
        faces: (triangles, 3) of the head, to which the places belong.

    Raises:
        InputError: the file is missing, damaged, something else, or belongs to another head.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if not {"mean", "tex_dir"} <= set(names):
                raise InputError(
                    f"'{path.name}' is not FLAME's texture space: expected mean and tex_dir, "
                    f"found {shown(', '.join(names[:5])) or 'nothing'}."
                )
            mean = _read_texture(archive, "mean", 1)[..., 0]
            basis = _read_texture(archive, "tex_dir", CODES)
            template = path.with_name(TEMPLATE)
            if template.exists():
                corners = _template_corners(template, faces)
            else:
                corners = _own_corners(archive, path.name)
    except InputError:
        raise
    except (*READ_ERRORS, lzma.LZMAError) as error:
        raise InputError(f"'{path.name}' cannot be read; it is missing or damaged.") from error
    if len(corners) != len(faces):
        raise InputError(
            f"'{path.name}' belongs to a head with {len(corners)} triangles: expected {len(faces)}; "
            "choose the head that it was made for, or no texture."
        )
    # Blue comes first in the file, and the picture's first row is at v = 1.
    corners = torch.stack([corners[..., 0] * 2 - 1, 1 - corners[..., 1] * 2], dim=-1)
    return TextureModel(
        mean=mean.flip(-1).movedim(-1, 0).contiguous(),
        basis=basis.flip(2).permute(3, 2, 0, 1).contiguous(),
        corners=corners,
    )


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array that is about to be read; refuses what isn't plain numbers, row by row."""
    shape, column_major, dtype = numbers_of(file.read)
    if column_major or dtype.kind not in "fiu":
        raise ValueError("not an array of numbers in rows")
    return shape, dtype


def _read_texture(archive: zipfile.ZipFile, name: str, codes: int) -> Tensor:
    """Every second row and column of an array (512, 512, 3, directions), scaled to [0, 1].

    Returns:
        (256, 256, 3, at most ``codes``) float32.
    """
    side = 2 * SIDE
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _header(file)
        directions, rest = divmod(math.prod(shape), side * side * 3)
        if rest or not 1 <= directions <= MOST_DIRECTIONS:
            raise InputError(
                f"FLAME's texture space has {name} of shape {list(shape)}: "
                f"expected [{side}, {side}, 3, directions]."
            )
        rows = []
        for index in range(side):
            data = file.read(side * 3 * directions * dtype.itemsize)
            if index % 2 == 0:
                row = np.frombuffer(data, dtype).reshape(side, 3, directions)[::2, :, :codes]
                rows.append(torch.from_numpy(row.astype(np.float32)))
    texture = torch.stack(rows) / 255
    if not is_finite(texture):
        raise InputError(f"FLAME's texture space has NaN or infinity in {name}; get a fresh copy.")
    return texture


def _own_corners(archive: zipfile.ZipFile, file: str) -> Tensor:
    """Places (triangles, 3, 2) as the texture file itself has them, v up."""
    if not {"vt.npy", "ft.npy"} <= set(archive.namelist()):
        raise InputError(
            f"'{file}' does not say where the triangles lie: put {TEMPLATE} of DECA's data beside it."
        )
    arrays = []
    for name in ("vt", "ft"):
        with archive.open(f"{name}.npy") as opened:
            shape, dtype = _header(opened)
            if len(shape) != 2 or not 0 < shape[0] <= MOST_PLACES or shape[1] not in (2, 3):
                raise InputError(
                    f"FLAME's texture space has {name} of shape {list(shape)}: expected [places, 2 or 3]."
                )
            arrays.append(np.frombuffer(opened.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape))
    places, triangles = arrays
    if not np.isfinite(places).all() or triangles.min() < 0:
        raise ValueError("places that are none")
    return torch.from_numpy(places.astype(np.float32)[triangles.astype(np.int64), :2])


def _template_corners(path: Path, faces: Tensor) -> Tensor:
    """Places (triangles, 3, 2) from a Wavefront file, v up, in the order of ``faces``."""
    places: list[list[float]] = []
    triangles: dict[tuple[int, ...], list[int]] = {}
    if path.stat().st_size > LARGEST_TEMPLATE:
        raise InputError(f"'{path.name}' is too large to be a head's: remove or replace it.")
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, *tokens = line.split() or [""]
        if kind == "vt":
            places.append([float(token) for token in tokens[:2]])
        elif kind == "f":
            corners = [token.split("/") for token in tokens]
            vertices, own = ([int(corner[part]) - 1 for corner in corners] for part in (0, 1))
            for turn in range(3):  # a triangle may begin with any of its corners
                triangles[tuple(vertices[turn:] + vertices[:turn])] = own[turn:] + own[:turn]
    try:
        found = [triangles[tuple(triangle)] for triangle in faces.tolist()]
    except KeyError as error:
        raise InputError(
            f"'{path.name}' lacks triangles of the head: it belongs to another head, remove or replace it."
        ) from error
    return torch.tensor(places)[torch.tensor(found)]
