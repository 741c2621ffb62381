"""AniFaceDiff on the host's MODEL, by the host's public hooks only.

- pose: added to the UNet's first hidden state, by an input block patch;
- reference: self-attention of conditional rows also attends to the reference tokens, by attn1 replacements;
- expression: λ times attention to the expression tokens, by attn2 replacements (eq. 3 of the paper);
- time: temporal modules behind the spatial ones, in slots that exist only while the UNet runs.

Frames travel in the batch dimension. Rows of a call are groups of frames, one group per entry of
`cond_or_uncond`; groups of kind 0 (positive) are conditional. Which frames they are is told by the context
window, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from anifacediff_core.errors import InputError

from .auxiliary import run, unwrap
from .windows import use_windows

KEY = "anifacediff"
EXPRESSION_KEY = "anifacediff_expression"
CONDITIONAL = 0  # the host's name for rows of the positive conditioning

Block = tuple[str, int]  # the host's name of a block: ("input" | "middle" | "output", number)
Attention = Callable[[Tensor, Tensor, Tensor, dict], Tensor]


def attach_expression_adapter(
    model: ModelPatcher, adapter: ModelPatcher, weight: float = 1.0
) -> ModelPatcher:
    """A clone of `model` that carries a managed `ExpressionAdapter` and λ, for `apply_anifacediff` to use."""
    if model.get_attachment(KEY) is not None:
        raise InputError(
            "The expression adapter comes too late: load it onto the MODEL before AniFaceDiff is applied."
        )
    model = model.clone()
    model.set_attachments(EXPRESSION_KEY, _Expression(adapter, weight))
    model.set_additional_models(EXPRESSION_KEY, [adapter])
    return model


def apply_anifacediff(
    model: ModelPatcher,
    *,
    reference: dict[str, Tensor] | None = None,
    pose: Tensor | None = None,
    expression: Tensor | None = None,
    motion: ModelPatcher | None = None,
    window: int = 24,
    overlap: int = 6,
) -> ModelPatcher:
    """A clone of `model` that reenacts one video; the given MODEL stays as it is.

    Arguments:
        reference: tokens of the ReferenceNet (1, tokens, channels) by the name of the transformer block.
        pose: features of the pose encoder (frames, channels, height / 8, width / 8).
        expression: ψ (frames, n_expression), used when the MODEL carries an expression adapter.
        motion: the managed temporal modules (diffusers' `MotionAdapter`).
        window, overlap: frames of one call of the UNet, and how many of them neighboring windows share.
    """
    if model.get_attachment(KEY) is not None:
        raise InputError(
            "AniFaceDiff is already applied to this MODEL: connect the MODEL from before it instead."
        )
    if not isinstance(model.model.diffusion_model, UNetModel):
        kind = type(model.model.diffusion_model).__name__
        raise InputError(
            f"AniFaceDiff needs a MODEL of Stable Diffusion 1.5's form, not {kind}: connect another."
        )
    places = _places(model)
    carried = model.get_attachment(EXPRESSION_KEY)
    video = _Video(reference, pose, _expression_tokens(carried, expression))
    _check_reference(places, video)

    model = model.clone()
    model.set_attachments(KEY, video)
    if reference is not None:
        attention = _reference_attention(places, video)
        for place in _attending(places):
            model.set_model_attn1_replace(attention, *place.block)
    if pose is not None:
        model.set_model_input_block_patch(_pose_patch(video))
    if carried is not None and len(video.expression):
        _add_expression(model, places, video, carried)
    if motion is not None:
        _add_motion(model, places, motion, window)
    return use_windows(model, window, overlap)


def conditioned_size(model: ModelPatcher) -> tuple[int, int, int]:
    """Frames, and latent height and width, of the video that is applied to `model`."""
    video = model.get_attachment(KEY)
    if video is None or not len(video.pose):
        raise InputError(
            "The MODEL has no video to reenact: apply AniFaceDiff with an encoded pose to it first."
        )
    frames, _, height, width = video.pose.shape
    return frames, height, width


def image_conditioning(embedding: Tensor) -> tuple[list, list]:
    """The image embedding (1, D) or (1, 1, D) as positive CONDITIONING of the host, and zero as negative."""
    embedding = embedding.reshape(1, 1, -1)
    return [[embedding, {}]], [[torch.zeros_like(embedding), {}]]


def block_names(model: ModelPatcher) -> dict[Block, str]:
    """diffusers' name of every transformer block of the MODEL, in the order in which the host runs them."""
    return {place.block: place.transformer_name for place in _attending(_places(model))}


@dataclass(frozen=True)
class _Expression:
    adapter: ModelPatcher
    weight: float


@dataclass(frozen=True)
class _Place:
    """A residual block of the UNet with the transformer that follows it, if any."""

    block: Block
    layers: nn.Sequential
    transformer: SpatialTransformer | None
    transformer_name: str
    motion_name: str
    motion_index: int  # where in `layers` the temporal module goes

    @property
    def attention(self) -> Any:
        """The self-attention of the transformer; Stable Diffusion 1.5 has one block in each."""
        assert self.transformer is not None
        return self.transformer.transformer_blocks[0].attn1


class _Video:
    """Everything that conditions a whole video, on the CPU.

    One opaque object: the host deep-copies the options of a MODEL whenever it clones one.
    """

    def __init__(
        self, reference: dict[str, Tensor] | None, pose: Tensor | None, expression: Tensor | None
    ) -> None:
        self.reference = {name: tokens.cpu() for name, tokens in (reference or {}).items()}
        self.pose = torch.empty(0) if pose is None else pose.cpu()
        self.expression = torch.empty(0) if expression is None else expression.cpu()
        lengths = [len(value) for value in (pose, expression) if value is not None]
        if len(set(lengths)) > 1:
            raise InputError(
                f"The pose has {lengths[0]} frames but the expression has {lengths[1]}: "
                "take both from one video."
            )
        self.frames = lengths[0] if lengths else None

    def __deepcopy__(self, memo: dict) -> _Video:
        return self

    def select(self, options: dict, frames: int) -> slice | list[int]:
        """Indices of the `frames` frames of this call within the video."""
        window = options.get("context_window")
        if window is not None:
            return window.index_list
        if self.frames != frames:
            raise InputError(
                f"The latent has {frames} frames but the conditioning has {self.frames}: "
                "make them the same length."
            )
        return slice(None)


def _places(model: ModelPatcher) -> list[_Place]:
    unet = model.model.diffusion_model
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    names = {host: diffusers for diffusers, host in names.items()}
    sequences = [(("input", n), f"input_blocks.{n}", layers) for n, layers in enumerate(unet.input_blocks)]
    sequences += [(("middle", 0), "middle_block", unet.middle_block)]
    sequences += [
        (("output", n), f"output_blocks.{n}", layers) for n, layers in enumerate(unet.output_blocks)
    ]
    places = []
    for block, prefix, layers in sequences:
        resnet = names.get(f"{prefix}.0.in_layers.0.weight")
        if not isinstance(layers[0], ResBlock) or resnet is None:
            continue
        found = [index for index, layer in enumerate(layers) if isinstance(layer, SpatialTransformer)]
        index = found[0] if found else 0
        name = (
            names[f"{prefix}.{index}.transformer_blocks.0.norm1.weight"].removesuffix(".norm1.weight")
            if found
            else ""
        )
        motion = resnet.removesuffix(".norm1.weight").replace(".resnets.", ".motion_modules.")
        places.append(_Place(block, layers, layers[index] if found else None, name, motion, index + 1))
    return places


def _attending(places: list[_Place]) -> list[_Place]:
    return [place for place in places if place.transformer is not None]


def _check_reference(places: list[_Place], video: _Video) -> None:
    if not video.reference:
        return
    expected = {place.transformer_name: place.attention.to_k.in_features for place in _attending(places)}
    found = {name: tokens.shape[-1] for name, tokens in video.reference.items()}
    if found != expected:
        described = [
            f"{len(widths)} blocks of {sorted(set(widths.values()))}" for widths in (found, expected)
        ]
        raise InputError(
            f"The reference features ({described[0]}) don't fit the MODEL ({described[1]}): "
            "take MODEL and ReferenceNet from one checkpoint."
        )


def _expression_tokens(carried: _Expression | None, expression: Tensor | None) -> Tensor | None:
    if carried is None or expression is None or carried.weight == 0:
        return None
    length = unwrap(carried.adapter).mlp[0].in_features
    if expression.ndim != 2 or expression.shape[1] != length:
        raise InputError(
            f"The expression has shape {tuple(expression.shape)} but the adapter takes {length} numbers "
            "a frame: extract parameters for the head that the checkpoint was trained on."
        )
    return run(carried.adapter, lambda adapter, values: adapter(values), expression)


def _groups(options: dict, rows: int) -> tuple[int, list[tuple[slice, bool]]]:
    """Frames per group, and of each group its rows and whether it is conditional."""
    kinds = options["cond_or_uncond"]
    frames = rows // len(kinds)
    return frames, [
        (slice(i * frames, (i + 1) * frames), kind == CONDITIONAL) for i, kind in enumerate(kinds)
    ]


def _attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    if k.shape[1] == 1:
        # a softmax over one token is one
        return v.expand(-1, q.shape[1], -1)
    # on the CPU the host's default saves memory that there is plenty of, and takes several times as long
    attention = attention_pytorch if q.device.type == "cpu" else optimized_attention
    return attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )


def _pose_patch(video: _Video) -> Callable[[Tensor, dict], Tensor]:
    def add_pose(hidden: Tensor, options: dict) -> Tensor:
        if options["block"] != ("input", 0):
            return hidden
        frames, groups = _groups(options, hidden.shape[0])
        pose = video.pose[video.select(options, frames)].to(hidden)
        if pose.shape[1:] != hidden.shape[1:]:
            sizes = [f"{8 * tensor.shape[-1]}×{8 * tensor.shape[-2]}" for tensor in (pose, hidden)]
            raise InputError(
                f"The pose was encoded at {sizes[0]} but the latent is {sizes[1]}: use the same size."
            )
        return hidden + pose.repeat(len(groups), 1, 1, 1)

    return add_pose


def _reference_attention(places: list[_Place], video: _Video) -> Attention:
    by_block = {place.block: place for place in places}

    def attend_to_reference(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        if q.shape[0] != options["original_shape"][0]:
            raise InputError(
                "HyperTile cuts frames into tiles, which reference attention can't follow: remove HyperTile."
            )
        place = by_block[options["block"]]
        attention = place.attention
        tokens = video.reference[place.transformer_name].to(q)
        # projected by the block's own layers at every step, so that LoRA and low-VRAM patches apply
        reference_k, reference_v = attention.to_k(tokens), attention.to_v(tokens)
        frames, groups = _groups(options, q.shape[0])
        attended = []
        for rows, conditional in groups:
            keys, values = k[rows], v[rows]
            if conditional:
                keys = torch.cat([keys, reference_k.expand(frames, -1, -1)], 1)
                values = torch.cat([values, reference_v.expand(frames, -1, -1)], 1)
            attended.append(_attend(q[rows], keys, values, options))
        return torch.cat(attended)

    return attend_to_reference


def _add_expression(model: ModelPatcher, places: list[_Place], video: _Video, carried: _Expression) -> None:
    adapter = unwrap(carried.adapter)
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for place in _attending(places):
        if place.transformer_name not in adapter.names:
            raise InputError(
                f"The expression adapter has no layers for {place.transformer_name} of the MODEL: "
                "take MODEL and adapter from one checkpoint."
            )
        index = adapter.names.index(place.transformer_name)
        # one replacement per block: run what another extension has put there, under the name it chose
        name = (*place.block, 0) if (*place.block, 0) in replaced else place.block
        attention = _expression_attention(
            video, adapter.to_k[index], adapter.to_v[index], carried.weight, replaced.get(name, _attend)
        )
        model.set_model_attn2_replace(attention, *name)


def _expression_attention(
    video: _Video, to_k: nn.Module, to_v: nn.Module, weight: float, inner: Attention
) -> Attention:
    def attend_to_expression(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        attended = inner(q, k, v, options)
        frames, groups = _groups(options, q.shape[0])
        tokens = video.expression[video.select(options, frames)].to(q)
        keys, values = to_k(tokens), to_v(tokens)
        return torch.cat(
            [
                attended[rows] + weight * _attend(q[rows], keys, values, options)
                if conditional
                else attended[rows]
                for rows, conditional in groups
            ]
        )

    return attend_to_expression


class _Slot(nn.Module):
    """Stands in one of the UNet's sequences for a temporal module, which stays out of the UNet's own modules.

    Registered there, the temporal weights would count as the UNet's and rename the host's keys.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = (module,)


def _run_slot(slot: _Slot, hidden: Tensor, emb: Tensor, context: Tensor, options: dict, *_: Any) -> Tensor:
    return slot.held[0](hidden, num_frames=hidden.shape[0] // len(options["cond_or_uncond"]))


def _add_motion(model: ModelPatcher, places: list[_Place], motion: ModelPatcher, window: int) -> None:
    modules = dict(unwrap(motion).named_modules())
    slots = [(place, _Slot(modules[place.motion_name])) for place in places if place.motion_name in modules]
    expected = [place for place in places if place.block[0] != "middle"]
    misfits = [
        place
        for place in expected
        if place.motion_name not in modules
        or modules[place.motion_name].in_channels != place.layers[0].out_channels
    ]
    if misfits:
        raise InputError(
            f"The motion modules don't fit the MODEL (first misfit: {misfits[0].motion_name}): "
            "take both from one checkpoint."
        )
    longest = min(module.pe.shape[1] for module in modules.values() if hasattr(module, "pe"))
    if window > longest:
        raise InputError(
            f"A window of {window} frames is longer than the motion modules know: use {longest} at most."
        )

    @contextmanager
    def slots_in_place() -> Iterator[None]:
        try:
            for place, slot in slots:
                place.layers.insert(place.motion_index, slot)
            yield
        finally:
            for place, _ in slots:
                for index in reversed(range(len(place.layers))):
                    if isinstance(place.layers[index], _Slot):
                        del place.layers[index]

    def run_with_slots(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with slots_in_place():
            return executor(*args, **kwargs)

    model.set_additional_models(KEY, [motion])
    model.set_model_forward_timestep_embed_patch((_Slot, _run_slot))
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, run_with_slots)
