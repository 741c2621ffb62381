"""Experiments as YAML: reading, overriding, and turning mappings into the dataclasses that the code takes."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from pathlib import Path
from typing import Any, TypeVar

from ..claims import parse_yaml, shown
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
    for override in overrides or []:
        _override(experiment, override)
    _check(experiment, path)
    return experiment


def _check(experiment: dict[str, Any], path: Path) -> None:
    """Refuse what the phases could not even be found in."""
    seed, phases, plan = (experiment.get(key) for key in ("seed", "phases", "plan"))
    if type(seed) is not int:
        raise InputError(f"{path} has the seed {shown(repr(seed))}; give a whole number.")
    if not isinstance(phases, dict) or not all(isinstance(part, dict | None) for part in phases.values()):
        raise InputError(f"The 'phases' of {path} must each be a name with settings.")
    for name, settings in phases.items():
        for part, values in (settings or {}).items():
            if part in ("loop", "pool", "settings", "validation", "shards") and not isinstance(
                values, dict | None
            ):
                raise InputError(f"{name}.{part} is {shown(repr(values))}; it must hold settings.")
    if plan is None:
        return
    rows = plan if isinstance(plan, list) and all(isinstance(row, dict) for row in plan) else None
    if rows is None:
        raise InputError(f"The 'plan' of {path} must be a list of rows like {{stage1: rest}}.")
    for row in rows:
        for names, count in row.items():
            for name in map(str.strip, str(names).split(",")):
                if name not in phases:
                    raise InputError(
                        f"The plan has the phase '{shown(name)}'; the experiment has: "
                        f"{', '.join(map(shown, phases))}."
                    )
            if count != "rest" and (type(count) is not int or count < 1):
                raise InputError(
                    f"The plan gives '{shown(names)}' {shown(repr(count))} devices; give a number, or rest."
                )


def _override(experiment: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found:
        raise InputError(f"The setting '{override}' has no '='; write it like phases.stage1.loop.seconds=60.")
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
    """A dataclass from a mapping, nested dataclasses and tuples included; what does not fit is refused."""
    hints = typing.get_type_hints(cls)
    values = {} if values is None else values
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise InputError(f"{where} is {shown(repr(values))}; it must hold settings: {', '.join(hints)}.")
    unknown = sorted(set(values) - set(hints), key=str)
    if unknown:
        raise InputError(
            f"Unknown setting {shown(', '.join(map(str, unknown)))} in {where}; known: {', '.join(hints)}."
        )
    needed = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in values
    ]
    if needed:
        raise InputError(f"{where} lacks {', '.join(needed)}; add it.")
    ready: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            ready[key] = build(typing.cast(type, hint), value, f"{where}.{key}")
            continue
        try:
            ready[key] = _value(value, hint)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}.{key} is {shown(repr(value))}; it must be {_wanted(hint)}.") from error
    return cls(**ready)


NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _value(value: Any, hint: Any) -> Any:
    """A value of YAML as the type that a dataclass names.

    Raises:
        TypeError, ValueError: it is none.
    """
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        kinds = [choices[0]] * len(value) if choices[-1] is ... else choices
        return tuple(_value(part, kind) for part, kind in zip(value, kinds, strict=True))
    if choices:  # a union
        for choice in choices:
            with contextlib.suppress(TypeError, ValueError):
                return _value(value, choice)
        raise TypeError
    if hint in (int, float) and isinstance(value, str):
        value = float(value)  # YAML 1.1 reads 1e-3 as text
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _wanted(hint: Any) -> str:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        count = "" if choices[-1] is ... else f" of {len(choices)}"
        return f"a list{count}, each {_wanted(choices[0])}"
    return " or ".join(map(_wanted, choices)) if choices else NAMES[hint]
