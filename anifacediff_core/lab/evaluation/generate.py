"""Running our own method over a list of pairs, with the paper's ablations (paper 4.2, Table 2)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.capture.extract import Captured, Models, extract_parameters
from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.progress import Progress
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.settings import SamplingSettings
from anifacediff_core.storage import atomic_write
from anifacediff_core.video import VideoWriter, probe, write_image

from .pairs import CROSS, PROTOCOLS, Pair, count_frames, driving_frames, one_frame
from .results import METHOD_FILE

FALLBACK_RATE = Fraction(25)  # of folders of pictures, which tell none; VoxCeleb's
SQUARE = 0.02


@dataclass(frozen=True)
class Variant:
    """One row of Table 2: facial shape alignment (FSA) and expression adapter on or off."""

    fsa: bool
    adapter: bool

    @property
    def protocols(self) -> tuple[str, ...]:
        """FSA "is used exclusively for cross-identity reenactment" (paper 4.2), so variants that only lack it
        are the same as the others on the same identity.
        """
        return PROTOCOLS if self.fsa else (CROSS,)


VARIANTS = {
    "full": Variant(True, True),
    "no_fsa": Variant(False, True),
    "no_adapter": Variant(True, False),
    "neither": Variant(False, False),
}


class Generator:
    """Reenacts pairs; driving videos are captured once for all variants.

    Args:
        pipeline: the networks.
        models: that capture faces, for the same head.
        sampling: λ counts where the adapter is on.
        pictures: write folders of PNG files, which lose nothing, instead of mp4.
    """

    def __init__(
        self, pipeline: Pipeline, models: Models, sampling: SamplingSettings, *, pictures: bool = False
    ) -> None:
        self.pipeline, self.models, self.sampling = pipeline, models, sampling
        self.pictures = pictures
        self._captured: dict[tuple[str, int, int], FaceParameters] = {}

    def run(
        self,
        variant: Variant,
        pairs: list[Pair],
        out: Path,
        checkpoint: str,
        progress: Progress,
    ) -> dict[str, str]:
        """Write a variant's results into the folder `out`; those that are there already are kept.

        Returns:
            what could not be run and why, by pair.

        Raises:
            InputError: the folder holds results of other settings.
        """
        wanted = [pair for pair in pairs if pair.protocol in variant.protocols]
        _claim(out, variant, self.sampling, checkpoint, wanted)
        problems: dict[str, str] = {}
        for index, pair in enumerate(wanted):
            try:
                self._write(pair, variant, out)
            except InputError as error:
                problems[pair.pair] = str(error)
            progress(index + 1, len(wanted))
        return problems

    def _write(self, pair: Pair, variant: Variant, out: Path) -> None:
        target = out / pair.pair if self.pictures else out / f"{pair.pair}.mp4"
        if target.exists():
            return
        frames = self.reenact(pair, variant)
        if not self.pictures:
            driving = Path(pair.driving)
            rate = probe(driving).rate if driving.is_file() else FALLBACK_RATE
            with atomic_write(target) as temporary, VideoWriter(temporary, rate, crf=10) as video:
                for part in frames:
                    video.write(part)
            return
        unfinished = out / f".{pair.pair}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was interrupted
        index = 0
        for part in frames:
            for picture in part:
                write_image(unfinished / f"{index:06d}.png", picture)
                index += 1
        unfinished.rename(target)

    def reenact(self, pair: Pair, variant: Variant) -> Iterator[Tensor]:
        """Frames (some, 3, size, size) of a pair."""
        picture = one_frame(Path(pair.source), pair.source_frame)[None]
        _require_square(picture.shape[-2:], "source", pair.source)
        source = self._capture(picture, "the source picture").parameters
        driving = self._driving(pair)
        aligned = variant.fsa and pair.protocol == CROSS
        sampling, size = self.sampling, (self.sampling.size, self.sampling.size)
        if picture.shape[-2:] != size:
            picture = F.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)
        yield from self.pipeline.reenact(
            picture,
            source if aligned else driving,  # without alignment the head keeps the driver's shape
            driving,
            steps=sampling.steps,
            cfg=sampling.cfg,
            seed=sampling.seed,
            window=sampling.window,
            overlap=sampling.overlap,
            expression_scale=sampling.expression_scale if variant.adapter else 0.0,
            shared_noise=sampling.shared_noise,
        )

    def _driving(self, pair: Pair) -> FaceParameters:
        key = (pair.driving, pair.first, pair.frames)
        if key not in self._captured:
            count, size = count_frames(Path(pair.driving), pair.first, pair.frames)
            _require_square(torch.Size(size), "driving video", pair.driving)
            self._captured[key] = self._capture(driving_frames(pair), "the driving video", count).parameters
        return self._captured[key]

    def _capture(self, frames: Tensor | Iterator[Tensor], what: str, total: int | None = None) -> Captured:
        """In the whole picture, so that the result can be held against the driving video."""
        return extract_parameters(frames, self.models, "whole", what=what, total=total)


def _require_square(size: torch.Size, what: str, name: str) -> None:
    height, width = size
    if abs(height - width) > SQUARE * max(height, width):
        raise InputError(
            f"The {what} {Path(name).name} has {width}x{height} pixels: the protocols take square portraits, "
            "crop it as the paper does (FOMM's preprocessing)."
        )


def _claim(
    out: Path, variant: Variant, sampling: SamplingSettings, checkpoint: str, pairs: list[Pair]
) -> None:
    """Write down what the folder's results are made with and of, and refuse to mix them with others: lists of
    pairs all have the same names in them.
    """
    settings = {
        "method": "AniFaceDiff",
        "checkpoint": checkpoint,
        **asdict(variant),
        "protocols": list(variant.protocols),
        "sampling": asdict(sampling),
        "pairs": _fingerprint(pairs),
    }
    file = out / METHOD_FILE
    if file.exists():
        try:
            there = parse_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if there != settings:
            raise InputError(
                f"The folder {out} holds results of other settings or pairs; choose another one."
            )
        return
    with atomic_write(file) as temporary:
        Path(temporary).write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _fingerprint(pairs: list[Pair]) -> str:
    """Of a list, wherever its videos lie."""
    entries = [asdict(p) | {"source": Path(p.source).name, "driving": Path(p.driving).name} for p in pairs]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]
