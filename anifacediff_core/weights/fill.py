"""Networks filled with weights: names and shapes are compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

from anifacediff_core.errors import InputError

COUNTER = "num_batches_tracked"  # of batch norms; means nothing to a trained network

Shapes = Mapping[str, tuple[int, ...]]
Network = TypeVar("Network", bound=nn.Module)


def fill(network: Network, weights: Mapping[str, Tensor], what: str) -> Network:
    """Load weights into a network, in its own precision; a network on the meta device comes to the CPU.

    Args:
        weights: of any floating type, under the network's names; counters of batch norms may be missing.
        what: the beginning of the message, for example "'model.pt'".

    Raises:
        InputError: names or shapes differ.
    """
    for misfit in misfits(shapes_of(network.state_dict()), shapes_of(weights)):
        raise InputError(f"{what} does not fit: {misfit}; get a fresh copy.")
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        network = network.to_empty(device="cpu")
    network.load_state_dict(weights, strict=False)  # strict but for the counters
    return network


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def misfits(expected: Shapes, found: Shapes, prefix: str = "") -> Iterator[str]:
    """What differs, tensor by tensor, each as a part of a sentence.

    Args:
        prefix: of the names, in the sentence.
    """
    for name in sorted(expected.keys() | found.keys()):
        here, there = expected.get(name), found.get(name)
        if here != there and not (there is None and name.endswith(COUNTER)):
            yield (
                f"expected {prefix}{name} {'absent' if here is None else list(here)}, "
                f"found {'none' if there is None else list(there)}"
            )
