"""Files of our own in the host's input and output folders. Names come with workflows from anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from anifacediff_core.errors import InputError

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
    output = name.endswith(OUTPUT)
    folder = folder_paths.get_output_directory() if output else folder_paths.get_input_directory()
    path = _inside(Path(folder), name.removesuffix(OUTPUT))
    if not path.is_file():
        raise InputError(f"There is no file '{name}' in the folder {path.parent.name}: choose another one.")
    return path


def output_file(prefix: str, suffix: str) -> tuple[Path, str]:
    """A new file in the output folder, numbered as the host does it, and its name below that folder."""
    output = folder_paths.get_output_directory()
    _inside(Path(output), prefix)
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
    file = f"{name}_{counter:05}_{suffix}"
    return Path(folder) / file, (Path(subfolder) / file).as_posix()


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The workflow that runs, for the header of a file; empty where the user doesn't want that."""
    if hidden is None or args.disable_metadata:
        return {}
    values = {"prompt": hidden.prompt, "workflow": (hidden.extra_pnginfo or {}).get("workflow")}
    return {name: json.dumps(value) for name, value in values.items() if value is not None}


def _inside(folder: Path, name: str) -> Path:
    """Refuse names that lead out of the folder. Links that lie in it may."""
    path = os.path.abspath(folder / name)
    if "\0" in name or not Path(path).is_relative_to(os.path.abspath(folder)):
        raise InputError(f"The name '{name}' leads out of the folder {folder.name}: choose one inside it.")
    return Path(path)
