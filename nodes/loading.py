"""Checkpoints to the host's types and ours: Load AniFaceDiff and Expression Adapter Loader."""

from __future__ import annotations

from dataclasses import dataclass

from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.video import read_image
from anifacediff_core.weights.checkpoint import Checkpoint
from anifacediff_core.weights.faces import own_face_models
from anifacediff_core.weights.sources import open_checkpoint

from .host.api import io
from .host.apply import attach_expression_adapter
from .host.clip_vision import load_clip_vision
from .host.folders import BUNDLED, example_file, model_names, model_path
from .host.lora import watch_loras
from .host.model import load_model
from .host.parts import load_expression_adapter, load_motion, load_pose_encoder, load_reference
from .host.runtime import ModelPatcher
from .host.vae import fit_preview, has_latents_of_its_own, load_vae
from .images import to_host
from .sockets import FaceCaptureSocket, PoseEncoderSocket, ReferenceNetSocket, make_schema, share_input

DEMO = "demo.safetensors"
SAME_AS_MODEL = "same as model"
_ORIGIN_KEY = "anifacediff_origin"


@dataclass(frozen=True)
class ModelOrigin:
    """What a MODEL of Load AniFaceDiff carries for the nodes after it.

    Attributes:
        checkpoint: where it comes from.
        motion: the managed temporal modules, if the checkpoint has any.
    """

    checkpoint: Checkpoint
    motion: ModelPatcher | None


def origin_of(model: ModelPatcher) -> ModelOrigin | None:
    """None for a MODEL of another loader."""
    return model.get_attachment(_ORIGIN_KEY)


def _open(name: str) -> Checkpoint:
    return open_checkpoint(model_path(name, bundled=DEMO))


class LoadAniFaceDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLoader",
            stage="Models",
            display_name="Load AniFaceDiff",
            description="Load all networks of a checkpoint. The MODEL is an ordinary Stable Diffusion 1.5 "
            "one for the host: LoRA loaders, ControlNet and the stock samplers work on it.",
            search_aliases=["anifacediff checkpoint", "face reenactment", "liveportrait", "live portrait"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=model_names(),
                    default=BUNDLED,
                    tooltip="The model that comes with this extension, a file in models/anifacediff, or a "
                    "folder there with another project's files as they were downloaded.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Denoising network, for Expression Adapter Loader and then a sampler; carries "
                    "the temporal modules.",
                ),
                io.Vae.Output(display_name="vae", tooltip="For ReferenceNet Encode and VAE Decode."),
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="Image encoder, for ReferenceNet Encode."
                ),
                ReferenceNetSocket.Output(display_name="reference_net", tooltip="For ReferenceNet Encode."),
                PoseEncoderSocket.Output(display_name="pose_encoder", tooltip="For Pose Encode."),
                FaceCaptureSocket.Output(
                    display_name="face_capture", tooltip="Face detector and encoder, for DECA Extract."
                ),
            ],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        opened = _open(checkpoint)
        config, parts = opened.config, opened.parts
        model = load_model(opened.part("unet"), config)
        motion = load_motion(config, opened.part("motion")) if "motion" in parts else None
        model.set_attachments(_ORIGIN_KEY, ModelOrigin(opened, motion))
        watch_loras(model)
        vae = load_vae(opened.part("vae"), config) if "vae" in parts else None
        if vae is not None and has_latents_of_its_own(config):
            fit_preview(model, vae, to_host(read_image(example_file("source.png"))))
        # parts that a checkpoint may lack: the node that needs one says so
        return io.NodeOutput(
            model,
            vae,
            load_clip_vision(opened.part("image_encoder"), config) if "image_encoder" in parts else None,
            load_reference(config, opened.part("reference")) if "reference" in parts else None,
            load_pose_encoder(config, opened.part("pose_encoder")) if "pose_encoder" in parts else None,
            own_face_models(opened, HeadModel.bundled()),
        )


class ExpressionAdapterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffExpressionAdapterLoader",
            stage="Models",
            display_name="Expression Adapter Loader",
            description="Put the expression adapter onto a MODEL, so that the driver's expression also "
            "reaches it as numbers, which tell fine things that normals don't show.",
            search_aliases=["expression strength", "lambda"],
            advanced="checkpoint",
            inputs=[
                io.Model.Input("model", tooltip="MODEL of Load AniFaceDiff."),
                io.Combo.Input(
                    "checkpoint",
                    options=[SAME_AS_MODEL, *model_names()],
                    default=SAME_AS_MODEL,
                    tooltip="Where to take the adapter from: the MODEL's own checkpoint, or another one "
                    "trained for it.",
                ),
                share_input(
                    "weight", 1.0, "\u03bb of the paper: 0 is off, 1 as trained, more exaggerates.", most=2.0
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The MODEL with the adapter; the given one stays as it is."
                )
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, checkpoint: str, weight: float) -> io.NodeOutput:
        origin = origin_of(model)
        if checkpoint != SAME_AS_MODEL:
            opened = _open(checkpoint)
        elif origin is not None:
            opened = origin.checkpoint
        else:
            raise InputError(
                "The MODEL doesn't come from Load AniFaceDiff, so there is no checkpoint to take the "
                "adapter from: choose one."
            )
        if origin is not None and origin.checkpoint.head != opened.head:
            raise InputError(
                f"The expression adapter was trained on the head '{opened.head}' but the MODEL on "
                f"'{origin.checkpoint.head}': take both from one checkpoint."
            )
        adapter = load_expression_adapter(opened.config, opened.part("expression_adapter"))
        return io.NodeOutput(attach_expression_adapter(model, adapter, weight))
