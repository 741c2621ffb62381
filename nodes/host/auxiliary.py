"""Networks beside the UNet, under the host's memory management.

Reference net, pose encoder, temporal modules and expression adapter are plain torch modules. Each is wrapped
in a ModelPatcher of its own, so that the host loads it, in parts if need be, and moves it away when memory is
short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import nn

from .operations import fast_operations

Result = TypeVar("Result")

_LEAVES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "GroupNorm", "LayerNorm", "Embedding")


def manage(
    module: nn.Module, dtype: torch.dtype | None = None, load_device: torch.device | None = None
) -> comfy.model_patcher.ModelPatcher:
    """Wrap `module` in a ModelPatcher, with the host's leaf layers, which cast themselves to their input.

    The module is changed in place. `dtype` is that of the stored weights, by default the host's own choice.
    """
    load_device = load_device or comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            device=load_device, model_params=sum(parameter.numel() for parameter in module.parameters())
        )
    module = module.eval().requires_grad_(False).to(device=offload_device, dtype=dtype)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # see `model.load_model`
    use_host_layers(module)
    # how newer hosts bring the weights of their own networks: as they are needed, if the GPU can do that
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(_Holder(module, dtype), load_device=load_device, offload_device=offload_device)


def unwrap(patcher: comfy.model_patcher.ModelPatcher) -> Any:
    """The module that `manage` wrapped."""
    return patcher.model.module


def compute_dtype(patcher: comfy.model_patcher.ModelPatcher) -> torch.dtype:
    """The dtype in which inputs should be passed to a managed module on its load device."""
    stored = patcher.model.dtype
    return comfy.model_management.unet_manual_cast(stored, patcher.load_device) or stored


def run(
    patcher: comfy.model_patcher.ModelPatcher,
    function: Callable[..., Result],
    *tensors: torch.Tensor,
) -> Result:
    """Load the module and call `function` with it and the tensors, on its device in its compute dtype."""
    comfy.model_management.load_models_gpu([patcher])
    device, dtype = patcher.load_device, compute_dtype(patcher)
    with torch.no_grad():
        return function(unwrap(patcher), *(tensor.to(device=device, dtype=dtype) for tensor in tensors))


def use_host_layers(module: nn.Module) -> None:
    """Give every leaf layer the class that the host has for it, in place.

    The layers keep their numbers; the host can now load them in parts and patch their weights.
    """
    operations = fast_operations(comfy.ops.manual_cast)
    for name, layer in module.named_modules():
        for leaf in _LEAVES:
            if type(layer) is getattr(nn, leaf):
                layer.__class__ = getattr(operations, leaf)
                # the host keeps these lists on the class, where layers would share them
                layer.weight_function, layer.bias_function = [], []
                break
        else:
            loose = [key for key, _ in layer.named_parameters(recurse=False)]
            if loose and not hasattr(layer, "comfy_cast_weights"):
                raise TypeError(
                    f"the host has no layer for {type(layer).__name__} at {name!r} ({', '.join(loose)})"
                )


class _Holder(nn.Module):
    """Holds a module for a ModelPatcher, which writes `device` onto its model: diffusers' is read-only."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.device: torch.device | None = None

    def get_dtype(self) -> torch.dtype:
        return self.dtype
