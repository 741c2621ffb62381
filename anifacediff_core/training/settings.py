"""Experiments as YAML: reading, overriding, and turning mappings into the dataclasses that the code takes."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import InputError

T = TypeVar("T")
CONFIGS = Path(__file__).parent / "configs"


def read_experiment(name: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """An experiment's YAML file, or one of the package's own by name (`bundled`, `smoke`).

    Args:
        overrides: "phases.stage1.loop.seconds=60" and the like; values are YAML.
    """
    path = Path(name) if Path(name).suffix else CONFIGS / f"{name}.yaml"
    try:
        experiment = yaml.safe_load(path.read_text())
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise InputError(
            f"The experiment {name} could not be read; give a YAML file or one of: {known}."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(experiment, dict) or "phases" not in experiment:
        raise InputError(f"{path} is no experiment: it has no 'phases'.")
    for override in overrides or []:
        _override(experiment, override)
    return experiment


def _override(experiment: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found:
        raise InputError(f"The setting '{override}' has no '='; write it like phases.stage1.loop.seconds=60.")
    *parents, last = key.split(".")
    place = experiment
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"The setting '{key}' does not exist: '{parent}' holds a value, not settings.")
    place[last] = yaml.safe_load(value)


def build(cls: type[T], values: dict[str, Any] | None, where: str = "") -> T:
    """A dataclass from a mapping, nested dataclasses and tuples included; unknown names are refused."""
    hints = typing.get_type_hints(cls)
    values = values or {}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(
            f"Unknown setting {', '.join(unknown)} in {where or cls.__name__}; known: {', '.join(hints)}."
        )
    ready: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            ready[key] = build(typing.cast(type, hint), value, f"{where}.{key}")
        elif isinstance(value, list):
            ready[key] = tuple(value)
        elif isinstance(value, str) and hint in (float, float | None):
            ready[key] = float(value)  # YAML 1.1 reads 1e-3 as text
        else:
            ready[key] = value
    return cls(**ready)
