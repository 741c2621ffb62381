"""The visible label: in pictures of any size, readable on any ground, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.commands.mark import Place, Words
from anifacediff_core.provenance.container import STATEMENT
from anifacediff_core.provenance.detect import detect
from anifacediff_core.provenance.label import PLACES, SIZE, WORDINGS, Label, draw_label, put_label
from anifacediff_core.provenance.mark import mark
from anifacediff_core.video import probe, read_frames, read_image
from harness.extension import ROOT
from harness.server import shorten

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"
SIZES = [(16, 16), (64, 64), (40, 300), (300, 40), (256, 256), (1080, 1920), (1920, 1080)]


def luminance(level: Tensor) -> Tensor:
    """Of gray levels in [0, 1], as WCAG has it."""
    return torch.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("words", WORDINGS)
@pytest.mark.parametrize("ground", [0.0, 0.5, 1.0])
def test_it_lies_in_the_picture_and_can_be_read(size: tuple[int, int], words: str, ground: float) -> None:
    given = torch.full((1, 3, *size), ground)
    found = put_label(given, Label(words))
    assert found.shape == given.shape and (given == ground).all() and 0 <= found.min() <= found.max() <= 1
    changed = (found != ground).any(1)[0]
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    height = int(rows.max() - rows.min()) + 1
    wide = int(columns.max() - columns.min()) + 1
    assert height <= max(SIZE * min(size) + 1, 14) and wide <= size[1]
    if min(size) >= 256:
        assert height >= SIZE * min(size) - 2
        light, dark = luminance(found[0, 0].max()), luminance(found[0, 0][changed].min())
        assert (light + 0.05) / (dark + 0.05) > 10
        assert (found[0, 0] > 0.9)[changed].sum() > 0.05 * height * wide or ground > 0.9


@pytest.mark.parametrize("place", PLACES)
def test_the_corner(place: str) -> None:
    given = torch.rand(2, 3, 200, 300, generator=torch.Generator().manual_seed(0))
    changed = (put_label(given, Label(place=place)) != given).any(1).any(0)
    row, column = (axis.float().mean() for axis in changed.nonzero(as_tuple=True))
    vertical, horizontal = place.split()
    assert (row < 30) == (vertical == "top") and (row > 170) == (vertical == "bottom")
    assert (column < 40) == (horizontal == "left") and (column > 260) == (horizontal == "right")
    assert not changed[:5].any() and not changed[-5:].any(), "there is a margin"


def test_words_and_size() -> None:
    widths = [draw_label(Label(words), 512, 512)[0].shape[1] for words in WORDINGS]
    assert widths[0] < widths[2] < widths[1]
    heights = [draw_label(Label(size=size), 512, 512)[0].shape[0] for size in (0.05, 0.1, 0.2)]
    assert heights == [26, 51, 102]
    assert len({draw_label(Label(words), 512, 512)[1].sum().item() for words in WORDINGS}) == 3


def test_the_first_frames_only() -> None:
    given = torch.rand(5, 3, 128, 128)
    found = put_label(given, Label(), 2)
    assert [(one != two).any().item() for one, two in zip(found, given, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert torch.equal(found[:2], put_label(given[:2], Label()))


def test_what_is_transparent_becomes_opaque_there() -> None:
    clear = torch.zeros(1, 4, 256, 256)
    found = put_label(clear, Label())
    assert found[:, 3].max() == 1 and (found[:, 3] > 0.8).sum() > 200
    assert (found[:, 3] == 0).sum() > 60_000


def test_mark_and_label_do_not_disturb_each_other() -> None:
    picture = read_image(EXAMPLES / "source.png")
    for words in WORDINGS:
        both = mark(put_label(picture, Label(words)), 7)
        assert detect([both]).identifier == 7
        label = put_label(picture, Label(words)) != picture
        assert (both - put_label(picture, Label(words)))[label].abs().max() < 0.05


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"words": "REAL"}, "The label 'REAL' is unknown; choose one of AI, AI GENERATED"),
        ({"place": "middle"}, "The place 'middle' is unknown; choose one of top left"),
        ({"size": 0.0}, "give a share above 0"),
        ({"size": float("nan")}, "give a share above 0"),
    ],
)
def test_refusals(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Label(**wrong)


def test_the_command(tmp_path: Path) -> None:
    assert get_args(Words) == WORDINGS and get_args(Place) == PLACES
    given, out = tmp_path / "given.mp4", tmp_path / "out.mp4"
    shorten(EXAMPLES / "driving.mp4", given, 3)
    assert main(["label", "--input", str(given), "--out", str(out), "--words", "AI MODIFIED"]) in (0, None)
    before, after = (torch.stack(list(read_frames(path))) for path in (given, out))
    expected = put_label(before, Label("AI MODIFIED"))
    assert (after - expected).abs().mean() < 0.01 < (before - expected).abs().amax()
    assert probe(out).has_audio and STATEMENT.encode() in out.read_bytes()
