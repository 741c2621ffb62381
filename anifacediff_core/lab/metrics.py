"""Measures of pictures, videos and face parameters. Pictures are (frames, 3, height, width) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.head import rotation
from anifacediff_core.head.parameters import FaceParameters


def psnr(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of every frame, in decibels.

    Args:
        mask: (frames, 1, height, width) weights; only where it is above 0 does the error count.

    Returns:
        (frames,); at most 100.
    """
    error = (image.float() - truth.float()).square().mean(1, keepdim=True)
    if mask is None:
        mean = error.flatten(1).mean(1)
    else:
        mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
    return -10 * mean.clamp(min=1e-10).log10()


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; Gaussian window of 11, sigma 1.5) of frames: (frames,)."""
    weight = torch.exp(-torch.linspace(-5, 5, 11, device=image.device).square() / (2 * 1.5**2))
    weight = weight / weight.sum()

    def blur(x: Tensor) -> Tensor:
        channels = x.flatten(0, 1)[:, None]
        channels = F.conv2d(F.conv2d(channels, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))
        return channels.view(x.shape[0], x.shape[1], *channels.shape[2:])

    a, b = image.float(), truth.float()
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)
    return (top / bottom).flatten(1).mean(1)


def flicker(video: Tensor, truth: Tensor) -> float:
    """Mean frame-to-frame difference of a video over that of the truth.

    Args:
        video, truth: (clips, frames, 3, height, width).
    """
    if video.shape[1] < 2:
        return float("nan")
    moved, expected = video.diff(dim=1).abs().mean(), truth.diff(dim=1).abs().mean()
    return float(moved / expected.clamp(min=1e-8))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of every column of (rows, columns) over the rows; NaN where one is constant."""
    a, b = a.double() - a.double().mean(0), b.double() - b.double().mean(0)
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return torch.where(scale > 1e-9, (a * b).sum(0) / scale.clamp(min=1e-12), torch.nan).float()


def rotation_error(found: FaceParameters, truth: FaceParameters) -> Tensor:
    """Angle between the heads in space (global and neck rotation together), in degrees: (frames,)."""
    found_head, true_head = (rotation.compose(p.pose[:, 0:3], p.pose[:, 3:6]) for p in (found, truth))
    return torch.rad2deg(rotation.angle_between(found_head, true_head.to(found_head)))


@dataclass(frozen=True)
class ReadBack:
    """What an encoder reads from pictures against the parameters that they were made with."""

    correlation: float
    by_action: dict[str, float]
    rotation: float
    frames: int


def read_back(found: FaceParameters, truth: FaceParameters, names: list[str], visible: Tensor) -> ReadBack:
    """Compare captured with true parameters, over the frames where a face was found.

    Args:
        names: names of the expression's coefficients.
        visible: (expressions,) bool, the actions that can be seen and that the drivers use.
    """
    keep = found.valid.cpu()
    found, truth = found.to("cpu")[keep], truth.to("cpu")[keep]
    if len(found) < 3:
        return ReadBack(float("nan"), {}, float("nan"), len(found))
    values = correlation(found.expression, truth.expression)
    values = torch.where(visible.cpu(), values, torch.nan)
    return ReadBack(
        correlation=float(values.nanmean()),
        by_action={name: float(value) for name, value in zip(names, values) if not value.isnan()},
        rotation=float(rotation_error(found, truth).mean()),
        frames=len(found),
    )
