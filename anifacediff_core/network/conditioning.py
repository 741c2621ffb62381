"""The conditioning of a whole video as one value; windows of it go to the device one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoConditioning:
    """What the denoising UNet needs to know about a source and the frames of its driving video.

    Of several such clips of equal length the frames come clip after clip.

    Args:
        reference: of each transformer block, the ReferenceNet's tokens (clips, tokens, channels).
        context: what the cross-attention reads: embeddings of the source images (clips, 1,
            cross_attention_dim), or of texts (clips, tokens, cross_attention_dim).
        pose: pose features of all levels, (clips * frames, channels, height, width) each, kept where memory
            is plenty.
        expression: expression tokens (clips * frames, tokens, cross_attention_dim), or none.
        unconditional: the context of the unconditional half of guidance, zero by default.
    """

    reference: dict[str, Tensor]
    context: Tensor
    pose: tuple[Tensor, ...]
    expression: Tensor | None
    unconditional: Tensor | None = None

    @property
    def clips(self) -> int:
        return len(self.context)

    def __len__(self) -> int:
        """Frames of a clip."""
        return len(self.pose[0]) // self.clips

    def rows(self, frames: Sequence[int]) -> Tensor:
        """Where some frames of every clip lie among the frames of all clips, (clips * some frames,)."""
        starts = torch.arange(self.clips)[:, None] * len(self)
        return (starts + torch.as_tensor(frames)).flatten()

    def window(
        self, frames: Sequence[int], device: torch.device, dtype: torch.dtype | None
    ) -> VideoConditioning:
        """The part that belongs to some frames, moved; what is there already is shared."""
        index = self.rows(frames).to(self.pose[0].device)
        return VideoConditioning(
            reference={name: tokens.to(device, dtype) for name, tokens in self.reference.items()},
            context=self.context.to(device, dtype),
            pose=tuple(
                level[index].to(device, dtype or level.dtype, memory_format=torch.channels_last)
                for level in self.pose
            ),
            expression=None
            if self.expression is None
            else self.expression[index.to(self.expression.device)].to(device, dtype),
            unconditional=None if self.unconditional is None else self.unconditional.to(device, dtype),
        )
