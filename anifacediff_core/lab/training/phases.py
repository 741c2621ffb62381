"""The phases of an experiment: each builds its networks and pools, trains, and leaves `<phase>.safetensors`
in the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from anifacediff_core.errors import InputError
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.weights.checkpoint import load_checkpoint, save_checkpoint

from ..evaluation import report
from ..evaluation.protocol import Protocol
from .adversary import Adversary
from .autoencoder import AutoencoderSettings, AutoencoderTask
from .capture import CaptureSettings, CaptureTask
from .card import write_card
from .distribution import make_accelerator
from .engine import run
from .judges import train_judges
from .phase import Phase, experiment_head, network_config
from .run_logger import RunLogger
from .settings import build
from .stages import train_stage
from .task import Loop, done_mark, load_weights, take_over

CHECKPOINT = "anifacediff.safetensors"


def run_phase(name: str, experiment: dict[str, Any], folder: Path) -> None:
    """Run one phase in this process (one of several, when launched so), finished before or not."""
    known = [phase for phase in experiment["phases"] if phase in PHASES]
    if name not in known:
        raise InputError(f"There is no phase '{name}'; the experiment has: {', '.join(known)}.")
    settings = experiment["phases"][name] or {}
    loop = build(Loop, settings.get("loop", {"steps": 1}), f"{name}.loop")
    accelerator = make_accelerator(loop, int(experiment["seed"]), folder / "tensorboard")
    head = experiment_head(experiment).to(accelerator.device)
    if accelerator.is_main_process:
        done_mark(folder, name).unlink(missing_ok=True)
    PHASES[name](
        Phase(
            name=name,
            experiment=experiment,
            settings=settings,
            folder=folder,
            loop=loop,
            accelerator=accelerator,
            logger=RunLogger(folder, accelerator),
            head=head,
        )
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        done_mark(folder, name).touch()
    accelerator.end_training()


def train_autoencoder(phase: Phase) -> None:
    settings = build(AutoencoderSettings, phase.settings.get("settings"), "autoencoder.settings")
    autoencoder = AutoEncoder(network_config(phase.experiment).latent_channels)
    if phase.start is not None and "vae" in phase.start.parts:
        take_over(autoencoder, phase.start.part("vae"))
    adversary = Adversary.of(settings.adversary, 0, phase.accelerator)
    task = AutoencoderTask(autoencoder, phase.pool(), phase.held_out(32, stills=1), settings, adversary)
    run(task, phase.loop, phase.accelerator, phase.folder, phase.logger)


def train_capture(phase: Phase) -> None:
    settings = build(CaptureSettings, phase.settings.get("settings"), "capture.settings")
    task = CaptureTask(phase.head, phase.pool(), phase.held_out(128, stills=2), settings)
    if phase.start is not None and "face_encoder" in phase.start.parts:
        phase.start.load_into(task.module.encoder, "face_encoder")
        phase.start.load_into(task.module.detector, "face_detector")
    run(task, phase.loop, phase.accelerator, phase.folder, phase.logger)
    if phase.accelerator.is_main_process:
        assemble(phase.experiment, phase.folder)  # a stage trained beside it may be finished already


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
