"""The commands `mark` and `detect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from ..options import Mp4, bar


def mark(
    input: Annotated[Path, "video"],
    out: Annotated[Mp4, "mp4 to write; rate and sound stay"],
    identifier: Annotated[int, "number in the mark, 0 to 65535"] = 0,
    strength: Annotated[float, "a multiple of the tested strength"] = 1.0,
    crf: Annotated[int, "compression of H.264"] = 18,
) -> None:
    """Say in pixels and metadata that a video is synthetic, unseen."""
    from anifacediff_core.provenance.container import copy_declared
    from anifacediff_core.provenance.mark import mark as marked
    from anifacediff_core.sound import keep_sound
    from anifacediff_core.video import VideoWriter, frame_pace, join_videos, probe, read_frames

    info, (rate, times) = probe(input), frame_pace(input)
    progress = bar("frames")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        silent, whole = (Path(folder) / name for name in ("silent.mp4", "whole.mp4"))
        with VideoWriter(silent, rate, crf=crf) as writer:
            for number, frame in enumerate(read_frames(input), 1):
                writer.write(marked(frame[None], identifier, strength))
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
