"""Compile for Speed: torch.compile for long jobs."""

from __future__ import annotations

from .host.api import io
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
