"""The adversary: it tells results from the truth, pulls as strongly as it should, and goes on exactly."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.lab.training.adversary import Adversary, AdversarySettings

ROWS, SIDE = 4, 32


def make(**settings: float) -> Adversary:
    torch.manual_seed(0)
    adversary = Adversary.of(
        AdversarySettings(**{"weight": 0.5, "begin": 0.5, "width": 8} | settings),  # type: ignore[arg-type]
        0,
        Accelerator(cpu=True),
    )
    assert adversary is not None
    return adversary


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    """Results without the texture that the truth has, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.rand(ROWS, 3, 1, 1, generator=generator).expand(-1, -1, SIDE, SIDE)
    return flat.clone(), (flat + 0.2 * torch.randn(flat.shape, generator=generator)).clamp(0, 1)


def scores(adversary: Adversary, shown: Tensor) -> float:
    with torch.no_grad():
        return float(adversary._look(shown, None)[0][-1].mean())


def test_it_learns_to_tell_results_from_the_truth() -> None:
    adversary = make(begin=1.0, learning_rate=2e-3)
    for seed in range(40):
        made, truth = pictures(seed)
        loss, _ = adversary.losses(made.requires_grad_(), truth, None, made.mean(), 0.1)
        assert not loss.requires_grad, "results need not pass before it has learned"
    made, truth = pictures(99)
    assert scores(adversary, truth) > scores(adversary, made) + 0.5


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_it_pulls_at_the_pictures_as_strongly_as_it_is_asked_to(weight: float) -> None:
    adversary = make(weight=weight)
    made, truth = pictures(1)
    made.requires_grad_()
    others = 7 * (made - truth).abs().mean()
    (pull,) = torch.autograd.grad(others, made, retain_graph=True)
    loss, logged = adversary.losses(made, truth, None, others, 0.6)
    (own,) = torch.autograd.grad(loss, made)
    assert float(own.norm() / pull.norm()) == pytest.approx(weight, rel=1e-3)
    assert {"discriminator", "passing", "matching"} == set(logged)


def test_what_a_picture_should_show_reaches_the_scores() -> None:
    torch.manual_seed(0)
    adversary = Adversary(AdversarySettings(weight=1.0, width=8), 2, Accelerator(cpu=True))
    made, _ = pictures(1)
    with torch.no_grad():
        one, other = (adversary._look(made, torch.full((ROWS, 2, SIDE, SIDE), v))[1][-1] for v in (-1.0, 1.0))
    assert (one - other).abs().max() > 1e-4


def test_it_goes_on_as_if_there_had_been_no_break() -> None:
    def step(adversary: Adversary, seed: int) -> float:
        made, truth = pictures(seed)
        loss, _ = adversary.losses(made.requires_grad_(), truth, None, made.square().mean(), 0.9)
        return float(loss.detach())

    first = make()
    for seed in range(3):
        step(first, seed)
    second = make()
    second.load_state_dict(deepcopy(first.state_dict()))
    assert step(second, 7) == pytest.approx(step(first, 7), rel=1e-4)
    assert step(second, 8) == pytest.approx(step(first, 8), rel=1e-4)


def test_no_weight_is_no_adversary() -> None:
    assert Adversary.of(AdversarySettings(), 0, Accelerator(cpu=True)) is None
    with pytest.raises(InputError, match="no negative weight"):
        AdversarySettings(weight=-1)
