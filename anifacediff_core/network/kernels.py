"""Computations that torch has no fast form of, each in its plain form, which runs everywhere.

On a GPU, in half precision and without gradients, `kernels_triton` computes the same where Triton works. What
torch.compile should not look into is an operator of its own.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend_over_frames(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    """Attention of every position to itself in the frames of its clip.

    Args:
        query, key, value: (clips * frames, positions, heads * channels), clip-major.

    Returns: the same shape.
    """
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        attended: Tensor = torch.ops.anifacediff.attend_over_frames(query, key, value, frames, heads)
        return attended
    return _attend_over_frames(query, key, value, frames, heads)


def gated_gelu(hidden: Tensor) -> Tensor:
    """GEGLU: the first half of the last axis, weighed by the GELU of the second; (..., 2 n) to (..., n)."""
    if not torch.compiler.is_compiling() and _fast(hidden):  # the compiler makes one kernel of it by itself
        from anifacediff_core.network import kernels_triton

        return kernels_triton.gated_gelu(hidden)
    value, gate = hidden.chunk(2, -1)
    return value * F.gelu(gate)


def group_norm(hidden: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm of (rows, C, h, w); it keeps channels last, where torch's own would copy them first."""
    if torch.compiler.is_compiling() and not torch.is_grad_enabled() and hidden.is_cuda:
        # The statistics only: what comes after them the compiler joins with its neighbors.
        mean, scale = torch.ops.anifacediff.group_statistics(hidden, groups, eps)
        return apply_statistics(hidden, mean, scale, weight, bias)
    if _fast(hidden, weight, bias) and hidden.is_contiguous(memory_format=torch.channels_last):
        from anifacediff_core.network import kernels_triton

        return kernels_triton.group_norm(hidden, groups, weight, bias, eps)
    return F.group_norm(hidden, groups, weight, bias, eps)


def group_statistics(hidden: Tensor, groups: int, eps: float) -> Tensor:
    """Mean and reciprocal deviation of every group of (rows, C, h, w): (2, rows, groups) float32."""
    if _fast(hidden) and hidden.is_contiguous(memory_format=torch.channels_last):
        from anifacediff_core.network import kernels_triton

        return kernels_triton.group_statistics(hidden, groups, eps)
    variance, mean = torch.var_mean(hidden.float().unflatten(1, (groups, -1)).flatten(2), 2, correction=0)
    return torch.stack([mean, torch.rsqrt(variance + eps)])


def apply_statistics(hidden: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalize (rows, C, h, w) by the statistics (rows, groups) of its groups.

    In no other shape than its own, so that a compiler keeps its order in memory.
    """
    size = hidden.shape[1] // mean.shape[1]
    factor = scale.repeat_interleave(size, 1) * weight
    offset = bias - mean.repeat_interleave(size, 1) * factor
    return (hidden * factor[:, :, None, None] + offset[:, :, None, None]).to(hidden.dtype)


def _attend_over_frames(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    if _fast(query, key, value):
        from anifacediff_core.network import kernels_triton

        return kernels_triton.attend_over_frames(query, key, value, frames, heads)
    positions = query.shape[1]
    query, key, value = (
        rearrange(x, "(b f) n (h c) -> (b n) h f c", f=frames, h=heads) for x in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    return rearrange(attended, "(b n) h f c -> (b f) n (h c)", n=positions).contiguous()


@torch.library.custom_op("anifacediff::attend_over_frames", mutates_args=())
def _attend_over_frames_op(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    return _attend_over_frames(query, key, value, frames, heads)


@_attend_over_frames_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("anifacediff::group_statistics", mutates_args=())
def _group_statistics_op(hidden: Tensor, groups: int, eps: float) -> Tensor:
    return group_statistics(hidden, groups, eps)


@_group_statistics_op.register_fake
def _(hidden: Tensor, groups: int, eps: float) -> Tensor:
    return hidden.new_empty(2, len(hidden), groups, dtype=torch.float32)


def _fast(*tensors: Tensor) -> bool:
    first = tensors[0]
    if not first.is_cuda or first.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    same = all(tensor.dtype == first.dtype and tensor.device == first.device for tensor in tensors)
    return same and triton_works(str(first.device))


@lru_cache
def triton_works(device: str) -> bool:
    """Whether Triton is there and can build a kernel, which takes a compiler that not every machine has."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from anifacediff_core.network import kernels_triton

        sample = torch.ones(1, 32, device=device, dtype=torch.float16)
        return bool(torch.isfinite(kernels_triton.gated_gelu(sample)).all())
    except Exception as error:  # whatever its compiler, linker or driver raise: the plain forms do as well
        logging.info("AniFaceDiff: Triton can't be used here (%s): torch's own kernels are.", error)
        return False
