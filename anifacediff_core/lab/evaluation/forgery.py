"""How well detectors of forgeries tell generated videos from real ones (paper A.1, Table 3).

Any detector serves: as an ONNX file, or as the scores that it gave, in a CSV file. Higher scores mean "fake".
AUC is scikit-learn's, in which ties count half. A video's score is the mean of its frames' scores.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.capture.detector import SQUARE_SCALE
from anifacediff_core.capture.extract import FindsFaces, crop_resize
from anifacediff_core.capture.locate import LANDMARKS_GROWTH
from anifacediff_core.errors import InputError
from anifacediff_core.progress import Progress
from anifacediff_core.storage import atomic_write

from .onnx_model import OnnxModel
from .pairs import batches, clip_frames, count_frames, find_clips

REAL, FAKE = 0, 1
LABELS = {"0": REAL, "1": FAKE, "real": REAL, "fake": FAKE}
DEFAULT_SIDE = 256
ALL = "all"


@dataclass(frozen=True)
class Score:
    """What a detector says about a frame: the higher, the more it looks fake.

    Attributes:
        label: 0 for real, 1 for fake.
        method: what made a fake; empty for real ones and where nobody says.
    """

    video: str
    frame: int
    score: float
    label: int
    method: str = ""


@dataclass(frozen=True)
class Videos:
    """Real and fake clips, by method."""

    real: tuple[Path, ...]
    fake: dict[str, tuple[Path, ...]]

    @classmethod
    def of(cls, real: Path, fake: dict[str, Path]) -> Videos:
        """All clips below folders.

        Raises:
            InputError: a folder is missing or holds none.
        """
        found = {name: tuple(find_clips(folder)) for name, folder in {"": real, **fake}.items()}
        for name, clips in found.items():
            if not clips:
                raise InputError(f"The folder {fake.get(name, real)} holds no videos; name another one.")
        return cls(found.pop(""), found)

    def __iter__(self) -> Iterator[tuple[Path, int, str]]:
        """Each clip with its label and method."""
        yield from ((clip, REAL, "") for clip in self.real)
        for method, clips in self.fake.items():
            yield from ((clip, FAKE, method) for clip in clips)

    def __len__(self) -> int:
        return len(self.real) + sum(len(clips) for clips in self.fake.values())


# ---- scores by an ONNX file


@dataclass(frozen=True)
class Preprocessing:
    """What a detector wants to see.

    Attributes:
        size: side of its input where the file leaves it free.
        mean, std: of RGB in [0, 1].
        margin: cut a square around the face, so many times as large as its box; None for the whole picture.
        output: name of the output; the first by default.
        fake_class: of several numbers per frame, the one that says "fake".
        frames: how many frames of each video, evenly spread; 0 for all.
    """

    size: int = DEFAULT_SIDE
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    margin: float | None = None
    output: str | None = None
    fake_class: int = 1
    frames: int = 0


@dataclass(frozen=True)
class Detector:
    """A forgery detector.

    Attributes:
        finder: finds faces where the preprocessing has a margin.
    """

    model: OnnxModel
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    finder: FindsFaces | None = None

    def __call__(self, frames: Tensor) -> Tensor:
        """Pictures (frames, 3, height, width) in [0, 1] -> (frames,), NaN where a face is wanted and none is
        there.
        """
        squares = self._squares(frames)
        known = ~squares.isnan().any(1)
        scores = torch.full((len(frames),), math.nan)
        if known.any():
            scores[known] = self._score(self._cut(frames[known], squares[known]))
        return scores

    def _squares(self, frames: Tensor) -> Tensor:
        """(frames, 3) left, top, side as fractions of the longer side; unused for whole pictures."""
        margin = self.preprocessing.margin
        if margin is None:
            return frames.new_zeros(len(frames), 3)
        assert self.finder is not None, "there is nothing to find faces with"
        rows = []
        for faces in self.finder.detect(frames):
            if not faces:
                rows.append([math.nan] * 3)
                continue
            face = max(faces, key=lambda found: found.score * found.square[2])
            (x, y), side = face.center, face.square[2] / SQUARE_SCALE * LANDMARKS_GROWTH * margin
            rows.append([x - side / 2, y - side / 2, side])
        return torch.tensor(rows)

    def _cut(self, frames: Tensor, squares: Tensor) -> Tensor:
        height, width = self.model.size or (self.preprocessing.size,) * 2
        if self.preprocessing.margin is not None:
            frames = crop_resize(frames, squares, max(height, width), outside="zeros")
        if frames.shape[-2:] != (height, width):
            frames = F.interpolate(
                frames, (height, width), mode="bilinear", antialias=True, align_corners=False
            )
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (frames - mean) / std

    def _score(self, pixels: Tensor) -> Tensor:
        numbers = self.model(pixels, self.preprocessing.output)
        if numbers.shape[1] == 1:
            return numbers[:, 0]
        index = self.preprocessing.fake_class
        if not 0 <= index < numbers.shape[1]:
            raise InputError(
                f"{self.model.name} gives {numbers.shape[1]} numbers per picture; there is no class {index}."
            )
        probabilities = (numbers >= 0).all(1) & ((numbers.sum(1) - 1).abs() < 1e-3)
        return torch.where(probabilities[:, None], numbers, numbers.softmax(1))[:, index]


def score_videos(
    detector: Detector, videos: Videos, progress: Progress | None = None
) -> tuple[list[Score], dict[str, str]]:
    """Scores of all frames, and why clips could not be scored; a broken clip doesn't stop the others."""
    scores: list[Score] = []
    problems: dict[str, str] = {}
    for index, (clip, label, method) in enumerate(videos):
        try:
            scores += _score_clip(detector, clip, label, method)
        except InputError as error:
            problems[str(clip)] = str(error)
        if progress is not None:
            progress(index + 1, len(videos))
    return scores, problems


def _score_clip(detector: Detector, clip: Path, label: int, method: str) -> list[Score]:
    count, _ = count_frames(clip)
    wanted = chosen_frames(count, detector.preprocessing.frames)
    chosen = set(wanted)
    frames = (frame for index, frame in enumerate(clip_frames(clip)) if index in chosen)
    values = torch.cat([detector(part) for part in batches(frames)])
    if values.isnan().all():
        raise InputError(f"No frame of {clip.name} has a score; is there a face?")
    return [
        Score(str(clip), index, float(value), label, method)
        for index, value in zip(wanted, values.tolist(), strict=True)
        if math.isfinite(value)
    ]


def chosen_frames(count: int, wanted: int) -> list[int]:
    """Indices of so many evenly spread frames, all of them for 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return sorted({round((i + 0.5) * count / wanted - 0.5) for i in range(wanted)})


# ---- scores from a CSV file


def read_scores(path: Path, videos: Videos | None = None) -> list[Score]:
    """Scores of a CSV file with the columns video, frame, score and, unless folders tell them, label (0 or
    real, 1 or fake) and method.

    Args:
        videos: tells the label of a video by its name, with or without folders and ending.

    Raises:
        InputError: the file is no such table; a score is not finite; a frame comes twice; a label is missing.
    """
    known = _by_name(videos) if videos is not None else {}
    scores: list[Score] = []
    seen: set[tuple[str, int, int, str]] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            if not {"video", "frame", "score"} <= set(table.fieldnames or []):
                raise InputError(f"{path} holds no scores: expected the columns video, frame, score.")
            for line, row in enumerate(table, 2):
                score = _row(row, known, f"{path}, line {line}")
                # A fake often has the name of the real video that it is made from.
                key = (score.video, score.frame, score.label, score.method)
                if key in seen:
                    raise InputError(
                        f"{path}, line {line}: frame {score.frame} of {score.video} comes twice."
                    )
                seen.add(key)
                scores.append(score)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The scores {path} could not be read ({error}).") from error
    return scores


def _by_name(videos: Videos) -> dict[str, tuple[int, str] | None]:
    """Label and method by path, file name and bare name; None where a name stands for several."""
    known: dict[str, tuple[int, str] | None] = {}
    for clip, label, method in videos:
        for name in {str(clip), clip.as_posix(), clip.name, clip.stem}:
            entry = (label, method)
            known[name] = entry if known.get(name, entry) == entry else None
    return known


def _row(row: dict[str, str | None], known: dict[str, tuple[int, str] | None], where: str) -> Score:
    video, method = (row["video"] or "").strip(), (row.get("method") or "").strip()
    try:
        frame, value = int(row["frame"] or ""), float(row["score"] or "")
    except ValueError as error:
        raise InputError(f"{where}: frame and score must be numbers ({error}).") from error
    if not math.isfinite(value):
        raise InputError(f"{where}: the score is {value}; leave out frames without one.")
    text = (row.get("label") or "").strip().lower()
    if text:
        if text not in LABELS:
            raise InputError(f"{where}: the label is {text[:20]!r}, expected 0, 1, real or fake.")
        return Score(video, frame, value, LABELS[text], method if LABELS[text] == FAKE else "")
    found = known.get(video) or known.get(Path(video).name)
    if found is None:
        why = "several videos have this name" if video in known else "no folder has it"
        raise InputError(
            f"{where}: nothing tells whether {video[:80]!r} is real or fake ({why}); add a label."
        )
    return Score(video, frame, value, *found)


# ---- the measure


def detection_rates(scores: Iterable[Score]) -> dict[str, Any]:
    """AUC and equal error rate of frames and of videos.

    Raises:
        InputError: there are only real or only fake ones, or scikit-learn is not installed.
    """
    frames = list(scores)
    by_video: dict[tuple[str, int, str], list[float]] = {}
    for item in frames:
        by_video.setdefault((item.video, item.label, item.method), []).append(item.score)
    means = [(label, math.fsum(values) / len(values)) for (_, label, _), values in by_video.items()]
    measures: dict[str, Any] = {}
    for kind, rows in (("frame", [(item.label, item.score) for item in frames]), ("video", means)):
        labels, values = [label for label, _ in rows], [value for _, value in rows]
        if len(set(labels)) < 2:
            raise InputError("AUC needs scores of real and of fake videos; only one kind is there.")
        measures[f"{kind}_auc"], measures[f"{kind}_eer"] = _auc(labels, values), _equal_error(labels, values)
        measures[f"real_{kind}s"], measures[f"fake_{kind}s"] = labels.count(REAL), labels.count(FAKE)
    return measures


def _auc(labels: list[int], values: list[float]) -> float:
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise InputError(
            f"AUC needs scikit-learn ({error}): install the extra with pip install '.[eval]'."
        ) from error
    return float(roc_auc_score(labels, values))


def _equal_error(labels: list[int], values: list[float]) -> float:
    """Where as many real ones are taken for fake as the other way round, between points of the curve."""
    from sklearn.metrics import roc_curve

    false_alarms, hits, _ = roc_curve(labels, values)
    gap = (1 - hits) - false_alarms  # from 1 down to -1
    after = int((gap <= 0).argmax())
    before = max(after - 1, 0)
    step = gap[before] - gap[after]
    weight = gap[before] / step if step > 0 else 0.0
    return float(false_alarms[before] + weight * (false_alarms[after] - false_alarms[before]))


def forgery_report(
    detectors: dict[str, list[Score]], problems: dict[str, str], note: str = ""
) -> dict[str, Any]:
    """Rates of each detector on each method's fakes, and on all of them where there are several.

    Args:
        detectors: scores by detector.
    """
    methods = list(
        dict.fromkeys(s.method for scores in detectors.values() for s in scores if s.label == FAKE)
    )
    groups: dict[str, Callable[[Score], bool]] = {}
    for method in methods:
        groups[method or ALL] = lambda item, wanted=method: item.label == REAL or item.method == wanted  # type: ignore[misc]
    if len(methods) > 1:
        groups[ALL] = lambda item: True
    report: dict[str, Any] = {"methods": {}, "problems": problems, "note": note}
    for name, wanted in groups.items():
        rows = {}
        for detector, scores in detectors.items():
            kept = [item for item in scores if wanted(item)]
            if any(item.label == FAKE for item in kept):
                rows[detector] = detection_rates(kept)
        report["methods"][name] = rows
    if not methods:
        raise InputError("AUC needs scores of real and of fake videos; only one kind is there.")
    return report


def write_scores(path: Path, scores: list[Score]) -> None:
    """Write scores as the CSV that `read_scores` reads."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["video", "frame", "score", "label", "method"])
        table.writerows([s.video, s.frame, repr(s.score), s.label, s.method] for s in scores)
