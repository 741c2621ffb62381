"""The commands `mark`, `label` and `detect`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from ..options import Mp4, bar

Words = Literal["AI", "AI GENERATED", "AI MODIFIED"]  # WORDINGS of `provenance.label`
Place = Literal["top left", "top right", "bottom left", "bottom right"]  # PLACES there


def mark(
    input: Annotated[Path, "video"],
    out: Annotated[Mp4, "mp4 to write; rate and sound stay"],
    identifier: Annotated[int, "number in the mark, 0 to 65535"] = 0,
    strength: Annotated[float, "a multiple of the tested strength"] = 1.0,
    crf: Annotated[int, "compression of H.264"] = 18,
) -> None:
    """Say in pixels and metadata that a video is synthetic, unseen."""
    from anifacediff_core.provenance.mark import mark as marked

    _rewrite(input, out, lambda frame: marked(frame, identifier, strength), crf)


def label(
    input: Annotated[Path, "video"],
    out: Annotated[Mp4, "mp4 to write; rate and sound stay"],
    words: Annotated[Words, "what it says"] = "AI",
    place: Annotated[Place, "the corner"] = "bottom right",
    size: Annotated[float, "height as a share of the shorter side"] = 0.07,
    crf: Annotated[int, "compression of H.264"] = 18,
) -> None:
    """Say in a corner and in the metadata that a video is synthetic, for everybody to see."""
    from anifacediff_core.provenance.label import Label, put_label

    chosen = Label(words, place, size)
    _rewrite(input, out, lambda frame: put_label(frame, chosen), crf)


def _rewrite(input: Path, out: Path, change: Callable[[Tensor], Tensor], crf: int) -> None:
    """Write a video anew, each of its frames (1, 3, height, width) changed, and declare what it is."""
    from anifacediff_core.provenance.container import copy_declared
    from anifacediff_core.sound import keep_sound
    from anifacediff_core.video import VideoWriter, frame_pace, join_videos, probe, read_frames

    info, (rate, times) = probe(input), frame_pace(input)
    progress = bar("frames")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        silent, whole = (Path(folder) / name for name in ("silent.mp4", "whole.mp4"))
        with VideoWriter(silent, rate, crf=crf) as writer:
            for number, frame in enumerate(read_frames(input), 1):
                writer.write(change(frame[None]))
                progress(number, max(info.frames, number))

        def join(sound: Path | None, copied: bool) -> None:
            join_videos([silent], whole, rate, times, sound, copied, cut_sound=False)

        keep_sound(join, input if info.has_audio else None, print)
        copy_declared(whole, out, say=print)


def detect(input: Annotated[Path, "video or picture"], /) -> None:
    """Tell whether a video or picture carries the mark: code 1 if not."""
    from anifacediff_core.provenance.detect import detect as look
    from anifacediff_core.video import is_still, probe, read_frames, read_image

    if is_still(input):
        found = look([read_image(input)])
    else:
        found = look((frame[None] for frame in read_frames(input)), probe(input).frames, bar("frames"))
    print(found.note)
    if not found.found:
        raise SystemExit(1)
