"""Long videos in overlapping windows, with the core's windows and weights, for any sampler of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.context_windows
import torch
from comfy.context_windows import ContextFuseMethod, ContextSchedule, IndexListContextHandler
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.sampling.windows import context_windows, fuse_weights

Conds = list[list[dict]]
KEY = "anifacediff_windows"


def use_windows(model: ModelPatcher, length: int, overlap: int) -> ModelPatcher:
    """A clone of `model` that samples `length` frames at a time, neighbors sharing `overlap`."""
    if not 0 <= overlap < length:
        raise InputError(
            f"The overlap of {overlap} frames must be shorter than the window of {length}: reduce it."
        )
    model = model.clone()
    model.model_options["context_handler"] = WindowHandler(length, overlap)
    # the host estimates memory for a window instead of the whole video
    key = "ContextWindows_prepare_sampling"
    model.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, key)
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _adopt_windows)
    return model


class WindowHandler(IndexListContextHandler):
    """The host's context windows over the batch dimension, which its releases handle in part only."""

    def __init__(self, length: int, overlap: int) -> None:
        super().__init__(
            ContextSchedule("anifacediff", _schedule),
            ContextFuseMethod("anifacediff", _fuse),
            context_length=length,
            context_overlap=overlap,
            dim=0,
        )
        # by default newer hosts put one more frame before a window, of which `index_list` says nothing
        self.causal_window_fix = False

    @classmethod
    def adopt(cls, handler: IndexListContextHandler) -> WindowHandler:
        """Windows as another handler lays and blends them, handled as ours."""
        adopted = cls(handler.context_length, handler.context_overlap)
        adopted.__dict__.update({**handler.__dict__, "causal_window_fix": False})
        return adopted

    def __deepcopy__(self, memo: dict) -> WindowHandler:
        return self

    def should_use_context(self, model: Any, conds: Conds, x_in: Tensor, *args: Any, **kwargs: Any) -> bool:
        return x_in.shape[0] > self.context_length

    def execute(
        self,
        calc_cond_batch: Callable,
        model: Any,
        conds: Conds,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict,
        *args: Any,
        **kwargs: Any,
    ) -> list:
        _refuse_what_windows_break(model_options, x_in.shape[0])
        return super().execute(calc_cond_batch, model, conds, x_in, timestep, model_options, *args, **kwargs)

    def set_step(self, timestep: Tensor, model_options: dict) -> None:
        """The step whose noise level is nearest: samplers also look between the levels of the schedule."""
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        self._step = int((sigmas - timestep[:1].to(sigmas)).abs().argmin())

    def get_resized_cond(
        self, cond_in: list[dict] | None, x_in: Tensor, window: Any, *args: Any, **kwargs: Any
    ) -> list[dict] | None:
        """Cut conditioning that has one entry per frame, which the host leaves whole before 0.8."""
        resized = super().get_resized_cond(cond_in, x_in, window, *args, **kwargs)
        for cond in resized or []:
            for name, value in cond.get("model_conds", {}).items():
                tensor = getattr(value, "cond", None)
                if torch.is_tensor(tensor) and tensor.ndim and tensor.shape[0] == x_in.shape[0]:
                    cond["model_conds"][name] = value._copy_with(
                        window.get_tensor(tensor, tensor.device, dim=0)
                    )
        return resized

    def evaluate_context_windows(
        self,
        calc_cond_batch: Callable,
        model: Any,
        x_in: Tensor,
        conds: Conds,
        timestep: Tensor,
        enumerated_context_windows: list,
        *args: Any,
        **kwargs: Any,
    ) -> list:
        results = []
        for numbered in enumerated_context_windows:
            with _control_hints(conds, numbered[1].index_list, x_in.shape[0]):
                results += super().evaluate_context_windows(
                    calc_cond_batch, model, x_in, conds, timestep, [numbered], *args, **kwargs
                )
        return results


def _adopt_windows(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Where a node of the host has replaced our handler, cut its windows along the frames as well."""
    guider = executor.class_obj
    handler = guider.model_options.get("context_handler")
    if isinstance(handler, IndexListContextHandler) and not isinstance(handler, WindowHandler):
        if handler.dim != 0:
            raise InputError(
                f"The context windows cut the latent along dimension {handler.dim}, which is not that of the "
                "frames: set dim to 0."
            )
        longest, length = _longest_window(guider.model_patcher), min(handler.context_length, noise.shape[0])
        if longest is not None and length > longest:
            raise InputError(
                f"Context windows of {length} frames are longer than the motion modules know: "
                f"use {longest} at most."
            )
        # the options are the guider's own copy for this run
        guider.model_options["context_handler"] = WindowHandler.adopt(handler)
    return executor(noise, *args, **kwargs)


def _longest_window(model: ModelPatcher) -> int | None:
    """Frames that the temporal modules have positions for, None without any."""
    others = [patcher.model for patchers in model.additional_models.values() for patcher in patchers]
    lengths = [module.pe.shape[1] for other in others for module in other.modules() if hasattr(module, "pe")]
    return min(lengths, default=None)


def _refuse_what_windows_break(model_options: dict, frames: int) -> None:
    """Nodes that take one call of the UNet for the whole video; they would spoil it silently."""
    after_cfg = model_options.get("sampler_post_cfg_function", [])
    if any(getattr(function, "__module__", "").endswith("nodes_sag") for function in after_cfg):
        raise InputError(
            "Self-Attention Guidance needs the attention of all frames at once, but windows show it a few: "
            f"set the window to all {frames} frames or remove that node."
        )
    cache = model_options["transformer_options"].get("easycache")
    if getattr(cache, "name", None) == "EasyCache":
        raise InputError(
            "EasyCache takes the next window for the next step: use LazyCache instead, "
            f"or set the window to all {frames} frames."
        )


def _schedule(frames: int, handler: IndexListContextHandler, model_options: dict) -> list[list[int]]:
    return context_windows(frames, handler.context_length, handler.context_overlap)


def _fuse(length: int, handler: IndexListContextHandler, **_: Any) -> Tensor:
    return fuse_weights(length, handler.context_overlap)


@contextmanager
def _control_hints(conds: Conds, indices: list[int], frames: int) -> Iterator[None]:
    """Show every ControlNet the hints of the window's frames; the host would take the video's first ones."""
    controls = {}
    for cond in (cond for group in conds for cond in group or []):
        control = cond.get("control")
        while control is not None:
            controls[id(control)] = control
            control = control.previous_controlnet
    whole = [
        (control, control.cond_hint_original)
        for control in controls.values()
        if control.cond_hint_original is not None and control.cond_hint_original.shape[0] == frames
    ]
    try:
        for control, hints in whole:
            _set_hints(control, hints[indices])
        yield
    finally:
        for control, hints in whole:
            _set_hints(control, hints)


def _set_hints(control: Any, hints: Tensor) -> None:
    control.cond_hint_original = hints
    control.cond_hint = None  # what the host has prepared from the former hints
    if hasattr(control, "control_input"):
        control.control_input = None
