"""The two stages of the paper (3.4): what they start from, where their pairs come from, what they show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.network.autoencoder import AutoEncoder, StableAutoEncoder, trim
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.schedule import NoiseSchedule
from anifacediff_core.sampling.windows import initial_noise
from anifacediff_core.video import contact_sheet, write_image
from anifacediff_core.weights.checkpoint import load_autoencoder, load_network

from ..evaluation import report
from ..evaluation.avatars import Reenactor
from ..evaluation.protocol import Protocol
from ..metrics import flicker, psnr, ssim
from .adversary import Adversary
from .data import NormalsNoise, PairSource, Pool, PoolSource
from .distribution import shards_weights
from .engine import run
from .phase import Phase
from .reenactment import DenoisingSettings, DenoisingTask, Validator
from .settings import build
from .shards import ShardSource
from .task import load_weights, take_over

STAGE1 = "stage1.safetensors"


@dataclass(frozen=True)
class ShardSettings:
    """Shards to train on, as `prepare` or `avatars shards` write them.

    Args:
        urls: a folder, files, or whatever WebDataset opens; see `shard_format.find_shards`.
        split: which segments to train on, None for all.
        validation: which segments the pictures during training come from.
        frames: length of the clips of stage 2 (N of the paper).
        workers: processes that read and decode, of each training process.
        visits, buffer, normals: see `ShardSource`.
    """

    urls: str | tuple[str, ...]
    split: str | None = "train"
    validation: str | None = "val"
    frames: int = 24
    workers: int = 4
    visits: int = 4
    buffer: int = 2048
    normals: str = "auto"


@dataclass(frozen=True)
class Preview:
    """Pictures during training on shards.

    Args:
        pairs: how many of them, or clips in stage 2.
        steps, cfg: of the sampler.
    """

    pairs: int = 6
    steps: int = 20
    cfg: float = 2.0


def train_stage(phase: Phase, stage: int, config: NetworkConfig) -> None:
    """Stage 1 learns single pictures, stage 2 the temporal modules on top of its weights."""
    if config.n_expression != phase.head.n_expression:
        raise InputError(
            f"The network reads {config.n_expression} expressions and the head '{phase.head.name}' has "
            f"{phase.head.n_expression}; name the head that the network is for as the experiment's head, or "
            "set network.n_expression."
        )
    autoencoder = stage_autoencoder(phase, config).to(phase.device).eval().requires_grad_(False)
    model = stage_network(phase, config, stage)
    settings = build(DenoisingSettings, phase.settings.get("settings"), f"{phase.name}.settings")
    if settings.own_estimates and shards_weights(phase.accelerator):
        raise InputError(
            f"{phase.name} takes the network's own estimates, which needs whole weights that FSDP divides; "
            "set own_estimates to 0, or distributed_type to MULTI_GPU."
        )
    reenact = Reenactor(model, autoencoder)
    source: PairSource
    large: PairSource | None = None
    if phase.settings.get("shards"):
        shards = build(ShardSettings, phase.settings["shards"], f"{phase.name}.shards")
        source = _shards(phase, shards, settings, config, autoencoder, stage)
        validator = _shards_validator(phase, shards, config, reenact, source.frames)
    else:
        plan = phase.plan()
        plans = [plan]
        if settings.large_every:
            few = max(plan.identities // 4, 1)
            plans.append(replace(plan, size=2 * plan.size, identities=few, batch=max(plan.batch // 4, 1)))
        pools = [
            Pool(
                phase.studio,
                phase.head,
                each,
                phase.seed + 500 * number,  # beside those of other processes
                autoencoder,
                config.image_size,
                config.scaling_factor,
            )
            for number, each in enumerate(plans)
        ]
        source, *more = [
            PoolSource(phase.fill(pool), stage == 2, settings.normals, _dtype(phase)) for pool in pools
        ]
        large = more[0] if more else None
        validator = _avatars_validator(phase, reenact, stage)
    alphas = NoiseSchedule.of(config).alphas.to(phase.device)

    def decode(latents: Tensor) -> Tensor:
        return autoencoder.decode(latents / config.scaling_factor)

    adversary = Adversary.of(settings.adversary, 6, phase.accelerator)
    task = DenoisingTask(
        model,
        source,
        alphas,
        settings,
        validator,
        stage=stage,
        decode=decode,
        adversary=adversary,
        large=large,
    )
    try:
        run(task, phase.loop, phase.accelerator, phase.folder, phase.logger)
    finally:
        if isinstance(source, ShardSource):
            source.close()


def stage_autoencoder(phase: Phase, config: NetworkConfig) -> AutoEncoder | StableAutoEncoder:
    """What the experiment's own phase has trained, else that of the checkpoint it starts from."""
    path = phase.folder / "autoencoder.safetensors"
    if phase.start is not None and not path.exists():
        found = load_autoencoder(phase.start)
        if found.latent_channels != config.latent_channels:
            raise InputError(
                f"The network is for latents of {config.latent_channels} channels and the autoencoder of "
                f"{phase.start.path.name} makes {found.latent_channels}; train the phase autoencoder first."
            )
        return found
    autoencoder = AutoEncoder(config.latent_channels)
    _fill(autoencoder, path, "vae.")
    trim(autoencoder.decoder)
    return autoencoder


def stage_network(phase: Phase, config: NetworkConfig, stage: int) -> AniFaceDiff:
    """The network at the beginning of a stage; temporal modules that are there already go on from there."""
    if phase.start is None:
        model = AniFaceDiff(config)
    elif phase.start.config.latent_channels != config.latent_channels:
        before = load_network(phase.start)
        model = AniFaceDiff(config, motion=before.motion is not None)
        take_over(model, before.state_dict())
    else:
        # The weights decide the sizes; what they shall predict is the experiment's to say.
        model = load_network(replace(phase.start, config=config))
    motion, model.motion = model.motion, None
    if stage == 1:
        return model
    trained = phase.folder / STAGE1
    if trained.exists() or phase.start is None:
        _fill(model, trained)
    model.motion = motion
    if motion is None:
        model.add_motion()
    return model


def _fill(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Load what an earlier phase has left."""
    try:
        module.load_state_dict(load_weights(path, prefix))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} is damaged or of another network than this experiment's; "
            "train that phase again, or choose another folder."
        ) from error


def _dtype(phase: Phase) -> torch.dtype:
    plain = phase.device.type == "cpu" or phase.loop.mixed_precision in ("no", "fp16")
    return torch.float32 if plain else torch.bfloat16


def _shards(
    phase: Phase,
    shards: ShardSettings,
    settings: DenoisingSettings,
    config: NetworkConfig,
    autoencoder: AutoEncoder | StableAutoEncoder,
    stage: int,
) -> ShardSource:
    return ShardSource(
        shards.urls,
        frames=1 if stage == 1 else shards.frames,
        rows=settings.batch_size,
        head=phase.head,
        autoencoder=autoencoder,
        image_size=config.image_size,
        noise=settings.normals,
        dtype=_dtype(phase),
        seed=int(phase.experiment["seed"]),
        scaling_factor=config.scaling_factor,
        split=shards.split,
        rank=phase.accelerator.process_index,
        world=phase.accelerator.num_processes,
        workers=shards.workers,
        visits=shards.visits,
        buffer=shards.buffer,
        normals=shards.normals,
    )


def _shards_validator(
    phase: Phase, shards: ShardSettings, config: NetworkConfig, reenact: Reenactor, frames: int
) -> Validator:
    """Pictures and measures of pairs that are not trained on: source | normals | result | truth."""
    preview = build(Preview, phase.settings.get("validation"), f"{phase.name}.validation")

    def validate(path: Path, fraction: float) -> dict[str, float]:
        held_out = ShardSource(
            shards.urls,
            frames=frames,
            rows=preview.pairs,
            head=phase.head,
            autoencoder=reenact.autoencoder,
            image_size=config.image_size,
            noise=NormalsNoise(0.0, 0.0),
            dtype=torch.float32,
            seed=0,
            scaling_factor=config.scaling_factor,
            split=shards.validation,
            workers=0,
        )
        sources, truth, pairs = held_out.examples()
        side = held_out.size // 8
        # One clip at a time: that of a full-size network fills a GPU.
        results = [
            reenact(
                sources[pair : pair + 1],
                normals,
                expression,
                initial_noise(frames, config.latent_channels, side, side, pair).to(sources),
                steps=preview.steps,
                cfg=preview.cfg,
            )
            for pair, (normals, expression) in enumerate(
                zip(pairs.normals.split(frames), pairs.expression.split(frames))
            )
        ]
        result = torch.cat(results)
        middle = slice(frames // 2, None, frames)
        write_image(
            path, contact_sheet([sources, pairs.normals[middle].float(), result[middle], truth[middle]])
        )
        return _measures(result, truth, frames)

    return validate


def _measures(result: Tensor, truth: Tensor, frames: int) -> dict[str, float]:
    measures = {"psnr": float(psnr(result, truth).mean()), "ssim": float(ssim(result, truth).mean())}
    if frames > 1:
        measures["flicker"] = flicker(result.unflatten(0, (-1, frames)), truth.unflatten(0, (-1, frames)))
    return measures


def _avatars_validator(phase: Phase, reenact: Reenactor, stage: int) -> Validator:
    """Pictures and measures of unseen avatars, of each the source with another one's motion."""
    settings = {"seed": 99, "frames": 1 if stage == 1 else 24, "pairs": 32 if stage == 1 else 8, "batch": 8}
    settings |= phase.settings.get("validation") or {}
    protocol = build(Protocol, {**settings, "variants": ("full",)}, f"{phase.name}.validation")

    def validate(path: Path, fraction: float) -> dict[str, float]:
        found = report.run(reenact, phase.head, phase.studio, protocol, sheet=path, sheet_rows=6)
        return dict(found["results"]["full"])

    return validate
