"""One phase of an experiment, in this process: its settings, pools and head, the network they are for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.network.config import NetworkConfig, current_names
from anifacediff_core.weights.checkpoint import Checkpoint, load_checkpoint
from anifacediff_core.weights.faces import load_head

from ..avatars.studio import Studio
from .data import Pool, PoolPlan
from .run_logger import RunLogger
from .settings import build
from .states import load_own, newest_state
from .task import Loop, states_folder

PoolOrMore = TypeVar("PoolOrMore", bound=Pool)
HELD_OUT = 777_000_000  # seed of identities that no training pool uses


@dataclass(frozen=True)
class Phase:
    """One phase of an experiment, in this process."""

    name: str
    experiment: dict[str, Any]
    settings: dict[str, Any]
    folder: Path
    loop: Loop
    accelerator: Accelerator
    logger: RunLogger
    head: HeadModel

    @cached_property
    def studio(self) -> Studio:
        """Where avatars are made; the bundled head's only."""
        return Studio(self.head)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def plan(self) -> PoolPlan:
        return build(PoolPlan, self.settings.get("pool"), f"{self.name}.pool")

    @property
    def start(self) -> Checkpoint | None:
        """The checkpoint whose weights the experiment begins with, if it names one."""
        path = self.experiment.get("start")
        return load_checkpoint(path) if path else None

    @property
    def seed(self) -> int:
        """Of this process's data in this phase."""
        order = sorted(self.experiment["phases"]).index(self.name)
        return (int(self.experiment["seed"]) * 100 + order) * 1000 + self.accelerator.process_index

    def pool(self) -> Pool:
        """This process's own avatars."""
        return self.fill(Pool(self.studio, self.head, self.plan(), self.seed))

    def fill(self, pool: PoolOrMore) -> PoolOrMore:
        """Render a pool's avatars: those of the state that training goes on from, if there is one."""
        began = self.logger.elapsed()
        state = newest_state(states_folder(self.folder, self.name))
        before = load_own(state, self.accelerator.process_index) if state is not None else {}
        if before.get("processes") == self.accelerator.num_processes:
            pool.load_state_dict(before["task"])
        else:
            pool.fill()
        rate = len(pool) / max(self.logger.elapsed() - began, 1e-6)
        self.logger(self.name, "pool", frames=len(pool), frames_per_second=rate)
        return pool

    def held_out(self, identities: int, stills: int) -> Pool:
        """A pool of at most so many identities that no phase trains on."""
        own = self.plan()
        plan = replace(own, identities=min(identities, own.identities), stills=stills, track=0, normals=False)
        return Pool(self.studio, self.head, plan, HELD_OUT).fill()


def network_config(experiment: dict[str, Any]) -> NetworkConfig:
    """`network: tiny`, or `network: {preset: tiny, ...}` with single values changed; the network of the
    checkpoint that the experiment starts from, where it names no preset.
    """
    wanted = experiment.get("network") or {}
    if not isinstance(wanted, str | dict):
        raise InputError(f"The experiment's network is {wanted!r}; give a preset, or settings.")
    values = {"preset": wanted} if isinstance(wanted, str) else dict(wanted)
    preset = values.pop("preset", None)
    if preset not in (None, "tiny", "full"):
        raise InputError(f"There is no network preset '{preset}'; use tiny or full.")
    if preset is None and experiment.get("start"):
        base = load_checkpoint(experiment["start"]).config
    else:
        base = getattr(NetworkConfig, preset or "tiny")()
    config = NetworkConfig.from_json(json.loads(json.dumps(asdict(base) | current_names(values))))
    if config.prediction_type == "epsilon" and config.zero_terminal_snr:
        # Of pure noise the noise says nothing about the picture, and sampling begins there.
        raise InputError(
            "The network predicts epsilon and its last time step is pure noise; "
            "set network.zero_terminal_snr to false, or network.prediction_type to v_prediction."
        )
    return config


def experiment_head(experiment: dict[str, Any]) -> HeadModel:
    """The head that face parameters belong to: a file that the experiment names, or the bundled one."""
    path = experiment.get("head")
    return load_head(path) if path else HeadModel.bundled()
