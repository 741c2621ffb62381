"""How fast a stream is, and where its time goes; `stream.py` says how good it is.

    python benchmarks/live.py [--size 256] [--device auto] [--frames 24] [--smoothing]
                              [--widths 64 64 48 32] [--compile] [--replay]

The example clip drives the example picture. Times are medians over the frames, after some to warm up. Seconds
of the processors count what all of them spent: other programs on the machine change them little. Widths
measure a decoder of so many channels at each size, coarsest first, that has learned nothing. Smoothing: what
is left of the tremble of a still head, and how many frames a slow turn lags.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anifacediff_core.capture.extract import SMOOTHING
from anifacediff_core.device import pick_device
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.live import load_stream
from anifacediff_core.lab.options import Speed
from anifacediff_core.lab.training.autoencoder import confine
from anifacediff_core.motion.causal import CausalSmoother
from anifacediff_core.motion.smoothing import smooth_motion
from anifacediff_core.network.autoencoder import AutoEncoder, fold_upsampling, trim
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.stream import Stream
from anifacediff_core.video import read_frames
from anifacediff_core.weights.checkpoint import bundled_checkpoint

EXAMPLES = Path(__file__).resolve().parents[1] / "anifacediff_core" / "assets" / "examples"
WARM_UP = 4


class Stopwatch:
    """Seconds by the clock and of the processors, by the name of what was done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        before = self._now()
        yield
        self.spent[name].append(tuple(b - a for a, b in zip(before, self._now(), strict=True)))  # type: ignore[arg-type]

    def timed(self, name: str, function: Callable[..., Iterator[Tensor]]) -> Callable[..., Iterator[Tensor]]:
        def work(*arguments: Tensor) -> Iterator[Tensor]:
            with self.time(name):
                result = list(function(*arguments))
            return iter(result)

        return work

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def median(self, name: str) -> tuple[float, float]:
        clock, processors = zip(*self.spent[name][WARM_UP:], strict=True)
        return median(clock), median(processors)


def narrow(pipeline: Pipeline, widths: tuple[int, ...]) -> None:
    decoder = AutoEncoder().decoder
    confine(decoder, widths)
    trim(decoder)
    if pipeline.device.type == "cpu":
        fold_upsampling(decoder)
    decoder = decoder.to(pipeline.device, pipeline.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pipeline.autoencoder.decoder = decoder


def measure(stream: Stream, frames: list[Tensor], device: torch.device) -> None:
    watch = Stopwatch(device)
    stream.pipeline.decode = watch.timed("decode", stream.pipeline.decode)  # type: ignore[method-assign]
    for frame in frames:
        with watch.time("whole"):
            with watch.time("capture"):
                params = stream.motion.read(frame)
            with watch.time("draw"):
                stream.draw(params)
    whole, capture_, draw, decode = (watch.median(name) for name in ("whole", "capture", "draw", "decode"))
    network = tuple(a - b for a, b in zip(draw, decode, strict=True))
    parts = {"capture": capture_, "normals and network": network, "decode": decode, "whole": whole}
    for name, (clock, processors) in parts.items():
        print(f"{name:20} {1000 * clock:8.1f} ms {processors:8.3f} s of the processors")
    print(f"{1 / whole[0]:.2f} FPS with {torch.get_num_threads()} threads on {device}")


def compare_smoothing(head: HeadModel) -> None:
    generator, still = torch.Generator().manual_seed(0), head.neutral(60).to("cpu")
    noise = 2e-3 * torch.randn(60, 18, generator=generator) * torch.tensor([1.0] * 15 + [5.0, 1.0, 1.0])
    raw = replace(still, pose=still.pose + noise[:, :15], camera=still.camera + noise[:, 15:])
    turn = torch.zeros(60, 15)
    turn[:, 4] = 0.004 * torch.arange(60.0)  # two trembles a frame

    def causal(params: FaceParameters) -> FaceParameters:
        smoother = CausalSmoother(head.expression_names, SMOOTHING)
        return FaceParameters.concatenate([smoother(params[number]) for number in range(60)])

    def tremble(params: FaceParameters) -> Tensor:
        return torch.cat([params.camera, params.pose[:, :6]], 1)[20:].diff(dim=0).abs().mean(0)

    offline = smooth_motion(raw, head.expression_names, SMOOTHING, SMOOTHING)
    left = [float((tremble(params) / tremble(raw)).mean()) for params in (causal(raw), offline)]
    turned = causal(replace(raw, pose=raw.pose + turn))
    lag = float((turn - turned.pose)[20:, 4].mean() / 0.004)
    print(f"tremble {left[0]:.2f} of the readings' (offline {left[1]:.2f}), lag {lag:.2f} frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--smoothing", action="store_true")
    parser.add_argument("--widths", type=int, nargs=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--replay", action="store_true")
    options = parser.parse_args()
    device = pick_device(options.device)
    speed = Speed(options.precision, options.compile, options.replay)
    checkpoint = bundled_checkpoint()
    stream, *_ = load_stream(EXAMPLES / "source.png", checkpoint, device, options.size, {}, speed)
    if options.widths:
        narrow(stream.pipeline, tuple(options.widths))
    clip = list(read_frames(EXAMPLES / "driving.mp4"))
    if options.smoothing:
        compare_smoothing(stream.pipeline.head)
    measure(stream, list(islice(cycle(clip), WARM_UP + options.frames)), device)


if __name__ == "__main__":
    main()
