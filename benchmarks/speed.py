"""How fast head and studio are.

    python benchmarks/speed.py [--device cuda]

Prints milliseconds per frame of Render Normals and avatars per second of the studio, both at 256².
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab.avatars.identity import Identity
from anifacediff_core.lab.avatars.poses import random_frames
from anifacediff_core.lab.avatars.studio import Studio


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of one call, after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    device = torch.device(options.device)
    avatars = 1024 if device.type == "cuda" else 8
    head = HeadModel.bundled().to(device)
    studio = Studio(head).to(device)
    generator = torch.Generator().manual_seed(0)
    identity = Identity.random(avatars, generator, head).to(device)
    params = random_frames(avatars, generator, head).to(device)
    params = replace(params, shape=identity.shape)

    frames = params[[i % avatars for i in range(48)]]
    drawn = seconds(lambda: render_normals(head, frames, options.size), device, 5)
    print(f"Render Normals: {1000 * drawn / len(frames):.1f} ms a frame at {options.size}², {device}")
    rendered = seconds(lambda: studio.render(identity, params, options.size), device, 3)
    print(f"Studio: {avatars / rendered:.1f} avatars a second at {options.size}², {device}")


if __name__ == "__main__":
    main()
