"""torch.compile for a MODEL, by the host's own helper."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper, torch_compile

from anifacediff_core.errors import InputError
from anifacediff_core.network.kernels import triton_works

REPLAYING = ("reduce-overhead", "max-autotune")  # modes of torch.compile with CUDA graphs


def compile_model(model: ModelPatcher, replay: bool) -> ModelPatcher:
    """A clone of `model` whose UNet is compiled when it first runs.

    Args:
        replay: record the kernels once and replay them (CUDA graphs): for small pictures, where starting
            kernels takes longer than running them.

    Raises:
        InputError: there is no GPU that Triton can build kernels for.
    """
    if model.load_device.type != "cuda" or not triton_works(str(model.load_device)):
        raise InputError(
            "Compile for Speed needs an NVIDIA GPU with Triton and a C compiler, which are not all here: "
            "bypass the node, the video will be the same."
        )
    model = model.clone()
    mode = "reduce-overhead" if replay else "default"
    set_torch_compile_wrapper(model, backend="inductor", mode=mode, dynamic=False)
    return model


def replays(model: ModelPatcher) -> bool:
    """Whether kernels of the UNet are recorded and replayed, which write over what they gave before."""
    compiled = model.model_options.get(torch_compile.TORCH_COMPILE_KWARGS) or {}
    return compiled.get("backend") == "cudagraphs" or compiled.get("mode") in REPLAYING
