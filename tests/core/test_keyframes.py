"""Keyframes: what is read, what lies between them, and how they lie over face parameters."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.head.editing import edit
from anifacediff_core.head.model import HeadModel
from anifacediff_core.motion.keyframes import (
    EASINGS,
    MOST_FRAMES,
    Keyframe,
    animate,
    edits_at,
    read_keyframes,
)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def text(*entries: Any) -> str:
    return json.dumps({"keyframes": entries})


def test_edits_alone_are_one_keyframe(head: HeadModel) -> None:
    assert read_keyframes('{"jawOpen": 0.4}', head) == [Keyframe(0, {"jawOpen": 0.4})]
    assert read_keyframes("", head) == [Keyframe(0, {})]


def test_keyframes_are_read(head: HeadModel) -> None:
    entries = [{"frame": 2, "expression": {"zoom": 2}, "easing": "hold"}, {"frame": 9}]
    assert read_keyframes(text(*entries), head) == [Keyframe(2, {"zoom": 2.0}, "hold"), Keyframe(9, {})]


@pytest.mark.parametrize(
    ("written", "named"),
    [
        (text(), "list"),
        ('{"keyframes": {"frame": 0}}', "list"),
        ('{"keyframes": [{"frame": 0}], "jawOpen": 1}', "not all"),
        (text(3), "Keyframe 1"),
        (text({"frame": 0, "edits": {}}), "Keyframe 1"),
        (text({"frame": 0}, {"expression": {}}), "Keyframe 2"),
        (text({"frame": -1}), "-1"),
        (text({"frame": True}), "whole number"),
        (text({"frame": 0.5}), "whole number"),
        (text({"frame": MOST_FRAMES}), str(MOST_FRAMES)),
        (text({"frame": 0, "easing": "bounce"}), "bounce"),
        (text({"frame": 0, "easing": []}), "easing"),
        (text({"frame": 5}, {"frame": 5}), "order"),
        (text({"frame": 0, "expression": {"jawOpn": 1}}), "jawOpen"),
        (text({"frame": 0, "expression": {"jawOpen": 3}}), "jawOpen"),
        (text({"frame": 0, "expression": [1]}), "JSON object"),
        ("smile", "JSON object"),
        ('{"keyframes": [{"frame": 0, "frame": 1}]}', "JSON object"),
    ],
)
def test_what_is_refused(head: HeadModel, written: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        read_keyframes(written, head)
    assert named in str(caught.value)


def test_between_keyframes() -> None:
    """Names that only one of the two has move from or to rest, which is 1 for zoom."""
    keyframes = [
        Keyframe(10, {"jawOpen": 0.2, "zoom": 2.0}, "ease-in"),
        Keyframe(20, {"jawOpen": 0.6}, "hold"),
        Keyframe(22, {"headYaw": 30.0}),
    ]
    assert edits_at(keyframes, 0) == edits_at(keyframes, 10) == {"jawOpen": 0.2, "zoom": 2.0}
    assert edits_at(keyframes, 15) == pytest.approx({"jawOpen": 0.3, "zoom": 1.75})
    assert edits_at(keyframes, 20) == {"jawOpen": 0.6, "headYaw": 0.0}
    assert edits_at(keyframes, 21) == {"jawOpen": 0.6, "headYaw": 0.0}
    assert edits_at(keyframes, 22) == edits_at(keyframes, 500) == {"headYaw": 30.0}


@pytest.mark.parametrize("easing", EASINGS)
def test_easings_go_from_one_to_the_other(easing: str) -> None:
    way = [EASINGS[easing](step / 10) for step in range(11)]
    assert way[0] == 0 and way == sorted(way)
    if easing != "hold":
        assert way[-1] == 1
    middle = {"linear": 0.5, "ease-in": 0.25, "ease-out": 0.75, "ease-in-out": 0.5, "hold": 0.0}
    assert way[5] == pytest.approx(middle[easing])


def test_a_single_frame_lasts_to_the_last_keyframe(head: HeadModel) -> None:
    keyframes = [Keyframe(0, {"headYaw": -20.0}), Keyframe(4, {"headYaw": 20.0, "jawOpen": 0.8})]
    animated = animate(head, head.neutral(), keyframes)
    assert len(animated) == 5
    for frame in range(5):
        expected = edit(head, head.neutral(), edits_at(keyframes, frame))
        for name in ("expression", "pose", "camera"):
            assert torch.allclose(getattr(animated, name)[frame], getattr(expected, name)[0], atol=1e-6)
    assert len(animate(head, head.neutral(), [Keyframe(3, {"jawOpen": 1.0})])) == 4


def test_a_video_keeps_its_length(head: HeadModel) -> None:
    motion = replace(head.neutral(3), expression=torch.full((3, head.n_expression), 0.25))
    keyframes = [Keyframe(0, {}), Keyframe(4, {"jawOpen": 1.0})]
    jaw = animate(head, motion, keyframes).expression[:, head.expression_names.index("jawOpen")]
    assert jaw.tolist() == pytest.approx([0.25, 0.5, 0.75])
    assert len(animate(head, motion, [Keyframe(0, {"jawOpen": 0.1})])) == 3
