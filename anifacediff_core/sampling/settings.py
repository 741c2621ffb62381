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
        expression_scale: lambda of equation 3.
        shared_noise: share of the initial noise's variance that all frames have in common.
    """

    size: int = 256
    seed: int = 0
    window: int = 24
    overlap: int = 6
    expression_scale: float = 1.0
    shared_noise: float = 1.0


@dataclass(frozen=True)
class CacheSettings:
    """How deep features of the UNet are kept from step to step, see `network.unet.DeepFeatures`.

    Args:
        cache_interval: all of the UNet is computed in every n-th step only; 1 keeps nothing.
        cache_shallow: how many layers on either side of the UNet the other steps compute.
    """

    cache_interval: int = 1
    cache_shallow: int = 2


@dataclass(frozen=True)
class LearningSettings:
    """How `learn` tunes a LoRA to pictures of one character.

    Args:
        steps: of AdamW.
        rank: of the adapters; a higher one holds more of the character.
        learning_rate: at its highest, after a warm-up; it falls to zero along a cosine.
        seed: of everything random.
        size: side of the pictures in pixels; best that of the videos to be made.
        character, avatars: rows of either kind in a step.
        usual: share of the steps that learn at the time steps of sampling; the others at any.
        head_weight, detail_weight: weights of the loss on the head and on eyes and mouth.
    """

    steps: int = 300
    rank: int = 16
    learning_rate: float = 6e-3
    seed: int = 0
    size: int = 256
    character: int = 2
    avatars: int = 2
    usual: float = 0.75
    head_weight: float = 6.0
    detail_weight: float = 10.0
