"""The phases of an experiment: each builds its networks and pools, trains, and leaves `<phase>.safetensors`
in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors import safe_open

from ..avatars.studio import Studio
from ..errors import InputError
from ..evaluation import report
from ..evaluation.avatars import Protocol
from ..head.model import HeadModel
from ..network.autoencoder import AutoEncoder
from ..network.config import NetworkConfig
from ..weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ..weights.faces import load_head
from .autoencoder import AutoencoderSettings, AutoencoderTask
from .capture import CaptureSettings, CaptureTask
from .card import write_card
from .data import Pool, PoolPlan
from .engine import Loop, load_weights, make_accelerator, run, states_folder
from .journal import Journal
from .judges import train_judges
from .settings import build
from .stages import train_stage
from .states import load_own, newest_state

PoolOrMore = TypeVar("PoolOrMore", bound=Pool)
HELD_OUT = 777_000_000  # seed of identities that no training pool uses
CHECKPOINT = "anifacediff.safetensors"


@dataclass(frozen=True)
class Phase:
    """One phase of an experiment, in this process."""

    name: str
    experiment: dict[str, Any]
    settings: dict[str, Any]
    folder: Path
    loop: Loop
    accelerator: Accelerator
    journal: Journal
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
        began = self.journal.elapsed()
        state = newest_state(states_folder(self.folder, self.name))
        before = load_own(state, self.accelerator.process_index) if state is not None else {}
        if before.get("processes") == self.accelerator.num_processes:
            pool.load_state_dict(before["task"])
        else:
            pool.fill()
        rate = len(pool) / max(self.journal.elapsed() - began, 1e-6)
        self.journal(self.name, "pool", frames=len(pool), frames_per_second=rate)
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
    config = NetworkConfig.from_json(json.loads(json.dumps(base.to_json() | values)))
    if config.prediction == "epsilon" and config.zero_terminal_snr:
        # Of pure noise the noise says nothing about the picture, and sampling begins there.
        raise InputError(
            "The network predicts epsilon and its last time step is pure noise; "
            "set network.zero_terminal_snr to false, or network.prediction to v_prediction."
        )
    return config


def run_phase(name: str, experiment: dict[str, Any], folder: Path) -> None:
    """Run one phase in this process (one of several, when launched so)."""
    known = [phase for phase in experiment["phases"] if phase in PHASES]
    if name not in known:
        raise InputError(f"There is no phase '{name}'; the experiment has: {', '.join(known)}.")
    settings = experiment["phases"][name] or {}
    loop = build(Loop, settings.get("loop", {"steps": 1}), f"{name}.loop")
    accelerator = make_accelerator(loop, int(experiment["seed"]), folder / "tensorboard")
    head = experiment_head(experiment).to(accelerator.device)
    PHASES[name](
        Phase(
            name=name,
            experiment=experiment,
            settings=settings,
            folder=folder,
            loop=loop,
            accelerator=accelerator,
            journal=Journal(folder, accelerator),
            head=head,
        )
    )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def experiment_head(experiment: dict[str, Any]) -> HeadModel:
    """The head that face parameters belong to: a file that the experiment names, or the bundled one."""
    path = experiment.get("head")
    return load_head(path) if path else HeadModel.bundled()


def train_autoencoder(phase: Phase) -> None:
    settings = build(AutoencoderSettings, phase.settings.get("settings"), "autoencoder.settings")
    autoencoder = AutoEncoder()
    if phase.start is not None and "vae" in phase.start.parts:
        phase.start.load_into(autoencoder, "vae")
    task = AutoencoderTask(autoencoder, phase.pool(), phase.held_out(32, stills=1), settings)
    run(task, phase.loop, phase.accelerator, phase.folder, phase.journal)


def train_capture(phase: Phase) -> None:
    settings = build(CaptureSettings, phase.settings.get("settings"), "capture.settings")
    task = CaptureTask(phase.head, phase.pool(), phase.held_out(128, stills=2), settings)
    if phase.start is not None and "face_encoder" in phase.start.parts:
        phase.start.load_into(task.module.encoder, "face_encoder")
        phase.start.load_into(task.module.detector, "face_detector")
    run(task, phase.loop, phase.accelerator, phase.folder, phase.journal)


def _train_stage(phase: Phase, stage: int) -> None:
    train_stage(phase, stage, network_config(phase.experiment))
    if phase.accelerator.is_main_process:
        assemble(phase.experiment, phase.folder)


def assemble(
    experiment: dict[str, Any], folder: Path, provenance: dict[str, Any] | None = None
) -> Path | None:
    """Join what the phases have left so far into one checkpoint; None while the stages are missing.

    Parts that no phase has trained come from the checkpoint that the experiment starts from.
    """
    stage = next((s for s in ("stage2", "stage1") if (folder / f"{s}.safetensors").exists()), None)
    if stage is None:
        return None
    start = load_checkpoint(experiment["start"]) if experiment.get("start") else None
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for phase in ("autoencoder", "capture", stage):
        path = folder / f"{phase}.safetensors"
        for key, value in (load_weights(path) if path.exists() else {}).items():
            part, name = key.split(".", 1)
            parts.setdefault(part, {})[name] = value
    if start is not None:
        parts |= {part: start.part(part) for part in start.parts if part not in parts}
    facts = {"experiment": experiment, "trained": _trained(folder), **(provenance or {})}
    if start is not None:
        facts["start"] = {"file": start.path.name, "provenance": start.provenance}
    target = folder / CHECKPOINT
    head = experiment_head(experiment).name
    save_checkpoint(target, parts, network_config(experiment), head=head, provenance=facts)
    return target


def _trained(folder: Path) -> dict[str, Any]:
    """What each phase's file says about how far it got."""
    found = {}
    for name in PHASES:
        path = folder / f"{name}.safetensors"
        if path.exists():
            with safe_open(path, "pt") as file:
                found[name] = file.metadata()
    return found


def evaluate(phase: Phase) -> None:
    """Measure the assembled checkpoint; every process takes its share of the pairs."""
    settings = {key: value for key, value in phase.settings.items() if key not in ("loop", "seconds")}
    protocol = build(Protocol, settings, "evaluate")
    report.evaluate_checkpoint(
        phase.folder / CHECKPOINT,
        protocol,
        json_path=phase.folder / "evaluation.json",
        sheet=phase.folder / "evaluation.jpg",
        device=phase.device,
    )
    if phase.accelerator.is_main_process:
        name = phase.experiment.get("name", "FILE")
        write_card(phase.folder, f"python -m anifacediff_core train --config {name}")


PHASES: dict[str, Callable[[Phase], None]] = {
    "autoencoder": train_autoencoder,
    "capture": train_capture,
    "stage1": lambda phase: _train_stage(phase, 1),
    "stage2": lambda phase: _train_stage(phase, 2),
    "evaluate": evaluate,
    "judges": train_judges,
}
