"""The commands `mark` and `detect`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ..options import add_command, bar, file_name


def add_provenance(commands: Any) -> None:
    parser = add_command(
        commands, "mark", mark_video, "say in pixels and metadata that a video is synthetic, unseen"
    )
    parser.add_argument("--input", type=Path, required=True, help="video")
    parser.add_argument(
        "--out", type=file_name(".mp4"), required=True, help="mp4 to write; rate and sound stay"
    )
    parser.add_argument("--identifier", type=int, default=0, help="number in the mark, 0 to 65535")
    parser.add_argument("--strength", type=float, default=1.0, help="a multiple of the tested strength")
    parser.add_argument("--crf", type=int, default=18, help="compression of H.264")
    parser = add_command(
        commands, "detect", detect_mark, "tell whether a video or picture carries the mark: code 1 if not"
    )
    parser.add_argument("input", type=Path, help="video or picture")


def mark_video(options: argparse.Namespace) -> None:
    from anifacediff_core.provenance.container import copy_declared
    from anifacediff_core.provenance.mark import mark
    from anifacediff_core.sound import keep_sound
    from anifacediff_core.video import VideoWriter, frame_pace, join_videos, probe, read_frames

    source, info = options.input, probe(options.input)
    rate, times = frame_pace(source)
    progress = bar("frames")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        marked, whole = (Path(folder) / name for name in ("marked.mp4", "whole.mp4"))
        with VideoWriter(marked, rate, crf=options.crf) as writer:
            for number, frame in enumerate(read_frames(source), 1):
                writer.write(mark(frame[None], options.identifier, options.strength))
                progress(number, max(info.frames, number))

        def join(sound: Path | None, copied: bool) -> None:
            join_videos([marked], whole, rate, times, sound, copied, cut_sound=False)

        keep_sound(join, source if info.has_audio else None, print)
        copy_declared(whole, options.out, say=print)


def detect_mark(options: argparse.Namespace) -> None:
    from anifacediff_core.provenance.detect import detect
    from anifacediff_core.video import is_still, probe, read_frames, read_image

    if is_still(options.input):
        found = detect([read_image(options.input)])
    else:
        frames = (frame[None] for frame in read_frames(options.input))
        found = detect(frames, probe(options.input).frames, bar("frames"))
    print(found.note)
    if not found.found:
        raise SystemExit(1)
