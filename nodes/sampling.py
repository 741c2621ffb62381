"""Reenactment itself: Apply AniFaceDiff for the stock samplers, and AniFaceDiff Sampler."""

from __future__ import annotations

from typing import Any

import torch

from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.sampling.settings import SamplingSettings

from .host.api import io
from .host.apply import (
    apply_anifacediff,
    empty_latent,
    image_conditioning,
    needs_expression,
    text_conditioning,
)
from .host.lora import watch_loras
from .host.runtime import ModelPatcher
from .host.sampling import SAMPLERS, SCHEDULERS, sample
from .host.stream import StreamMemory
from .loading import origin_of
from .sockets import (
    FaceParametersSocket,
    Pose,
    PoseSocket,
    Reference,
    ReferenceSocket,
    make_schema,
    share_input,
)

USUAL = SamplingSettings()


def model_input() -> io.Input:
    tooltip = "MODEL of Load AniFaceDiff, with the Expression Adapter Loader and whatever else behind it."
    return io.Model.Input("model", tooltip=tooltip)


def video_inputs() -> list[io.Input]:
    return [
        model_input(),
        ReferenceSocket.Input("reference", tooltip="The source, from ReferenceNet Encode."),
        PoseSocket.Input(
            "pose", tooltip="The motion, from Pose Encode; it says how many frames the video has."
        ),
        FaceParametersSocket.Input(
            "parameters",
            optional=True,
            tooltip="Face parameters that the normals were rendered from; the expression adapter reads the "
            "expression. Not needed without one.",
        ),
    ]


def window_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "window",
            default=USUAL.window,
            min=1,
            max=128,
            tooltip="Frames that are sampled together. Memory grows with it, not with the length of the "
            "video; the bundled model knows up to 32.",
        ),
        io.Int.Input(
            "overlap",
            default=USUAL.overlap,
            min=0,
            max=127,
            tooltip="Frames that neighboring windows share and blend; more hides seams better and takes "
            "longer.",
        ),
    ]


def seed_input(control: bool) -> io.Int.Input:
    """With `control`, the front-end offers to change it after every run."""
    return io.Int.Input(
        "seed",
        default=USUAL.seed,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=control,
        tooltip="Number from which the noise is made; the same number gives the same video.",
    )


def step_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=USUAL.steps,
            min=1,
            max=1000,
            tooltip="Steps of denoising. The bundled model needs 1 or 2; full-size ones take 20 to 25.",
        ),
        io.Float.Input(
            "cfg",
            default=USUAL.cfg,
            min=1.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance: how much further than asked to go towards the source. 1 is off and "
            "twice as fast; full-size models take 2.5 to 3.5.",
        ),
        io.Combo.Input(
            "sampler_name", options=SAMPLERS, default=USUAL.sampler, tooltip="Algorithm of sampling."
        ),
        io.Combo.Input(
            "scheduler",
            options=SCHEDULERS,
            default=USUAL.scheduler,
            tooltip="How the noise falls from step to step.",
        ),
    ]


def shared_noise_input() -> io.Float.Input:
    tooltip = "Share of the initial noise that all frames have in common: more calms the video."
    return share_input("shared_noise", USUAL.shared_noise, tooltip)


def apply_video(
    model: ModelPatcher,
    reference: Reference,
    pose: Pose,
    parameters: FaceParameters | None,
    window: int,
    overlap: int,
    memory: StreamMemory | None = None,
) -> ModelPatcher:
    if reference.size != pose.size:
        raise InputError(
            f"The source was encoded at {reference.size} pixels (ReferenceNet Encode) but the normals were "
            f"rendered at {pose.size} (Render Normals): set both to the same size."
        )
    if parameters is None and needs_expression(model):
        raise InputError(
            "The MODEL has an expression adapter but there are no face parameters: connect those that the "
            "normals were rendered from."
        )
    frames = len(pose.features)
    if parameters is not None and len(parameters) != frames:
        raise InputError(
            f"The face parameters have {len(parameters)} frames but the pose has {frames}: connect the "
            "parameters that the normals were rendered from."
        )
    origin = origin_of(model)
    if origin is not None and reference.of_text != (origin.checkpoint.config.context == "text"):
        raise InputError(
            "The MODEL reads the source picture's embedding but the reference was made with a text: leave "
            "context of ReferenceNet Encode empty."
            if reference.of_text
            else "The MODEL reads a text but the reference was made without: connect CLIP Text Encode with "
            "the text 'A close up of a person.' to context of ReferenceNet Encode."
        )
    if origin is not None and parameters is not None and origin.checkpoint.head != parameters.head:
        raise InputError(
            f"The MODEL was trained on the head '{origin.checkpoint.head}' but the face parameters belong to "
            f"'{parameters.head}': extract them for the MODEL's head."
        )
    model = apply_anifacediff(
        model,
        reference=reference.tokens,
        pose=pose.levels,
        expression=None if parameters is None else parameters.expression,
        motion=None if origin is None else origin.motion,
        window=window,
        overlap=overlap,
        memory=memory,
    )
    watch_loras(model)
    return model


def context_of(reference: Reference) -> tuple[list, list]:
    """Positive and negative CONDITIONING."""
    if reference.of_text:
        return text_conditioning(reference.embedding, reference.embedding)
    return image_conditioning(reference.embedding)


class ApplyAniFaceDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffApply",
            stage="Sampling",
            display_name="Apply AniFaceDiff",
            description="Put source and motion onto the MODEL, for KSampler, SamplerCustomAdvanced and "
            "every other sampler. AniFaceDiff Sampler does the same and samples at once.",
            search_aliases=["ksampler", "conditioning"],
            advanced="window overlap",
            inputs=[*video_inputs(), *window_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler; it reenacts this one video."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The source's image embedding, or the text."
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="Its absence, for guidance; the text again."
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty, of the right size, with one entry per driving frame.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reference: Reference,
        pose: Pose,
        window: int,
        overlap: int,
        parameters: FaceParameters | None = None,
    ) -> io.NodeOutput:
        model = apply_video(model, reference, pose, parameters, window, overlap)
        positive, negative = context_of(reference)
        return io.NodeOutput(model, positive, negative, {"samples": empty_latent(model)})


class AniFaceDiffSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSampler",
            stage="Sampling",
            display_name="AniFaceDiff Sampler",
            description="Make the video: the source's face with the driver's motion, as LATENT for VAE "
            "Decode.",
            search_aliases=["ksampler", "face reenactment", "portrait animation", "liveportrait"],
            advanced="sampler_name scheduler denoise window overlap shared_noise",
            inputs=[
                *video_inputs(),
                seed_input(control=True),
                *step_inputs(),
                share_input(
                    "denoise",
                    1.0,
                    "Below 1, sampling starts part of the way from the latent, or from the still source if "
                    "there is none.",
                    step=0.01,
                ),
                *window_inputs(),
                shared_noise_input(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Video to start from with a denoise below 1, one entry per driving frame.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The video, one entry per driving frame, for VAE Decode."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reference: Reference,
        pose: Pose,
        denoise: float,
        sampler_name: str,
        parameters: FaceParameters | None = None,
        latent: dict[str, Any] | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        model = apply_video(model, reference, pose, parameters, settings["window"], settings["overlap"])
        positive, negative = context_of(reference)
        frames = len(pose.features)
        if latent is None and denoise < 1:
            latent = {"samples": reference.latent.repeat(frames, 1, 1, 1)}
        if latent is not None:
            _require_fit(latent["samples"], pose)
        sampled = sample(model, positive, negative, latent, denoise=denoise, sampler=sampler_name, **settings)
        return io.NodeOutput(sampled)


def _require_fit(samples: torch.Tensor, pose: Pose) -> None:
    frames, _, height, width = pose.features.shape
    if samples.ndim != 4 or (samples.shape[0], *samples.shape[2:]) != (frames, height, width):
        sizes = "×".join(str(side) for side in samples.shape)
        raise InputError(
            f"The latent ({sizes}) doesn't fit the video of {frames} frames at {8 * width} pixels "
            f"({frames}×4×{height}×{width}): connect one of that size."
        )
