"""What the avatar benchmark measures on what, as options of its command (`options`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch

from anifacediff_core.errors import InputError
from anifacediff_core.sampling.settings import SamplingSettings

from ..options import Positive, Style
from .ablation import VARIANTS, find_variant

Identity = Literal["cross", "same"]
Precision = Literal["fp16", "bf16", "fp32"]
ReadBack = Literal["capture", "encoder", "none"]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Protocol:
    """What to measure on what. Fields without a help here:

    Args:
        pairs: number of source and driver pairs.
        fps: rate of the driving clips.
        steps, cfg: of the sampler.
        batch: pairs handled at once.
        variants: names of what to measure, see `ablation.find_variant`.
        style: look of all pictures, of every pair another one of the family (`avatars.styles`).

    Raises:
        InputError: a value that the benchmark does not know.
    """

    pairs: int = 64
    seed: Annotated[int, "of identities, motion and noise"] = 0
    frames: Annotated[Positive, "frames of each clip"] = 24
    fps: float = 24.0
    size: Annotated[Positive, "side of the pictures in pixels, a multiple of 64"] = SamplingSettings.size
    steps: int = SamplingSettings.steps
    cfg: float = SamplingSettings.cfg
    shared_noise: Annotated[
        float, "share of the initial noise that the frames of a clip have in common: 1, or 0 for none"
    ] = SamplingSettings.shared_noise
    batch: int = 4
    variants: tuple[str, ...] = tuple(VARIANTS)
    protocol: Annotated[
        Identity, "another avatar drives, or the source is the first frame of its own track"
    ] = "cross"
    style: Style = "plain"
    precision: Annotated[Precision, "of the network on a GPU; bf16 flickers"] = "fp16"
    read_back: Annotated[
        ReadBack,
        "how the bundled encoder reads results: as videos are captured, or faster, from known places",
    ] = "capture"

    def __post_init__(self) -> None:
        for name in self.variants:
            find_variant(name)
        values = (self.protocol, self.style, self.precision, self.read_back)
        for value, kind in zip(values, (Identity, Style, Precision, ReadBack)):
            if value not in (known := get_args(kind)):
                raise InputError(f"The benchmark knows no '{value}'; choose from {', '.join(known)}.")
        if self.size % 64:
            raise InputError(f"The benchmark's size is {self.size}: give a multiple of 64.")

    @property
    def generated(self) -> tuple[str, ...]:
        return tuple(name for name in self.variants if find_variant(name).generated)
