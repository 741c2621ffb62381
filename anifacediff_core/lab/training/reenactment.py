"""Training the reenactment network: stage 1 on pairs of pictures, stage 2 on clips (paper 3.4, equations 4 to
6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.regions import emphasis
from anifacediff_core.network.model import AniFaceDiff

from .adversary import Adversary, AdversarySettings
from .data import NormalsNoise, Pairs, PairSource
from .graphs import ForwardBySize, GraphableForward
from .task import Tensors

STAGE1_PARTS = ("unet", "reference", "pose_encoder", "expression_adapter")
STAGE2_PARTS = ("motion",)
Validator = Callable[[Path, float], dict[str, float]]


@dataclass(frozen=True)
class DenoisingSettings:
    """Batches and weights of the loss.

    With emphasis 1 and no `min_snr` the loss is that of the paper (equations 5 and 6).

    Args:
        batch_size: pairs (stage 1) or clips (stage 2) in a batch, of each process.
        uncond_ratio: share of them that train the unconditional half of guidance: no source, no
            expression, only pose.
        drop_reference: share of the others that miss the ReferenceNet's features alone.
        drop_image: share of the others whose image embedding alone is dropped.
        drop_expression: share of the others whose expression alone is dropped.
        normals: how normals are made to tell less.
        head_weight, detail_weight: emphasis of the loss on the head and on eyes and mouth.
        min_snr: γ of the min-SNR weighting (Hang et al. 2023), 0 for none.
        difference_weight: in stage 2, of the change of the error from frame to frame, which is what flickers;
            0 for none.
        noise_sharing: in stage 2, clips also begin from noise that their frames share (`mixed_noise`).
        own_estimates: in stage 2, share of the clips whose noisy latents are made of the network's own
            estimate at a noisier step (`_rolled_out`), as in sampling; 0 for none. Not with FSDP.
        regression: weight of the error of the clean latents (smooth L1), which stands in the place of the
            prediction's, for sampling in one step or a few; 0 for the paper's loss.
        last_step: with regression, share of the rows at the last time step, where sampling begins.
        picture_rows: with regression, rows whose decoded pictures are compared with the truth's as well.
        picture_weight: of the pictures' error, in values and in differences between neighbors.
        adversary: with regression, makes those pictures sharp.
        large_every: every so many batches one shows pictures of twice the size in a quarter of the rows, from
            a pool a quarter as large; 0 for none. Not with shards.
        learn: further parts of the network that stage 1 trains; of the bundled one the image encoder too,
            which begins untrained.
        gradient_checkpointing: compute activations again in the backward pass: slower, in less memory.
    """

    batch_size: int = 128
    uncond_ratio: float = 0.1
    drop_reference: float = 0.0
    drop_image: float = 0.0
    drop_expression: float = 0.07
    normals: NormalsNoise = field(default_factory=NormalsNoise)
    head_weight: float = 2.0
    detail_weight: float = 3.0
    min_snr: float = 0.0
    difference_weight: float = 0.0
    noise_sharing: bool = True
    own_estimates: float = 0.0
    regression: float = 0.0
    last_step: float = 0.6
    picture_rows: int = 0
    picture_weight: float = 1.0
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    large_every: int = 0
    learn: tuple[str, ...] = ()
    gradient_checkpointing: bool = False

    OLD_NAMES: ClassVar[dict[str, str]] = {"rows": "batch_size", "unconditional": "uncond_ratio"}

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.split()[0] < 1:
            raise InputError(
                f"Of {self.batch_size} rows with uncond_ratio {self.uncond_ratio} none is left that sees its "
                "source; give a larger batch_size, or uncond_ratio: 0."
            )

    @property
    def large(self) -> DenoisingSettings:
        """Those of the batches of large pictures."""
        return replace(self, batch_size=max(self.batch_size // 4, 1), picture_rows=-(-self.picture_rows // 4))

    def split(self) -> tuple[int, int]:
        """How many sources of a batch are conditional, and how many of these see the reference."""
        conditional = self.batch_size
        if self.uncond_ratio:
            conditional -= max(round(self.uncond_ratio * self.batch_size), 1)
        return conditional, conditional - round(self.drop_reference * conditional)


def diffuse(latents: Tensor, noise: Tensor, alphas: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """Noisy latents z_t (equation 4) and what the network has to predict from them.

    Args:
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


def clean_of(noisy: Tensor, prediction: Tensor, alphas: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Clean latents and noise that a prediction means: the inverse of :func:`diffuse`.

    Where ᾱ is all but 0, an epsilon prediction says nothing about the clean latents: they are bounded.
    """
    signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    if kind == "epsilon":
        return ((noisy - sigma * prediction) / signal.clamp(min=1e-2)).clamp(-10, 10), prediction
    return signal * noisy - sigma * prediction, sigma * noisy + signal * prediction


def target_of(noisy: Tensor, latents: Tensor, alphas: Tensor, kind: str) -> Tensor:
    """The prediction that leads from any `noisy` latents to the clean `latents`."""
    signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1).clamp(min=1e-4)
    noise = (noisy - signal * latents) / sigma
    return noise if kind == "epsilon" else (signal * noisy - latents) / sigma


def snr_weight(alphas: Tensor, gamma: float, prediction: str) -> Tensor:
    """min(SNR, γ) / SNR of each row (Hang et al. 2023, for noise prediction).

    For v-prediction SNR + 1 stands in both places, as in diffusers' first scripts and the training code of
    the Animate-Anyone family. The paper's own form there, min(SNR, γ) / (SNR + 1), gives pure noise no
    weight, and with a terminal SNR of zero sampling begins at pure noise.

    Args:
        alphas: (rows,), ᾱ.
    """
    snr = alphas / (1 - alphas).clamp(min=1e-8)
    if prediction == "v_prediction":
        snr = snr + 1
    return snr.clamp(max=gamma) / snr.clamp(min=1e-8)


class DenoisingTask:
    """Both stages: they differ in the data, in what learns, and in the noise; see `task.Task`."""

    def __init__(
        self,
        model: AniFaceDiff,
        source: PairSource,
        alphas: Tensor,
        settings: DenoisingSettings,
        validator: Validator,
        *,
        stage: int,
        decode: Callable[[Tensor], Tensor] | None = None,
        adversary: Adversary | None = None,
        large: PairSource | None = None,
    ) -> None:
        self.decode, self.adversary, self.fraction = decode, adversary, 0.0
        self.name = f"stage{stage}"
        self.model, self.validator = model, validator
        self.period = 1 if large is None else settings.large_every
        self.drawn = 0
        self.alphas = alphas
        self.stage = stage
        model.gradient_checkpointing = settings.gradient_checkpointing
        model.set_trainable((*STAGE1_PARTS, *settings.learn) if stage == 1 else STAGE2_PARTS)
        self.kinds = [(source, settings)] if large is None else [(source, settings), (large, settings.large)]
        forwards = []
        for each, its in self.kinds:
            conditional, referred = its.split()
            forwards.append(GraphableForward(model, conditional * each.frames, referred * each.frames))
        self.module: nn.Module = forwards[0] if large is None else ForwardBySize(source.size // 8, *forwards)
        self.source, self.settings = self.kinds[0]

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        self.fraction = fraction
        self.drawn += 1
        self.source, self.settings = self.kinds[-1 if self.drawn % self.period == 0 else 0]
        s, frames = self.settings, self.source.frames
        pairs = self.source.draw(s.batch_size)
        rows, *size = pairs.latents.shape
        device = pairs.latents.device
        if self.stage == 2 and s.noise_sharing:
            noise = mixed_noise(s.batch_size, frames, tuple(size), device)
        else:
            noise = torch.randn_like(pairs.latents)
        timesteps = torch.randint(len(self.alphas), (s.batch_size,), device=device)
        if s.regression:
            last = torch.rand(s.batch_size, device=device) < s.last_step
            timesteps = torch.where(last, len(self.alphas) - 1, timesteps)
        timesteps = timesteps.repeat_interleave(frames)
        alphas = self.alphas[timesteps]
        noisy, target = diffuse(pairs.latents, noise, alphas, self.model.config.prediction_type)
        conditions = (
            pairs.source_latents,
            pairs.source_pixels,
            pairs.normals,
            pairs.expression,
            self._expression_weight(rows, device),
            (torch.rand(s.batch_size, 1, 1, device=device) >= s.drop_image).float(),
        )
        origin = pairs.spots.new_zeros(rows, 2)
        weight = emphasis(
            pairs.spots, origin, size[-1], self.source.size / size[-1], s.head_weight, s.detail_weight
        )
        # Of each row by itself, so that the loss of a batch is the mean of those of its parts.
        weight = weight / weight.mean((1, 2, 3), keepdim=True)
        if s.min_snr:
            weight = weight * snr_weight(alphas, s.min_snr, self.model.config.prediction_type).view(
                -1, 1, 1, 1
            )
        if self.stage == 2 and s.own_estimates:
            own = (torch.rand(s.batch_size, device=device) < s.own_estimates).repeat_interleave(frames)
            rolled = self._rolled_out(pairs.latents, noise, timesteps, conditions)
            own = own.view(-1, 1, 1, 1)
            noisy = torch.where(own, rolled, noisy)
            corrected = target_of(rolled, pairs.latents, alphas, self.model.config.prediction_type)
            target = torch.where(own, corrected, target)
            # The same error of the clean latents for the same loss, or steps of little noise would rule.
            weight = torch.where(own, weight * (1 - alphas).view(-1, 1, 1, 1), weight)
        if s.regression:
            return (noisy, timesteps, *conditions), self._regression_targets(pairs, noisy, alphas, weight)
        return (noisy, timesteps, *conditions), (target, weight)

    @torch.no_grad()
    def _rolled_out(self, latents: Tensor, noise: Tensor, timesteps: Tensor, conditions: Tensors) -> Tensor:
        """Noisy latents as sampling meets them: one step from a noisier state by the network itself.

        In z_t of the truth, how frames differ shows through the noise, all the more if they share it, and
        temporal modules learn to read it. In sampling that difference is the network's own, mistakes
        included: what amplifies it flickers. Cf. Ning et al. 2023 on exposure bias.
        """
        kind, frames = self.model.config.prediction_type, self.source.frames
        later = torch.rand(len(latents) // frames, device=latents.device).repeat_interleave(frames)
        steps = (timesteps + later * (len(self.alphas) - timesteps)).long().clamp(max=len(self.alphas) - 1)
        noisy, _ = diffuse(latents, noise, self.alphas[steps], kind)
        reduced = conditions[2].dtype == torch.bfloat16
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=reduced, cache_enabled=False):
            prediction = self.module(noisy, steps, *conditions).float()
        clean, made = clean_of(noisy, prediction, self.alphas[steps], kind)
        return diffuse(clean, made, self.alphas[timesteps], kind)[0]

    def _regression_targets(self, pairs: Pairs, noisy: Tensor, alphas: Tensor, weight: Tensor) -> Tensors:
        """Clean latents, their weights, noisy latents and ᾱ; and of the last conditional rows, whose normals
        tell all, the pictures, their weights, and what the adversary compares them with.
        """
        s = self.settings
        # Where little noise is left the answer is known: such rows count for less.
        certain = torch.where(alphas > alphas.new_tensor(1e-6), 0.5 * (1 - alphas), torch.ones_like(alphas))
        targets = (pairs.latents, weight * certain.view(-1, 1, 1, 1), noisy, alphas)
        if not s.picture_rows:
            return targets
        shown = self._shown()
        if pairs.pictures is None or self.decode is None:
            raise InputError("The loss in pixels needs the pictures: set pool.pictures to true.")
        truth = pairs.pictures[shown].float().div(255)
        spots, size = pairs.spots[shown], truth.shape[-1]
        weight = emphasis(spots, spots.new_zeros(len(spots), 2), size, 1.0, s.head_weight, s.detail_weight)
        # What is all but clean shows what was put in, not what the network makes.
        noise = (1 - alphas[shown]).view(-1, 1, 1, 1)
        weight = noise * weight / weight.mean((1, 2, 3), keepdim=True)
        sources = pairs.source_pixels.repeat_interleave(self.source.frames, 0)[shown]
        sources = F.interpolate(sources, (size, size), mode="bilinear", align_corners=False)
        return *targets, truth, weight, torch.cat([2 * pairs.normals[shown].float() - 1, sources], 1)

    def _shown(self) -> slice:
        last = self.settings.split()[0] * self.source.frames
        return slice(max(last - self.settings.picture_rows * self.source.frames, 0), last)

    def _regression_losses(self, prediction: Tensor, targets: Tensors) -> dict[str, Tensor]:
        latents, weight, noisy, alphas, *pictures = targets
        clean, _ = clean_of(noisy, prediction, alphas, self.model.config.prediction_type)
        plain = (F.smooth_l1_loss(clean, latents, beta=0.2, reduction="none") * weight).mean()
        losses = {"plain": plain.detach()}
        loss = self.settings.regression * plain
        if self.stage == 2 and self.settings.difference_weight:
            losses["change"] = self._change(clean - latents, weight)
            loss = loss + self.settings.difference_weight * losses["change"]
        if pictures:
            picture, logged = self._picture_loss(clean, *pictures)
            loss, losses = loss + picture, losses | logged
        return {"loss": loss, **losses}

    def _picture_loss(
        self, clean: Tensor, truth: Tensor, weight: Tensor, condition: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.decode is not None
        made = self.decode(clean[self._shown()]).float()
        error = made - truth
        across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
        picture = (error.abs() * weight).mean()
        edges = (across * weight[..., 1:]).mean() + (down * weight[..., 1:, :]).mean()
        loss, logged = self.settings.picture_weight * (picture + 0.5 * edges), {"picture": picture.detach()}
        if self.adversary is not None:
            adversarial, more = self.adversary.losses(made, truth, condition, loss, self.fraction)
            loss, logged = loss + adversarial, logged | more
        return loss, logged

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        if self.settings.regression:
            return self._regression_losses(outputs.float(), targets)
        target, weight = targets
        error = outputs.float() - target
        square = error.square()
        loss = (square * weight).mean()
        losses = {"plain": square.detach().mean()}
        if self.stage == 2 and self.settings.difference_weight:
            losses["change"] = self._change(error, weight)
            loss = loss + self.settings.difference_weight * losses["change"]
        return {"loss": loss, **losses}

    def _change(self, error: Tensor, weight: Tensor) -> Tensor:
        """Frames of a clip have one time step, so what changes in their error changes in the picture."""
        changes = rearrange(error, "(b f) ... -> b f ...", f=self.source.frames).diff(dim=1).square()
        weights = rearrange(weight, "(b f) ... -> b f ...", f=self.source.frames)[:, 1:]
        return (changes * weights).mean()

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        return self.validator(path, fraction)

    def state_dict(self) -> dict[str, Any]:
        adversary = {} if self.adversary is None else {"adversary": self.adversary.state_dict()}
        large = {"large": self.kinds[1][0].state_dict(), "drawn": self.drawn} if len(self.kinds) > 1 else {}
        return self.kinds[0][0].state_dict() | adversary | large

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kinds[0][0].load_state_dict(state)
        if len(self.kinds) > 1:
            self.kinds[1][0].load_state_dict(state["large"])
            self.drawn = state["drawn"]
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def _expression_weight(self, rows: int, device: torch.device) -> Tensor:
        """λ of every row: 1, or 0 for the dropped; never where the normals are weakened and only ψ tells."""
        s, frames = self.settings, self.source.frames
        kept = torch.rand(rows // frames, device=device) >= s.drop_expression
        kept[: round(s.normals.weakened * (rows // frames))] = True
        return kept.float().repeat_interleave(frames).view(-1, 1, 1)
