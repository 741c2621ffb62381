"""AnimateDiff's temporal modules: every position attends to itself in the other frames of its clip.

Weights have the names of diffusers' `MotionAdapter`, and with `norm="clip"` the numbers are its numbers. The
computation is our own: tokens stay frame after frame, as the UNet has them, so that nothing is copied into
another order but the keys and values of attention; and the norm can span a frame, as AnimateDiff has it.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.kernels import attend_over_frames, gated_gelu

EXPANSION = 4  # of the feed-forward layer


class MotionModules(nn.Module):
    """The temporal modules of a UNet, one behind each of its residual layers, and one in the middle."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = list(zip(config.block_out_channels, config.motion_heads, strict=True))
        layers = config.layers_per_block
        self.down_blocks = nn.ModuleList(MotionBlock(config, *width, layers) for width in widths)
        self.up_blocks = nn.ModuleList(MotionBlock(config, *width, layers + 1) for width in reversed(widths))
        self.mid_block = MotionBlock(config, *widths[-1], 1) if config.motion_mid_block else None


class MotionBlock(nn.Module):
    """The temporal modules of one block of the UNet."""

    def __init__(self, config: NetworkConfig, channels: int, heads: int, layers: int) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(TemporalModule(config, channels, heads) for _ in range(layers))


class TemporalModule(nn.Module):
    """One temporal transformer; its last projection starts at zero, so that it begins silent."""

    def __init__(self, config: NetworkConfig, channels: int, heads: int) -> None:
        super().__init__()
        self.in_channels = channels
        self.per_frame = config.motion_norm == "frame"
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(channels, heads, config.motion_max_frames)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, hidden: Tensor, num_frames: int, memory: TemporalMemory | None = None) -> Tensor:
        """(clips * frames, C, h, w), clip-major, to the same shape; with a memory, one frame of each clip."""
        height = hidden.shape[2]
        if self.per_frame:
            normed = rearrange(self.norm(hidden), "r c h w -> r (h w) c")
        else:
            spanning = rearrange(hidden, "(b f) c h w -> b c (f h) w", f=num_frames)
            normed = rearrange(self.norm(spanning), "b c (f h) w -> (b f) (h w) c", f=num_frames)
        tokens = self.proj_in(normed)
        for block in self.transformer_blocks:
            tokens = block(tokens, num_frames, memory)
        return hidden + rearrange(self.proj_out(tokens), "r (h w) c -> r c h w", h=height)


class TemporalBlock(nn.Module):
    """Twice attention over time, then a feed-forward layer; tokens are (clips * frames, positions, C)."""

    def __init__(self, channels: int, heads: int, longest: int) -> None:
        super().__init__()
        self.pos_embed = PositionalEncoding(channels, longest)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1, self.attn2 = TemporalAttention(channels, heads), TemporalAttention(channels, heads)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, frames: int, memory: TemporalMemory | None = None) -> Tensor:
        for norm, attention in ((self.norm1, self.attn1), (self.norm2, self.attn2)):
            if memory is None:
                attended = attention(self.pos_embed(norm(tokens), frames), frames)
            else:
                attended = attention.follow(norm(tokens), self.pos_embed.pe[0].to(tokens), memory)
            tokens = tokens + attended
        return tokens + self.ff(self.norm3(tokens))


class PositionalEncoding(nn.Module):
    """Adds sinusoidal encodings of each frame's position in its window."""

    pe: Tensor

    def __init__(self, channels: int, longest: int) -> None:
        super().__init__()
        place = torch.arange(longest).unsqueeze(1)
        frequency = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
        sines = torch.stack([torch.sin(place * frequency), torch.cos(place * frequency)], -1)
        self.register_buffer("pe", sines.flatten(1)[None])

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        # Buffers stay behind where weights are loaded in parts: bring the few numbers along.
        positions = self.pe[0, :frames, None].to(tokens)
        return (rearrange(tokens, "(b f) n c -> b f n c", f=frames) + positions).flatten(0, 1)


class TemporalAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        if frames == 1 and not torch.is_grad_enabled():
            # A softmax over one frame is one: the attention is that frame's value.
            return self.to_out[0](self.to_v(tokens))
        query, key, value = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        return self.to_out[0](attend_over_frames(query, key, value, frames, self.heads))

    def follow(self, tokens: Tensor, places: Tensor, memory: TemporalMemory) -> Tensor:
        """Attention of one frame to itself and to the frames before it that the memory holds.

        Args:
            tokens: (clips, positions, C), without the encoding of their place.
            places: (longest, C), the encodings of the places in a window.
        """
        places = places[: memory.frames + 1]
        query = self.to_q(tokens + places[-1])
        keys, values = memory.keep(self, self.to_k(tokens), self.to_v(tokens))
        # The projections are linear: of frames that move up a place only the place's part is made anew.
        keys, values = keys + self.to_k(places)[:, None], values + self.to_v(places)[:, None]
        query = rearrange(query, "b n (h c) -> b 1 n h c", h=self.heads)
        keys, values = (rearrange(x, "b f n (h c) -> b f n h c", h=self.heads) for x in (keys, values))
        # A few keys a query: products of numbers are faster here than those of matrices.
        weights = ((query * keys).sum(-1, keepdim=True) * query.shape[-1] ** -0.5).softmax(1)
        return self.to_out[0]((weights * values).sum(1).flatten(2))


class TemporalMemory:
    """Keys and values of the latest frames of a stream, which come one by one: those of one step of sampling.

    A frame sees the latest ones as in a window, but for what they would have seen of it, and only its own
    part is computed. Before the first frame all were like it.

    Args:
        frames: how many before the present one.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(self, attention: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take those of one frame (clips, positions, C); returns all, (clips, frames + 1, positions, C)."""
        key, value = key[:, None], value[:, None]
        first = key.expand(-1, self.frames, -1, -1), value.expand(-1, self.frames, -1, -1)
        keys, values = self._kept.get(attention, first)
        keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)
        self._kept[attention] = keys[:, 1:], values[:, 1:]
        return keys, values


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.net = nn.ModuleList([GEGLU(channels, inner), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net[2](self.net[0](tokens))


class GEGLU(nn.Module):
    """A projection whose one half is weighed by the GELU of the other."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, tokens: Tensor) -> Tensor:
        return gated_gelu(self.proj(tokens))
