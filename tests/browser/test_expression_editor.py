"""The Expression Editor in the real front-end: hands on its sliders and head, in both renderers of nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anifacediff_core.head.editing import PLACE, edit, read_edits
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab import client
from anifacediff_core.motion.keyframes import edits_at, read_keyframes
from harness import browser

SIZE = 128
TURN = {"headYaw": 20, "headPitch": -12, "headRoll": 6, "zoom": 1.15, "shiftX": 0.05, "shiftY": -0.04}
EDITS = {**TURN, "jawOpen": 0.4, "mouthSmileLeft": 0.8, "eyeLookOutLeft": 0.6, "eyeLookInRight": 0.6}
EDITS |= {"eyeBlinkRight": 0.5, "tongueOut": 0.7, "browInnerUp": -0.3}
KEYFRAMES: list[dict[str, Any]] = [
    {"frame": 3, "easing": "ease-in", "expression": {"headYaw": 20, "zoom": 1.4}},
    {"frame": 10, "easing": "ease-out", "expression": {"headYaw": -40, "jawOpen": 0.7}},
    {"frame": 20, "easing": "hold", "expression": {"jawOpen": 0.2}},
    {"frame": 24, "easing": "ease-in-out", "expression": {}},
    {"frame": 35, "expression": {"mouthSmileLeft": 1}},
]


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def base(head: HeadModel) -> FaceParameters:
    """A frame as a capture gives it, with every joint turned."""
    generator = torch.Generator().manual_seed(0)
    neutral = head.neutral()
    return FaceParameters(
        shape=neutral.shape,
        expression=torch.rand(1, head.n_expression, generator=generator) * 0.6,
        pose=torch.randn(1, 15, generator=generator) * 0.2,
        camera=torch.tensor([[5.0, 0.02, -0.01]]),
        valid=neutral.valid,
        head=head.name,
    )


@pytest.fixture(scope="module", params=["classic", "vue"])
def found(
    request: pytest.FixtureRequest,
    browser_driver: Path,
    running_comfyui: client.Server,
    tmp_path_factory: pytest.TempPathFactory,
    base: FaceParameters,
) -> dict[str, Any]:
    """What came of the work with the editor; see edit.mjs."""
    prefix = f"expression_editor_{request.param}"
    task = {
        "extension": "ComfyUI-AniFaceDiff",
        "vue": request.param == "vue",
        "size": SIZE,
        "prefix": prefix,
        "expression": json.dumps(EDITS),
        "edits": EDITS,
        "keyframes": KEYFRAMES,
        "base": {name: getattr(base, name)[0].tolist() for name in ("expression", "pose", "camera")},
        "folder": str(tmp_path_factory.mktemp(prefix)),
        "timeout": 900_000,
    }
    result = browser.drive("edit.mjs", running_comfyui, browser_driver, task, timeout=1200)
    drawn = sorted((running_comfyui.base / "output").glob(f"{prefix}_*.png"))
    return {**result, "drawn": [picture(file) for file in drawn]}


def picture(file: str | Path) -> Tensor:
    """(height, width, 3) in [0, 1]; transparent is black."""
    pixels = np.asarray(Image.open(file).convert("RGBA"), dtype=np.float32) / 255
    return torch.from_numpy(pixels[..., :3] * pixels[..., 3:])


def middle(picture: Tensor) -> Tensor:
    """The largest square in the middle."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def values(text: str) -> dict[str, float]:
    return json.loads(text)


def test_the_mouse_moves_sliders_and_head(found: dict[str, Any]) -> None:
    hands = found["hands"]
    assert values(hands["dragged"]["value"]) == {"headYaw": -30}
    assert hands["dragged"]["picture"] != hands["rest"]
    assert values(hands["reset"]) == {}, "a double click resets"
    assert hands["positionsAfter"] == hands["positions"], "the node stays where it is"


def test_the_keyboard_moves_sliders(found: dict[str, Any]) -> None:
    hands = found["hands"]
    dialed = {"headYaw": -30, "eyeBlinkLeft": 0.88, "eyeBlinkRight": 0.88}
    assert values(hands["arrows"]) == dialed, "End, two steps and ten steps back, both lids alike"
    assert values(hands["home"]) == {"headYaw": -30}
    assert values(hands["typed"]) == {"headYaw": -30, "eyeBlinkLeft": 0.3, "eyeBlinkRight": 0.3}
    assert hands["tabbed"] == "eyeWideLeft eyeWideRight"
    assert hands["escaped"] == hands["typed"]
    assert values(hands["deleted"]) == {"headYaw": -30}, "the key Delete resets a slider, not the node"


def test_presets_and_mirror(found: dict[str, Any]) -> None:
    presets = found["presets"]
    assert values(presets["wink"]["value"])["eyeBlinkLeft"] == 1
    assert "eyeBlinkRight" not in values(presets["wink"]["value"])
    assert presets["wink"]["mirrored"] == "false", "what differs is shown apart"
    mirrored = values(presets["mirrored"])
    assert mirrored["eyeBlinkLeft"] == mirrored["eyeBlinkRight"] == 1
    assert values(presets["oneSide"]) == mirrored | {"browDownRight": 1}
    assert values(presets["reset"]) == {}


def test_presets_of_ones_own_are_kept_and_forgotten(found: dict[str, Any]) -> None:
    own = found["ownPresets"]
    assert own["chosen"] == "/Yawn of mine" and values(own["value"]) == {"jawOpen": 1}
    assert own["kept"] == {"Yawn of mine": {"jawOpen": 1}} and own["forgotten"] == {} and own["off"]
    assert "pi-save" in own["focused"], "the keyboard goes on where it was"


def test_keyframes_are_set_eased_played_and_removed(found: dict[str, Any]) -> None:
    keys = found["keyframes"]
    assert keys["alone"]
    last = {"frame": 10, "easing": "linear", "expression": {"headYaw": 60}}
    first = {"frame": 0, "easing": "linear", "expression": {}}
    assert json.loads(keys["set"]) == {"keyframes": [first, last]}
    assert keys["between"] == 15, "a quarter of the way at half of the time"
    assert keys["stepped"] == ["6", 21.6]
    assert json.loads(keys["text"]) == {"keyframes": [{**first, "easing": "ease-in"}, last]}
    assert values(keys["removed"]) == {}, "one keyframe at the beginning holds all the time"


def test_the_page_interpolates_as_the_node_does(found: dict[str, Any], head: HeadModel) -> None:
    keyframes = read_keyframes(json.dumps({"keyframes": KEYFRAMES}), head)
    for frame, shown in enumerate(found["keyframes"]["exact"]):
        expected = edits_at(keyframes, frame)
        for name in expected.keys() | shown.keys():
            rest = PLACE[name][2] if name in PLACE else 0.0
            assert shown.get(name, rest) == pytest.approx(expected.get(name, rest), abs=1e-4), (frame, name)


def test_every_expression_has_a_slider_within_the_limits(found: dict[str, Any], head: HeadModel) -> None:
    limits = found["presets"]["limits"]
    names = [name for names, *_ in limits for name in names.split()]
    assert sorted(names) == sorted([*head.expression_names, *PLACE])
    for names, low, high in limits:
        paired = len(names.split()) == 2
        assert (low, high) == PLACE.get(names, (-1 if paired else 0, 1))[:2], names
    labels = found["presets"]["labels"]
    assert len(set(labels)) == len(labels) and all(labels)


def test_every_word_is_translated(found: dict[str, Any]) -> None:
    assert found["untranslated"] == {"ja": [], "zh": []}


def test_the_view_turns_and_changes_nothing(found: dict[str, Any]) -> None:
    assert found["orbit"] == dict.fromkeys(("turned", "back", "keys", "home", "valueKept"), True)


def test_undo_and_redo(found: dict[str, Any]) -> None:
    history = found["history"]
    smile = {"mouthSmileLeft": 1, "mouthSmileRight": 1}
    assert values(history["done"]) == values(history["redone"]) == {"jawOpen": 1} | smile
    assert values(history["undone"]) == {"jawOpen": 1} and history["shown"] == "0"
    assert values(history["reset"]) == {}, "the panel in the page is the one of the graph"


def test_a_node_of_the_same_id_elsewhere_takes_nothing_away(found: dict[str, Any]) -> None:
    assert found["twin"]


def test_the_panel_stays_as_wide_as_its_node(found: dict[str, Any]) -> None:
    assert found["widths"]["after"] == found["widths"]["before"] > 300


def test_values_are_saved_loaded_copied_and_queued(found: dict[str, Any]) -> None:
    saved = found["saved"]
    (node,) = (each for each in saved["graph"].values() if each["class_type"].endswith("ExpressionEditor"))
    for text in (saved["loaded"], saved["pasted"], node["inputs"]["expression"]):
        assert values(text) == EDITS
    assert saved["shown"] == "20"


def test_a_damaged_text_is_kept_and_told(found: dict[str, Any]) -> None:
    damaged = found["damaged"]
    assert damaged["kept"] == '{"jawOpen": "wide"}' and "JSON" in damaged["note"]
    assert values(damaged["anew"]) == {"jawOpen": 1} and damaged["noteAfter"] == ""


def test_the_pages_vertices_are_the_heads(
    found: dict[str, Any], head: HeadModel, base: FaceParameters
) -> None:
    for params, vertices in zip((base, head.neutral()), found["vertices"], strict=True):
        expected = head(edit(head, params, EDITS))[0]
        drawn = torch.tensor(vertices).view(-1, 3)
        assert (drawn - expected).abs().max() < 5e-6, "five micrometers"


def test_what_is_shown_is_what_render_normals_draws(found: dict[str, Any], head: HeadModel) -> None:
    assert found["normals"]["outcome"] == "execution_success"
    params = edit(head, head.neutral(), read_edits(json.dumps(EDITS), head))
    square = middle(picture(found["normals"]["shown"]))
    assert (square - render_normals(head, params, len(square))[0].movedim(0, -1)).abs().mean() < 1e-3
    drawn = found["drawn"][0]
    assert (drawn - render_normals(head, params, SIZE)[0].movedim(0, -1)).abs().mean() < 5e-3
    assert (drawn - render_normals(head, head.neutral(), SIZE)[0].movedim(0, -1)).abs().mean() > 0.02


def test_connected_parameters_are_edited(found: dict[str, Any], head: HeadModel) -> None:
    chain = found["chain"]
    assert chain["outcome"] == "execution_success"
    assert chain["least"] == "-1" and chain["leastReplacing"] == "0"
    assert chain["follows"] and chain["alone"], "the head shows the frame that is edited, while one is"
    added = edit(head, edit(head, head.neutral(), {"jawOpen": 1}), EDITS)
    drawn = found["drawn"][1]
    assert (drawn - render_normals(head, added, SIZE)[0].movedim(0, -1)).abs().mean() < 5e-3


def test_the_page_shows_no_errors(found: dict[str, Any]) -> None:
    # that one is the host's own
    assert [error for error in found["errors"] if "reading 'id'" not in error] == []
