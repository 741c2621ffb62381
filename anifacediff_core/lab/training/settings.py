"""Experiments as YAML: reading, overriding, and turning mappings into the dataclasses that the code takes."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError
from anifacediff_core.lab.parsing import parse_yaml

T = TypeVar("T")
CONFIGS = Path(__file__).parent / "configs"
INSTEAD = {"loop": "steps", "pool": "identities"}
STRICT = ConfigDict(extra="forbid", strict=True)
UNKNOWN = ("unexpected_keyword_argument", "invalid_key")  # as pydantic names it
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def read_experiment(name: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """An experiment's YAML file, or one of the package's own by name (`bundled`, `smoke`).

    Args:
        overrides: "phases.stage1.loop.steps=60" and the like; values are YAML.
    """
    path = Path(name) if Path(name).suffix else CONFIGS / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise InputError(
            f"The experiment {shown(name)} could not be read; give a YAML file or one of: {known}."
        ) from error
    try:
        experiment = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid YAML: {shown(error, 300).rstrip('.')}; correct it.") from error
    if not isinstance(experiment, dict) or "phases" not in experiment:
        raise InputError(f"{path} is no experiment: it has no 'phases'.")
    for override in overrides:
        _override(experiment, override)
    _check(experiment, path)
    return experiment


def _check(experiment: dict[str, Any], path: Path) -> None:
    """Refuse what the phases could not even be found in."""
    seed, phases = experiment.get("seed"), experiment["phases"]
    if type(seed) is not int:
        raise InputError(f"{path} has the seed {shown(repr(seed))}; give a whole number.")
    if not isinstance(phases, dict) or not all(isinstance(part, dict | None) for part in phases.values()):
        raise InputError(f"The 'phases' of {path} must each be a name with settings.")
    for name, settings in phases.items():
        for part in ("loop", "pool", "settings", "validation", "shards"):
            values = (settings or {}).get(part)
            if not isinstance(values, dict | None):
                raise InputError(f"{name}.{part} is {shown(repr(values))}; it must hold settings.")
            if part in INSTEAD and "seconds" in (values or {}):
                raise InputError(
                    f"{name}.{part}.seconds is no setting any more, since other machines would make other "
                    f"weights of it; write {INSTEAD[part]} (an earlier run's log says how many there were)."
                )


def _override(experiment: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found:
        raise InputError(f"The setting '{override}' has no '='; write it like phases.stage1.loop.steps=60.")
    *parents, last = key.split(".")
    place = experiment
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise InputError(f"The setting '{key}' does not exist: '{parent}' holds a value, not settings.")
    try:
        place[last] = parse_yaml(value)
    except ValueError as error:
        raise InputError(f"The value of the setting '{override}' is not valid YAML.") from error


def build(cls: type[T], values: dict[str, Any] | None, where: str = "") -> T:
    """A dataclass from a mapping, nested dataclasses and tuples included.

    Raises:
        InputError: something does not fit; its sentence names the key, which begins with `where`.
    """
    where, values = where or cls.__name__, {} if values is None else values
    if isinstance(values, dict):
        names = getattr(cls, "OLD_NAMES", {})  # files of older versions are still read
        values = {names.get(key, key): value for key, value in values.items()}
    many = list[cls]  # type: ignore[valid-type]  # a dataclass alone takes no config
    try:
        # As JSON: strict rules for numbers and truths there still take a list for a tuple.
        return TypeAdapter(many, config=STRICT).validate_json(json.dumps([values]))[0]
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise _refusal(cls, values, where, min(found, key=lambda it: it["type"] not in UNKNOWN)) from error


def _refusal(hint: Any, value: Any, where: str, problem: Any) -> Exception:
    """What pydantic has found, as a sentence: the key, what stands there, and what it should be."""
    if problem["type"] == "value_error":
        raised: Exception = problem["ctx"]["error"]  # the dataclass's own sentence
        return raised
    for key in problem["loc"][1:]:
        if not dataclasses.is_dataclass(hint):
            break  # a list's place, or a type of several
        known = typing.get_type_hints(hint)
        if key not in known:
            return InputError(f"Unknown setting {shown(key)} in {where}; known: {', '.join(known)}.")
        if key not in value:
            return InputError(f"{where} lacks {key}; add it.")
        hint, value, where = known[key], value[key], f"{where}.{key}"
    if dataclasses.is_dataclass(hint):
        known = typing.get_type_hints(hint)
        return InputError(f"{where} is {shown(repr(value))}; it must hold settings: {', '.join(known)}.")
    return InputError(f"{where} is {shown(repr(value))}; it must be {_wanted(hint)}.")


def _wanted(hint: Any) -> str:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        count = "" if choices[-1] is ... else f" of {len(choices)}"
        return f"a list{count}, each {_wanted(choices[0])}"
    return " or ".join(map(_wanted, choices)) if choices else NAMES[hint]
