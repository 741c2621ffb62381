"""Saying for everybody to see that a video is synthetic: Label Synthetic Video."""

from __future__ import annotations

import torch

from anifacediff_core.errors import InputError
from anifacediff_core.motion.retime import exact_rate
from anifacediff_core.provenance.label import PLACES, SIZE, WORDINGS, Label, put_label

from .host.api import io
from .images import checked, to_core, to_host
from .sockets import make_schema, rate_input, share_input

UNLABELED = "none"


class LabelSyntheticVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffLabel",
            stage="Result",
            display_name="Label Synthetic Video",
            description="Write AI, AI GENERATED or AI MODIFIED into a corner, for everybody to see. Place it "
            "before Mark Synthetic Video, which says the same unseen.",
            search_aliases=["visible label", "disclosure", "deepfake", "ai act", "caption", "text overlay"],
            inputs=[
                io.Image.Input("image", tooltip="Finished video, at its final size."),
                io.Combo.Input(
                    "words",
                    options=list(WORDINGS),
                    default=WORDINGS[0],
                    tooltip="AI GENERATED: all of it was made. AI MODIFIED: a picture or video of a real "
                    "person or place was changed, as by Paste Back. AI: both.",
                ),
                io.Combo.Input(
                    "place", options=list(PLACES), default=PLACES[-1], tooltip="The corner where it stands."
                ),
                share_input(
                    "size",
                    SIZE,
                    "Height of the label as a share of the picture's shorter side. Letters stay large enough "
                    "to be read.",
                    most=0.5,
                    step=0.01,
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=3600.0,
                    step=0.5,
                    tooltip="How long it shows, from the first frame on. 0 is all the time, the surest.",
                ),
                rate_input("Frames a second, of Video Frames, to count the seconds by.", optional=True),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The labeled video, for Mark Synthetic Video.")
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        words: str,
        place: str,
        size: float,
        seconds: float,
        fps: float = 24.0,
    ) -> io.NodeOutput:
        frames, _ = checked(image, "video")
        if size <= 0:
            raise InputError("The label's size is 0: give a share above 0.")
        if frames.shape[1] != 4:
            frames = to_core(image, "video")
        count = None if seconds == 0 else max(1, round(seconds * exact_rate(fps)))
        return io.NodeOutput(to_host(put_label(frames, Label(words, place, size), count)))


def label_input() -> io.Combo.Input:
    return io.Combo.Input(
        "label",
        options=[UNLABELED, *WORDINGS],
        default=UNLABELED,
        optional=True,
        tooltip="Words for everybody to see, in the lower right corner of every frame. Label Synthetic Video "
        "has more places and sizes.",
    )


def label_of(words: str) -> Label | None:
    return None if words == UNLABELED else Label(words)
