"""Styles of whole pictures: from color grading to painting and line drawing.

A style is one function for all frames of a row: the source and the truth of a pair, or a whole clip. A
network that learns from such rows has to copy the look of the source, since it cannot know it. All filters
commute with translation and add no noise of their own, so what moves in the picture keeps its look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from anifacediff_core.errors import InputError

LUMA = (0.299, 0.587, 0.114)


class Draws:
    """Random numbers of `rows` rows, shaped to broadcast with pictures (rows, frames, 3, height, width)."""

    def __init__(self, rows: int, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        shape = (self.rows, 1, channels, 1, 1)
        values = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * values

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.rows, *shape, generator=self.generator, device=self.generator.device)

    def chance(self, probability: float) -> Tensor:
        return (self.uniform(0, 1) < probability).float()

    def whole(self, low: int, high: int) -> int:
        """One number for all rows, `high` included."""
        device = self.generator.device
        return int(torch.randint(low, high + 1, (), generator=self.generator, device=device))


def stylize(images: Tensor, family: str, generator: torch.Generator) -> Tensor:
    """Give every row a style of its own.

    Args:
        images: (rows, frames, 3, height, width) in [0, 1].
        family: one of :data:`FAMILIES` or :data:`HELD_OUT`.
        generator: on the pictures' device.

    Returns:
        pictures of the same shape, in [0, 1].
    """
    styles = FAMILIES | HELD_OUT
    return styles[family](images, Draws(len(images), generator)).clamp(0, 1)


def plain(images: Tensor, draws: Draws) -> Tensor:
    return images


def graded(images: Tensor, draws: Draws) -> Tensor:
    """What cameras, films and editors do: balance, cast, saturation, contrast, gamma, sharpness."""
    mixing = torch.eye(3, device=images.device) + 0.18 * draws.normal(3, 3) * draws.chance(0.5)[:, 0, :, :, 0]
    images = torch.einsum("rij,rfjhw->rfihw", mixing, images - 0.5) + 0.5
    gray = luma(images)
    saturation = draws.uniform(0.2, 1.7) * (1 - draws.chance(0.12))
    images = gray + (images - gray) * saturation
    images = (images - 0.5) * draws.uniform(0.55, 1.35) + 0.5 + draws.uniform(-0.1, 0.1, 3)
    images = images + draws.uniform(-0.15, 0.15)
    images = images.clamp(1e-3, 1) ** torch.exp(draws.uniform(-0.6, 0.6))
    detail = images - blur(images, 5)
    return images + detail * draws.uniform(-0.9, 1.6) * draws.chance(0.5)


def convolved(images: Tensor, draws: Draws) -> Tensor:
    """Random textures and colors: stacked random 3 × 3 convolutions with contrasts between them.

    Choi et al. 2023, "Progressive Random Convolutions for Single Domain Generalization".
    """
    kernel = draws.normal(3, 3, 3, 3) * math.sqrt(2 / 27)
    reach = draws.uniform(0.2, 1.5)
    offsets = torch.arange(3, device=images.device) - 1.0
    distance = offsets[:, None].square() + offsets[None, :].square()
    kernel = kernel * torch.exp(-distance / (2 * reach.square()))
    scale, shift = 1 + 0.5 * draws.normal(1, 3, 1, 1), 0.5 * draws.normal(1, 3, 1, 1)
    result = images * 2 - 1
    for _ in range(draws.whole(1, 6)):
        result = _convolve(result, kernel)
        result = torch.tanh(_standardized(result) * scale + shift)
    mean, spread = _moments(images)
    target = torch.where(draws.chance(0.5).bool(), mean, draws.uniform(0.15, 0.85, 3))
    result = _standardized(result) * spread * draws.uniform(0.6, 1.4, 3) + target
    return torch.lerp(images, result, draws.uniform(0.25, 1.0))


def painted(images: Tensor, draws: Draws) -> Tensor:
    """Brush strokes: Kuwahara's filter once or twice."""
    for _ in range(draws.whole(1, 2)):
        images = kuwahara(images, draws.whole(1, 3))
    return images + (images - blur(images, 5)) * draws.uniform(0, 1.0)


def posterized(images: Tensor, draws: Draws) -> Tensor:
    """A few flat tones with soft steps, sometimes inked."""
    tones = draws.uniform(2.5, 9)
    smooth = kuwahara(images, 2)
    level = smooth * tones
    step = level.floor()
    sharpness = draws.uniform(2, 12)
    flat = (step + torch.sigmoid((level - step - 0.5) * sharpness)) / tones
    ink = lines(images, draws)
    return flat * (1 - (1 - ink) * draws.chance(0.5))


def drawn(images: Tensor, draws: Draws) -> Tensor:
    """Pencil, ink or wash: lines on paper, over nothing or over a faded, spread picture."""
    ink = lines(images, draws)
    gray = luma(images)
    wash = torch.lerp(blur(kuwahara(images, 3), 7), blur(gray, 5), draws.chance(0.5))
    paper, pen = draws.uniform(0.75, 1.0, 3), draws.uniform(0.0, 0.35, 3)
    tone = torch.lerp(paper, wash, draws.uniform(0, 0.9) * draws.chance(0.75))
    return torch.lerp(pen, tone, ink)


def filtered(images: Tensor, draws: Draws) -> Tensor:
    """Other spectra: bands of frequencies stronger or weaker, from haze to relief."""
    height, width = images.shape[-2:]
    frequency = torch.hypot(
        torch.fft.fftfreq(height, device=images.device)[:, None],
        torch.fft.rfftfreq(width, device=images.device)[None, :],
    )
    octave = (frequency.clamp(min=1 / 256).log2() + 8)[None, None, None]
    gain = torch.zeros_like(octave)
    for _ in range(3):
        center, width_of = draws.uniform(2, 7.5), draws.uniform(0.5, 1.5)
        gain = gain + draws.uniform(-0.8, 0.8) * torch.exp(-((octave - center) / width_of).square() / 2)
    spectrum = torch.fft.rfft2(images) * torch.exp(gain * (frequency > 0))
    return torch.fft.irfft2(spectrum, s=(height, width))


def cel(images: Tensor, draws: Draws) -> Tensor:
    """Animation: smooth colors in two or three tones of their own hue, strong, with dark outlines."""
    smooth = kuwahara(kuwahara(images, 3), 3)
    gray = luma(smooth)
    tones = draws.uniform(1.5, 3.5)
    level = gray * tones
    flat = (level.floor() + torch.sigmoid((level - level.floor() - 0.5) * 16)) / tones
    toned = smooth * (flat + 0.15) / (gray + 0.15)
    strong = luma(toned) + (toned - luma(toned)) * draws.uniform(1.1, 1.8)
    ink = lines(smooth, draws)
    return torch.lerp(strong * draws.uniform(0.05, 0.4), strong, ink)


def duotone(images: Tensor, draws: Draws) -> Tensor:
    """A print in two or three inks: every brightness has a color of its own."""
    gray = luma(images) ** torch.exp(draws.uniform(-0.4, 0.4))
    dark, middle, light = draws.uniform(0, 0.3, 3), draws.uniform(0.2, 0.8, 3), draws.uniform(0.7, 1, 3)
    below, above = torch.lerp(dark, middle, (2 * gray).clamp(0, 1)), torch.lerp(middle, light, 2 * gray - 1)
    return torch.where(gray < 0.5, below, above)


def watercolor(images: Tensor, draws: Draws) -> Tensor:
    """Thin washes on white paper: pale, without small things, darker where a wash ends."""
    wash = blur(kuwahara(kuwahara(images, 3), 2), 3)
    edges = (kuwahara(images, 2) - blur(wash, 7)).abs().sum(2, keepdim=True)
    pigment = (1 - wash) * draws.uniform(0.45, 0.85) + edges * draws.uniform(0.1, 0.5)
    return 1 - pigment * (1 - draws.uniform(0, 0.15, 3))


HELD_OUT: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "cel": cel,
    "duotone": duotone,
    "watercolor": watercolor,
}
"""Families that nothing is trained on: the benchmark asks how a checkpoint does on looks it has not met."""

FAMILIES: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "plain": plain,
    "graded": graded,
    "convolved": convolved,
    "painted": painted,
    "posterized": posterized,
    "drawn": drawn,
    "filtered": filtered,
}


@dataclass(frozen=True)
class StyleShares:
    """How often each family occurs, relative to the others; all plain by default."""

    plain: float = 1.0
    graded: float = 0.0
    convolved: float = 0.0
    painted: float = 0.0
    posterized: float = 0.0
    drawn: float = 0.0
    filtered: float = 0.0

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or not sum(astuple(self)) > 0:
            raise InputError(
                "The shares of the styles must not be negative, and one must be above 0; change them."
            )

    @property
    def only_plain(self) -> bool:
        return sum(astuple(self)) == self.plain


def stylize_rows(images: Tensor, shares: StyleShares, generator: torch.Generator) -> Tensor:
    """Give every row a style of a family drawn by its share; half of the styled rows are graded on top.

    Args:
        images: (rows, frames, 3, height, width) in [0, 1].
        generator: on the CPU, so that families follow from its seed on every device; the styles themselves
            are drawn on the pictures' device.
    """
    if shares.only_plain:
        return images
    rows = len(images)
    weights = torch.tensor(astuple(shares))
    family = torch.multinomial(weights, rows, replacement=True, generator=generator)
    graded_too = (torch.rand(rows, generator=generator) < 0.5) & (family != 0)
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator(images.device).manual_seed(seed)
    result = images.clone()
    for number, name in enumerate(FAMILIES):
        chosen = torch.nonzero(family == number).flatten().to(images.device)
        if name != "plain" and len(chosen):
            result[chosen] = stylize(images[chosen], name, own)
    chosen = torch.nonzero(graded_too).flatten().to(images.device)
    if len(chosen):
        result[chosen] = stylize(result[chosen], "graded", own)
    return result


def luma(images: Tensor) -> Tensor:
    """(…, 3, height, width) → (…, 1, height, width)."""
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)


def blur(images: Tensor, side: int) -> Tensor:
    """Mean over squares of an odd side, the border repeated."""
    flat = images.flatten(0, 1)
    padded = F.pad(flat, (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side, 1).view_as(images)


def kuwahara(images: Tensor, radius: int) -> Tensor:
    """The mean of the calmest of the four squares of radius + 1 pixels that meet in a pixel."""
    flat = images.flatten(0, 1)
    side = radius + 1
    padded = F.pad(flat, (radius,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, side, 1)
    variance = F.avg_pool2d(luma(padded).square(), side, 1) - F.avg_pool2d(luma(padded), side, 1).square()
    height, width = flat.shape[-2:]
    places = [(0, 0), (0, radius), (radius, 0), (radius, radius)]
    means = torch.stack([mean[..., y : y + height, x : x + width] for y, x in places])
    variances = torch.stack([variance[..., y : y + height, x : x + width] for y, x in places])
    weights = (1e-4 / (variances + 1e-5)).pow(2)  # soft: a hard choice would jump between frames
    return ((means * weights).sum(0) / weights.sum(0)).view_as(images)


def lines(images: Tensor, draws: Draws) -> Tensor:
    """Where no ink is, (rows, frames, 1, height, width): extended difference of Gaussians.

    Winnemöller et al. 2012, "XDoG".
    """
    gray = luma(images)
    fine, coarse = blur(gray, 3), blur(blur(gray, 5), 5)
    sharpened = fine + draws.uniform(6, 20) * (fine - coarse)
    threshold, softness = draws.uniform(0.25, 0.6), draws.uniform(4, 14)
    return 1 - (1 + torch.tanh((threshold - sharpened) * softness)) / 2


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """What cameras and files take away: sharpness, size, clean pixels, JPEG's blocks.

    Args:
        images: (rows, 3, height, width) in [0, 1], sides a multiple of 8.
    """
    draws = Draws(len(images), generator)
    rows = images[:, None]
    height, width = images.shape[-2:]
    small = F.interpolate(images, scale_factor=1 / draws.whole(2, 3), mode="area")
    small = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[:, None]
    rows = torch.lerp(rows, small, draws.chance(0.35))
    rows = torch.lerp(rows, blur(rows, 3), draws.chance(0.3))
    grain = torch.randn(rows.shape, generator=generator, device=images.device)
    rows = rows + grain * draws.uniform(0, 0.06) * draws.chance(0.4)
    return torch.lerp(rows, _jpeg(rows, draws.uniform(0.02, 0.12)), draws.chance(0.4))[:, 0].clamp(0, 1)


def _jpeg(images: Tensor, step: Tensor) -> Tensor:
    """Quantized cosines of blocks of 8 × 8 pixels, coarser for higher frequencies."""
    basis = torch.arange(8, device=images.device, dtype=torch.float32)
    cosines = torch.cos((2 * basis[None] + 1) * basis[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    blocks = rearrange(images, "r f c (h a) (w b) -> r f c h w a b", a=8, b=8)
    weights = torch.einsum("ua,rfchwab,vb->rfchwuv", cosines, blocks, cosines)
    coarse = step[..., None, None] * (1 + basis[:, None] + basis[None, :])
    weights = (weights / coarse).round() * coarse
    blocks = torch.einsum("ua,rfchwuv,vb->rfchwab", cosines, weights, cosines)
    return rearrange(blocks, "r f c h w a b -> r f c (h a) (w b)")


def _convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Every row with its own kernel (rows, 3, 3, 3, 3)."""
    rows = len(images)
    grouped = rearrange(images, "r f c h w -> f (r c) h w")
    padded = F.pad(grouped, (1, 1, 1, 1), mode="reflect")
    result = F.conv2d(padded, kernel.flatten(0, 1), groups=rows)
    return rearrange(result, "f (r c) h w -> r f c h w", r=rows)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every row's channels, over all its frames."""
    return images.mean((1, 3, 4), keepdim=True), images.std((1, 3, 4), keepdim=True) + 1e-4


def _standardized(images: Tensor) -> Tensor:
    mean, spread = _moments(images)
    return (images - mean) / spread
