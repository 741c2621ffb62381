"""Training on one process or many: accelerate's setup, and weights that it may have divided among them."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, broadcast, set_seed
from torch import Tensor, nn

from anifacediff_core.errors import InputError

from .task import Loop


def make_accelerator(loop: Loop, seed: int, folder: Path | None = None) -> Accelerator:
    """An Accelerator whose processes draw different random numbers, for one process or many.

    Args:
        folder: where TensorBoard's files go, if TensorBoard is installed.
    """
    on_cpu = not torch.cuda.is_available()
    # accelerate renames the argument below from 1.15 on and keeps the old name working.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    tracked = folder is not None and _tensorboard_works()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=loop.mixed_precision
        if loop.mixed_precision in ("bf16", "fp16") and not on_cpu
        else "no",
        log_with="tensorboard" if tracked else None,
        project_dir=str(folder) if folder is not None else None,
        kwargs_handlers=[
            # Casts must not be cached: a recorded graph would read the casts of the first step for ever.
            AutocastKwargs(cache_enabled=False),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    _require_known_distribution(accelerator, loop)
    set_seed(seed, device_specific=True)
    if not on_cpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = (
            4  # trying ten algorithms for each of many shapes takes half a minute
        )
    return accelerator


def _tensorboard_works() -> bool:
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        return False
    return True


def _require_known_distribution(accelerator: Accelerator, loop: Loop) -> None:
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED" or (kind == "FSDP" and not accelerator.is_fsdp2):
        raise InputError(
            f"accelerate is configured for {kind}, which this trainer doesn't know; "
            "set distributed_type to MULTI_GPU, or to FSDP with fsdp_version: 2."
        )
    if kind == "FSDP" and accelerator.state.fsdp_plugin.auto_wrap_policy is not None:
        # The reference's keys and values are projected before the UNet's blocks run, with their weights.
        raise InputError(
            "FSDP is configured to divide each block by itself, but blocks of this network use each other's "
            "weights; set fsdp_auto_wrap_policy: NO_WRAP."
        )
    if kind == "FSDP" and loop.mixed_precision == "fp16":
        # accelerate would take the scale off the gradients twice wherever some weights are frozen.
        raise InputError("The precision fp16 doesn't work where FSDP divides the weights; use bf16.")


@torch.no_grad()
def share_start(module: nn.Module, accelerator: Accelerator) -> None:
    """Begin with the main process's weights everywhere."""
    if accelerator.num_processes > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(broadcast(tensor.detach().clone()))


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether accelerate's configuration spreads the weights over the processes (FSDP, DeepSpeed)."""
    return accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; then all processes have to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
