"""DECA's coarse encoder: a face crop to 236 parameters of FLAME, texture and light.

A ResNet-50 without its classifier and two linear layers, written anew; the tensors have the names that they
have in ``deca_model.tar`` under ``E_flame.``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

CROP = 224
SHAPE, TEXTURE, EXPRESSION, POSE, CAMERA, LIGHT = SIZES = (100, 50, 50, 6, 3, 27)
PARAMETERS = sum(SIZES)
HIDDEN = 1024
WIDTHS, DEPTHS = (64, 128, 256, 512), (3, 4, 6, 3)
EXPANSION = 4


class DecaReading(NamedTuple):
    """What DECA sees in crops; its six parts in their order.

    Attributes:
        shape: (crops, 100), beta.
        texture: (crops, 50).
        expression: (crops, 50), psi.
        turn: (crops, 3), axis-angle of the whole head in radians.
        jaw: (crops, 3), axis-angle of the jaw in radians.
        camera: (crops, 3), ``[s, tx, ty]`` of the crop.
        light: (crops, 9, 3), spherical harmonics.
    """

    shape: Tensor
    texture: Tensor
    expression: Tensor
    turn: Tensor
    jaw: Tensor
    camera: Tensor
    light: Tensor


class Bottleneck(nn.Module):
    """ResNet's block: 1 x 1, 3 x 3 (here lies the stride), 1 x 1, and what came in."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        kept = features if self.downsample is None else self.downsample(features)
        features = F.relu(self.bn1(self.conv1(features)))
        features = F.relu(self.bn2(self.conv2(features)))
        return F.relu(self.bn3(self.conv3(features)) + kept)


class ResNet50(nn.Module):
    """(crops, 3, 224, 224) -> (crops, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        inputs = WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            blocks = [Bottleneck(inputs, width, stride=2 if stage else 1)]
            inputs = width * EXPANSION
            blocks += [Bottleneck(inputs, width, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, pixels: Tensor) -> Tensor:
        features = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, stride=2, padding=1)
        for stage in range(len(WIDTHS)):
            features = self.get_submodule(f"layer{stage + 1}")(features)
        return features.mean(dim=(2, 3))


class DecaEncoder(nn.Module):
    """26 M parameters. Input (crops, 3, 224, 224) RGB in [0, 1], as they are: no mean, no deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet50()
        self.layers = nn.Sequential(
            nn.Linear(WIDTHS[-1] * EXPANSION, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PARAMETERS)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(crops, 3, 224, 224) -> (crops, 236)."""
        return self.layers(self.encoder(pixels))

    def read(self, pixels: Tensor) -> DecaReading:
        """Parameters of crops."""
        return split(self(pixels).float())


def split(vector: Tensor) -> DecaReading:
    """Parts of DECA's vector (crops, 236)."""
    shape, texture, expression, pose, camera, light = vector.split(SIZES, dim=-1)
    return DecaReading(
        shape, texture, expression, pose[:, :3], pose[:, 3:], camera, light.unflatten(-1, (9, 3))
    )
