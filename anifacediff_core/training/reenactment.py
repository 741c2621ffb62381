"""Training the reenactment network: stage 1 on pairs of pictures, stage 2 on clips (paper 3.4, equations 4 to
6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..evaluation.regions import emphasis
from ..network.model import AniFaceDiff, FixedRows
from .data import NormalsNoise, Pairs, Pool, draw_clips, draw_pairs
from .engine import Tensors

STAGE1_PARTS = ("unet", "reference", "pose_encoder", "expression_adapter", "image_encoder")
STAGE2_PARTS = ("motion",)
Sampler = Callable[[Path, float], dict[str, float]]


@dataclass(frozen=True)
class DenoisingSettings:
    """Batches and weights of the loss.

    Arguments:
        rows: pairs (stage 1) or clips (stage 2) in a batch, of each process.
        unconditional: share of them that train the unconditional half of guidance: no source, no
            expression, only pose.
        drop_expression: share of the others whose expression alone is dropped.
        normals: how normals are made to tell less.
        head_weight, detail_weight: emphasis of the loss on the head and on eyes and mouth.
    """

    rows: int = 128
    unconditional: float = 0.1
    drop_expression: float = 0.07
    normals: NormalsNoise = field(default_factory=NormalsNoise)
    head_weight: float = 2.0
    detail_weight: float = 3.0


def diffuse(latents: Tensor, noise: Tensor, alphas: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """Noisy latents z_t (equation 4) and what the network has to predict from them.

    Arguments:
        alphas: (rows,), ᾱ of each row's time step.
        prediction: "epsilon", the noise as in equation 5, or "v_prediction", v = √ᾱ ε - √(1 - ᾱ) z_0.
    """
    signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    noisy = signal * latents + sigma * noise
    return noisy, noise if prediction == "epsilon" else signal * noise - sigma * latents


def mixed_noise(clips: int, frames: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Noise of clips, (clips * frames, *size): between independent and shared by all frames of a clip.

    n = √a shared + √(1 - a) independent has unit variance for every a. At inference a clip may start
    from either, so a is 0 for a quarter of the clips, 1 for a quarter, and anything between for the rest.
    """
    a = (torch.rand(clips, 1, *[1] * len(size), device=device) * 2 - 0.5).clamp(0, 1)
    shared = torch.randn(clips, 1, *size, device=device)
    independent = torch.randn(clips, frames, *size, device=device)
    return rearrange(a.sqrt() * shared + (1 - a).sqrt() * independent, "b f ... -> (b f) ...")


class DenoisingTask:
    """Both stages: they differ in the data, in what learns, and in the noise; see `engine.Task`."""

    def __init__(
        self,
        model: AniFaceDiff,
        pool: Pool,
        alphas: Tensor,
        settings: DenoisingSettings,
        sampler: Sampler,
        *,
        stage: int,
        dtype: torch.dtype,
    ) -> None:
        self.name = f"stage{stage}"
        self.model, self.pool, self.settings, self.sampler = model, pool, settings, sampler
        self.alphas = alphas
        self.dtype = dtype
        self.frames = pool.plan.track if stage == 2 else 1
        self.stage = stage
        model.set_trainable(STAGE1_PARTS if stage == 1 else STAGE2_PARTS)
        sources = settings.rows - max(round(settings.unconditional * settings.rows), 1)
        self.module = FixedRows(model, sources * self.frames)

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        s, frames = self.settings, self.frames
        self.pool.tick()
        draw = draw_pairs if self.stage == 1 else draw_clips
        pairs: Pairs = draw(self.pool, s.rows, s.normals, self.dtype)
        rows, *size = pairs.latents.shape
        device = pairs.latents.device
        if self.stage == 1:
            noise = torch.randn_like(pairs.latents)
        else:
            noise = mixed_noise(s.rows, frames, tuple(size), device)
        timesteps = torch.randint(len(self.alphas), (s.rows,), device=device).repeat_interleave(frames)
        noisy, target = diffuse(pairs.latents, noise, self.alphas[timesteps], self.model.config.prediction)
        inputs = (
            noisy,
            timesteps,
            pairs.source_latents,
            pairs.source_pixels,
            pairs.normals,
            pairs.expression,
            self._expression_weight(rows, device),
        )
        origin = pairs.spots.new_zeros(rows, 2)
        weight = emphasis(
            pairs.spots, origin, size[-1], self.pool.plan.size / size[-1], s.head_weight, s.detail_weight
        )
        return inputs, (target, weight)

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        target, weight = targets
        error = (outputs.float() - target).square()
        weighted = (error * weight).mean() / weight.mean()
        return {"loss": weighted, "plain": error.detach().mean()}

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def sample(self, path: Path, fraction: float) -> dict[str, float]:
        return self.sampler(path, fraction)

    def _expression_weight(self, rows: int, device: torch.device) -> Tensor:
        """λ of every row: 1, or 0 for the dropped; never where the normals are weakened and only ψ tells."""
        s, frames = self.settings, self.frames
        kept = torch.rand(rows // frames, device=device) >= s.drop_expression
        kept[: round(s.normals.weakened * (rows // frames))] = True
        return kept.float().repeat_interleave(frames).view(-1, 1, 1)
