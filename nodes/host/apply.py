"""AniFaceDiff on the host's MODEL, by the host's public hooks only.

- pose: added to the UNet's first hidden state, and at lower levels if it has them, by input block patches;
- reference: self-attention of conditional rows also attends to the reference tokens, by attn1 replacements;
- expression: lambda times attention to the expression tokens, by attn2 replacements (eq. 3 of the paper);
- time: temporal modules behind the spatial ones, in slots that exist only while the UNet runs.

Frames travel in the batch dimension. Rows of a call are groups of frames, one group per entry of
`cond_or_uncond`; groups of kind 0 (positive) are conditional. Which frames they are follows from the context
window, if there is one. What a call needs is brought to the device around it, outside of what torch.compile
sees, and passed to the hooks in the call's own `transformer_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.network.temporal import TemporalMemory
from anifacediff_core.sampling.settings import SamplingSettings

from .attention import attend
from .auxiliary import run, unwrap
from .cache import KEY as cache_key
from .cache import DeepCache
from .places import (
    Block,
    Place,
    Slot,
    attending,
    ends_of_levels,
    find_places,
    in_place,
    longest_window,
    make_slots,
)
from .stream import StreamMemory
from .windows import use_windows

KEY = "anifacediff"
EXPRESSION_KEY = "anifacediff_expression"
CONDITIONAL = 0  # the host's name for rows of the positive conditioning
# A video's pose features stay on the device from step to step when they are no larger than this, in bytes.
RESIDENT = 2**28

Attention = Callable[[Tensor, Tensor, Tensor, dict], Tensor]


def attach_expression_adapter(
    model: ModelPatcher, adapter: ModelPatcher, weight: float = 1.0
) -> ModelPatcher:
    """A clone of `model` that carries a managed `ExpressionAdapter` and lambda, for `apply_anifacediff`."""
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
    pose: Sequence[Tensor] = (),
    expression: Tensor | None = None,
    motion: ModelPatcher | None = None,
    window: int = SamplingSettings.window,
    overlap: int = SamplingSettings.overlap,
    memory: StreamMemory | None = None,
) -> ModelPatcher:
    """A clone of `model` that reenacts one video; the given MODEL stays as it is.

    Args:
        reference: tokens of the ReferenceNet (1, tokens, channels) by the name of the transformer block.
        pose: features of the pose encoder, the first (frames, channels, height / 8, width / 8); further ones
            belong to what leaves each of the UNet's levels on its way down.
        expression: psi (frames, n_expression), used when the MODEL carries an expression adapter.
        motion: the managed temporal modules (the core's `MotionModules`).
        window, overlap: frames of one call of the UNet, and how many of them neighboring windows share.
        memory: what the temporal modules keep of frames before, where this video is one frame of a stream.
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
    places = find_places(model)
    carried = model.get_attachment(EXPRESSION_KEY)
    video = _Video(reference, pose, carried, expression)
    _check_reference(places, video)
    slots = [] if motion is None else make_slots(places, motion, window)
    if motion is not None and memory is not None:
        memory.frames = min(memory.frames, longest_window(motion) - 1)

    model = model.clone()
    model.set_attachments(KEY, video)
    if reference is not None:
        attention = _reference_attention(places)
        for place in attending(places):
            model.set_model_attn1_replace(attention, *place.block)
    if pose:
        model.set_model_input_block_patch(_pose_patch({("input", 0): 0}))
    if len(pose) > 1:
        ends = ends_of_levels(model.model.diffusion_model)
        levels = {block: level for level, block in enumerate(ends, 1) if level < len(pose)}
        model.set_model_input_block_patch_after_skip(_pose_patch(levels))
    if video.expression is not None:
        _add_expression(model, places, carried)
    if slots:
        model.set_additional_models(KEY, [motion])
        model.set_model_forward_timestep_embed_patch((Slot, _run_slot))
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _around_call(video, slots, memory))
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _around_sampling(video, memory))
    return use_windows(model, window, overlap)


def needs_expression(model: ModelPatcher) -> bool:
    """Whether `model` carries an expression adapter."""
    return model.get_attachment(EXPRESSION_KEY) is not None


def conditioned_size(model: ModelPatcher) -> tuple[int, int, int]:
    """Frames, and latent height and width, of the video that is applied to `model`."""
    video = model.get_attachment(KEY)
    if video is None or not video.pose:
        raise InputError(
            "The MODEL has no video to reenact: apply AniFaceDiff with an encoded pose to it first."
        )
    frames, _, height, width = video.pose[0].shape
    return frames, height, width


def empty_latent(model: ModelPatcher) -> Tensor:
    """Zeros of the size and length of the video that is applied to `model`: (frames, channels, h, w)."""
    frames, height, width = conditioned_size(model)
    return torch.zeros(frames, model.get_model_object("latent_format").latent_channels, height, width)


def image_conditioning(embedding: Tensor) -> tuple[list, list]:
    """The image embedding (1, D) or (1, 1, D) as positive CONDITIONING of the host, and zero as negative."""
    embedding = embedding.reshape(1, 1, -1)
    return text_conditioning(embedding, torch.zeros_like(embedding))


def text_conditioning(positive: Tensor, negative: Tensor) -> tuple[list, list]:
    """Contexts (1, tokens, D) as positive and negative CONDITIONING of the host."""
    return [[positive, {}]], [[negative, {}]]


@dataclass(frozen=True)
class _Expression:
    adapter: ModelPatcher
    weight: float


@dataclass(frozen=True)
class _Call:
    """What the hooks need during one call of the UNet, on its device."""

    reference: dict[str, Tensor]
    pose: tuple[Tensor, ...]
    expression: dict[str, tuple[Tensor, Tensor]]
    expression_weight: float
    memory: TemporalMemory | None = None


class _Video:
    """Everything that conditions a whole video, on the CPU, and on the device while it is sampled.

    One opaque object: the host deep-copies the options of a MODEL whenever it clones one.
    """

    def __init__(
        self,
        reference: dict[str, Tensor] | None,
        pose: Sequence[Tensor],
        carried: _Expression | None,
        expression: Tensor | None,
    ) -> None:
        self.reference = {name: tokens.cpu() for name, tokens in (reference or {}).items()}
        self.pose = tuple(level.cpu() for level in pose)
        self.carried = carried
        self.expression = _expression_tokens(carried, expression)
        lengths = [len(value) for value in (*self.pose[:1], self.expression) if value is not None]
        if len(set(lengths)) > 1:
            raise InputError(
                f"The pose has {lengths[0]} frames but the expression has {lengths[1]}: "
                "take both from one video."
            )
        self.frames = lengths[0] if lengths else None
        self._calls: dict[tuple, _Call] = {}

    def __deepcopy__(self, memo: dict) -> _Video:
        return self

    def select(self, options: dict, frames: int) -> slice | list[int]:
        """Indices of the `frames` frames of this call within the video."""
        window = options.get("context_window")
        if window is not None:
            return window.index_list
        self.require_length(frames)
        return slice(None)

    def require_length(self, frames: int) -> None:
        if self.frames not in (None, frames):
            raise InputError(
                f"The latent has {frames} frames but the conditioning has {self.frames}: "
                "make them the same length."
            )

    def call(self, options: dict, frames: int, device: torch.device, dtype: torch.dtype) -> _Call:
        """The part that a call of the UNet needs; what it needed before is there already."""
        index = self.select(options, frames)
        key = (device, dtype, None if isinstance(index, slice) else tuple(index))
        if key not in self._calls:
            known = next((call for place, call in self._calls.items() if place[:2] == key[:2]), None)
            features = sum(level.numel() * dtype.itemsize for level in self.pose)
            if device.type == "cpu" or features > RESIDENT:
                self._calls.clear()  # on the CPU they would only be a second copy
            self._calls[key] = _Call(
                {name: tokens.to(device, dtype) for name, tokens in self.reference.items()}
                if known is None
                else known.reference,
                tuple(
                    level[index].to(device, dtype, memory_format=torch.channels_last) for level in self.pose
                ),
                self._keys_values(index, device, dtype),
                0.0 if self.carried is None else self.carried.weight,
            )
        return self._calls[key]

    def forget(self) -> None:
        """Free the device."""
        self._calls.clear()

    def _keys_values(
        self, index: slice | list[int], device: torch.device, dtype: torch.dtype
    ) -> dict[str, tuple[Tensor, Tensor]]:
        if self.carried is None or self.expression is None:
            return {}
        projected = unwrap(self.carried.adapter).keys_values(self.expression[index].to(device, dtype))
        return dict(projected)


def _run_slot(slot: Slot, hidden: Tensor, emb: Tensor, context: Tensor, options: dict, *_: Any) -> Tensor:
    frames = hidden.shape[0] // len(options["cond_or_uncond"])
    return slot.held[0](hidden, num_frames=frames, memory=options[KEY].memory)


def _around_call(
    video: _Video, slots: list[tuple[Place, Slot]], memory: StreamMemory | None
) -> Callable[..., Tensor]:
    def reenact(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # the host passes them by position: c_concat, c_crossattn, control, transformer_options
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[3]
        model = executor.class_obj
        dtype = model.manual_cast_dtype or model.get_dtype()
        halves = options["cond_or_uncond"]
        call = video.call(options, x.shape[0] // len(halves), x.device, dtype)
        options[KEY] = call if memory is None else replace(call, memory=memory.of_call(halves))
        cache: DeepCache | None = options.get(cache_key)
        try:
            with in_place(slots):
                if cache is None:
                    return executor(x, t, *args, **kwargs)
                with cache.around(model.diffusion_model, options, x.device) as reused:
                    if reused and "control" in kwargs:
                        kwargs["control"] = cache.without_deep_control(kwargs["control"])
                    elif reused:
                        args = (*args[:2], cache.without_deep_control(args[2]), *args[3:])
                    return executor(x, t, *args, **kwargs)
        finally:
            del options[KEY]

    return reenact


def _around_sampling(video: _Video, memory: StreamMemory | None) -> Callable[..., Tensor]:
    def sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        video.require_length(noise.shape[0])
        if memory is not None:
            memory.begin()
        try:
            return executor(noise, *args, **kwargs)
        finally:
            video.forget()
            cache = executor.class_obj.model_options["transformer_options"].get(cache_key)
            if cache is not None:
                cache.forget()

    return sample


def _check_reference(places: list[Place], video: _Video) -> None:
    if not video.reference:
        return
    expected = {place.transformer_name: place.attention.to_k.in_features for place in attending(places)}
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
    return run(carried.adapter, lambda adapter, values: adapter(values).cpu(), expression)


def _groups(options: dict, rows: int) -> tuple[int, list[tuple[slice, bool]]]:
    """Frames per group, and of each group its rows and whether it is conditional."""
    kinds = options["cond_or_uncond"]
    frames = rows // len(kinds)
    return frames, [
        (slice(i * frames, (i + 1) * frames), kind == CONDITIONAL) for i, kind in enumerate(kinds)
    ]


def _pose_patch(levels: dict[Block, int]) -> Callable[[Tensor, dict], Tensor]:
    def add_pose(hidden: Tensor, options: dict) -> Tensor:
        level = levels.get(options["block"])
        if level is None:
            return hidden
        pose = options[KEY].pose[level]
        if pose.shape[1:] != hidden.shape[1:]:
            sizes = [f"{8 * tensor.shape[-1]}×{8 * tensor.shape[-2]}" for tensor in (pose, hidden)]
            raise InputError(
                f"The pose was encoded at {sizes[0]} but the latent is {sizes[1]}: use the same size."
            )
        frames, groups = _groups(options, hidden.shape[0])
        return (hidden.unflatten(0, (len(groups), frames)) + pose).flatten(0, 1)

    return add_pose


def _reference_attention(places: list[Place]) -> Attention:
    by_block = {place.block: place for place in places}

    def attend_to_reference(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        if q.shape[0] != options["original_shape"][0]:
            raise InputError(
                "HyperTile cuts frames into tiles, which reference attention can't follow: remove HyperTile."
            )
        place = by_block[options["block"]]
        attention = place.attention
        tokens = options[KEY].reference[place.transformer_name]
        # projected by the block's own layers at every step, so that LoRA and low-VRAM patches apply
        reference_k, reference_v = attention.to_k(tokens), attention.to_v(tokens)
        frames, groups = _groups(options, q.shape[0])
        attended = []
        for rows, conditional in groups:
            keys, values = k[rows], v[rows]
            if conditional:
                keys = torch.cat([keys, reference_k.expand(frames, -1, -1)], 1)
                values = torch.cat([values, reference_v.expand(frames, -1, -1)], 1)
            attended.append(attend(q[rows], keys, values, options))
        return torch.cat(attended)

    return attend_to_reference


def _add_expression(model: ModelPatcher, places: list[Place], carried: _Expression) -> None:
    names = unwrap(carried.adapter).names
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for place in attending(places):
        if place.transformer_name not in names:
            raise InputError(
                f"The expression adapter has no layers for {place.transformer_name} of the MODEL: "
                "take MODEL and adapter from one checkpoint."
            )
        # one replacement per block: run what another extension has put there, under the name it chose
        name = (*place.block, 0) if (*place.block, 0) in replaced else place.block
        attention = _expression_attention(place.transformer_name, replaced.get(name, attend))
        model.set_model_attn2_replace(attention, *name)


def _expression_attention(name: str, inner: Attention) -> Attention:
    def attend_to_expression(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        attended = inner(q, k, v, options)
        call = options[KEY]
        keys, values = call.expression[name]
        _, groups = _groups(options, q.shape[0])
        return torch.cat(
            [
                attended[rows] + call.expression_weight * attend(q[rows], keys, values, options)
                if conditional
                else attended[rows]
                for rows, conditional in groups
            ]
        )

    return attend_to_expression
