"""Learn This Picture: a LoRA that keeps one character's face better."""

from __future__ import annotations

import torch

from anifacediff_core.capture.extract import Models
from anifacediff_core.errors import InputError
from anifacediff_core.sampling.learn import learn, lora_header
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.settings import LearningSettings
from anifacediff_core.weights.lora import save_lora

from .capture import on_device
from .host.api import io
from .host.files import output_file
from .host.lora import load_lora
from .host.runtime import ModelPatcher, Progress, device, make_room, notify
from .images import to_core
from .loading import origin_of
from .sockets import FaceCaptureSocket, make_schema, size_input

USUAL = LearningSettings()


class LearnThisPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLearnThisPicture",
            stage="Models",
            display_name="Learn This Picture",
            description="Tune a LoRA to one to five pictures of the same character, so that videos keep its "
            "face better. It is an ordinary LoRA file: later, load it with Load LoRA and learn no more.",
            search_aliases=["lora training", "fine-tune", "identity", "likeness"],
            is_output_node=True,
            advanced="size rank learning_rate seed",
            inputs=[
                io.Model.Input("model", tooltip="MODEL of Load AniFaceDiff; its checkpoint is tuned."),
                FaceCaptureSocket.Input(
                    "face_capture",
                    tooltip="Face detector and encoder of Load AniFaceDiff, or DECA of Load DECA.",
                ),
                io.Image.Input(
                    "pictures",
                    tooltip="One to five pictures of the character, each with its face; best the source "
                    "picture itself, and others with another expression or from another side.",
                ),
                size_input("Side in pixels at which is learned: that of the videos to be made."),
                io.Int.Input(
                    "steps",
                    default=USUAL.steps,
                    min=1,
                    max=10000,
                    tooltip="Steps of learning: more get closer to the pictures and take longer.",
                ),
                io.Int.Input(
                    "rank",
                    default=USUAL.rank,
                    min=1,
                    max=256,
                    tooltip="Size of the LoRA: a higher rank holds more of the character, in a larger file.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=USUAL.learning_rate,
                    min=1e-6,
                    max=1.0,
                    step=1e-4,
                    round=1e-6,
                    tooltip="How far each step goes at most. Lower it if results become spotty.",
                ),
                io.Int.Input(
                    "seed",
                    default=USUAL.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Number from which everything random is drawn; the same number learns the same.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/AniFaceDiff",
                    tooltip="Name of the file in the output folder, without number and ending. ComfyUI's "
                    "loaders look for LoRAs in the folder loras there as well.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The MODEL with the LoRA; the given one stays as it is."
                ),
                io.String.Output(display_name="lora_name", tooltip="The file, below the output folder."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        face_capture: Models | None,
        pictures: torch.Tensor,
        size: int,
        steps: int,
        rank: int,
        learning_rate: float,
        seed: int,
        filename_prefix: str,
    ) -> io.NodeOutput:
        origin = origin_of(model)
        if origin is None:
            raise InputError(
                "The MODEL doesn't come from Load AniFaceDiff, so there is no checkpoint to tune: connect "
                "one that does."
            )
        frames = to_core(pictures, "pictures")
        path, name = output_file(filename_prefix, ".safetensors")
        settings = LearningSettings(steps, rank, learning_rate, seed, size)
        checkpoint = origin.checkpoint
        make_room(3 * checkpoint.path.stat().st_size)
        # the host runs nodes without gradients
        with on_device(face_capture) as models, torch.inference_mode(False):
            pipeline = Pipeline.from_checkpoint(checkpoint, device(), head=models.head)
            adapters = learn(pipeline, models, list(frames), settings, Progress(steps).show)
            save_lora(path, adapters, lora_header(settings, checkpoint.path.name))
        model, report = load_lora(model, path, 1.0)
        notify(f"{name}: learned from {len(frames)} pictures. {report}")
        return io.NodeOutput(model, name)
