"""The log of a training run: lines for people, JSON lines for programs, TensorBoard's files."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from anifacediff_core.video import read_image


class RunLogger:
    """Progress as lines for people, as JSON lines for programs, and in TensorBoard's files.

    Only the main process writes, and a log that cannot be written never ends a training.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.started = time.monotonic()
        self.path = folder / "log.jsonl"
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def resume_clock(self, elapsed: float) -> None:
        """Count from where an earlier process stopped."""
        self.started = time.monotonic() - elapsed

    def __call__(self, phase: str, event: str, **values: Any) -> None:
        if not self.main:
            return
        rounded = {
            key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in values.items()
        }
        record = {"seconds": round(self.elapsed(), 1), "phase": phase, "event": event, **rounded}
        with contextlib.suppress(OSError), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        text = " ".join(f"{key} {value}" for key, value in shown.items())
        with contextlib.suppress(OSError):  # whoever read along may be gone
            print(f"[{record['seconds']:7.1f}] {phase}: {event} {text}", flush=True)

    def log(self, step: int, values: dict[str, Any], picture: Path | None = None) -> None:
        """Curves and pictures for TensorBoard."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        with contextlib.suppress(OSError):
            self.accelerator.log(numbers, step=step)
            if picture is not None and picture.exists() and self.main:
                pixels = read_image(picture).mul(255).byte().permute(0, 2, 3, 1).numpy()
                for tracker in self.accelerator.trackers:
                    tracker.log_images({"validation": pixels}, step=step, dataformats="NHWC")
