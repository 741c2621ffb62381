"""Videos for other programs: Save Video As."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.capture.extract import rgb
from anifacediff_core.errors import InputError
from anifacediff_core.motion.retime import exact_rate
from anifacediff_core.provenance.export import CRF, FORMS, Footage, export
from anifacediff_core.provenance.label import put_label
from anifacediff_core.provenance.mark import mark as put_mark
from anifacediff_core.provenance.mark import require_size
from anifacediff_core.video import to_pixels

from .host.api import io, ui
from .host.files import output_file, workflow_metadata
from .host.runtime import Progress, show_text
from .host.synthetic import write_wave
from .host.video import preview_of, temporary_folder
from .images import checked
from .label import UNLABELED, label_input, label_of
from .sockets import make_schema, prefix_input, rate_input

SHOWN = ("mp4", "webm", "gif", "webp")  # what browsers play


class SaveVideoAs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AniFaceDiffSaveVideoAs",
            stage="Result",
            advanced="crf",
            display_name="Save Video As",
            description="Save frames as webm or ProRes 4444 with transparency, as GIF, animated WebP, "
            "numbered PNG files or mp4: for editing programs and web pages. The file says that it is "
            "synthetic.",
            search_aliases=[
                "video combine",
                "export",
                "webm",
                "prores 4444",
                "gif",
                "animated webp",
                "png sequence",
                "alpha",
                "transparent video",
            ],
            inputs=[
                io.Image.Input(
                    "image", tooltip="Finished video, at its final size; an alpha channel of its own counts."
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMS),
                    default="webm",
                    tooltip="webm: VP9, for web pages. prores: ProRes 4444 in a mov, for editing programs. "
                    "gif, webp: pictures that move, without sound. png: a folder of numbered pictures, "
                    "lossless. mp4: H.264. All but mp4 can be transparent; in a gif a pixel is or is not.",
                ),
                rate_input("Frames a second, of Video Frames. 29.97 means 30000/1001. A gif has at most 50."),
                prefix_input("video/AniFaceDiff"),
                io.Int.Input(
                    "crf",
                    default=CRF,
                    min=0,
                    max=63,
                    tooltip="Compression of webm and mp4: 18 looks like the original, more makes smaller "
                    "files. webp has the quality 100 - crf; the others are not concerned.",
                ),
                io.Boolean.Input(
                    "mark",
                    default=True,
                    tooltip="Put the invisible mark of synthetic video into every frame. Switch it off "
                    "behind Mark Synthetic Video, which has done so.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the picture shows, black where it is transparent: one for all "
                    "frames, or one per frame. The mask of Paste Back, or of any matting node.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="Sound, for webm, prores and mp4; of Video Frames."
                ),
                label_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The file, or the folder, below the output folder."
                ),
                io.String.Output(display_name="report", tooltip="What was saved."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        format: str,
        fps: float,
        filename_prefix: str,
        crf: int,
        mark: bool,
        mask: Tensor | None = None,
        audio: dict[str, Any] | None = None,
        label: str = UNLABELED,
    ) -> io.NodeOutput:
        pictures, _ = checked(image, "video")
        if mark:
            require_size(*pictures.shape[-2:])
        clear = _Clear.of(pictures, mask, FORMS[format].alpha)
        out, name = output_file(filename_prefix, FORMS[format].suffix)
        rate, words = exact_rate(fps), label_of(label)
        notes: list[str] = []

        def frames() -> Iterator[np.ndarray]:
            for number, picture in enumerate(pictures):
                frame = clear.frame(picture, number)[None]
                frame = frame if words is None else put_label(frame, words)
                frame = torch.cat([put_mark(frame[:, :3]), frame[:, 3:]], dim=1) if mark else frame
                yield to_pixels(frame[0])

        with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
            sound = None
            if audio is not None and FORMS[format].sound is not None:
                sound = Path(folder) / "the audio"
                write_wave(audio, sound)
            footage = Footage(frames, len(pictures), rate, (), sound, workflow_metadata(cls.hidden))
            passes = 2 if format == "gif" else 1
            export(footage, out, format, crf=crf, say=notes.append, progress=Progress(passes * len(pictures)))
        seen = "with transparency" if clear.alpha is not None else "without transparency"
        report = f"{name}: {len(pictures)} frames, {rate} fps, {seen}, declared synthetic."
        report = " ".join([report, *notes])
        show_text(report)
        if format in SHOWN:
            return io.NodeOutput(name, report, ui=preview_of(name))
        if format == "png":
            return io.NodeOutput(name, report, ui=preview_of(f"{name}/{sorted(out.iterdir())[0].name}"))
        return io.NodeOutput(name, report, ui=ui.PreviewText(report))


@dataclass(frozen=True)
class _Clear:
    """How transparent the frames of a video are.

    Attributes:
        alpha: (1 or frames, height, width) in [0, 1]; None if nothing is.
        keeps_colors: whether those behind the frames' own alpha stay as they are.
    """

    alpha: Tensor | None
    keeps_colors: bool

    @classmethod
    def of(cls, pictures: Tensor, mask: Tensor | None, possible: bool) -> _Clear:
        """By a mask, or by the frames' own alpha where the form may have some.

        Args:
            pictures: (frames, 1 to 4, height, width).

        Raises:
            InputError: a mask that does not fit.
        """
        if mask is None:
            own = pictures.shape[1] in (2, 4) and possible
            return cls(pictures[:, -1] if own else None, own)
        # with or without an axis of frames or channels, as the nodes of others give masks
        alpha = mask[None].flatten(0, -3)
        if len(alpha) not in (1, len(pictures)):
            raise InputError(
                f"There are {len(alpha)} masks for {len(pictures)} frames: give one, or one per frame."
            )
        if 0 in alpha.shape or not torch.isfinite(alpha).all():
            raise InputError("The mask has no pixels, or NaN or infinite ones: mend the node that made it.")
        return cls(alpha, pictures.shape[1] in (2, 4))

    def frame(self, picture: Tensor, number: int) -> Tensor:
        """RGB, or RGBA (4, height, width), of a frame (1 to 4, height, width)."""
        if self.keeps_colors:
            colors = picture[:-1].clamp(0, 1).expand(3, -1, -1)
        else:
            colors = rgb(picture[None])[0]
        if self.alpha is None:
            return colors
        alpha = self.alpha[number % len(self.alpha)][None, None].to(colors)
        if alpha.shape[2:] != colors.shape[1:]:
            alpha = F.interpolate(alpha, colors.shape[1:], mode="bilinear", antialias=True)
        return torch.cat([colors, alpha[0].clamp(0, 1)])
