"""LoRA Loader: files in every naming onto the MODEL, and what of them it uses."""

from __future__ import annotations

from .host.api import io
from .host.folders import LORAS, file_names, file_path
from .host.lora import load_lora
from .host.runtime import ModelPatcher, notify
from .sockets import make_schema


class LoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLoraLoader",
            stage="Models",
            display_name="LoRA Loader",
            description="Put a Stable Diffusion 1.5 LoRA, in any trainer's naming, onto the MODEL and tell "
            "how many of its layers fit. Load LoRA works as well but leaves out layers whose names it "
            "doesn't know.",
            search_aliases=["lora", "lycoris", "peft", "style"],
            inputs=[
                io.Model.Input("model", tooltip="MODEL of Load AniFaceDiff, before or behind other loaders."),
                io.Combo.Input(
                    "lora_name",
                    options=file_names(LORAS),
                    tooltip="A file in models/loras, made for Stable Diffusion 1.5.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the LoRA changes the MODEL: 0 is off, 1 as trained, negative the "
                    "opposite.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The MODEL with the LoRA; the given one stays as it is."
                ),
                io.String.Output(
                    display_name="report", tooltip="How many of the file's layers the MODEL uses."
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, strength: float) -> io.NodeOutput:
        model, report = load_lora(model, file_path(LORAS, lora_name), strength)
        notify(report)
        return io.NodeOutput(model, report)
