"""torch.compile for a MODEL, by the host's own helper."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper


def compile_model(model: ModelPatcher, graphs: bool) -> ModelPatcher:
    """A clone of `model` whose UNet is compiled when it first runs.

    Arguments:
        graphs: record the kernels once and replay them (CUDA graphs): for small pictures, where launching
            kernels takes longer than running them.
    """
    model = model.clone()
    set_torch_compile_wrapper(
        model, backend="inductor", mode="reduce-overhead" if graphs else "default", dynamic=False
    )
    return model
