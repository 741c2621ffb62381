"""DECA's coarse encoder: a face crop to 236 parameters of FLAME, texture and light.

A ResNet-50 without its classifier and two linear layers, written anew; the tensors have the names that they
have in ``deca_model.tar`` under ``E_flame.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..weights.reading import TensorFile, open_tensors

CROP = 224
PREFIX = "E_flame."
SHAPE, TEXTURE, EXPRESSION, POSE, CAMERA, LIGHT = SIZES = (100, 50, 50, 6, 3, 27)
PARAMETERS = sum(SIZES)
HIDDEN = 1024
WIDTHS, DEPTHS = (64, 128, 256, 512), (3, 4, 6, 3)
EXPANSION = 4
COUNTER = "num_batches_tracked"  # of batch norms; means nothing to a trained network

Network = TypeVar("Network", bound=nn.Module)


class DecaReading(NamedTuple):
    """What DECA sees in crops; its six parts in their order.

    Attributes:
        shape: (crops, 100), β.
        texture: (crops, 50).
        expression: (crops, 50), ψ.
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

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], what: str = "the DECA weights") -> DecaEncoder:
        """An encoder in evaluation mode.

        Args:
            weights: of any floating type, named as in this module.
            what: name of the file in messages.

        Raises:
            InputError: names or shapes differ.
        """
        return filled(cls(), weights, what)

    @classmethod
    def load(cls, path: str | Path) -> DecaEncoder:
        """Read ``deca_model.tar``, or the encoder alone in a file of any kind that can be read safely.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        with open_tensors(path) as file:
            prefix = next((p for p in (PREFIX, "deca.", "") if f"{p}layers.2.weight" in file.infos), None)
            if prefix is None or f"{prefix}encoder.conv1.weight" not in file.infos:
                raise InputError(
                    f"'{Path(path).name}' is not DECA: expected the encoder E_flame, found "
                    f"{min(file.infos, default='no tensor')}; choose deca_model.tar."
                )
            return cls.from_weights(under(file, prefix), f"'{Path(path).name}'")

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


def under(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: file.read(name) for name in file.infos if name.startswith(prefix)}


def filled(module: Network, weights: Mapping[str, Tensor], what: str) -> Network:
    """Fill a network and put it into evaluation mode; all names and shapes must agree."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name) and not (name.endswith(COUNTER) and name not in found):
            raise InputError(
                f"{what[:1].upper()}{what[1:]} does not fit: expected {name} "
                f"{list(expected[name]) if name in expected else 'absent'}, found "
                f"{list(found[name]) if name in found else 'none'}; get a fresh copy."
            )
    kept = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    module.load_state_dict(kept, strict=False)  # strict but for the counters, see above
    return module.eval().requires_grad_(False)
