"""The commands `train` and `prepare`. What they need is imported when they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ..options import Checkpoint, Device, FaceFiles, bar, checkpoint_or_bundled
from ..scale import Scale
from ..training.clips import PrepareConfig


def train(
    config: Annotated[str, "a YAML file, or paper, bundled, refine, judges or smoke"],
    out: Annotated[Path, "folder for weights, log and pictures"],
    phase: Annotated[str | None, "train only this phase, here"] = None,
    devices: Annotated[int | None, "number of GPUs to use; all when left out, 0 for the CPU"] = None,
    set: Annotated[
        Sequence[str],
        "change a setting, e.g. phases.stage1.loop.steps=60",
        {"metavar": "KEY=VALUE"},
    ] = (),
) -> None:
    """Train an experiment: all phases on all GPUs, or one phase here (also under accelerate launch)."""
    from ..training.settings import read_experiment

    experiment = read_experiment(config, set)
    if phase is not None:
        from ..training.phases import run_phase

        run_phase(phase, experiment, out)
        return
    from ..training.launch import run_all

    settings = [part for setting in set for part in ("--set", setting)]
    run_all(experiment, out, ["train", "--config", config, "--out", str(out), *settings], devices)


def prepare(
    videos: Annotated[Path, "folder with videos or folders of pictures"],
    out: Annotated[Path, "folder for the shards"],
    config: PrepareConfig,
    shares: Annotated[
        tuple[float, float, float], "how identities are divided", {"metavar": ("TRAIN", "VAL", "TEST")}
    ] = (0.9, 0.05, 0.05),
    *,
    faces: FaceFiles,
    scale: Scale,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Turn videos of faces into shards for training; the same command goes on after an interruption."""
    from ..training.prepare import Encoders, describe
    from ..training.prepare import prepare as write
    from ..training.shard_chunks import SplitRatios

    files = {name: str(path) for name, path in faces.named().items()}
    encoders = Encoders(str(checkpoint_or_bundled(checkpoint).resolve()), **files, device=device)
    config = replace(config, shares=SplitRatios(*shares))
    for line in describe(write(videos, out, encoders, config, scale, progress=bar("clips")), out):
        print(line)
