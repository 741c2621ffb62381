"""Low-rank adapters (LoRA, Hu et al. 2021) of the denoising UNet, in kohya's form, which ComfyUI loads.

A file has of every layer `lora_unet_<name, dots as underscores>.lora_down.weight` (rank, in[, k, k]),
`.lora_up.weight` (out, rank[, 1, 1]) and `.alpha`; the layer's weight W becomes W + alpha / rank · up · down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from anifacediff_core.claims import is_finite, shown
from anifacediff_core.errors import InputError
from anifacediff_core.storage import write_tensors
from anifacediff_core.weights.reading import open_tensors

PREFIX = "lora_unet_"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
Layers = dict[str, nn.Linear | nn.Conv2d]


class Adapter(nn.Module):
    """What is added to a layer's output, up(down(x)); nothing to begin with. Always float32.

    Args:
        layer: linear or convolution.
        generator: of the random numbers in `down`.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Conv2d):
            shape = layer.kernel_size, layer.stride, layer.padding
            self.down = nn.Conv2d(layer.in_channels, rank, *shape, bias=False)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        bound = 1 / math.sqrt(self.down.weight[0].numel())
        nn.init.uniform_(self.down.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.up.weight)
        self.to(layer.weight.device)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.up(self.down(inputs.float()))


def layers_of(unet: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> Layers:
    """Layers that a LoRA can change, by their names."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted(name)
    }


@contextmanager
def adapted(layers: Layers, rank: int, generator: torch.Generator) -> Iterator[dict[str, Adapter]]:
    """Adapters that act on the layers for as long as the context lasts."""
    adapters = {name: Adapter(layer, rank, generator) for name, layer in layers.items()}

    def adding(adapter: Adapter) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        return lambda _, inputs, output: output + adapter(inputs[0]).to(output.dtype)

    hooks = [layer.register_forward_hook(adding(adapters[name])) for name, layer in layers.items()]
    try:
        yield adapters
    finally:
        for hook in hooks:
            hook.remove()


def save_lora(path: Path, adapters: dict[str, Adapter], metadata: dict[str, str]) -> None:
    """Write a file that is there when it is whole.

    Raises:
        InputError: the adapters have NaN or infinity.
    """
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        flat, down = PREFIX + name.replace(".", "_"), adapter.down.weight
        tensors |= {
            flat + DOWN: down.detach().half(),
            flat + UP: adapter.up.weight.detach().half(),
            flat + ALPHA: torch.tensor(float(len(down))),
        }
    if not all(map(is_finite, tensors.values())):
        raise InputError("What was learned has NaN or infinity: use a lower learning rate.")
    write_tensors(path, tensors, metadata)


def merge_lora(unet: nn.Module, path: Path, strength: float = 1.0) -> int:
    """Add a file's changes to the weights of `unet`; returns the number of layers.

    Raises:
        InputError: there is something in the file that does not belong to the UNet, or not in this form.
    """
    layers = {PREFIX + name.replace(".", "_"): layer for name, layer in layers_of(unet).items()}
    changes: list[tuple[Tensor, Tensor]] = []
    with open_tensors(path) as file:
        names = {name.partition(".")[0] for name in file.infos}
        if not names or not names <= layers.keys():
            first = min(names - layers.keys(), default="nothing")
            raise InputError(
                f"{path.name} is no LoRA of this checkpoint's UNet in kohya's naming (found {shown(first)}): "
                "choose one that learn has written, or another in that form."
            )
        known = {name + part for name in names for part in (DOWN, UP, ALPHA)}
        for name in sorted(names):
            weight = layers[name].weight
            if not {name + DOWN, name + UP} <= file.infos.keys() <= known:
                raise InputError(f"{path.name} has {name} in another form than up and down: choose another.")
            alphas = file.read(name + ALPHA).float().flatten() if name + ALPHA in file.infos else None
            shapes = [file.infos[name + part].shape for part in (DOWN, UP)]
            rank = shapes[0][:1]
            wanted = [(*rank, *weight.shape[1:]), (*weight.shape[:1], *rank, *[1] * (weight.ndim - 2))]
            if shapes != wanted or (alphas is not None and len(alphas) != 1):
                raise InputError(
                    f"{path.name} has {name} with shapes {shapes}, which do not fit the layer's "
                    f"{list(weight.shape)}: choose a LoRA made for this checkpoint."
                )
            down, up = (file.read(name + part).float().flatten(1) for part in (DOWN, UP))
            scale = strength if alphas is None else strength * alphas[0] / rank[0]
            changes.append((weight, (scale * (up @ down)).view(weight.shape)))
            if not is_finite(changes[-1][1]):
                raise InputError(f"{path.name} has NaN or infinity in {name}: fetch it again.")
    with torch.no_grad():
        for weight, change in changes:
            weight += change.to(weight)
    return len(names)
