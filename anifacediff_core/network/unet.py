"""The UNets: ordinary diffusers models, which hold all weights under their usual names.

`run_unet` walks their modules, so that the pose features enter after conv_in, the temporal modules run in
their places without a copy of the UNet, and the ReferenceNet ends early; with no condition it equals
diffusers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anifacediff_core.network.attention import AttentionInputs, FeatureRecorder, transformer_block_names
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.temporal import MotionModules, TemporalMemory

Layer = nn.Module | None


def make_unet(config: NetworkConfig) -> UNet2DConditionModel:
    """A UNet2DConditionModel in the form of Stable Diffusion 1.5."""
    return UNet2DConditionModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention_levels
        ),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention_levels)
        ),
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        attention_head_dim=config.attention_heads,  # diffusers' old name: it is the number of heads
    )


def zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def initialize_from_scratch(unet: UNet2DConditionModel) -> None:
    """Zero the last layer of every residual branch and of the UNet, as latent diffusion models start."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            zero(module.conv2)
        elif isinstance(module, Transformer2DModel):
            zero(module.proj_out)
    zero(unet.conv_out)


def trim_reference(unet: UNet2DConditionModel) -> None:
    """Remove what follows the last recorded features: it could not influence anything."""
    name = transformer_block_names(unet)[-1]
    parent, index = name.rsplit(".", 1)
    unet.get_submodule(parent)[int(index)] = FeatureRecorder(unet.get_submodule(name), name)
    unet.get_submodule(parent.rsplit(".", 1)[0]).proj_out = nn.Identity()
    unet.conv_norm_out = unet.conv_act = unet.conv_out = nn.Identity()


def run_unet(
    unet: UNet2DConditionModel,
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    *,
    conditions: AttentionInputs | None = None,
    pose: tuple[Tensor, ...] = (),
    motion: MotionModules | None = None,
    frames: int = 1,
    memory: TemporalMemory | None = None,
    deep: DeepFeatures | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """One call of the UNet with the additions of the paper.

    Args:
        latents: (rows, 4, h, w); rows are clips * frames, clip-major.
        timesteps: (rows,).
        context: (rows, tokens, cross_attention_dim).
        conditions: what the attention processors need.
        pose: features to add: the first (rows, C, h, w) after conv_in, each further one to what leaves the
            next down block, after its skip connections.
        motion: temporal modules, run over each `frames` consecutive rows.
        memory: what the temporal modules keep of frames before these, if there is one frame a clip.
        deep: what it keeps of its deep layers, or computes no more.
        checkpointing: recompute the layers in the backward pass instead of keeping their activations.

    Returns: (rows, 4, h, w).
    """
    kwargs = {"conditions": conditions or AttentionInputs()}

    def layer(hidden: Tensor, resnet: Layer, attention: Layer, temporal: Layer) -> Tensor:
        assert resnet is not None
        hidden = resnet(hidden, embedding)
        if attention is not None:
            hidden = attention(hidden, context, cross_attention_kwargs=kwargs, return_dict=False)[0]
        if temporal is not None:
            hidden = temporal(hidden, num_frames=frames, memory=memory)
        return hidden

    run: Callable[..., Tensor] = layer
    if checkpointing and torch.is_grad_enabled():

        def run(*arguments: object) -> Tensor:
            return checkpoint(layer, *arguments, use_reentrant=False)

    embedding = unet.time_embedding(unet.time_proj(timesteps).to(latents.dtype))
    hidden = unet.conv_in(latents)
    if pose:
        hidden = hidden + pose[0]

    # Down: each layer leaves a skip connection, behind some come pose features. Up: each layer takes one.
    down: list[Callable[..., Tensor]] = []
    lower: dict[int, Tensor] = {}
    for index, block in enumerate(unet.down_blocks):
        modules = zip(*layers_of(block, motion.down_blocks[index] if motion else None), strict=True)
        down += [partial(_with_modules, run, each) for each in modules]
        down += block.downsamplers or ()
        if len(pose) > index + 1:
            lower[len(down)] = pose[index + 1]
    up: list[tuple[tuple[Layer, ...], Layer]] = []
    for index, block in enumerate(unet.up_blocks):
        layers = list(zip(*layers_of(block, motion.up_blocks[index] if motion else None), strict=True))
        up += [(each, None) for each in layers[:-1]]
        up += [(layers[-1], *(block.upsamplers or [None]))]

    reused = deep is not None and deep.reused
    count = deep.shallow if deep is not None and reused else len(up)
    skips = [hidden]
    for number, each in enumerate(down[: count - 1], 1):
        hidden = each(hidden)
        skips.append(hidden)
        if number in lower:
            hidden = hidden + lower[number]
    if not reused:
        middle = unet.mid_block
        temporal = None if motion is None or motion.mid_block is None else motion.mid_block.motion_modules[0]
        hidden = run(hidden, middle.resnets[0], middle.attentions[0], temporal)
        hidden = middle.resnets[1](hidden, embedding)
    for modules_up, upsampler in up[-count:]:
        if deep is not None and len(skips) == deep.shallow:
            hidden = deep.exchange(hidden)
        hidden = run(torch.cat([hidden, skips.pop()], 1), *modules_up)
        if upsampler is not None:
            # The next skip tells the size: latents need not be a multiple of the UNet's whole downsampling.
            hidden = upsampler(hidden, skips[-1].shape[-2:])
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def _with_modules(run: Callable[..., Tensor], modules: tuple[Layer, ...], hidden: Tensor) -> Tensor:
    return run(hidden, *modules)


class DeepFeatures:
    """What the UNet's deep layers give to its shallow ones, kept from one step of sampling to the next ones.

    It changes little from step to step, so that most steps can do without computing it: DeepCache (Ma et al.
    2024, https://arxiv.org/abs/2312.00858). One belongs to one window of frames.

    Args:
        shallow: how many layers on either side, `conv_in` among them, are computed in every step.
        store: where it is kept; where it is made, if None.

    Attributes:
        reused: whether the next call takes what was kept, or computes it anew.
    """

    def __init__(self, shallow: int, store: torch.device | None = None) -> None:
        self.shallow, self.store = shallow, store
        self.reused = False
        self._kept: Tensor | None = None

    def exchange(self, hidden: Tensor) -> Tensor:
        """What enters the first of the shallow layers on the way up."""
        if self.reused:
            assert self._kept is not None
            return self._kept.to(hidden.device)
        self._kept = hidden if self.store is None else hidden.to(self.store)
        return hidden


def layers_of(block: nn.Module, motion: nn.Module | None) -> tuple[Iterable[Layer], ...]:
    """Residual layers, spatial transformers and temporal modules of a UNet block, None where absent."""
    resnets = list(block.resnets)  # type: ignore[arg-type]
    absent: list[Layer] = [None] * len(resnets)
    attentions = getattr(block, "attentions", absent)
    return resnets, attentions, absent if motion is None else motion.motion_modules  # type: ignore[return-value]
