"""FID: the Fréchet distance between two sets of pictures, as Heusel et al. 2017 define it (paper 4.1).

Features are streamed: a set is its mean and covariance, so memory does not grow with the number of pictures.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.weights.importers.recognition import Listing
from anifacediff_core.weights.reading import open_tensors

INCEPTION_MARK = "Conv2d_1a_3x3.conv.weight"
CLASSES = (1008, 2048)  # TensorFlow's network; torchvision's own has 1000 classes and other padding


class Features(Protocol):
    """A network that makes one vector of each picture."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def __call__(self, frames: Tensor) -> Tensor:
        """Pictures (frames, 3, height, width) in [0, 1] -> (frames, features), on any device."""
        ...


class RunningGaussian:
    """Mean and covariance of vectors that come in parts, in float64 (Chan et al. 1979).

    Attributes:
        count: vectors so far.
        mean: (features,), empty before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add vectors (n, features)."""
        rows = features.detach().to("cpu", torch.float64)
        if not len(rows):
            return
        mean = rows.mean(0)
        centered = rows - mean
        if not self.count:
            self.count, self.mean, self._scatter = len(rows), mean, centered.T @ centered
            return
        total, step = self.count + len(rows), mean - self.mean
        self._scatter += centered.T @ centered
        self._scatter += torch.outer(step, step) * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(features, features), unbiased: divided by count - 1."""
        return self._scatter / (self.count - 1)


def frechet_distance(first: RunningGaussian, second: RunningGaussian) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½); NaN where a set has fewer than two vectors.

    tr (C1 C2)^½ is the sum of the singular values of C1^½ C2^½, which unlike eigenvalues of C1 C2 stay exact
    for sets with fewer vectors than features.
    """
    if min(first.count, second.count) < 2:
        return float("nan")
    one, two = first.covariance, second.covariance
    shared = torch.linalg.svdvals(_root(one).T @ _root(two)).sum()
    distance = (first.mean - second.mean).square().sum() + one.trace() + two.trace() - 2 * shared
    return max(float(distance), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """R (features, rank) with R Rᵀ = covariance; what rounding alone has made is left out."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


class Inception:
    """TensorFlow's Inception v3 of 2015, the network of FID, by torch-fidelity: resizing and all.

    Call it with pictures (frames, 3, height, width) in [0, 1]; they are rounded to 8 bits, as FID reads them.
    Gives (frames, 2048).
    """

    name = "Inception v3 (2015-12-05), 2048 features"

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Inception:
        """Read `pt_inception-2015-12-05-6726825d.pth` or torch-fidelity's file of the same weights.

        Raises:
            InputError: torch-fidelity is not installed, or the file is not that network.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise InputError(
                f"FID needs torch-fidelity ({error}): install the extra with pip install '.[eval]'."
            ) from error
        with open_tensors(path) as file:
            listing = Listing.of(file)
            if INCEPTION_MARK not in listing or listing.shape("fc.weight") != CLASSES:
                raise InputError(
                    f"{Path(path).name} is not the Inception network of FID: expected {INCEPTION_MARK} and "
                    f"fc.weight {list(CLASSES)}; choose pt_inception-2015-12-05-6726825d.pth."
                )
            weights = {name: file.read(original) for name, original in listing.originals.items()}
        for name in [name for name in weights if name.endswith(".running_mean")]:
            weights.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
        # torch-fidelity unpickles the file that it is given, so it is given what was read safely, in memory.
        own = io.BytesIO()
        torch.save(weights, own)
        own.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=own)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(
                f"{Path(path).name} does not fit the Inception network of FID ({reason}); get a fresh copy."
            ) from error
        return cls(network, torch.device(device))

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        pixels = frames.clamp(0, 1).mul(255).round().to(self.device, torch.uint8)
        return self.network(pixels)[0]
