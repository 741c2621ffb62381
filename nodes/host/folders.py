"""Where models lie: the host's model folders, what extra_model_paths.yaml adds, and the core's assets."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import folder_paths

import anifacediff_core
from anifacediff_core.errors import InputError
from anifacediff_core.weights.sources import weight_files

CHECKPOINTS = "anifacediff"
DECA = "deca"
FLAME = "flame"
C2PA = "c2pa"  # certificates and private keys
LORAS = "loras"  # the host's own
_SUFFIXES = {
    CHECKPOINTS: {".safetensors"},
    DECA: {".safetensors", ".tar", ".pth", ".pt", ".ckpt"},
    FLAME: {".safetensors", ".pkl", ".npz"},
    C2PA: {".pem"},
}
BUNDLED = "bundled"
ASSETS = Path(anifacediff_core.__file__).parent / "assets"


def register_folders() -> None:
    """Add models/anifacediff, models/deca, models/flame and models/c2pa to the host's folders."""
    for name, suffixes in _SUFFIXES.items():
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
        paths, known = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(known) | suffixes)


def file_names(folder: str, bundled: bool = False) -> list[str]:
    """Names for a drop-down: the bundled file first, if wanted, then what lies in the host's folders."""
    return ([BUNDLED] if bundled else []) + folder_paths.get_filename_list(folder)


def head_names() -> list[str]:
    """FLAME's folder also holds its texture and its landmarks, in NumPy's formats."""
    return [name for name in file_names(FLAME) if name.endswith((".safetensors", ".pkl"))]


def model_names() -> list[str]:
    """Names of models for a drop-down: the bundled one, files, and folders of other projects' files."""
    folders = {
        f"{name}/"
        for root in folder_paths.get_folder_paths(CHECKPOINTS)
        for _, inside, _ in islice(os.walk(root), 1)  # nothing where there is no such folder
        for name in inside
        if not name.startswith(".") and weight_files(Path(root, name))
    }
    return [*file_names(CHECKPOINTS, bundled=True), *sorted(folders)]


def model_path(name: str, bundled: str) -> Path:
    """The file or folder behind a name of `model_names`."""
    if not name.endswith("/"):
        return file_path(CHECKPOINTS, name, bundled=bundled)
    for root in map(Path, folder_paths.get_folder_paths(CHECKPOINTS)):
        folder = root / name[:-1]
        if folder.parent == root and folder.name not in ("", ".", "..") and folder.is_dir():
            return folder
    raise InputError(
        f"There is no folder {name} among the models: put it into models/{CHECKPOINTS} or choose another."
    )


def file_path(folder: str, name: str, bundled: str | None = None) -> Path:
    """The file behind a name of `file_names`; `bundled` is that of the bundled file in the core's assets."""
    if name == BUNDLED and bundled is not None:
        return ASSETS / bundled
    try:
        path = folder_paths.get_full_path(folder, name)
    except (TypeError, ValueError):  # no text; or on Windows another drive or computer
        path = None
    if path is None:
        raise InputError(
            f"There is no file {name} among the models: put it into models/{folder} or choose another."
        )
    return Path(path)


def example_file(name: str) -> Path:
    """One of the core's example files."""
    return ASSETS / "examples" / name
