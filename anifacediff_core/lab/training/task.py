"""What a phase of training is made of: its loop's settings, its task, the errors that end it, its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anifacediff_core.errors import InputError

Tensors = tuple[Tensor, ...]


class TrainingError(InputError):
    """Training cannot go on; what is on disk is usable."""


@dataclass(frozen=True)
class Loop:
    """How long and how to optimize.

    Args:
        steps: of the optimizer, from the first to the last.
        optimizer: "adamw", "adam", or "adamw8bit", whose averages take 8 bits (bitsandbytes, GPU only).
        learning_rate: its peak, reached after `lr_warmup_steps`.
        lr_scheduler: "cosine", which falls over all steps to `min_lr_ratio` times the peak, or "constant".
        max_grad_norm: longest gradient, as a norm over all weights; longer ones are shortened to it.
        gradient_accumulation_steps: batches whose gradients make up one step.
        ema_decay: weight of the past in the running average of the weights (EMA), which counts for less in
            the first steps; 0 keeps none.
        mixed_precision: "no" for float32, "bf16" or "fp16" for autocast.
        cuda_graph: record forward and backward once and replay them; falls back to eager where that fails.
        channels_last: memory layout of convolutions.
        check_every: steps between two looks at the loss; in between nothing waits for the device.
        checkpointing_steps: steps between two states from which training can go on exactly; 0 keeps none.
        checkpoints_total_limit: how many of these states stay on disk.
        snapshots: fractions of the steps at which weights and samples are written, besides the end.
    """

    steps: int
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    lr_scheduler: str = "cosine"
    min_lr_ratio: float = 0.01
    lr_warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.998
    mixed_precision: str = "bf16"
    cuda_graph: bool = True
    channels_last: bool = False
    check_every: int = 50
    checkpointing_steps: int = 0
    checkpoints_total_limit: int = 2
    snapshots: tuple[float, ...] = (0.25, 0.5, 0.75)

    OLD_NAMES: ClassVar[dict[str, str]] = {
        "schedule": "lr_scheduler",
        "final_rate": "min_lr_ratio",
        "warmup": "lr_warmup_steps",
        "clip": "max_grad_norm",
        "accumulate": "gradient_accumulation_steps",
        "average": "ema_decay",
        "precision": "mixed_precision",
        "save_every": "checkpointing_steps",
        "keep": "checkpoints_total_limit",
    }

    def __post_init__(self) -> None:
        choices = {
            "optimizer": tuple(OPTIMIZERS),
            "lr_scheduler": ("cosine", "constant"),
            "mixed_precision": ("no", "bf16", "fp16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"The loop's {name} is {getattr(self, name)!r}; choose one of {', '.join(known)}."
                )
        for name in ("steps", "learning_rate", "max_grad_norm", "gradient_accumulation_steps", "check_every"):
            value = getattr(self, name)
            if value <= 0:
                raise InputError(f"The loop's {name} is {value}; give a number above 0.")


class Task(Protocol):
    """One phase of training."""

    name: str
    period: int
    """After so many batches their shapes recur: 1 where all are alike."""

    @property
    def module(self) -> nn.Module:
        """Maps the inputs that `draw` gives to a tensor or a tuple of tensors; what it holds is optimized."""
        ...

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        """A batch: inputs of the module and what `losses` needs besides. Shapes recur after `period`."""
        ...

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        """Scalars; the one named "loss" is minimized, the others are logged."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """What a snapshot file holds. Called with the averaged weights in place."""
        ...

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        """Write a picture, return measures. Called on the main process with the averaged weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands in its data, besides torch's own random numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        ...


def _adamw8bit(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    if not torch.cuda.is_available():
        raise InputError("The optimizer adamw8bit needs a GPU; use adamw.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "The optimizer adamw8bit needs bitsandbytes; pip install bitsandbytes, or use adamw."
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return optimizer


def _fused(kind: type[torch.optim.Adam]) -> Any:
    def make(parameters: Any, **options: Any) -> torch.optim.Optimizer:
        return kind(parameters, fused=parameters[0].device.type == "cuda", **options)

    return make


OPTIMIZERS = {"adamw": _fused(torch.optim.AdamW), "adam": _fused(torch.optim.Adam), "adamw8bit": _adamw8bit}


def load_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a file whose names begin with `prefix`, without it."""
    if not path.exists():
        raise TrainingError(f"There is no {path}; train the phase that makes it first.")
    found = {key[len(prefix) :]: value for key, value in load_file(path).items() if key.startswith(prefix)}
    if not found:
        raise TrainingError(
            f"{path} holds no weights named {prefix}*; train the phase that makes them first."
        )
    return found


@torch.no_grad()
def take_over(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Begin with the weights that fit; those of another number of latent channels stay as they are."""
    own = module.state_dict()
    for name, weight in weights.items():
        if name in own and own[name].shape == weight.shape:
            own[name].copy_(weight)


def states_folder(folder: Path, phase: str) -> Path:
    """Where the states of a phase lie in the folder of a run."""
    return folder / f"{phase}.states"


def done_mark(folder: Path, phase: str) -> Path:
    """The empty file that says that a phase is finished."""
    return folder / f"{phase}.done"
