"""The kernels of `kernels` in Triton, for half precision on a GPU."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FEWEST = 16  # rows that a matrix product of Triton takes at least
TILE = 64  # positions, and channels, that one program normalizes


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
    statistics = group_statistics(hidden, groups, eps)
    out = torch.empty_like(hidden)  # channels last as well
    positions = height * width
    grid = (rows, triton.cdiv(positions, TILE), triton.cdiv(channels, TILE))
    _normalize[grid](
        hidden,
        statistics,
        weight,
        bias,
        out,
        rows,
        channels,
        positions,
        GROUPS=groups,
        SIZE=channels // groups,
        TILE=TILE,
    )
    return out


def group_statistics(hidden: Tensor, groups: int, eps: float) -> Tensor:
    """See `kernels.group_statistics`; `hidden` has its channels last."""
    rows, channels, height, width = hidden.shape
    size, positions = channels // groups, height * width
    chunks = max(1, min(32, positions // (2 * TILE)))  # enough of them to keep a large GPU busy
    sums = torch.empty(rows, chunks, 2, channels, device=hidden.device, dtype=torch.float32)
    chunk = triton.cdiv(triton.cdiv(positions, chunks), TILE) * TILE
    _partial_sums[(rows, chunks, triton.cdiv(channels, TILE))](
        hidden, sums, chunks, channels, POSITIONS=positions, SIZE=size, CHUNK=chunk, TILE=TILE
    )
    statistics = torch.empty(2, rows, groups, device=hidden.device, dtype=torch.float32)
    _finish_statistics[(rows, groups)](
        hidden,
        sums,
        statistics,
        rows,
        channels,
        positions,
        eps,
        GROUPS=groups,
        SIZE=size,
        CHUNKS=chunks,
        ALL_CHUNKS=triton.next_power_of_2(chunks),
        PADDED=triton.next_power_of_2(size),
        num_warps=1,
    )
    return statistics


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
def _partial_sums(
    hidden, sums, chunks, channels,
    POSITIONS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sums and sums of squares of some channels over a chunk of the positions of one row.

    Of differences from one value of the group, so that a large mean takes no precision from the variance.
    """
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * TILE + tl.arange(0, TILE)
    known = channel < channels
    start = row * POSITIONS * channels
    shift = tl.load(hidden + start + channel // SIZE * SIZE, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros([TILE, TILE], tl.float32)
    squares = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, CHUNK, TILE):
        position = chunk * CHUNK + first + tl.arange(0, TILE)
        inside = (position < POSITIONS)[:, None] & known[None, :]
        place = start + position[:, None] * channels + channel[None, :]
        values = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - shift[None, :], 0.0)
        total += values
        squares += values * values
    place = ((row * chunks + chunk) * 2) * channels + channel
    tl.store(sums + place, tl.sum(total, 0), mask=known)
    tl.store(sums + place + channels, tl.sum(squares, 0), mask=known)


@triton.jit
def _finish_statistics(
    hidden, sums, statistics, rows, channels, positions, eps,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, CHUNKS: tl.constexpr, ALL_CHUNKS: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Mean and reciprocal deviation of one group of one row."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunk, channel = tl.arange(0, ALL_CHUNKS), tl.arange(0, PADDED)
    inside = (chunk < CHUNKS)[:, None] & (channel < SIZE)[None, :]
    place = ((row * CHUNKS + chunk[:, None]) * 2) * channels + group * SIZE + channel[None, :]
    total = tl.sum(tl.sum(tl.load(sums + place, mask=inside, other=0.0), 1), 0)
    squares = tl.sum(tl.sum(tl.load(sums + place + channels, mask=inside, other=0.0), 1), 0)
    shift = tl.load(hidden + row * positions * channels + group * SIZE).to(tl.float32)
    mean = total / (positions * SIZE)
    variance = tl.maximum(squares / (positions * SIZE) - mean * mean, 0.0)
    tl.store(statistics + row * GROUPS + group, mean + shift)
    tl.store(statistics + (rows + row) * GROUPS + group, 1 / tl.sqrt(variance + eps))


@triton.jit
def _normalize(
    hidden, statistics, weight, bias, out, rows, channels, positions,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * TILE + tl.arange(0, TILE)
    channel = tl.program_id(2) * TILE + tl.arange(0, TILE)
    known = channel < channels
    mean = tl.load(statistics + row * GROUPS + channel // SIZE, mask=known, other=0.0)
    scale = tl.load(statistics + (rows + row) * GROUPS + channel // SIZE, mask=known, other=0.0)
    scale = scale * tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32) - mean * scale
    inside = (position < positions)[:, None] & known[None, :]
    place = (row * positions + position[:, None]) * channels + channel[None, :]
    values = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    result = values * scale[None, :] + offset[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
