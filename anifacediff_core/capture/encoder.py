"""The face encoder: pixels of a face square to shape, expression, pose and camera (paper 3.1).

It has DECA's form at a tenth of the size. Unlike DECA's ResNet-50 it keeps the place of things: the last 7 x
7 map is projected and flattened, not averaged, since lids and irises are a few pixels at known places of the
crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

CROP = 224
GROUPS = 8
HIDDEN = 208
POSE_MODES = 3  # the neck's axis-angle; the root and the jaw stay at 0, the eyes follow the expression
CAMERA_MODES = 3
# Means and deviations before training data say better: pose in radians, camera of a crop as by `face_square`.
POSE_DEVIATION = (0.12, 0.25, 0.08)
CAMERA_MEAN, CAMERA_DEVIATION = (7.6, 0.0, 0.02), (0.5, 0.008, 0.008)
EXPRESSION_MEAN, EXPRESSION_DEVIATION = 0.08, 0.16


class Reading(NamedTuple):
    """What the encoder sees in a crop.

    Attributes:
        shape: (crops, shape modes), beta.
        expression: (crops, expressions), psi; not yet limited to [0, 1].
        neck: (crops, 3), axis-angle of the neck joint in radians.
        camera: (crops, 3), ``[s, tx, ty]`` of the crop.
    """

    shape: Tensor
    expression: Tensor
    neck: Tensor
    camera: Tensor


class Block(nn.Module):
    """Residual: 5 x 5 per channel, then two mixing layers (as in ConvNeXt, with a group norm)."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.widen = nn.Conv2d(channels, channels * expansion, 1)
        self.narrow = nn.Conv2d(channels * expansion, channels, 1)
        # Blocks begin as small changes, which lets a high learning rate start at once.
        nn.init.normal_(self.narrow.weight, std=1e-3)
        nn.init.zeros_(self.narrow.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        return features + self.narrow(F.silu(self.widen(self.norm(self.spread(features)))))


def downsample(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Half the resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.SiLU(),
    )


class FaceEncoder(nn.Module):
    """2.5 M parameters. Input (crops, 3, 224, 224) RGB in [0, 1].

    ``forward`` gives the normalized vector that training compares with ``normalize(...)`` of the truth;
    ``read`` gives parameters. Means and deviations are buffers, saved with the weights.

    Args:
        n_shape: number of shape modes of the head.
        n_expression: number of its expressions.
    """

    def __init__(self, n_shape: int = 100, n_expression: int = 52) -> None:
        super().__init__()
        self.sizes = (n_shape, n_expression, POSE_MODES, CAMERA_MODES)
        widths, depths = (24, 48, 96, 184, 256), (1, 3, 4, 5, 2)
        stages: list[nn.Module] = []
        inputs = 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stages += [downsample(inputs, width, 5 if stage == 0 else 3)]
            stages += [Block(width) for _ in range(depth)]
            inputs = width
        self.trunk = nn.Sequential(*stages)
        self.squeeze = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, 40, 1), nn.SiLU())
        cells = (CROP // 2 ** len(widths)) ** 2
        self.mix = nn.Sequential(nn.Linear(40 * cells, HIDDEN), nn.SiLU())
        self.answer = nn.Linear(HIDDEN, sum(self.sizes))
        nn.init.normal_(self.answer.weight, std=0.01)
        nn.init.zeros_(self.answer.bias)
        expression = torch.ones(n_expression)
        statistics = {
            "shape": (torch.zeros(n_shape), torch.ones(n_shape)),
            "expression": (expression * EXPRESSION_MEAN, expression * EXPRESSION_DEVIATION),
            "neck": (torch.zeros(POSE_MODES), torch.tensor(POSE_DEVIATION)),
            "camera": (torch.tensor(CAMERA_MEAN), torch.tensor(CAMERA_DEVIATION)),
        }
        for name, (mean, deviation) in statistics.items():
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_deviation", deviation)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> FaceEncoder:
        """An encoder in evaluation mode whose sizes are those of its saved weights (any floating type)."""
        encoder = cls(len(weights["shape_mean"]), len(weights["expression_mean"]))
        encoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return encoder.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(crops, 3, 224, 224) in [0, 1] -> (crops, shape + expression + 3 + 3), mean 0 and deviation 1."""
        features = self.squeeze(self.trunk(pixels * 2 - 1))
        return self.answer(self.mix(rearrange(features, "n c y x -> n (c y x)")))

    def split(self, vector: Tensor) -> Reading:
        """Parts of a vector as ``forward`` gives it, still normalized."""
        return Reading(*vector.split(self.sizes, dim=-1))

    def read(self, pixels: Tensor) -> Reading:
        """Parameters of crops, expression limited to [0, 1]."""
        parts = self.split(self(pixels).float())
        pairs = zip(parts, self._statistics(), strict=True)
        reading = Reading(*[part * deviation + mean for part, (mean, deviation) in pairs])
        return reading._replace(expression=reading.expression.clamp(0, 1))

    def normalize(self, reading: Reading) -> Tensor:
        """The vector that ``forward`` should give for known parameters: the target of training."""
        pairs = zip(reading, self._statistics(), strict=True)
        return torch.cat([(part - mean) / deviation for part, (mean, deviation) in pairs], dim=-1)

    @torch.no_grad()
    def set_statistics(self, reading: Reading, least_deviation: float = 0.02) -> None:
        """Take means and deviations from many true readings; rare expressions get ``least_deviation``."""
        for part, (mean, deviation) in zip(reading, self._statistics(), strict=True):
            mean.copy_(part.mean(0))
            floor = least_deviation if part is reading.expression else 1e-4
            deviation.copy_(part.std(0).clamp(min=floor))

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        buffers = dict(self.named_buffers(recurse=False))
        return [(buffers[f"{name}_mean"], buffers[f"{name}_deviation"]) for name in Reading._fields]
