"""The paper's user study (4.2): a page to choose blindly between methods, and a tally of answers.

The page is one file and needs no network. It has numbers in the place of names, and the key to them is a file
of its own: `{"study": id, "methods": [names], "pairs": [names]}`. What a participant saves is `{"study",
"participant", "answers": [{"pair", "question", "choice"}]}`, numbers all of them; choice is a method's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from anifacediff_core.claims import parse_json, shown
from anifacediff_core.errors import InputError
from anifacediff_core.progress import Progress
from anifacediff_core.storage import atomic_write
from anifacediff_core.video import VideoWriter, probe, write_image

from .pairs import Pair, clip_frames, driving_frames, one_frame
from .results import Method, find_result

QUESTIONS = ("image quality", "identity and detail", "pose and expression")
PAGE = Path(__file__).parents[1] / "assets" / "study.html"
PLACE = "/* STUDY */"
RATE = Fraction(24)  # of folders of pictures
CRF = 20
Z = 1.959964  # of 95 %


# ---- the page


def write_study(
    page: Path, pairs: Sequence[Pair], methods: Sequence[Method], progress: Progress | None = None
) -> Path:
    """Write the page, and the key to its numbers beside it; returns the key's path.

    Args:
        pairs: those that some method has no result of are left out.

    Raises:
        InputError: fewer than two methods, no pair that all of them have, or a clip that cannot be read.
    """
    if len(methods) < 2:
        raise InputError("People need something to choose between: name results of two methods or more.")
    found = [(pair, results) for pair in pairs if (results := _results(pair, methods)) is not None]
    if not found:
        raise InputError("There is no pair that all methods have a result of: look at the folders' names.")
    trials = []
    for number, (pair, results) in enumerate(found, 1):
        rate = probe(pair.driving).rate if Path(pair.driving).is_file() else RATE
        trials.append(
            {
                "source": _picture(one_frame(Path(pair.source), pair.source_frame)),
                "driving": _video(driving_frames(pair), rate),
                "results": [_video(clip_frames(result), rate) for result in results],
            }
        )
        if progress is not None:
            progress(number, len(found))
    text = json.dumps(trials)
    study = hashlib.sha256(text.encode()).hexdigest()[:16]
    html = PAGE.read_text(encoding="utf-8").replace(PLACE, f'{{"id": "{study}", "pairs": {text}}}')
    key = {
        "study": study,
        "methods": [method.name for method in methods],
        "pairs": [pair.pair for pair, _ in found],
    }
    key_path = page.with_suffix(".key.json")
    for path, content in ((page, html), (key_path, json.dumps(key, indent=1))):
        with atomic_write(path) as temporary:
            Path(temporary).write_text(content, encoding="utf-8")
    return key_path


def _results(pair: Pair, methods: Sequence[Method]) -> list[Path] | None:
    try:
        return [find_result(method.folder, pair.pair) for method in methods]
    except InputError:
        return None


def _picture(picture: Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.png"
        write_image(file, picture)
        return _data(file, "image/png")


def _video(frames: Iterable[Tensor], rate: Fraction) -> str:
    """As H.264, which every browser plays, whatever it was."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.mp4"
        with VideoWriter(file, rate, crf=CRF, repeatable=True) as video:
            for frame in frames:
                video.write(frame[None])
        return _data(file, "video/mp4")


def _data(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


# ---- the tally


def tally(key: Path, answers: Sequence[Path]) -> dict[str, Any]:
    """How often people preferred each method, by question and in all.

    Args:
        key: file that `write_study` wrote.
        answers: files that participants saved.

    Returns:
        `participants`, `pairs`, and `methods`: of each name, by question and for "all", `chosen`, `of`,
        `share` and the 95 % interval `low`, `high` (Wilson's).

    Raises:
        InputError: a file is damaged, of another study, or of a participant whose answers are there already.
    """
    known = _read(key)
    methods, pairs = known.get("methods"), known.get("pairs")
    if not (isinstance(methods, list) and isinstance(pairs, list) and methods and pairs):
        raise InputError(f"{key.name} is no key of a study: name the file beside its page.")
    counts = {question: [0] * len(methods) for question in QUESTIONS}
    seen: dict[str, str] = {}
    for path in answers:
        given = _read(path)
        if given.get("study") != known.get("study"):
            raise InputError(f"{path.name} has answers to another study: leave it out.")
        participant = str(given.get("participant"))
        if participant in seen:
            raise InputError(f"{path.name} and {seen[participant]} are of one participant: leave one out.")
        seen[participant] = path.name
        for question, choice in _choices(path, given.get("answers"), len(pairs), len(methods)):
            counts[QUESTIONS[question]][choice] += 1
    counts["all"] = [sum(row) for row in zip(*counts.values(), strict=True)]
    return {
        "participants": len(seen),
        "pairs": len(pairs),
        "methods": {
            str(name): {kind: _share(row[number], sum(row)) for kind, row in counts.items()}
            for number, name in enumerate(methods)
        },
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} could not be read ({shown(error)}): save it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path.name} is of another form than a study's files: save it again.")
    return found


def _choices(path: Path, answers: Any, pairs: int, methods: int) -> list[tuple[int, int]]:
    """Question and choice of every answer, each pair and question at most once."""
    found: dict[tuple[int, int], int] = {}
    for answer in answers if isinstance(answers, list) else [None]:
        values = [answer.get(n) if isinstance(answer, dict) else None for n in ("pair", "question", "choice")]
        limits = (pairs, len(QUESTIONS), methods)
        whole = all(type(value) is int and 0 <= value < limit for value, limit in zip(values, limits))
        if not whole or (values[0], values[1]) in found:
            raise InputError(f"{path.name} has an answer that the page cannot give: {shown(answer)}.")
        found[values[0], values[1]] = values[2]  # type: ignore[index, assignment]
    return [(question, choice) for (_, question), choice in found.items()]


def _share(chosen: int, of: int) -> dict[str, float]:
    low, high = wilson(chosen, of)
    return {"chosen": chosen, "of": of, "share": chosen / of if of else 0.0, "low": low, "high": high}


def wilson(chosen: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); all of [0, 1] where nobody was asked."""
    if not of:
        return 0.0, 1.0
    share, weight = chosen / of, Z**2 / of
    middle, reach = share + weight / 2, Z * sqrt(share * (1 - share) / of + weight / (4 * of))
    return max((middle - reach) / (1 + weight), 0.0), min((middle + reach) / (1 + weight), 1.0)
