"""Tune a LoRA of the denoising UNet to a few pictures of one character, so that results look more like it.

Every step learns from two kinds of rows: views of the character's pictures, each made from another view;
and frames of avatars, each made from another frame of the same, so that motion stays as the driver has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import anifacediff_core
from anifacediff_core.capture.extract import Models, crop_portrait, extract_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align
from anifacediff_core.head.camera import crop_camera
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.regions import emphasis, face_spots
from anifacediff_core.head.render import iterate_normals
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.encoders import clip_preprocess
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.schedule import TIMESTEPS, NoiseSchedule
from anifacediff_core.sampling.settings import LearningSettings
from anifacediff_core.video import read_frames
from anifacediff_core.weights.lora import Adapter, adapted, layers_of

MOST_PICTURES = 5
VIEWS = 12  # of the character, in all
SIDES, SHIFT = (0.7, 1.6), 0.15  # of the views, as shares of the portrait's side
EXAMPLES = Path(anifacediff_core.__file__).parent / "assets" / "examples"
AVATARS = ("driving.mp4", "turning.mp4")
EVERY = 6  # of their frames, one is used
SHOWN_EVERY = 5  # steps
WARM_UP = 10  # steps

# Called with (done, total) and now and then a picture (3, size, size) in [0, 1]. To cancel, it raises.
Watch = Callable[[int, int, Tensor | None], None]


@dataclass(frozen=True)
class Portraits:
    """Squares cut out of pictures of a face.

    Attributes:
        images: (n, 3, size, size) in [0, 1].
        parameters: what was read from them (n).
        squares: left, top and side (n, 3), as shares of the picture that they were cut out of; what lies
            beyond it repeats its border.
    """

    images: Tensor
    parameters: FaceParameters
    squares: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def concatenate(parts: Sequence[Portraits]) -> Portraits:
        return Portraits(
            torch.cat([part.images for part in parts]),
            FaceParameters.concatenate([part.parameters for part in parts]),
            torch.cat([part.squares for part in parts]),
        )


@dataclass(frozen=True)
class Rows:
    """What steps draw from.

    Attributes:
        latents: of the pictures to be made (rows, channels, h, w).
        weights: of the loss (rows, 1, h, w), of each row 1 on average.
        sources: number of each row's source (rows,).
        given: what the network is told: reference and context of the sources, pose and expression of the
            rows.
        character: how many of the rows, the first, are of the character.
    """

    latents: Tensor
    weights: Tensor
    sources: Tensor
    given: VideoConditioning
    character: int

    def conditioning(self, rows: Tensor) -> VideoConditioning:
        """Of some rows, each a clip of one frame."""
        sources, given = self.sources[rows], self.given
        assert given.expression is not None
        return VideoConditioning(
            {name: tokens[sources] for name, tokens in given.reference.items()},
            given.context[sources],
            tuple(level[rows] for level in given.pose),
            given.expression[rows],
        )


def learn(
    pipeline: Pipeline,
    models: Models,
    images: Sequence[Tensor],
    settings: LearningSettings,
    watch: Watch | None = None,
) -> dict[str, Adapter]:
    """Adapters of the UNet's layers by their names, for `weights.lora.save_lora`.

    Args:
        pipeline: of the checkpoint to be tuned, whose weights stay as they are.
        models: what reads faces for the pipeline's head, on its device.
        images: one to five of the same character, (3, height, width) each in [0, 1].
        watch: called after every step, now and then with what the network has made of a row.

    Raises:
        InputError: no face in a picture, too many pictures, a size or rank that cannot be, or a checkpoint
            that is guided by other things than normals and a source picture.
    """
    _require_possible(pipeline, images, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    pipeline.model.requires_grad_(False)
    rows = _rows_of(pipeline, models, images, settings, generator)
    layers = layers_of(pipeline.model.unet, _learns)
    with torch.enable_grad(), adapted(layers, settings.rank, generator) as adapters:
        _optimize(pipeline, rows, adapters, settings, generator, watch)
    return adapters


def lora_header(settings: LearningSettings, checkpoint: str) -> dict[str, str]:
    """What a file of such adapters says about itself.

    Args:
        checkpoint: name of the file that was tuned.
    """
    made = {"checkpoint": checkpoint, **asdict(settings)}
    return {"format": "pt", "anifacediff_learned": json.dumps(made)}


def _require_possible(pipeline: Pipeline, images: Sequence[Tensor], settings: LearningSettings) -> None:
    config = pipeline.model.config
    if not 1 <= len(images) <= MOST_PICTURES:
        raise InputError(f"There are {len(images)} pictures to learn from: give 1 to {MOST_PICTURES}.")
    if config.pose_inputs != ("normals",) or config.context != "image":
        raise InputError(
            "The checkpoint is guided by more than normals and a source picture, which cannot be learned "
            "here: choose one of AniFaceDiff's own form."
        )
    values = {
        "size": (settings.size, config.downsampling),
        "rank": (settings.rank, 1),
        "number of steps": (settings.steps, 1),
    }
    for name, (value, multiple) in values.items():
        if value < 1 or value % multiple:
            raise InputError(f"The {name} to learn with is {value}: give a multiple of {multiple}.")


def _learns(name: str) -> bool:
    """The UNet's way up, whose self-attention reads the reference and whose last layers draw the details; the
    way down needs no gradient then. What knows the time only, or weighs a single token, has nothing to learn.
    """
    return name.startswith(("up_blocks", "conv_out")) and not name.endswith(("time_emb_proj", "attn2.to_k"))


# ---- what is learned from


@torch.no_grad()
def _rows_of(
    pipeline: Pipeline,
    models: Models,
    images: Sequence[Tensor],
    settings: LearningSettings,
    generator: torch.Generator,
) -> Rows:
    def one_of(numbers: Sequence[int]) -> int:
        return numbers[int(torch.randint(len(numbers), (1,), generator=generator))]

    size, count = settings.size, max(VIEWS // (2 * len(images)), 2)
    parts = [
        _views(models, image.flip(-1) if mirrored else image, f"picture {number}", count, size, generator)
        for mirrored in (False, True)
        for number, image in enumerate(images, 1)
    ]
    half, pairs = count * len(images), []  # source and target; a mirror image is another character
    for start in (0, half):
        wholes, every = range(start, start + half, count), range(start, start + half)
        pairs += [(one_of(every if target % 2 else wholes), target) for target in every]
    character, start = len(pairs), 2 * half
    for name in AVATARS:
        parts.append(_avatar(models, name, size))
        frames = range(start, start := start + len(parts[-1]))
        pairs += [(one_of(frames), frame) for frame in frames]
    return _rows(pipeline, models.head, Portraits.concatenate(parts), pairs, character, settings)


def _views(
    models: Models, image: Tensor, what: str, count: int, size: int, generator: torch.Generator
) -> Portraits:
    """All of a picture's portrait, and random squares around its middle."""
    found = extract_parameters(image[None], models, what=what)
    side = torch.empty(count - 1, 1).uniform_(*SIDES, generator=generator)
    shift = torch.empty(count - 1, 2).uniform_(-SHIFT, SHIFT, generator=generator)
    whole = torch.tensor([[0.0, 0.0, 1.0]])
    squares = torch.cat([whole, torch.cat([(1 - side) / 2 + shift, side], 1)])
    portrait = crop_portrait(image[None], found.square, 2 * size).expand(count, -1, -1, -1)
    read = found.parameters.expand(count)
    camera = crop_camera(read.camera, squares)
    return Portraits(crop_portrait(portrait, squares, size), replace(read, camera=camera), squares)


def _avatar(models: Models, name: str, size: int) -> Portraits:
    """Some frames of an example."""
    frames = torch.stack(list(islice(read_frames(EXAMPLES / name), 0, None, EVERY)))
    found = extract_parameters(frames, models, smoothing=0.0, what=name)
    whole = torch.tensor([[0.0, 0.0, 1.0]]).expand(len(frames), 3)
    return Portraits(crop_portrait(frames, found.square, size), found.parameters, whole)


def _rows(
    pipeline: Pipeline,
    head: HeadModel,
    portraits: Portraits,
    pairs: Sequence[tuple[int, int]],
    character: int,
    settings: LearningSettings,
) -> Rows:
    """Rows of (source, target), the numbers of portraits."""
    model, size = pipeline.model, settings.size
    sources, targets = map(list, zip(*pairs, strict=True))
    # one at a time: a CPU is faster then, and it is all the memory that is needed
    latents = torch.cat([pipeline.encode(image) for image in portraits.images.split(1)])
    seen = sorted(set(sources))
    pixels = clip_preprocess(portraits.images[seen].float(), model.config.image_size)
    context = model.encode_image(pixels.to(latents))
    features = [model.encode_reference(latents[[n]], context[[row]]) for row, n in enumerate(seen)]
    motion = align(portraits.parameters[sources], portraits.parameters[targets]).to(latents.device)
    pose = [model.encode_pose(normals) for normals in iterate_normals(head, motion, size)]
    given = VideoConditioning(
        {name: torch.cat([tokens[name] for tokens in features]) for name in features[0]},
        context,
        tuple(map(torch.cat, zip(*pose, strict=True))),
        model.encode_expression(motion.expression.to(latents)),
    )
    spots, side = face_spots(head, motion, size), latents.shape[-1]
    emphasized = settings.head_weight, settings.detail_weight
    weights = emphasis(spots, spots.new_zeros(len(spots), 2), side, size / side, *emphasized)
    weights = weights * _inside(portraits.squares[targets], side).to(weights)
    return Rows(
        latents[targets].float(),
        weights / weights.mean((1, 2, 3), keepdim=True),
        torch.tensor([seen.index(source) for source in sources]),
        given,
        character,
    )


def _inside(squares: Tensor, side: int) -> Tensor:
    """Which of the places of squares lie within the picture, (squares, 1, side, side): 0 or 1."""
    places = squares[:, :2, None] + (torch.arange(side) + 0.5) / side * squares[:, 2:, None]
    x, y = ((places > 0) & (places < 1)).float().unbind(1)
    return (y[:, :, None] * x[:, None, :])[:, None]


# ---- learning


def _optimize(
    pipeline: Pipeline,
    rows: Rows,
    adapters: dict[str, Adapter],
    settings: LearningSettings,
    generator: torch.Generator,
    watch: Watch | None,
) -> None:
    schedule = NoiseSchedule.of(pipeline.model.config)
    usual = schedule.trailing(pipeline.sampling.steps)[0]
    parameters = [parameter for adapter in adapters.values() for parameter in adapter.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / settings.steps)) / 2),
    )
    spans = (0, rows.character, settings.character), (rows.character, len(rows.latents), settings.avatars)
    for step in range(1, settings.steps + 1):
        drawn = torch.cat([torch.randint(*span[:2], span[2:], generator=generator) for span in spans])
        if torch.rand((), generator=generator) < settings.usual:
            timestep = usual[torch.randint(len(usual), (1,), generator=generator)]
        else:
            timestep = torch.randint(TIMESTEPS, (1,), generator=generator)
        loss, clean = _loss(pipeline, rows, drawn, schedule, timestep, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        if watch is not None:
            shown = None
            if step % SHOWN_EVERY == 0 or step == settings.steps:
                shown = next(pipeline.decode(clean[:1]))[0]
            watch(step, settings.steps, shown)


def _loss(
    pipeline: Pipeline,
    rows: Rows,
    drawn: Tensor,
    schedule: NoiseSchedule,
    timestep: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The error of the network's prediction, smooth L1, and the clean latents that it means.

    At the last time step of a zero terminal SNR, v is the picture itself, but for its sign.
    """
    latents = rows.latents[drawn]
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    sigma = schedule.sigmas[timestep].to(latents)
    alpha = schedule.alphas[timestep].to(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    prediction = pipeline.model.predict(
        noisy.to(pipeline.dtype, memory_format=torch.channels_last),
        timestep.to(latents.device),
        rows.conditioning(drawn),
        expression_scale=1.0,
        guided=False,
        temporal=False,
    ).float()
    epsilon = schedule.prediction_type == "epsilon"
    target = noise if epsilon else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    loss = F.smooth_l1_loss(prediction, target, beta=0.2, reduction="none") * rows.weights[drawn]
    clean = schedule.pred_original_sample(prediction, noisy / alpha.sqrt(), sigma)
    return loss.mean(), clean.detach()
