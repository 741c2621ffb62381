"""The command `live`. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from anifacediff_core.device import pick_device
from anifacediff_core.errors import printable
from anifacediff_core.sampling.settings import SamplingSettings
from anifacediff_core.storage import require_writable

from ..options import Cfg, Checkpoint, Device, FaceFiles, Positive, Rate, Speed, Steps, checkpoint_or_bundled

PIPE, DEVICES = "-", "/dev/"


def output(text: str) -> str:
    if text == PIPE or text.startswith(DEVICES) or Path(text).suffix.lower() == ".mp4":
        return text
    raise argparse.ArgumentTypeError(f"{text} has to end in .mp4, or be - or a virtual camera in {DEVICES}")


def live(
    *,
    source: Annotated[Path, "picture with one face"],
    input: Annotated[
        str,
        "what drives it: a video file, a camera such as /dev/video0, an address of http, rtsp, rtmp or tcp, "
        "udp://:11111 for packets of Live Link Face, or osc://:39539 for ARKit's coefficients by OSC as VMC "
        "sends them; packets are taken from this computer only unless one of its addresses is named, such as "
        "udp://0.0.0.0:11111",
    ],
    output: Annotated[
        str,
        output,
        "mp4 to write, a virtual camera such as /dev/video2, or - for YUV4MPEG2 on standard output",
    ],
    pace: Annotated[
        Literal["fast", "realtime"],
        "fast: every frame of a file, as fast as it goes; realtime: as a camera would, frames that come too "
        "early are dropped, as of cameras they always are",
    ] = "fast",
    size: Annotated[Positive, "side of the result in pixels"] = SamplingSettings.size,
    relative: Annotated[
        bool, "count the motion from the first frame on and add it to the source's own pose and expression"
    ] = False,
    smoothing: Annotated[float, "0 to 1, how much to calm the tremble of what is read"] = 0.3,
    expression_gain: Annotated[float, "how far the expression moves"] = 1.0,
    head_gain: Annotated[float, "how far the head turns and moves"] = 1.0,
    fps: Annotated[Rate, "frame rate of the result, where the input is no file"] = Fraction(30),
    seed: Annotated[int, "of the initial noise"] = SamplingSettings.seed,
    steps: Steps = None,
    cfg: Cfg = None,
    mark: Annotated[
        bool,
        "leave out what says in pixels and metadata that the result is synthetic",
        {"names": ("--no-mark",)},
    ] = True,
    faces: FaceFiles,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    speed: Speed,
) -> None:
    """Let a source picture move while its driver does; Ctrl-C ends it, and what was written is whole."""
    from anifacediff_core.provenance.mark import LEAST_SIDE

    from ..live import (
        DeviceOutput,
        Live,
        PacketInput,
        PipeOutput,
        load_stream,
        open_input,
        stopped_by_interrupt,
    )

    def say(text: str) -> None:
        print(printable(text), file=sys.stderr)

    if output.endswith(".mp4"):
        require_writable(Path(output))
    stream, _, note = load_stream(
        source, checkpoint_or_bundled(checkpoint), pick_device(device), size, faces.named(), speed,
        steps=steps, cfg=cfg, seed=seed, smoothing=smoothing,
        expression_gain=expression_gain, head_gain=head_gain,
    )  # fmt: skip
    say(note)
    if mark and size < LEAST_SIDE:
        say(f"A mark needs {LEAST_SIDE} pixels: only the metadata of a file say that it is synthetic.")
    if relative:
        stream.neutral()
    given = open_input(input, stream.pipeline.head, fps)
    with stopped_by_interrupt() as stop:
        running = Live(stream, given, mark, say, say, stop)
        realtime = pace == "realtime"
        if output == PIPE:
            running.run(PipeOutput(sys.stdout.buffer, given.rate), realtime)
        elif output.startswith(DEVICES):
            with closing(DeviceOutput(output, given.rate)) as camera:
                running.run(camera, realtime)
        else:
            frames = running.write(Path(output), realtime)
            say(f"{output}: {frames} frames at {float(given.rate):g} frames a second.")
    if isinstance(given, PacketInput) and given.link.malformed:
        say(f"{given.link.malformed} packets were none of {given.link.kind}'s, and ignored.")
