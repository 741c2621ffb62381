"""Files of our own in the host's input and output folders. Names come with workflows from anywhere."""

from __future__ import annotations

import importlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from anifacediff_core.errors import InputError
from anifacediff_core.storage import cut_name, longest_name, require_writable

OUTPUT = " [output]"  # the host's own mark of names in the output folder


def input_names(suffix: str) -> list[str]:
    """Names for a drop-down: files in the input folder, then those in the output folder, at any depth."""
    found = []
    for folder, mark in (
        (folder_paths.get_input_directory(), ""),
        (folder_paths.get_output_directory(), OUTPUT),
    ):
        files = sorted(Path(folder).rglob(f"*{suffix}"))
        found += [file.relative_to(folder).as_posix() + mark for file in files if file.is_file()]
    return found


def input_file(name: str) -> Path:
    """The file behind a name of `input_names`."""
    output = str(name).endswith(OUTPUT)
    folder = folder_paths.get_output_directory() if output else folder_paths.get_input_directory()
    path = _inside(Path(folder), name.removesuffix(OUTPUT) if output else name)
    if not os.path.isfile(path):  # never raises
        raise InputError(f"There is no file '{name}' in the folder {path.parent.name}: choose another one.")
    return path


def input_folders() -> list[str]:
    """Names for a drop-down: the input folder itself, and the folders in it, at any depth."""
    base = Path(folder_paths.get_input_directory())
    below = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_dir())
    return [".", *(name for name in below if not name.startswith("."))]


def input_folder(name: str) -> Path:
    """The folder behind a name of `input_folders`."""
    path = _inside(Path(folder_paths.get_input_directory()), name)
    if not os.path.isdir(path):
        raise InputError(f"There is no folder '{name}' in the folder input: choose another one.")
    return path


def output_file(prefix: str, suffix: str) -> tuple[Path, str]:
    """A new file in the output folder, numbered as the host does it, and its name below that folder.

    Names that are longer than the file system takes are cut; that the file can be written is looked at now.
    """
    output = folder_paths.get_output_directory()
    _inside(Path(output), prefix)
    most = longest_name(Path(output)) - len(f"_00000_{suffix}")
    prefix = "/".join(cut_name(part, most) for part in prefix.replace(os.sep, "/").split("/"))
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
    file = f"{name}_{counter:05}_{suffix}"
    require_writable(Path(folder) / file)
    return Path(folder) / file, (Path(subfolder) / file).as_posix()


def file_facts(value: Any) -> Path | tuple[int, int] | None:
    """What tells the files apart that a drop-down may name in the host's folders: the file, to be read, or
    size and time of one to which a link leads out of the folder. None if it names none.

    Nothing outside is even asked for by its name: it may be another computer's, or that of a device.
    """
    if not isinstance(value, str):
        return None
    name, folder = folder_paths.annotated_filepath(value)
    folder = folder or folder_paths.get_input_directory()
    try:
        path = _inside(Path(folder), name)
        facts = path.stat()
    except (InputError, OSError, ValueError):
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    stays = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    return path if stays else (facts.st_size, facts.st_mtime_ns)


def drop_downs(kind: str) -> set[str] | None:
    """Names of the inputs of a kind of node that are drop-downs; None if the host has no such kind."""
    known = importlib.import_module("nodes").NODE_CLASS_MAPPINGS  # the host's `nodes`
    if kind not in known:
        return None
    types = known[kind].INPUT_TYPES()
    inputs = {**types.get("required", {}), **types.get("optional", {})}
    return {
        name for name, entry in inputs.items() if isinstance(entry[0], list | tuple) or entry[0] == "COMBO"
    }


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The workflow that runs, for the header of a file; empty where the user doesn't want that."""
    if hidden is None or args.disable_metadata:
        return {}
    values = {"prompt": hidden.prompt, "workflow": (hidden.extra_pnginfo or {}).get("workflow")}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def _inside(folder: Path, name: str) -> Path:
    """Refuse names that lead out of the folder, by the name alone. Links that lie in it may."""
    if not isinstance(name, str):
        raise InputError(f"The name {name!r} is no text: choose one inside the folder {folder.name}.")
    path = os.path.abspath(folder / name)
    if "\0" in name or not Path(path).is_relative_to(os.path.abspath(folder)):
        raise InputError(f"The name '{name}' leads out of the folder {folder.name}: choose one inside it.")
    return Path(path)
