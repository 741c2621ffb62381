"""Time and memory of the trainer's steps at full size: Stable Diffusion 1.5, AnimateDiff v2, CLIP ViT-L/14.

    python benchmarks/training.py [--stage 1 2] [--rows 16 4] [--size 256] [--precision bf16]
    python -m torch.distributed.run --standalone --nproc_per_node 2 benchmarks/training.py …

Weights and pairs are random; the engine, the losses and the optimizer are those of training. What is left out
is reading and encoding the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from anifacediff_core.lab.training import distribution, engine  # noqa: E402
from anifacediff_core.lab.training.data import NormalsNoise, Pairs  # noqa: E402
from anifacediff_core.lab.training.reenactment import DenoisingSettings, DenoisingTask  # noqa: E402
from anifacediff_core.lab.training.run_logger import RunLogger  # noqa: E402
from anifacediff_core.lab.training.task import Loop  # noqa: E402
from anifacediff_core.network.config import NetworkConfig  # noqa: E402
from anifacediff_core.network.model import AniFaceDiff  # noqa: E402
from anifacediff_core.sampling.schedule import NoiseSchedule  # noqa: E402


class RandomPairs:
    """Pairs of noise on the device."""

    def __init__(self, config: NetworkConfig, frames: int, size: int, device: torch.device) -> None:
        self.config, self.frames, self.size, self.device = config, frames, size, device

    def draw(self, rows: int) -> Pairs:
        c, side, total = self.config, self.size // 8, rows * self.frames

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=self.device)

        return Pairs(
            source_latents=noise(rows, 4, side, side),
            source_pixels=noise(rows, 3, c.image_size, c.image_size),
            latents=noise(total, 4, side, side),
            normals=noise(total, 3, self.size, self.size),
            expression=noise(total, c.n_expression),
            spots=noise(total, 4, 3).abs() * self.size / 4,
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def measure(stage: int, rows: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Steps a second and peak memory of one stage; None where another process tells."""
    config = NetworkConfig.tiny() if options.tiny else NetworkConfig.full()
    config = replace(config, prediction_type="epsilon", zero_terminal_snr=False)
    loop = Loop(
        steps=options.steps,
        optimizer="adam",
        learning_rate=1e-5,
        lr_scheduler="constant",
        mixed_precision=options.precision,
        ema_decay=0.0 if options.no_average else 0.9999,
        cuda_graph=options.graph,
        check_every=options.steps // 3,
        snapshots=(),
    )
    accelerator = distribution.make_accelerator(loop, seed=0)
    settings = DenoisingSettings(
        batch_size=rows,
        normals=NormalsNoise(0.0, 0.0),
        head_weight=1.0,
        detail_weight=1.0,
        gradient_checkpointing=not options.no_checkpointing,
    )
    torch.manual_seed(0)
    model = AniFaceDiff(config, motion=stage == 2)
    source = RandomPairs(config, 24 if stage == 2 else 1, options.size, accelerator.device)
    task = DenoisingTask(
        model,
        source,
        NoiseSchedule.of(config).alphas.to(accelerator.device),
        settings,
        lambda path, fraction: {},
        stage=stage,
    )
    task.weights = dict  # type: ignore[method-assign, assignment]  # nothing to keep
    with tempfile.TemporaryDirectory() as folder:
        engine.run(task, loop, accelerator, Path(folder), RunLogger(Path(folder), accelerator))
        log = Path(folder) / "log.jsonl"
        if not accelerator.is_main_process:
            return None
        lines = log.read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if entry["event"] == "step"]
    first, last = entries[0], entries[-1]
    # The first steps choose algorithms: what lies between two later looks at the loss counts.
    begun, ended = (entry["step"] / max(entry["steps_per_second"], 1e-9) for entry in (first, last))
    pace = (last["step"] - first["step"]) / max(ended - begun, 1e-9)
    cuda = torch.cuda.is_available()
    return {
        "stage": stage,
        "processes": accelerator.num_processes,
        "rows of each": rows,
        "steps a second": round(pace, 3),
        "sources a second": round(pace * rows * accelerator.num_processes, 2),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 4], help="of each stage, of each process")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--graph", action="store_true", help="record CUDA graphs")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--no-average", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="the bundled network's sizes, to try the script")
    options = parser.parse_args()
    for stage, rows in zip(options.stage, options.rows, strict=True):
        found = measure(stage, rows, options)
        if found is not None:
            print(found, flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
