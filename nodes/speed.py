"""Compile for Speed, torch.compile for long jobs; Cache Deep Features, which leaves work out."""

from __future__ import annotations

from anifacediff_core.sampling.settings import CacheSettings

from .host.api import io
from .host.cache import cache_deep_features
from .host.compile import compile_model
from .host.runtime import ModelPatcher
from .sockets import make_schema

REPLAY, COMPILE = "compile and replay", "compile"


class CompileForSpeed(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffCompile",
            stage="Models",
            display_name="Compile for Speed",
            description="Let PyTorch compile the MODEL together with everything that AniFaceDiff adds to it. "
            "The first run takes one to two minutes longer, all further ones of the same size are faster. "
            "For long videos and many of them, not for a first try; needs an NVIDIA GPU and Triton.",
            search_aliases=["torch compile", "inductor", "cuda graphs", "faster"],
            inputs=[
                io.Model.Input("model", tooltip="MODEL to compile, behind LoRA loaders and other patches."),
                io.Combo.Input(
                    "mode",
                    options=[COMPILE, REPLAY],
                    default=COMPILE,
                    tooltip="compile: faster kernels. compile and replay: also record them once and replay "
                    "them, which helps most at 256 pixels, where starting kernels takes longest.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The MODEL, compiled when it first runs; the given one stays as it is.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, mode: str) -> io.NodeOutput:
        return io.NodeOutput(compile_model(model, replay=mode == REPLAY))


class CacheDeepFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffCache",
            stage="Models",
            display_name="Cache Deep Features",
            description="Compute the deep layers of the MODEL in some of the steps only and take their last "
            "result in the others: about twice as fast with an interval of 3, and the video changes a "
            "little. For checkpoints of full size with 15 steps or more; with few steps it does harm.",
            search_aliases=["DeepCache", "feature cache", "faster", "speed", "skip steps"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="MODEL that AniFaceDiff is applied to, before or behind this node."
                ),
                io.Int.Input(
                    "interval",
                    default=3,
                    min=1,
                    max=20,
                    tooltip="Compute everything in every n-th step only: a larger n is faster and less like "
                    "the video without the cache; 1 computes all in every step.",
                ),
                io.Int.Input(
                    "shallow",
                    default=CacheSettings.cache_shallow,
                    min=1,
                    max=11,
                    tooltip="How many blocks on either side of the UNet, from its input and to its output, "
                    "every step computes: fewer are faster, more are closer to the video without the cache.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The MODEL with the cache; the given one stays as it is.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, interval: int, shallow: int) -> io.NodeOutput:
        return io.NodeOutput(cache_deep_features(model, interval, shallow))
