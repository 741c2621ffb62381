"""The commands `mark` and `detect`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ..options import add_command, bar


def add_provenance(commands: Any) -> None:
    parser = add_command(
        commands, "mark", mark_video, "say in pixels and metadata that a video is synthetic, unseen"
    )
    parser.add_argument("--input", type=Path, required=True, help="video")
    parser.add_argument("--out", type=Path, required=True, help="mp4 to write; rate and sound stay")
    parser.add_argument("--identifier", type=int, default=0, help="number in the mark, 0 to 65535")
    parser.add_argument("--strength", type=float, default=1.0, help="a multiple of the tested strength")
    parser.add_argument("--crf", type=int, default=18, help="compression of H.264")
    parser = add_command(
        commands, "detect", detect_mark, "tell whether a video or picture carries the mark: code 1 if not"
    )
    parser.add_argument("input", type=Path, help="video or picture")


def mark_video(options: argparse.Namespace) -> None:
    from ..video import VideoWriter, frame_pace, join_videos, probe, read_frames
    from .container import copy_declared
    from .mark import mark

    source = options.input
    rate, times = frame_pace(source)
    total, progress = probe(source).frames, bar("frames")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        encoded, timed = (Path(folder) / name for name in ("video.mp4", "timed.mp4"))
        with VideoWriter(encoded, rate, None if times else source, options.crf) as writer:
            for number, frame in enumerate(read_frames(source), 1):
                writer.write(mark(frame[None], options.identifier, options.strength))
                progress(number, max(total, number))
        if times:  # without a constant rate the sound fits the frames' own times only
            join_videos([encoded], timed, rate, times, source)
        copy_declared(timed if times else encoded, options.out)


def detect_mark(options: argparse.Namespace) -> None:
    from ..video import IMAGE_ENDINGS, probe, read_frames, read_image
    from .detect import detect

    if options.input.suffix.lower() in IMAGE_ENDINGS:
        found = detect([read_image(options.input)])
    else:
        frames = (frame[None] for frame in read_frames(options.input))
        found = detect(frames, probe(options.input).frames, bar("frames"))
    print(found.note)
    if not found.found:
        raise SystemExit(1)
