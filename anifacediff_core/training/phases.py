"""The phases of an experiment: each builds its networks and pools, trains, and leaves `<phase>.safetensors`
in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open

from ..avatars.studio import Studio
from ..errors import InputError
from ..evaluation import report
from ..evaluation.avatars import Protocol, Reenactor
from ..head.model import HeadModel
from ..network.autoencoder import AutoEncoder
from ..network.config import NetworkConfig
from ..network.model import AniFaceDiff
from ..sampling.schedule import NoiseSchedule
from ..weights.checkpoint import save_checkpoint
from .autoencoder import AutoencoderSettings, AutoencoderTask
from .capture import CaptureSettings, CaptureTask
from .card import write_card
from .data import Pool, PoolPlan
from .engine import Journal, Loop, load_weights, make_accelerator, run
from .reenactment import DenoisingSettings, DenoisingTask
from .settings import build

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
    studio: Studio

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def plan(self) -> PoolPlan:
        return build(PoolPlan, self.settings.get("pool"), f"{self.name}.pool")

    def pool(self, autoencoder: AutoEncoder | None = None, image_size: int = 0) -> Pool:
        """This process's own avatars."""
        order = sorted(self.experiment["phases"]).index(self.name)
        seed = (int(self.experiment["seed"]) * 100 + order) * 1000 + self.accelerator.process_index
        began = self.journal.elapsed()
        pool = Pool(self.studio, self.head, self.plan(), seed, autoencoder, image_size).fill()
        rate = len(pool) / max(self.journal.elapsed() - began, 1e-6)
        self.journal(self.name, "pool", frames=len(pool), frames_per_second=rate)
        return pool

    def held_out(self, identities: int, stills: int) -> Pool:
        """A pool of at most so many identities that no phase trains on."""
        own = self.plan()
        plan = replace(own, identities=min(identities, own.identities), stills=stills, track=0, normals=False)
        return Pool(self.studio, self.head, plan, HELD_OUT).fill()


def network_config(experiment: dict[str, Any]) -> NetworkConfig:
    """`network: tiny`, or `network: {preset: tiny, ...}` with single values changed."""
    wanted = experiment.get("network", "tiny")
    values = {"preset": wanted} if isinstance(wanted, str) else dict(wanted)
    preset = values.pop("preset", "tiny")
    if preset not in ("tiny", "full"):
        raise InputError(f"There is no network preset '{preset}'; use tiny or full.")
    base = getattr(NetworkConfig, preset)()
    return NetworkConfig.from_json(json.loads(json.dumps(base.to_json() | values)))


def run_phase(name: str, experiment: dict[str, Any], folder: Path) -> None:
    """Run one phase in this process (one of several, when launched so)."""
    if name not in experiment["phases"] or name not in PHASES:
        raise InputError(
            f"There is no phase '{name}'; the experiment has: {', '.join(experiment['phases'])}."
        )
    settings = experiment["phases"][name] or {}
    loop = build(Loop, settings.get("loop", {"steps": 1}), f"{name}.loop")
    accelerator = make_accelerator(loop, int(experiment["seed"]))
    head = HeadModel.bundled().to(accelerator.device)
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
            studio=Studio(head),
        )
    )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def train_autoencoder(phase: Phase) -> None:
    settings = build(AutoencoderSettings, phase.settings.get("settings"), "autoencoder.settings")
    task = AutoencoderTask(AutoEncoder(), phase.pool(), phase.held_out(32, stills=1), settings)
    run(task, phase.loop, phase.accelerator, phase.folder, phase.journal)


def train_capture(phase: Phase) -> None:
    settings = build(CaptureSettings, phase.settings.get("settings"), "capture.settings")
    task = CaptureTask(phase.head, phase.pool(), phase.held_out(128, stills=2), settings)
    run(task, phase.loop, phase.accelerator, phase.folder, phase.journal)


def train_stage(phase: Phase, stage: int) -> None:
    """Stage 1 learns single pictures, stage 2 the temporal modules on top of its weights (paper 3.4)."""
    config = network_config(phase.experiment)
    autoencoder = AutoEncoder(config.latent_channels)
    autoencoder.load_state_dict(load_weights(phase.folder / "autoencoder.safetensors", "vae."))
    autoencoder.to(phase.device).eval().requires_grad_(False)
    model = AniFaceDiff(config)
    if stage == 2:
        model.load_state_dict(load_weights(phase.folder / "stage1.safetensors"))
        model.add_motion()
    task = DenoisingTask(
        model,
        phase.pool(autoencoder, config.image_size),
        NoiseSchedule.of(config).alphas.to(phase.device),
        build(DenoisingSettings, phase.settings.get("settings"), f"{phase.name}.settings"),
        _sampler(phase, Reenactor(model, autoencoder), stage),
        stage=stage,
        dtype=torch.float32 if phase.device.type == "cpu" or phase.loop.precision == "no" else torch.bfloat16,
    )
    run(task, phase.loop, phase.accelerator, phase.folder, phase.journal)
    if phase.accelerator.is_main_process:
        assemble(phase.experiment, phase.folder)


def _sampler(phase: Phase, reenact: Reenactor, stage: int) -> Callable[[Path, float], dict[str, float]]:
    """Pictures and measures of unseen pairs during training."""
    settings = {"seed": 99, "frames": 1 if stage == 1 else 24, "pairs": 32 if stage == 1 else 8, "batch": 8}
    settings |= phase.settings.get("validation", {})
    protocol = build(Protocol, {**settings, "variants": ("full",)}, f"{phase.name}.validation")

    def sample(path: Path, fraction: float) -> dict[str, float]:
        found = report.run(reenact, phase.head, phase.studio, protocol, sheet=path, sheet_rows=6)
        return found["results"]["full"]

    return sample


def assemble(
    experiment: dict[str, Any], folder: Path, provenance: dict[str, Any] | None = None
) -> Path | None:
    """Join what the phases have left so far into one checkpoint; None while the stages are missing."""
    stage = next((s for s in ("stage2", "stage1") if (folder / f"{s}.safetensors").exists()), None)
    if stage is None:
        return None
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for phase in ("autoencoder", "capture", stage):
        path = folder / f"{phase}.safetensors"
        for key, value in (load_weights(path) if path.exists() else {}).items():
            part, name = key.split(".", 1)
            parts.setdefault(part, {})[name] = value
    facts = {"experiment": experiment, "trained": _trained(folder), **(provenance or {})}
    target = folder / CHECKPOINT
    save_checkpoint(
        target, parts, network_config(experiment), head=HeadModel.bundled().name, provenance=facts
    )
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
    "stage1": lambda phase: train_stage(phase, 1),
    "stage2": lambda phase: train_stage(phase, 2),
    "evaluate": evaluate,
}
