"""What guides the sampler: Pose Encode and ReferenceNet Encode."""

from __future__ import annotations

from typing import Any

import torch

from anifacediff_core.errors import InputError

from .host.api import io
from .host.clip_vision import image_embedding
from .host.parts import encode_pose, encode_reference, pose_kinds
from .host.runtime import ModelPatcher, Progress, notify
from .images import square_of, to_core, to_host
from .sockets import (
    Pose,
    PoseEncoderSocket,
    PoseSocket,
    Reference,
    ReferenceNetSocket,
    ReferenceSocket,
    connected,
    make_schema,
    size_input,
)

NEEDED = "this pose encoder reads it, connect Render Guidance"


class PoseEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffPoseEncode",
            stage="Guidance",
            display_name="Pose Encode",
            description="Turn normals, or what else the checkpoint is guided by, into the pose features that "
            "steer every frame of the video.",
            search_aliases=["pose guider", "guidance encoder", "normals"],
            inputs=[
                PoseEncoderSocket.Input("pose_encoder", tooltip="Pose encoder of Load AniFaceDiff."),
                io.Image.Input(
                    "normals",
                    tooltip="Pictures of Render Normals, one per frame of the video to make; for "
                    "MagicPortrait those of Render Guidance, for AniPortrait those of Draw Face Landmarks.",
                ),
                io.Image.Input(
                    "depth",
                    optional=True,
                    tooltip="Depth of Render Guidance, for a pose encoder that reads it, as MagicPortrait's.",
                ),
                io.Image.Input(
                    "render",
                    optional=True,
                    tooltip="Shaded head of Render Guidance, for a pose encoder that reads it, as "
                    "MagicPortrait's.",
                ),
            ],
            outputs=[
                PoseSocket.Output(
                    display_name="pose", tooltip="Pose features of every frame, for the sampler."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        pose_encoder: ModelPatcher | None,
        normals: torch.Tensor,
        depth: torch.Tensor | None = None,
        render: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        encoder = connected(pose_encoder, "pose encoder", "load a checkpoint that has one")
        given = {"normals": normals, "depth": depth, "render": render}
        kinds = pose_kinds(encoder)
        unknown = [kind for kind in kinds if kind not in given]
        if unknown:
            raise InputError(
                f"This pose encoder reads {' and '.join(unknown)}, which no node draws: it can only be what "
                "another model is trained from, load another checkpoint."
            )
        images = [_square(connected(given[kind], kind, NEEDED), kind) for kind in kinds]
        for kind, image in zip(kinds, images, strict=True):
            if image.shape != images[0].shape:
                raise InputError(
                    f"There are {_shape(image)} as {kind} but {_shape(images[0])} as {kinds[0]}: "
                    "connect the pictures of one Render Guidance."
                )
        unread = [kind for kind, image in given.items() if image is not None and kind not in kinds]
        if unread:
            notify(f"This pose encoder does not read {' and '.join(unread)}.")
        stacked = images[0] if len(images) == 1 else torch.cat(images, dim=1)
        return io.NodeOutput(Pose(encode_pose(encoder, stacked, progress=Progress(len(stacked)))))


def _square(images: torch.Tensor, kind: str) -> torch.Tensor:
    images = to_core(images, f"{kind} picture")
    height, width = images.shape[-2:]
    if height != width:
        raise InputError(
            f"The pictures of {kind} are {width}×{height} pixels: they have to be square, as Render Normals "
            "and Render Guidance make them."
        )
    return images


def _shape(images: torch.Tensor) -> str:
    return f"{len(images)} pictures of {images.shape[-1]}×{images.shape[-2]}"


class ReferenceNetEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffReferenceNetEncode",
            stage="Guidance",
            display_name="ReferenceNet Encode",
            description="Read the source picture's identity and appearance once, for every frame of the "
            "video.",
            search_aliases=["identity", "appearance", "source image"],
            inputs=[
                ReferenceNetSocket.Input("reference_net", tooltip="ReferenceNet of Load AniFaceDiff."),
                io.Vae.Input(
                    "vae", tooltip="VAE of Load AniFaceDiff; the same one later decodes the result."
                ),
                io.ClipVision.Input("clip_vision", tooltip="CLIP_VISION of Load AniFaceDiff."),
                io.Image.Input(
                    "source_image",
                    tooltip="Portrait square of the source, as DECA Extract cuts it. Of several pictures "
                    "the first is taken; of a picture that isn't square, the middle.",
                ),
                size_input(
                    "Side in pixels at which the source is read, and of the video; the same as in Render "
                    "Normals. The bundled model was trained at 256."
                ),
                io.Conditioning.Input(
                    "context",
                    optional=True,
                    tooltip="A text in place of the picture's embedding, for models that were trained with "
                    "one: CLIP Text Encode with 'A close up of a person.' for MagicPortrait.",
                ),
            ],
            outputs=[
                ReferenceSocket.Output(
                    display_name="reference",
                    tooltip="Identity and appearance of the source, for the sampler.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        reference_net: ModelPatcher | None,
        vae: Any,
        clip_vision: Any,
        source_image: torch.Tensor,
        size: int,
        context: list | None = None,
    ) -> io.NodeOutput:
        images = to_core(source_image, "source image")
        if len(images) > 1:
            notify(f"The source image has {len(images)} pictures: the first is taken.")
        image = square_of(images[:1], size)
        return io.NodeOutput(encode_source(reference_net, vae, clip_vision, image, context))


def encode_source(
    reference_net: ModelPatcher | None,
    vae: Any,
    clip_vision: Any,
    portrait: torch.Tensor,
    context: list | None = None,
) -> Reference:
    """What the sampler needs of a source's portrait (1, 3, size, size) in [0, 1].

    Args:
        context: CONDITIONING of a text in place of the picture's embedding.

    Raises:
        InputError: one of the networks is missing.
    """
    network = connected(reference_net, "ReferenceNet", "load a checkpoint that has one")
    vae = connected(vae, "VAE", "load a checkpoint that has one, or a VAE of Stable Diffusion 1.5")
    if context is None:
        maker = "load a checkpoint that has an image encoder, or connect a text to context"
        clip_vision = connected(clip_vision, "CLIP_VISION", maker)
    image = to_host(portrait)
    latent = vae.encode(image)
    embedding = image_embedding(clip_vision, image) if context is None else context[0][0]
    return Reference(encode_reference(network, latent, embedding), embedding, latent)
