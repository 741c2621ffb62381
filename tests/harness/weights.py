"""Weights for networks that nobody trained."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def randomize(module: Network, seed: int) -> Network:
    """Weights of a trained size everywhere, so that no zero initialization hides an error."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return module
