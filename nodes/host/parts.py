"""The networks beside the UNet: built from a checkpoint's weights for the host, and run there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.network.attention import AttentionInputs, install_processors
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import ExpressionAdapter, make_pose_encoder, pose_sample
from anifacediff_core.network.encoders import encode_pose as encode_pictures
from anifacediff_core.network.temporal import MotionModules
from anifacediff_core.network.unet import make_unet, run_unet, trim_reference
from anifacediff_core.progress import Progress
from anifacediff_core.weights.fill import fill
from anifacediff_core.weights.layout import block_channels

from .auxiliary import manage, run, unwrap

Weights = dict[str, Tensor]


def load_reference(config: NetworkConfig, weights: Weights) -> ModelPatcher:
    """The ReferenceNet, without what follows its last features."""
    reference = _on_meta(make_unet, config)
    trim_reference(reference)
    install_processors(reference)
    live = reference.state_dict()
    # a ReferenceNet that was saved whole carries weights that nothing depends on
    used = {name: weight for name, weight in weights.items() if name in live}
    return manage(fill(reference, used, "The checkpoint's ReferenceNet"))


def load_pose_encoder(config: NetworkConfig, weights: Weights) -> ModelPatcher:
    return manage(fill(_on_meta(make_pose_encoder, config), weights, "The checkpoint's pose encoder"))


def load_expression_adapter(config: NetworkConfig, weights: Weights) -> ModelPatcher:
    adapter = _on_meta(ExpressionAdapter, config, block_channels(config))
    return manage(fill(adapter, weights, "The checkpoint's expression adapter"))


def load_motion(config: NetworkConfig, weights: Weights) -> ModelPatcher:
    """The temporal modules. Their positions are sines, which files may leave out."""
    motion = MotionModules(config)
    positions = dict(motion.named_buffers())
    return manage(fill(motion, positions | weights, "The checkpoint's motion part"))


def encode_reference(reference: ModelPatcher, samples: Tensor, embedding: Tensor) -> dict[str, Tensor]:
    """Run the ReferenceNet once, at t = 0 (section 3.2).

    Args:
        samples: the source's latent as in the host's LATENT, (1, 4, height / 8, width / 8).
        embedding: of the picture (1, D), or of a text (1, tokens, D).

    Returns: tokens (1, tokens, channels) by the name of the transformer block, on the CPU.
    """

    def record(unet: nn.Module, latents: Tensor, context: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        run_unet(unet, latents, timesteps, context, conditions=AttentionInputs(record=features))
        return {name: tokens.cpu() for name, tokens in features.items()}

    context = embedding[:, None] if embedding.ndim == 2 else embedding
    _require_fit(unwrap(reference).config, samples, context)
    latents = comfy.latent_formats.SD15().process_in(samples[:1])
    return run(reference, record, latents, context)


def _require_fit(config: Any, samples: Tensor, context: Tensor) -> None:
    """Refuse what a VAE or an encoder of another model has made."""
    if samples.ndim != 4 or samples.shape[1] != config.in_channels:
        raise InputError(
            f"The VAE makes latents of shape {list(samples.shape)}: expected {config.in_channels} channels, "
            "connect a VAE of Stable Diffusion 1.5."
        )
    if context.shape[-1] != config.cross_attention_dim:
        raise InputError(
            f"The context has {context.shape[-1]} channels: expected {config.cross_attention_dim}, connect "
            "the CLIP_VISION, or a text of the CLIP, that the ReferenceNet was trained with."
        )


def encode_pose(
    encoder: ModelPatcher,
    images: Tensor,
    chunk: int = 16,
    progress: Progress | None = None,
) -> tuple[Tensor, ...]:
    """Pose features of all levels, (frames, C, height / 8, width / 8) and smaller ones, on the CPU.

    Works through `chunk` frames at a time, so that a long video never lies on the accelerator at once.

    Args:
        images: (frames, 3 * pose inputs, height, width) in [0, 1], usually normals.
    """
    height, width = images.shape[-2:]
    if height % 8 or width % 8:
        raise InputError(
            f"The pose pictures are {width}×{height}: make them at a size that is a multiple of 8."
        )

    sample, statistics = pose_sample(unwrap(encoder), images, chunk), None
    if sample is not None:
        statistics = run(encoder, lambda module, images: module.measure(images), sample)

    def encode(module: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(level.cpu() for level in encode_pictures(module, images, statistics))

    chunks = []
    for part in images.split(chunk):
        chunks.append(run(encoder, encode, part))
        if progress is not None:
            progress(min(chunk * len(chunks), len(images)), len(images))
    return tuple(map(torch.cat, zip(*chunks, strict=True)))


def pose_kinds(encoder: ModelPatcher) -> tuple[str, ...]:
    """Names of the pictures that a pose encoder reads, in their order; one picture is called normals."""
    return getattr(unwrap(encoder), "kinds", ("normals",))


def _on_meta(make: Callable[..., nn.Module], *arguments: object) -> nn.Module:
    """Build a module without spending time on random weights: all are loaded or refused afterwards."""
    with torch.device("meta"):
        return make(*arguments)
