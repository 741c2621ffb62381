"""Sharpness from an adversary: a patch discriminator that learns beside a phase's own network.

Regression answers with the mean of what could be, which is soft. The discriminator tells patches of results
from patches of true pictures (hinge loss, Lim and Ye 2017; R1 penalty, Mescheder et al. 2018); the network
learns to pass, and to look alike to the discriminator's layers (feature matching, Wang et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anifacediff_core.errors import InputError

from .distribution import share_start


@dataclass(frozen=True)
class AdversarySettings:
    """How strong the adversary is.

    Args:
        weight: of its loss, as a share of the other losses' pull on the picture; 0 for no adversary.
        matching: weight of the difference of its features.
        begin: share of the training after which results have to pass; until then it only learns.
        learning_rate: of the discriminator.
        penalty: γ of R1, every `penalty_every` steps.
        width: channels of the discriminator's first layer.
        scales: it looks at pictures in so many sizes, each half of the one before.
    """

    weight: float = 0.0
    matching: float = 1.0
    begin: float = 0.05
    learning_rate: float = 2e-4
    penalty: float = 1.0
    penalty_every: int = 16
    width: int = 48
    scales: int = 2

    def __post_init__(self) -> None:
        if min(self.penalty_every, self.width, self.scales) < 1 or min(self.weight, self.matching) < 0:
            raise InputError(
                "The adversary needs scales, width and penalty_every of 1 or more, and no negative weight."
            )


class PatchDiscriminator(nn.Module):
    """Pictures, and what they should show, to a map of scores: above 0 is true (Isola et al. 2017).

    Args:
        channels: of the picture and its conditions together.
        width: of the first layer; the third and fourth have four times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers = []
        for wide in (width, 2 * width, 4 * width):
            layers.append(spectral_norm(nn.Conv2d(channels, wide, 4, stride=2, padding=1)))
            channels = wide
        layers.append(spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)))
        self.layers = nn.ModuleList(layers)
        self.score = spectral_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(rows, channels, height, width) to the features of every layer; the last are the scores."""
        features = []
        for layer in self.layers:
            pictures = F.leaky_relu(layer(pictures), 0.2)
            features.append(pictures)
        return [*features, self.score(pictures)]


class Adversary:
    """A discriminator with its optimizer; what a `task.Task` holds beside the network that the engine trains.

    Args:
        channels: of the conditions that it sees beside the picture.
    """

    def __init__(self, settings: AdversarySettings, channels: int, accelerator: Accelerator) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.networks = nn.ModuleList(
            PatchDiscriminator(3 + channels, settings.width) for _ in range(settings.scales)
        ).to(accelerator.device)
        share_start(self.networks, accelerator)
        self.optimizer = torch.optim.Adam(
            self.networks.parameters(), lr=settings.learning_rate, betas=(0.5, 0.99)
        )
        self.steps = 0

    @classmethod
    def of(cls, settings: AdversarySettings, channels: int, accelerator: Accelerator) -> Adversary | None:
        """The adversary of a phase, None where it has no weight."""
        return cls(settings, channels, accelerator) if settings.weight else None

    def losses(
        self, made: Tensor, truth: Tensor, condition: Tensor | None, others: Tensor, fraction: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the discriminator, then what the pictures' maker has to pay.

        The loss pulls at the pictures `weight` times as strongly as the others do, whatever its size
        (Esser et al. 2021, equation 7, at the pictures in place of the last layer).

        Args:
            made: (rows, 3, height, width), with a gradient.
            truth: as much; neither is clamped.
            condition: (rows, channels, height, width) in about -1 to 1, which belongs to both, or None.
            others: scalar, the other losses, made of the same pictures.
            fraction: of the training that is done.

        Returns:
            the loss to add, and what is worth logging.
        """
        s = self.settings
        learned = self._learn(made.detach(), truth, condition)
        if fraction < s.begin:
            return made.new_zeros(()), learned
        self.networks.requires_grad_(False)
        with torch.no_grad():
            wanted = self._look(truth, condition)
        found = self._look(made, condition)
        self.networks.requires_grad_(True)
        passing = -_mean([scale[-1].mean() for scale in found])
        matching = _mean([F.l1_loss(a, b) for x, y in zip(found, wanted) for a, b in zip(x[:-1], y[:-1])])
        loss = passing + s.matching * matching
        pull, own = (torch.autograd.grad(each, made, retain_graph=True)[0].norm() for each in (others, loss))
        weight = s.weight * (pull / (own + 1e-8)).clamp(max=1e4)
        return weight * loss, {**learned, "passing": passing.detach(), "matching": matching.detach()}

    def _learn(self, made: Tensor, truth: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        s = self.settings
        penalized = bool(s.penalty) and self.steps % s.penalty_every == 0
        real = truth.detach().requires_grad_(penalized)
        true_scores = [scale[-1] for scale in self._look(real, condition)]
        made_scores = [scale[-1] for scale in self._look(made, condition)]
        hinge = [F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(true_scores, made_scores)]
        loss = _mean(hinge)
        logged = {"discriminator": loss.detach()}
        if penalized:
            (slope,) = torch.autograd.grad([x.sum() for x in true_scores], real, create_graph=True)
            penalty = slope.square().sum((1, 2, 3)).mean()
            loss = loss + 0.5 * s.penalty * s.penalty_every * penalty / made[0, 0].numel()
        self.optimizer.zero_grad()
        loss.backward()
        for weight in self.networks.parameters():
            weight.grad = self.accelerator.reduce(weight.grad, "mean")
        self.optimizer.step()
        self.steps += 1
        return logged

    def _look(self, pictures: Tensor, condition: Tensor | None) -> list[list[Tensor]]:
        shown = 2 * pictures - 1
        if condition is not None:
            shown = torch.cat([shown, condition.to(shown)], 1)
        found = []
        for network in self.networks:
            found.append(network(shown))
            shown = F.avg_pool2d(shown, 2)
        return found

    def state_dict(self) -> dict[str, Any]:
        own = {"networks": self.networks.state_dict(), "optimizer": self.optimizer.state_dict()}
        return own | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
