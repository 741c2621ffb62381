"""Training the autoencoder on crops around heads, with most of the weight on eyes and mouth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.head.regions import emphasis, region_masks
from anifacediff_core.network.autoencoder import WIDTH, AutoEncoder, convolutions
from anifacediff_core.video import contact_sheet, write_image

from ..metrics import psnr
from .adversary import Adversary, AdversarySettings
from .data import Pool
from .task import Tensors

LEVELS = 4  # sizes of the decoder, from the latents' to the picture's


@dataclass(frozen=True)
class AutoencoderSettings:
    """What to optimize on which crops.

    Args:
        batch_size: crops in a batch, of each process.
        crop: side of the crops in pixels.
        noise: deviation of noise on the latents, so that the decoder forgives small errors of the UNet.
        head_weight, detail_weight: emphasis on the head and on eyes and mouth.
        gradient_weight: of the differences of neighboring pixels at three scales (crisp edges).
        square_weight: of the squared error.
        moment_weight: of the pull of the latents to zero mean and unit variance.
        widths: channels that the decoder uses at each size, coarsest first, of the layout's 64; the others
            stay zero, and whoever decodes leaves them out (`trim`).
        learn_encoder: with false the latents stay what they are, and so does what was trained on them.
        adversary: makes pictures sharp.
    """

    batch_size: int = 64
    crop: int = 128
    noise: float = 0.05
    head_weight: float = 1.5
    detail_weight: float = 3.0
    gradient_weight: float = 0.6
    square_weight: float = 3.0
    moment_weight: float = 0.02
    widths: tuple[int, ...] = (WIDTH,) * LEVELS
    learn_encoder: bool = True
    adversary: AdversarySettings = field(default_factory=AdversarySettings)

    OLD_NAMES: ClassVar[dict[str, str]] = {"rows": "batch_size"}

    def __post_init__(self) -> None:
        if len(self.widths) != LEVELS or not all(0 < width <= WIDTH for width in self.widths):
            raise InputError(
                f"The autoencoder's widths are {self.widths}; give {LEVELS} numbers from 1 to {WIDTH}."
            )


class RoundTrip(nn.Module):
    """Crops (rows, 3, h, w) and latent noise -> reconstruction and latents."""

    def __init__(self, autoencoder: AutoEncoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.autoencoder.encode(images)
        return self.autoencoder.decode(latents + noise), latents


def edge_error(image: Tensor, truth: Tensor, weight: Tensor, scales: int = 3) -> Tensor:
    """Mean difference of the image gradients at several scales, weighted by `weight` (rows, 1, h, w)."""
    total = image.new_zeros(())
    error = image - truth
    for scale in range(scales):
        across = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
        down = (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
        total = total + across + down
        if scale < scales - 1:
            error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
    return total


def moment_error(latents: Tensor) -> Tensor:
    """How far each channel of a batch is from zero mean and unit variance."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return mean.square().mean() + deviation.clamp(min=1e-4).log().square().mean()


@torch.no_grad()
def confine(decoder: nn.Sequential, widths: tuple[int, ...]) -> None:
    """Zero a decoder's channels beyond so many at each size, for as long as it is trained."""
    level = -1
    for layer in list(decoder)[:-1]:
        level += isinstance(layer, nn.Conv2d)
        for each in convolutions(layer):
            for weight in each.parameters():
                weight[widths[level] :] = 0
                weight.register_hook(partial(_first, widths[level]))


def _first(count: int, gradient: Tensor) -> Tensor:
    """A gradient of the first channels alone; of what is on the device only, for CUDA graphs."""
    return torch.cat([gradient[:count], torch.zeros_like(gradient[count:])])


@torch.no_grad()
def latent_moments(autoencoder: AutoEncoder, images: Tensor, batch: int = 128) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every latent channel over uint8 pictures (N, 3, H, W) -> (channels,) twice."""
    latents = torch.cat([autoencoder.encode(part.float().div(255)).float() for part in images.split(batch)])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def fold_moments(autoencoder: AutoEncoder, mean: Tensor, deviation: Tensor) -> None:
    """Give the latents zero mean and unit variance, by the encoder's last and the decoder's first layer.

    The decoder begins with TAESD's soft clamp, so the two changes cancel only as far as the moments were near
    0 and 1 before; the moment loss of the training sees to that.
    """
    last = autoencoder.encoder[-1]
    first = autoencoder.decoder[1]
    assert isinstance(last, nn.Conv2d) and isinstance(first, nn.Conv2d)
    assert last.bias is not None and first.bias is not None
    mean, deviation = mean.to(last.weight), deviation.to(last.weight)
    last.weight.div_(deviation[:, None, None, None])
    last.bias.sub_(mean).div_(deviation)
    first.bias.add_(torch.einsum("oihw,i->o", first.weight, mean))
    first.weight.mul_(deviation[None, :, None, None])


class AutoencoderTask:
    """Reconstruction of avatars; see `task.Task`."""

    name = "autoencoder"
    period = 1

    def __init__(
        self,
        autoencoder: AutoEncoder,
        pool: Pool,
        held_out: Pool,
        settings: AutoencoderSettings,
        adversary: Adversary | None = None,
    ) -> None:
        self.autoencoder = autoencoder
        autoencoder.encoder.requires_grad_(settings.learn_encoder)
        confine(autoencoder.decoder, settings.widths)
        self.module = RoundTrip(autoencoder)
        self.adversary, self.fraction = adversary, 0.0
        self.pool, self.held_out, self.settings = pool, held_out, settings

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        self.fraction = fraction
        images, origin, index = self._crops()
        spots = self.pool.spots[index]
        s = self.settings
        weight = emphasis(spots, origin.float(), s.crop, 1.0, s.head_weight, s.detail_weight)
        latent_size = (s.batch_size, self.autoencoder.latent_channels, s.crop // 8, s.crop // 8)
        noise = torch.randn(latent_size, device=images.device) * s.noise
        return (images, noise), (images, weight)

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        image, latents = outputs[0].float(), outputs[1].float()
        truth, weight = targets
        s = self.settings
        absolute = ((image - truth).abs() * weight).mean()
        square = ((image - truth).square() * weight).mean()
        edges = edge_error(image, truth, weight)
        moments = moment_error(latents)
        loss = absolute + s.square_weight * square + s.gradient_weight * edges
        found = {"absolute": absolute, "edges": edges, "moments": moments}
        if self.adversary is not None:
            adversarial, logged = self.adversary.losses(image, truth, None, loss, self.fraction)
            loss, found = loss + adversarial, found | logged
        if s.learn_encoder:
            loss = loss + s.moment_weight * moments
        return {"loss": loss, **found}

    def weights(self) -> dict[str, Tensor]:
        return {f"vae.{key}": value for key, value in self._folded().state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        adversary = {} if self.adversary is None else {"adversary": self.adversary.state_dict()}
        return self.pool.state_dict() | adversary

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state)
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        folded = self._folded()
        truth = self.held_out.images.float().div(255)
        image = torch.cat(
            [folded.decode(folded.encode(part)).float().clamp(0, 1) for part in truth.split(32)]
        )
        masks = region_masks(self.held_out.spots, truth.shape[-1])
        write_image(path, contact_sheet([truth[:6], image[:6]]))
        measures = {"psnr": float(psnr(image, truth).mean())}
        return measures | {name: float(psnr(image, truth, mask).mean()) for name, mask in masks.items()}

    def _folded(self) -> AutoEncoder:
        """A copy of the (averaged) autoencoder whose latents, where they are learned, have exact moments."""
        copy = AutoEncoder(self.autoencoder.latent_channels)
        copy.load_state_dict(self.autoencoder.state_dict())
        copy = copy.to(next(self.autoencoder.parameters()).device).eval()
        if not self.settings.learn_encoder:
            return copy
        some = self.pool.images[torch.arange(0, len(self.pool), max(len(self.pool) // 1024, 1))]
        fold_moments(copy, *latent_moments(copy, some))
        return copy

    def _crops(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random crops, most of them with an eye, the mouth or the head's middle somewhere inside.

        Returns:
            crops (rows, 3, crop, crop) in [0, 1], their origins (rows, 2) as x, y, and indices of the
            pictures (rows,).
        """
        images, spots = self.pool.images, self.pool.spots
        rows, crop, size = self.settings.batch_size, self.settings.crop, images.shape[-1]
        device = images.device
        index = torch.randint(len(self.pool), (rows,), device=device)
        spot = torch.randint(spots.shape[1], (rows,), device=device)
        center = spots[index, spot, :2] + (torch.rand(rows, 2, device=device) - 0.5) * (0.8 * crop)
        anywhere = torch.rand(rows, 2, device=device) * size
        center = torch.where(torch.rand(rows, 1, device=device) < 0.8, center, anywhere)
        origin = (center - crop / 2).round().long().clamp(0, size - crop)
        across = torch.arange(crop, device=device)
        x, y = origin[:, 0, None] + across, origin[:, 1, None] + across
        channels = torch.arange(3, device=device)
        taken = images[
            index[:, None, None, None],
            channels[None, :, None, None],
            y[:, None, :, None],
            x[:, None, None, :],
        ]
        return taken.float().div(255), origin, index
