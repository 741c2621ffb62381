"""Files of ARKit's coefficients over time."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from anifacediff_core.capture.arkit_files import MOST_BYTES, load_arkit_curves
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel

NAMES = ["EyeBlinkLeft", "EyeLookOutLeft", "JawOpen", "MouthClose"]
FPS = 60


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def rows(frames: int = 2 * FPS + 1) -> list[list[float]]:
    """The jaw opens evenly within two seconds, the eye looks outwards."""
    return [[0.0, 0.5, number / FPS / 2, 0.0] for number in range(frames)]


def audio2face(**changes: Any) -> dict[str, Any]:
    found = {"exportFps": FPS, "numPoses": len(NAMES), "numFrames": 121, "facsNames": NAMES}
    return found | {"weightMat": rows(), "joints": ["jaw"], "rotations": []} | changes


def lam(times: bool = True, **changes: Any) -> dict[str, Any]:
    names = [name[:1].lower() + name[1:] for name in NAMES]
    frames: list[dict[str, Any]] = [{"weights": row, "rotation": []} for row in rows()]
    for number, frame in enumerate(frames if times else []):
        frame["time"] = number / FPS
    notes = {"fps": FPS, "frame_count": len(frames), "blendshape_names": names}
    return {"names": names, "metadata": notes, "frames": frames} | changes


def client_csv(separator: str = ",") -> str:
    """As pandas writes what Audio2Face-3D's sample client receives."""
    lines = [separator.join(["", "timeCode", *(f"blendShapes.{name}" for name in NAMES)])]
    for number, row in enumerate(rows()):
        lines.append(separator.join(map(str, [number, number / FPS, *row])))
    return "\n".join(lines) + "\n"


def plain_csv() -> str:
    names = ["eyeBlink_L", "eyeLookOut_L", "jawOpen", "mouthClose"]
    return "\n".join([",".join(names), *(",".join(map(str, row)) for row in rows())])


FORMS = {
    "a2f.json": json.dumps(audio2face()),
    "lam.json": json.dumps(lam()),
    "lam_without_times.json": json.dumps(lam(times=False)),
    "client.csv": client_csv(),
    "client_tabs.csv": client_csv("\t"),
    "marked.csv": "\ufeff" + client_csv(),
}


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(120)])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_at_any_rate(head: HeadModel, tmp_path: Path, name: str, rate: Fraction) -> None:
    path = tmp_path / name
    path.write_text(FORMS[name], encoding="utf-8")
    found = load_arkit_curves(path, head, rate)
    assert len(found) == int(2 * rate) + 1 and bool(found.valid.all())
    jaw = found.expression[:, head.expression_names.index("jawOpen")]
    torch.testing.assert_close(jaw, torch.arange(len(found)) / float(rate) / 2, atol=1e-4, rtol=0)
    assert float(found.pose[0, 10]) > 0.2 and not found.pose[:, :6].any()  # the left eye, to its left


def test_a_file_without_a_rate_needs_one(head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text(plain_csv())
    with pytest.raises(InputError, match="file_fps"):
        load_arkit_curves(path, head)
    assert len(load_arkit_curves(path, head, Fraction(30), file_fps=60.0)) == 61
    assert len(load_arkit_curves(path, head, Fraction(30), file_fps=30.0)) == 121


def test_live_links_own_form(head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "take.csv"
    names = ["Timecode", "BlendShapeCount", *NAMES]
    lines = [
        f"00:00:{number // 60:02}:{number % 60:02}.000,4,0,0.5,{number / 240},0" for number in range(121)
    ]
    path.write_text("\n".join([",".join(names), *lines]))
    jaw = load_arkit_curves(path, head, Fraction(60)).expression[:, head.expression_names.index("jawOpen")]
    assert len(jaw) == 121 and float(jaw[120]) == pytest.approx(0.5, abs=1e-4)


def test_values_stay_within_what_the_head_knows(head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "loud.json"
    path.write_text(json.dumps(audio2face(weightMat=[[-1.0, 0.0, 7.0, 0.0]])))
    found = load_arkit_curves(path, head)
    assert len(found) == 1 and float(found.expression.max()) == 1 and float(found.expression.min()) == 0


BAD = {
    "no.json": "nothing",
    "list.json": "[1, 2]",
    "empty.json": "{}",
    "names.json": json.dumps(audio2face(facsNames=["a", "b", "c", "d"])),
    "short.json": json.dumps(audio2face(weightMat=[[0.0, 0.0]])),
    "frames.json": json.dumps(audio2face(weightMat=[])),
    "rows.json": json.dumps(audio2face(weightMat=[0.0])),
    "nan.json": json.dumps(audio2face(weightMat=[[0.0, 0.0, float("nan"), 0.0]])),
    "bool.json": json.dumps(audio2face(weightMat=[[0.0, 0.0, True, 0.0]])),
    "huge.json": json.dumps(audio2face(weightMat=[[0.0, 0.0, 1e30, 0.0]])),
    "rate.json": json.dumps(audio2face(exportFps=0)),
    "text_rate.json": json.dumps(audio2face(exportFps="fast")),
    "objects.json": json.dumps(lam(frames=[1, 2])),
    "weights.json": json.dumps(lam(frames=[{"time": 0}])),
    "backwards.json": json.dumps(
        lam(frames=[{"weights": rows()[0], "time": 1.0}, {"weights": rows()[1], "time": 0.5}])
    ),
    "long.json": json.dumps(
        lam(frames=[{"weights": rows()[0], "time": 0.0}, {"weights": rows()[1], "time": 9e5}])
    ),
    "nan.csv": client_csv().replace("0.5,", "nan,", 5),
    "text.csv": client_csv().replace("0.5,", "half,", 1),
    "ragged.csv": client_csv() + "1,2\n",
    "none.csv": "",
    "only_names.csv": client_csv().splitlines()[0],
    "other.csv": "time,x,y\n0,1,2\n",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(head: HeadModel, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(BAD[name])
    with pytest.raises(InputError) as error:
        load_arkit_curves(path, head)
    message = str(error.value)
    assert name in message and message.endswith(".") and "\n" not in message and len(message) < 300


def test_files_that_are_missing_binary_or_too_large(head: HeadModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json"):
        load_arkit_curves(tmp_path / "absent.json", head)
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match=r"binary\.csv"):
        load_arkit_curves(tmp_path / "binary.csv", head)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="larger"):
        load_arkit_curves(tmp_path / "large.json", head)
