"""Networks filled with weights: names and shapes are compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

from anifacediff_core.errors import InputError

COUNTER = "num_batches_tracked"  # of batch norms; means nothing to a trained network

Shape = tuple[int, ...]
Network = TypeVar("Network", bound=nn.Module)


def fill(network: Network, weights: Mapping[str, Tensor], what: str) -> Network:
    """Load weights into a network, in its own precision; a network on the meta device comes to the CPU.

    Args:
        weights: of any floating type, under the network's names; counters of batch norms may be missing.
        what: the beginning of the message, for example "'model.pt'".

    Raises:
        InputError: names or shapes differ.
    """
    for name, expected, found in misfits(network, {key: tuple(t.shape) for key, t in weights.items()}):
        raise InputError(
            f"{what} does not fit: expected {name} {'absent' if expected is None else list(expected)}, "
            f"found {'none' if found is None else list(found)}; get a fresh copy."
        )
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        network = network.to_empty(device="cpu")
    network.load_state_dict(weights, strict=False)  # strict but for the counters
    return network


def misfits(
    network: nn.Module, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, Shape | None, Shape | None]]:
    """Tensors whose shape is not the network's: name, expected and found shape, None where there is none."""
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(own.keys() | shapes.keys()):
        missing_counter = name.endswith(COUNTER) and name not in shapes
        if own.get(name) != shapes.get(name) and not missing_counter:
            yield name, own.get(name), shapes.get(name)
