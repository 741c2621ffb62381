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
        image: embedding of the source picture (1, 1, cross_attention_dim).
        pose: pose features (frames, channels, height, width), kept where memory is plenty.
        expression: expression tokens (frames, tokens, cross_attention_dim).
    """

    reference: dict[str, Tensor]
    image: Tensor
    pose: Tensor
    expression: Tensor

    def __len__(self) -> int:
        return len(self.pose)

    def window(self, frames: Sequence[int], device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The part that belongs to some frames, moved; what is there already is shared."""
        index = torch.as_tensor(frames, device=self.pose.device)
        return Conditioning(
            reference={name: tokens.to(device, dtype) for name, tokens in self.reference.items()},
            image=self.image.to(device, dtype),
            pose=self.pose[index].to(device, dtype, memory_format=torch.channels_last),
            expression=self.expression[index.to(self.expression.device)].to(device, dtype),
        )
