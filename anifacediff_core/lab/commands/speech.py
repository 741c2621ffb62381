"""The commands `speech train` and `speech evaluate`. What they need is imported when they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from ..options import File, bar, file_name
from ..speech.training import SpeechTraining


def train(
    out: Annotated[Path, file_name(".safetensors"), "the weights to write"],
    settings: SpeechTraining,
) -> None:
    """Train the network that reads lips and jaw from a voice, on speech that eSpeak NG makes; on the CPU."""
    from ..speech.training import save, synthesize
    from ..speech.training import train as learn

    spoken = synthesize(settings.utterances, settings.seed, bar("synthesize"))
    save(learn(settings, spoken, bar("train")), settings, out)
    print(f"{out}: measure it with speech evaluate --weights {out}")


def evaluate(
    out: Annotated[Path | None, file_name(".json"), "where to write the report, too"] = None,
    weights: Annotated[File, "of speech train; the bundled ones when left out"] = None,
) -> None:
    """Let voices that were not trained on say ten sentences, and measure jaw, lips and silence."""
    from anifacediff_core.speech.network import ASSET, load_network

    from ..speech.measuring import markdown, measure

    report = measure(load_network(weights or ASSET), bar("sentences"))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))
