"""What decides the result of a node: a run that was stopped goes on only where that is the same."""

from __future__ import annotations

from functools import cache
from typing import Any

from anifacediff_core.sampling.fingerprint import fingerprint

from .host.files import drop_downs, file_facts
from .host.runtime import ModelPatcher
from .loading import origin_of


def workflow_fingerprint(hidden: Any, *inputs: str) -> str | None:
    """A fingerprint of the part of the workflow that leads to the node that runs, or to some of its inputs:
    kinds of nodes, values, files that drop-downs name in the host's folders. Not their numbers, which may
    change. None outside of a workflow.
    """
    prompt = None if hidden is None else hidden.prompt
    if not prompt or str(hidden.unique_id) not in prompt:
        return None

    def value_of(value: Any, names_file: bool) -> Any:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt:
            return digest(value[0]), value[1]
        return value if not names_file or (file := file_facts(value)) is None else file

    @cache
    def digest(node: str, names: tuple[str, ...] = ()) -> str:
        kind, given = prompt[node]["class_type"], prompt[node]["inputs"]
        files = drop_downs(kind)
        chosen = {
            name: value_of(value, files is None or name in files)
            for name, value in given.items()
            if not names or name in names
        }
        return fingerprint(kind, chosen)

    return digest(str(hidden.unique_id), inputs)


def facts_of_model(model: ModelPatcher) -> list[Any]:
    """What is known of a MODEL itself: its checkpoint and the LoRAs on it."""
    origin = origin_of(model)
    return [None if origin is None else str(origin.checkpoint.path), model.patches]
