"""Whether a stream is as good as the same clip offline, and whether its memory stays flat.

    python benchmarks/stream.py [--clips 20] [--frames 24] [--size 256] [--seed 0] [--device auto]
    python benchmarks/stream.py --memory 1000 10000

Clips: avatars that nothing was trained on drive others, as in `evaluate avatars`, so that the truth is known.
Each goes through the bundled model twice: offline, captured and sampled as a whole, and as a stream, frame
by frame. Printed are the PSNR of both to the truth, that of the stream to offline, the stream's flicker (mean
second difference over time, as a ratio to offline's), and by how many frames its expression lags behind.

Memory: so many frames through a network of a few random weights, every tenth read from a picture. Printed are
the bytes of all living tensors, and the most that the process has taken so far.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anifacediff_core.capture.extract import CaptureModels, extract_parameters
from anifacediff_core.device import pick_device
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.evaluation.cases import draw_cases, render_cases
from anifacediff_core.lab.evaluation.protocol import Protocol
from anifacediff_core.lab.metrics import psnr
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.stream import Stream
from anifacediff_core.weights.checkpoint import bundled_checkpoint, load_checkpoint
from anifacediff_core.weights.faces import load_face_models

COLUMNS = ("clip", "offline dB", "stream dB", "to offline dB", "flicker", "lag")
LAGS = 31  # of up to three frames, in tenths


def compare(
    pipeline: Pipeline, models: CaptureModels, source: Tensor, driving: Tensor, truth: Tensor
) -> Tensor:
    """One clip: PSNR of offline, of the stream, and between them; flicker; lag.

    Args:
        source: (1, 3, size, size), driving, truth: (frames, 3, size, size), in [0, 1].
    """
    still = extract_parameters(source, models, mode="whole", what="the source").parameters
    params = extract_parameters(driving, models, mode="whole", what="the driver").parameters
    whole = torch.cat(list(pipeline.reenact(source, still, params)))
    stream = Stream(pipeline, models, source, still, mode="whole")
    motions = [stream.motion.read(frame) for frame in driving]
    live = torch.stack([stream.draw(motion) for motion in motions])
    flicker = live.diff(n=2, dim=0).abs().mean() / whole.diff(n=2, dim=0).abs().mean()
    decibels = (psnr(whole, truth).mean(), psnr(live, truth).mean(), psnr(live, whole).mean())
    seen = FaceParameters.concatenate(motions).expression
    return torch.stack([*decibels, flicker, lag(seen, params.expression)])


def lag(late: Tensor, early: Tensor) -> Tensor:
    """Frames after which `late` (frames, n) is most like `early`, between frames by linear interpolation."""
    errors, frames = [], len(early)
    for shift in torch.arange(LAGS) / 10:
        first, part = int(shift), shift % 1
        moved = torch.lerp(early[4 - first : frames - first], early[3 - first : frames - first - 1], part)
        errors.append((late[4:] - moved).square().mean())
    return torch.stack(errors).argmin() / 10


def run_clips(clips: int, frames: int, size: int, seed: int, device: torch.device) -> None:
    checkpoint = load_checkpoint(bundled_checkpoint())
    models = load_face_models(checkpoint, device=device)
    pipeline = Pipeline.from_checkpoint(checkpoint, device, None, models.head)
    studio = Studio(models.head)
    cases = draw_cases(Protocol(pairs=clips, frames=frames, seed=seed), models.head)
    print(" ".join(f"{name:>13}" for name in COLUMNS))
    rows = []
    for clip in range(clips):
        made = render_cases(cases.part(clip, clip + 1, device), studio, models.head, size)
        rows.append(compare(pipeline, models, made.source.cpu(), made.driving.cpu(), made.truth.cpu()))
        print(" ".join([f"{clip + 1:>13}", *(f"{float(value):13.3f}" for value in rows[-1])]), flush=True)
    print(" ".join([f"{'mean':>13}", *(f"{float(value):13.3f}" for value in torch.stack(rows).mean(0))]))


def living() -> int:
    """Bytes of all tensors that Python knows of."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # not isinstance, which asks weak proxies
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def run_memory(counts: list[int]) -> None:
    torch.manual_seed(0)
    models = load_face_models(load_checkpoint(bundled_checkpoint()))
    model = AniFaceDiff(NetworkConfig.tiny(), motion=True).eval()
    pipeline = Pipeline(model, AutoEncoder(), models.head)
    motion = models.head.neutral(10).to("cpu")
    stream = Stream(pipeline, models, torch.rand(1, 3, 64, 64), motion[0])
    picture = torch.rand(3, 64, 64)
    for number in range(1, max(counts) + 1):
        if number % 10:
            stream.follow(motion[number % 10])
        else:
            stream(picture)
        if number in counts:
            gc.collect()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            print(
                f"{number:6} frames: {living():,} bytes in tensors, process at most {peak:.0f} MiB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=int, nargs="*", default=[])
    options = parser.parse_args()
    if options.memory:
        run_memory(options.memory)
    else:
        device = pick_device(options.device)
        run_clips(options.clips, options.frames, options.size, options.seed, device)


if __name__ == "__main__":
    main()
