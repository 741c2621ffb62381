"""Everything that decides how a video is sampled; each default stands here, or in what this extends."""

from __future__ import annotations

from dataclasses import dataclass

from anifacediff_core.network.sampling_config import SamplingConfig


@dataclass(frozen=True)
class SamplingSettings(SamplingConfig):
    """Settings of nodes, command line, jobs and evaluation.

    Args:
        size: side of the pictures in pixels.
        seed: of the initial noise.
        window, overlap: frames sampled together, and shared by neighboring windows.
        expression_scale: λ of equation 3.
        shared_noise: share of the initial noise's variance that all frames have in common.
    """

    size: int = 256
    seed: int = 0
    window: int = 24
    overlap: int = 6
    expression_scale: float = 1.0
    shared_noise: float = 1.0
