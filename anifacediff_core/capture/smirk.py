"""SMIRK's encoder: a face crop to parameters of FLAME, by three small MobileNets.

They are timm's ``tf_mobilenetv3_{small,large}_minimal_100``, written anew; the tensors have the names that
they have in ``SMIRK_em1.pt`` under ``smirk_encoder.``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE, EXPRESSION, EYELIDS, JAW = 300, 50, 2, 3
JAW_LIMIT = 0.2  # radians, sideways
STEM = 16
EPSILON = 1e-3  # of batch norms, as in the TensorFlow original
# Stages of blocks (inner width, outputs, stride); kernels are 3 x 3. The first stage has no expansion, after
# the last one comes a 1 x 1 to six times the width.
SMALL = (
    ((16, 16, 2),),
    ((72, 24, 2), (88, 24, 1)),
    ((96, 40, 2), (240, 40, 1), (240, 40, 1)),
    ((120, 48, 1), (144, 48, 1)),
    ((288, 96, 2), (576, 96, 1), (576, 96, 1)),
)
LARGE = (
    ((16, 16, 1),),
    ((64, 24, 2), (72, 24, 1)),
    ((72, 40, 2), (120, 40, 1), (120, 40, 1)),
    ((240, 80, 2), (200, 80, 1), (184, 80, 1), (184, 80, 1)),
    ((480, 112, 1), (672, 112, 1)),
    ((672, 160, 2), (960, 160, 1), (960, 160, 1)),
)
LAST_EXPANSION = 6

Stages = tuple[tuple[tuple[int, int, int], ...], ...]


class SmirkReading(NamedTuple):
    """What SMIRK sees in crops.

    Attributes:
        shape: (crops, 300), beta.
        expression: (crops, 50), psi.
        eyelids: (crops, 2) in [0, 1], left and right; they need blendshapes that FLAME does not have.
        turn: (crops, 3), axis-angle of the whole head in radians.
        jaw: (crops, 3), axis-angle of the jaw in radians, opening only and little to the sides.
        camera: (crops, 3), ``[s, tx, ty]`` of the crop.
    """

    shape: Tensor
    expression: Tensor
    eyelids: Tensor
    turn: Tensor
    jaw: Tensor
    camera: Tensor


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: outputs = inputs / stride, an odd rest at the end."""

    def forward(self, features: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(
            reversed(features.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(features, padding))


class Separable(nn.Module):
    """Depthwise 3 x 3, then 1 x 1."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv(channels, channels, 3, stride=stride, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps=EPSILON)
        self.conv_pw = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.skip = stride == 1 and channels == outputs

    def forward(self, features: Tensor) -> Tensor:
        result = self.bn2(self.conv_pw(F.relu(self.bn1(self.conv_dw(features)))))
        return result + features if self.skip else result


class Inverted(nn.Module):
    """1 x 1 to the inner width, depthwise 3 x 3, 1 x 1 back."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=EPSILON)
        self.conv_dw = SameConv(width, width, 3, stride=stride, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=EPSILON)
        self.conv_pwl = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        result = F.relu(self.bn1(self.conv_pw(features)))
        result = F.relu(self.bn2(self.conv_dw(result)))
        result = self.bn3(self.conv_pwl(result))
        return result + features if self.skip else result


class Widen(nn.Module):
    """1 x 1 before the pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(features)))


class MobileNet(nn.Module):
    """(crops, 3, height, width) -> (crops, channels): the pooled last features."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, STEM, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM, eps=EPSILON)
        self.blocks = nn.Sequential()
        inputs = STEM
        for number, stage in enumerate(stages):
            blocks = nn.Sequential()
            for width, outputs, stride in stage:
                blocks.append(
                    Inverted(inputs, width, outputs, stride) if number else Separable(inputs, outputs, stride)
                )
                inputs = outputs
            self.blocks.append(blocks)
        self.channels = LAST_EXPANSION * inputs
        self.blocks.append(nn.Sequential(Widen(inputs, self.channels)))

    def forward(self, pixels: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv_stem(pixels)))
        return self.blocks(features).mean(dim=(2, 3))


class Branch(nn.Module):
    """A MobileNet with one linear layer, whose name in the file is ``layer``."""

    def __init__(self, stages: Stages, layer: str, outputs: int) -> None:
        super().__init__()
        self.encoder = MobileNet(stages)
        self.add_module(layer, nn.Sequential(nn.Linear(self.encoder.channels, outputs)))
        self.layer = layer

    def forward(self, pixels: Tensor) -> Tensor:
        return self.get_submodule(self.layer)(self.encoder(pixels))


class SmirkEncoder(nn.Module):
    """Input (crops, 3, 224, 224) RGB in [0, 1], as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.pose_encoder = Branch(SMALL, "pose_cam_layers", 6)
        self.shape_encoder = Branch(LARGE, "shape_layers", SHAPE)
        self.expression_encoder = Branch(LARGE, "expression_layers", EXPRESSION + EYELIDS + JAW)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(crops, 3, 224, 224) -> pose and camera (crops, 6), shape (crops, 300), the rest (crops, 55)."""
        return self.pose_encoder(pixels), self.shape_encoder(pixels), self.expression_encoder(pixels)

    def read(self, pixels: Tensor) -> SmirkReading:
        """Parameters of crops."""
        pose, shape, rest = (part.float() for part in self(pixels))
        return _reading(pose, shape, rest)

    def read_expression(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Expression (crops, 50) and jaw (crops, 3) alone, a third of the work."""
        rest = self.expression_encoder(pixels).float()
        reading = _reading(rest.new_zeros(len(rest), 6), rest.new_zeros(len(rest), SHAPE), rest)
        return reading.expression, reading.jaw


def _reading(pose: Tensor, shape: Tensor, rest: Tensor) -> SmirkReading:
    expression, eyelids, jaw = rest.split((EXPRESSION, EYELIDS, JAW), dim=-1)
    jaw = torch.cat([F.relu(jaw[:, :1]), jaw[:, 1:].clamp(-JAW_LIMIT, JAW_LIMIT)], dim=1)
    return SmirkReading(shape, expression, eyelids.clamp(0, 1), pose[:, :3], jaw, pose[:, 3:])
