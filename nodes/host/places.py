"""Where conditions enter the host's UNet: its blocks by name, and slots for the temporal modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.utils
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from anifacediff_core.errors import InputError

from .auxiliary import unwrap

Block = tuple[str, int]  # the host's name of a block: ("input" | "middle" | "output", number)


@dataclass(frozen=True)
class Place:
    """A residual block of the UNet with the transformer that follows it, if any."""

    block: Block
    layers: nn.Sequential
    transformer: SpatialTransformer | None
    transformer_name: str
    motion_name: str
    motion_index: int  # where in `layers` the temporal module goes

    @property
    def attention(self) -> Any:
        """The self-attention of the transformer; Stable Diffusion 1.5 has one block in each."""
        assert self.transformer is not None
        return self.transformer.transformer_blocks[0].attn1


def find_places(model: ModelPatcher) -> list[Place]:
    unet = model.model.diffusion_model
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    names = {host: diffusers for diffusers, host in names.items()}
    sequences = [(("input", n), f"input_blocks.{n}", layers) for n, layers in enumerate(unet.input_blocks)]
    sequences += [(("middle", 0), "middle_block", unet.middle_block)]
    sequences += [
        (("output", n), f"output_blocks.{n}", layers) for n, layers in enumerate(unet.output_blocks)
    ]
    places = []
    for block, prefix, layers in sequences:
        resnet = names.get(f"{prefix}.0.in_layers.0.weight")
        if not isinstance(layers[0], ResBlock) or resnet is None:
            continue
        found = [index for index, layer in enumerate(layers) if isinstance(layer, SpatialTransformer)]
        index = found[0] if found else 0
        name = (
            names[f"{prefix}.{index}.transformer_blocks.0.norm1.weight"].removesuffix(".norm1.weight")
            if found
            else ""
        )
        motion = resnet.removesuffix(".norm1.weight").replace(".resnets.", ".motion_modules.")
        places.append(Place(block, layers, layers[index] if found else None, name, motion, index + 1))
    return places


def attending(places: list[Place]) -> list[Place]:
    return [place for place in places if place.transformer is not None]


def ends_of_levels(unet: UNetModel) -> list[Block]:
    """The last input block of each level, which reduces the resolution where there is a further level."""
    reducing = [
        index
        for index, layers in enumerate(unet.input_blocks)
        if any(isinstance(layer, Downsample) for layer in layers)
    ]
    return [("input", index) for index in (*reducing, len(unet.input_blocks) - 1)]


class Slot(nn.Module):
    """Stands in one of the UNet's sequences for a temporal module, which stays out of the UNet's own modules.

    Registered there, the temporal weights would count as the UNet's and rename the host's keys.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = (module,)

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        """A MODEL without our patch passes through."""
        return hidden


def longest_window(motion: ModelPatcher) -> int:
    """Frames that the temporal modules have positions for."""
    modules = unwrap(motion).modules()
    return min(int(module.pe.shape[1]) for module in modules if hasattr(module, "pe"))


def make_slots(places: list[Place], motion: ModelPatcher, window: int) -> list[tuple[Place, Slot]]:
    modules = dict(unwrap(motion).named_modules())
    slots = [(place, Slot(modules[place.motion_name])) for place in places if place.motion_name in modules]
    expected = [place for place in places if place.block[0] != "middle"]
    misfits = [
        place
        for place in expected
        if place.motion_name not in modules
        or modules[place.motion_name].in_channels != place.layers[0].out_channels
    ]
    if misfits:
        raise InputError(
            f"The motion modules don't fit the MODEL (first misfit: {misfits[0].motion_name}): "
            "take both from one checkpoint."
        )
    longest = longest_window(motion)
    if window > longest:
        raise InputError(
            f"A window of {window} frames is longer than the motion modules know: use {longest} at most."
        )
    return slots


@contextmanager
def in_place(slots: list[tuple[Place, Slot]]) -> Iterator[None]:
    """Show the slots as layers of the UNet.

    The table of layers is exchanged as a whole and comes back as it was: torch.compile takes any other for a
    change of the network, and compiles anew.
    """
    tables = [place.layers._modules for place, _ in slots]
    try:
        for (place, slot), table in zip(slots, tables, strict=True):
            layers = list(table.values())
            layers.insert(place.motion_index, slot)
            place.layers._modules = type(table)((str(index), layer) for index, layer in enumerate(layers))
        yield
    finally:
        for (place, _), table in zip(slots, tables, strict=True):
            place.layers._modules = table
