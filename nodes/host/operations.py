"""The host's layers, with a group norm that keeps channels last.

The host builds its UNet from a class of layers that a model may bring along, its `custom_operations`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anifacediff_core.network.kernels import group_norm


def fast_operations(base: Any) -> Any:
    """The layers of `base`, one of the host's own sets, with our group norm."""

    class Operations(base):
        class GroupNorm(base.GroupNorm):
            def forward(self, x: Tensor) -> Tensor:
                patched = bool(self.weight_function) or bool(self.bias_function)
                ready = (self.weight.device, self.weight.dtype) == (x.device, x.dtype)
                if x.ndim == 4 and ready and not patched:
                    return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
                return super().forward(x)  # casts, and brings over what is not on the device

    return Operations
