"""The result back into the whole picture: Paste Back."""

from __future__ import annotations

import torch

from anifacediff_core.capture.paste import SHAPES, paste_back
from anifacediff_core.errors import InputError

from .host.api import io
from .host.runtime import Progress
from .images import checked, to_host
from .sockets import Crop, CropSocket, make_schema, paste_inputs


class PasteBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffPasteBack",
            stage="Result",
            display_name="Paste Back",
            description="Put the portrait video back into the whole picture, exactly where Portrait Crop or "
            "DECA Extract cut the portrait out, with a soft edge.",
            search_aliases=["uncrop", "composite", "stitch", "full picture", "inverse crop"],
            inputs=[
                io.Image.Input(
                    "portrait",
                    tooltip="The square video that was made, of any size: straight from VAE Decode or from "
                    "an upscaler.",
                ),
                io.Image.Input(
                    "original",
                    tooltip="The whole picture that the portrait was cut out of, or a video with as many "
                    "frames as the portrait has. Transparency is laid over gray.",
                ),
                CropSocket.Input(
                    "crop",
                    tooltip="Where the portrait belongs, from the Portrait Crop or DECA Extract that cut it "
                    "out.",
                ),
                *paste_inputs(
                    "Width of the soft edge, as a share of the square's side. There is none where the square "
                    "ends with the picture.",
                    "How much to bring the portrait's colors to those that the picture has around its edge, "
                    "so that the edge doesn't show: 0 leaves them.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the portrait may show, over the whole picture: one for all frames, "
                    "or one per frame.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="square",
                    optional=True,
                    tooltip="What shows of the portrait. square: all of it. ellipse: the upright oval within "
                    "it, which leaves the corners to the original.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="Frames of the picture's size with the portrait in its place; the rest is "
                    "untouched.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="How much of the portrait shows where; one for all frames, unless it differs "
                    "between them.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        portrait: torch.Tensor,
        original: torch.Tensor,
        crop: Crop,
        feather: float,
        match_color: float,
        mask: torch.Tensor | None = None,
        shape: str = "square",
    ) -> io.NodeOutput:
        frames, picture = checked(portrait, "portrait")[0], checked(original, "original")[0]
        require_picture_of(crop, picture)
        pasted, shown = paste_back(
            frames,
            picture,
            crop.square,
            skipped=crop.skipped,
            feather=feather,
            match_color=match_color,
            shape=shape,
            # with or without an axis of frames or channels, as the nodes of others give masks
            mask=None if mask is None else mask[None].flatten(0, -3),
            progress=Progress(len(frames)),
        )
        return io.NodeOutput(to_host(pasted), shown)


def require_picture_of(crop: Crop, picture: torch.Tensor) -> None:
    """Refuse a picture (frames, channels, height, width) that the crop was not cut out of."""
    height, width = picture.shape[-2:]
    # a scaled picture has its square at the same fractions; a pixel of rounding is no other proportion
    if abs(width * crop.height - height * crop.width) > max(crop.width, crop.height, width, height):
        raise InputError(
            f"The original is {width}×{height} pixels but the portrait was cut out of "
            f"{crop.width}×{crop.height}: connect the picture that it was cut out of."
        )
