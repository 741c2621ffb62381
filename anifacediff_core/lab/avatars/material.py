"""What makes avatars unlike the gallery: textures, teeth, strands, things around them; none by default."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch

WAVES, LEAVES, LEAF = 24, 28, 9  # of a texture; of a backdrop's clutter, and what describes one of these
STRANDS = 240  # of an avatar


@dataclass(frozen=True)
class Clutter(Batch):
    """What stands and hangs behind the avatar, or in front of it.

    ``waves`` (batch,) strength of a wavy light, ``wave`` (batch, WAVES, 5) angle, phase and color of each;
    ``leaves`` (batch, LEAVES or fewer, LEAF): x, y, half width, half height in half frames, angle, squareness
    (2 an ellipse, 0 none), red, green, blue; ``blur`` (batch,) 1 out of focus.
    """

    waves: Tensor
    wave: Tensor
    leaves: Tensor
    blur: Tensor

    @classmethod
    def none(cls, count: int, device: torch.device) -> Clutter:
        one = torch.zeros(count, device=device)
        return cls(
            one, one.new_zeros(count, WAVES, 5), one.new_zeros(count, LEAVES, LEAF), torch.zeros_like(one)
        )


@dataclass(frozen=True)
class Texture(Batch):
    """Random waves on all surfaces; see :mod:`.texture`.

    ``phase`` and ``amplitude`` (batch, WAVES); ``tint`` (batch, 3) is how much each channel takes part;
    ``skin``, ``spots``, ``hair``, ``cloth`` are strengths, ``stretch`` how short strands are, ``shine`` a
    factor of highlights on the skin, ``wrinkles`` how deep the lines are that expressions draw.
    """

    phase: Tensor
    amplitude: Tensor
    tint: Tensor
    skin: Tensor
    spots: Tensor
    hair: Tensor
    stretch: Tensor
    cloth: Tensor
    shine: Tensor
    wrinkles: Tensor

    @classmethod
    def none(cls, count: int, device: torch.device) -> Texture:
        waves = torch.zeros(count, WAVES, device=device)
        tint, one = torch.ones(count, 3, device=device), torch.ones(count, device=device)
        zero = torch.zeros_like(one)
        return cls(waves, waves.clone(), tint, zero, zero, zero, one, zero, one, zero)

    @property
    def smooth(self) -> bool:
        """Whether no avatar of the batch has any."""
        return not bool((self.amplitude != 0).any())


@dataclass(frozen=True)
class Mouth(Batch):
    """Teeth: a factor (batch, 3) of their color, and how dark the gaps between them are."""

    tint: Tensor
    gaps: Tensor


@dataclass(frozen=True)
class Strands(Batch):
    """Single strands of hair, (batch, STRANDS) each; see :mod:`.strands`.

    ``polar`` and ``azimuth`` of the root on the skull; ``length`` meters, 0 for none; ``lean`` outward and
    ``spread`` aside of the direction in which it begins, beside 1 down the skull; ``fall`` how far it ends
    hanging straight down; ``curl`` meters, ``waves`` radians along it, ``phase``; ``light`` from the hair's
    color to that of its tips, ``shade`` a factor; ``thick`` 1 where it is two samples wide.
    """

    polar: Tensor
    azimuth: Tensor
    length: Tensor
    lean: Tensor
    spread: Tensor
    fall: Tensor
    curl: Tensor
    waves: Tensor
    phase: Tensor
    light: Tensor
    shade: Tensor
    thick: Tensor

    @classmethod
    def none(cls, count: int, device: torch.device) -> Strands:
        return cls(*[torch.zeros(count, STRANDS, device=device) for _ in range(12)])
