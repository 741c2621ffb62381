"""Long videos in overlapping windows, whose memory does not grow with the video; and their initial noise."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from anifacediff_core.errors import InputError


def context_windows(frames: int, length: int, overlap: int) -> list[list[int]]:
    """Frame indices of each window, in order.

    Windows have `length` frames and begin `length - overlap` frames apart; the last two share what is left
    evenly instead of computing frames twice: 48 frames are windows of 24, 18 and 18. A video no longer than a
    window is one window.
    """
    if frames < 1:
        raise InputError("The video has no frames: give at least one.")
    if length < 1 or not 0 <= overlap < length:
        raise InputError(
            f"Windows of {length} frames cannot overlap by {overlap}: the overlap must be shorter."
        )
    if frames <= length:
        return [list(range(frames))]
    stride = length - overlap
    count = ceil((frames - overlap) / stride)
    left = (count - 2) * stride  # where the last two begin
    even = ceil((frames - left + overlap) / 2)
    full = [list(range(start, start + length)) for start in range(0, left, stride)]
    return [*full, list(range(left, left + even)), list(range(frames - even, frames))]


def fuse_weights(length: int, overlap: int) -> Tensor:
    """Weight of every frame of a window, (length,) in (0, 1]: ramps over the overlap, to hide seams.

    The ramps of two neighbors sum to one. Where windows overlap by more, divide by the sum of the weights.
    """
    position = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(position, length + 1 - position).div(overlap + 1).clamp(max=1)


def blend_previous(denoised: Tensor, previous_latents: Tensor) -> Tensor:
    """Frames (frames, channels, height, width) whose first ones fade over from finished ones.

    As between two windows: of n finished frames the first is theirs but for 1 / (n + 1), the last the new.
    """
    count = len(previous_latents)
    weight = fuse_weights(2 * count + 1, count)[:count].view(-1, 1, 1, 1).to(denoised)
    return torch.cat([torch.lerp(previous_latents.to(denoised), denoised[:count], weight), denoised[count:]])


def initial_noise(
    frames: int, channels: int, height: int, width: int, seed: int, shared: float = 1.0, first: int = 0
) -> Tensor:
    """Unit noise (frames, channels, height, width) on the CPU.

    Args:
        shared: share a of the variance that all frames have in common, a^½ common + (1 - a)^½ own: common
            noise calms the video, own noise is what other samplers start from.
        first: number of the first frame within its video.

    A frame's noise depends on the seed and its number only, not on the length of the video or the machine.
    """
    if not 0 <= shared <= 1:
        raise InputError(f"The share of common noise is {shared}: give a number from 0 to 1.")
    generator = torch.Generator().manual_seed(seed)
    size = (channels, height, width)
    common = torch.randn(size, generator=generator) * shared**0.5
    noise = common.expand(frames, *size).clone()
    if shared < 1:
        for _ in range(first):
            torch.randn(size, generator=generator)
        for frame in noise:
            frame += torch.randn(size, generator=generator) * (1 - shared) ** 0.5
    return noise
