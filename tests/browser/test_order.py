"""What a newcomer sees of the nodes in the real front-end: results of the search, colors, few widgets."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from anifacediff_core.lab import client
from harness import browser

RECORD = Path(__file__).resolve().parents[1] / "host" / "nodes.json"
BY_TITLE = {
    "face": ("Face Capture (DECA Extract)", 1),
    "reenact": ("Reenact a Face", 3),
    "portrait": ("Portrait Crop", 1),
}
# the host's own Webcam Capture comes before
BY_ALIAS = {"lip sync": ("Combine Motion", 1), "webcam": ("Live Reenactment", 2)}
NODES = ("AniFaceDiffSampler", "AniFaceDiffDECAExtract")


def socket_types() -> list[str]:
    nodes = json.loads(RECORD.read_text(encoding="utf-8")).values()
    types = {kind for node in nodes for _, kind in node["outputs"]}
    return sorted(kind for kind in types if kind.startswith("ANIFACEDIFF_") or kind == "FACE_PARAMETERS")


@pytest.fixture(scope="module", params=["classic", "vue"])
def seen(
    request: pytest.FixtureRequest,
    browser_driver: Path,
    running_comfyui: client.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    known = client.request(running_comfyui.address, "/object_info")
    aliases = "search_aliases" in known["AniFaceDiffLive"]
    task = {
        "vue": request.param == "vue",
        "queries": BY_TITLE | (BY_ALIAS if aliases else {}),
        "types": socket_types(),
        "nodes": NODES,
        "screenshot": str(tmp_path_factory.mktemp("order") / "light.png"),
    }
    found: dict[str, Any] = browser.drive("order.mjs", running_comfyui, browser_driver, task, 900)
    return {**found, "known": known}


def test_the_search_finds_the_right_node_first(seen: dict[str, Any]) -> None:
    for query, results in seen["found"].items():
        wanted, within = (BY_TITLE | BY_ALIAS)[query]
        assert any(wanted in result for result in results[:within]), (query, results)


@pytest.mark.parametrize("theme", ["before", "after"])
def test_links_keep_a_color_of_their_own(seen: dict[str, Any], theme: str) -> None:
    """In the theme that comes first, which is dark, and after the choice of a light one."""
    found = seen[theme]
    assert set(found) == set(socket_types())
    for kind, (link, socket, vue) in found.items():
        assert link and link == socket == vue, kind
        for background in ("#ffffff", "#353535"):
            assert contrast(link, background) >= 3, (kind, background)
    for (_, (first, *_)), (_, (second, *_)) in combinations(found.items(), 2):
        assert sum(abs(a - b) for a, b in zip(rgb(first), rgb(second))) > 60, (first, second)


def test_what_few_need_is_folded_away(seen: dict[str, Any]) -> None:
    for node, folded in seen["folded"].items():
        required, optional = (seen["known"][node]["input"].get(part, {}) for part in ("required", "optional"))
        marked = [name for name, kind in {**required, **optional}.items() if kind[1].get("advanced")]
        assert sorted(folded) == sorted(marked)


def test_the_page_shows_no_errors(seen: dict[str, Any]) -> None:
    assert [error for error in seen["errors"] if "reading 'id'" not in error] == []  # the host's own


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))


def contrast(first: str, second: str) -> float:
    """Of two colors, as WCAG defines it."""

    def luminance(color: str) -> float:
        values = [value / 255 for value in rgb(color)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lower, higher = sorted((luminance(first), luminance(second)))
    return (higher + 0.05) / (lower + 0.05)
