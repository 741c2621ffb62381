"""The conditioning of a whole video as one value; windows of it go to the device one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the denoising UNet needs to know about one source and the frames of one driving video.

    Arguments:
        reference: of each transformer block, the ReferenceNet's tokens (1, tokens, channels).
        context: what the cross-attention reads: embedding of the source picture (1, 1, cross_attention_dim),
            or of a text (1, tokens, cross_attention_dim).
        pose: pose features of all levels, (frames, channels, height, width) each, kept where memory is
            plenty.
        expression: expression tokens (frames, tokens, cross_attention_dim), or none.
        unconditional: the context of the unconditional half of guidance, zero by default.
    """

    reference: dict[str, Tensor]
    context: Tensor
    pose: tuple[Tensor, ...]
    expression: Tensor | None
    unconditional: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pose[0])

    def window(self, frames: Sequence[int], device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The part that belongs to some frames, moved; what is there already is shared."""
        index = torch.as_tensor(frames, device=self.pose[0].device)
        return Conditioning(
            reference={name: tokens.to(device, dtype) for name, tokens in self.reference.items()},
            context=self.context.to(device, dtype),
            pose=tuple(
                level[index].to(device, dtype, memory_format=torch.channels_last) for level in self.pose
            ),
            expression=None
            if self.expression is None
            else self.expression[index.to(self.expression.device)].to(device, dtype),
            unconditional=None if self.unconditional is None else self.unconditional.to(device, dtype),
        )
