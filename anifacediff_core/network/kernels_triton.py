"""The kernels of `kernels` in Triton, for half precision on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FEWEST = 16  # rows that a matrix product of Triton takes at least


def attend_over_frames(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    """See `kernels.attend_over_frames`: nothing is copied into another order, each row is read once."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    rows, positions, channels = query.shape
    width = channels // heads
    out = torch.empty_like(query)
    _attend_over_frames[(positions * heads, rows // frames)](
        query,
        key,
        value,
        out,
        positions,
        channels,
        frames,
        width**-0.5 * 1.4426950408889634,  # exp2 takes the place of exp
        HEADS=heads,
        WIDTH=width,
        FRAMES=max(FEWEST, triton.next_power_of_2(frames)),
        PADDED=max(FEWEST, triton.next_power_of_2(width)),
        num_warps=1 if width <= 64 else 2 if width <= 128 else 4,
    )
    return out


def gated_gelu(hidden: Tensor) -> Tensor:
    """See `kernels.gated_gelu`."""
    hidden = hidden.contiguous()
    inner = hidden.shape[-1] // 2
    rows = hidden.numel() // (2 * inner)
    out = hidden.new_empty(*hidden.shape[:-1], inner)
    block = min(1024, triton.next_power_of_2(inner))
    _gated_gelu[(rows, triton.cdiv(inner, block))](hidden, out, inner, BLOCK=block, num_warps=4)
    return out


def group_norm(hidden: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `kernels.group_norm`; `hidden` has its channels last."""
    rows, channels, height, width = hidden.shape
    out = torch.empty_like(hidden)  # channels last as well
    size = channels // groups
    padded = triton.next_power_of_2(size)
    _group_norm[(rows, groups)](
        hidden,
        weight,
        bias,
        out,
        channels,
        eps,
        POSITIONS=height * width,
        SIZE=size,
        PADDED=padded,
        BLOCK=max(1, min(4096 // padded, triton.next_power_of_2(height * width))),
        num_warps=8,
    )
    return out


@triton.jit
def _attend_over_frames(
    query, key, value, out, positions, channels, frames, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, FRAMES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One position and head of one clip."""
    position, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    clip = tl.program_id(1)
    frame, channel = tl.arange(0, FRAMES), tl.arange(0, PADDED)
    row = (clip * frames + frame).to(tl.int64) * positions + position
    place = row[:, None] * channels + head * WIDTH + channel[None, :]
    inside = (frame < frames)[:, None] & (channel < WIDTH)[None, :]
    q = tl.load(query + place, mask=inside, other=0.0)
    k = tl.load(key + place, mask=inside, other=0.0)
    v = tl.load(value + place, mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    scores = tl.where((frame < frames)[None, :], scores, float("-inf"))
    scores = tl.exp2(scores - tl.max(scores, 1)[:, None])
    weights = scores / tl.sum(scores, 1)[:, None]
    attended = tl.dot(weights.to(v.dtype), v)
    tl.store(out + place, attended.to(v.dtype), mask=inside)


@triton.jit
def _gated_gelu(hidden, out, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    value = tl.load(hidden + row * 2 * inner + column, mask=inside).to(tl.float32)
    gate = tl.load(hidden + row * 2 * inner + inner + column, mask=inside).to(tl.float32)
    gelu = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    # rounded in between, as torch's two kernels do
    gelu = gelu.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * inner + column, (value * gelu).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _group_norm(
    hidden, weight, bias, out, channels, eps,
    POSITIONS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One group of one row: its mean and variance in one pass, the result in a second, from the cache."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, PADDED)
    known = channel < SIZE
    start = row * POSITIONS * channels + group * SIZE
    total = tl.zeros([BLOCK, PADDED], tl.float32)
    squares = tl.zeros([BLOCK, PADDED], tl.float32)
    # differences from one of the values, so that a large mean takes no precision from the variance
    shift = tl.load(hidden + start).to(tl.float32)
    for first in range(0, POSITIONS, BLOCK):
        position = first + tl.arange(0, BLOCK)
        inside = (position < POSITIONS)[:, None] & known[None, :]
        place = start + position[:, None] * channels + channel[None, :]
        values = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - shift, 0.0)
        total += values
        squares += values * values
    count = POSITIONS * SIZE
    mean = tl.sum(tl.sum(total, 1), 0) / count
    variance = tl.sum(tl.sum(squares, 1), 0) / count - mean * mean
    scale = tl.load(weight + group * SIZE + channel, mask=known, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    offset = tl.load(bias + group * SIZE + channel, mask=known, other=0.0).to(tl.float32)
    offset = offset - (mean + shift) * scale
    for first in range(0, POSITIONS, BLOCK):
        position = first + tl.arange(0, BLOCK)
        inside = (position < POSITIONS)[:, None] & known[None, :]
        place = start + position[:, None] * channels + channel[None, :]
        values = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
        result = values * scale[None, :] + offset[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
