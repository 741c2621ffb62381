"""Reenact Many in the host: a group with two drivers, who stays as they are, going on after a cancel."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_long_video import CONFIG, SETTINGS, frames_of, video
from torch import Tensor

from anifacediff_core.head.model import HeadModel
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.model import PARTS, AniFaceDiff
from anifacediff_core.provenance.detect import detect
from anifacediff_core.provenance.label import Label, put_label
from anifacediff_core.video import probe, read_image
from anifacediff_core.weights.checkpoint import save_checkpoint
from harness.extension import Extension
from harness.server import EXAMPLES, shorten
from harness.weights import randomize

LONG, SHORT = 7, 4  # frames of the drivers
GROUP = EXAMPLES / "group.jpg"
# Columns of the picture that belong to one face, and rows of all of them.
FACES = {1: slice(130, 230), 2: slice(320, 430), 3: slice(530, 630)}
ROWS = slice(200, 320)
UNUSED = ("region", "face", "missing")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drivers")
    for name, frames in (("driving.mp4", LONG), ("turning.mp4", SHORT)):
        shorten(EXAMPLES / name, folder / name, frames)
    return {"long": folder / "driving.mp4", "short": folder / "turning.mp4"}


@pytest.fixture(scope="module")
def inputs(extension: Extension) -> dict[str, Any]:
    """A network with random weights, and the bundled one's eyes."""
    network = randomize(AniFaceDiff(CONFIG, motion=True), 0)
    modules = {name: getattr(network, name) for name in PARTS} | {"vae": randomize(AutoEncoder(), 1)}
    name = "many.safetensors"
    parts = {part: module.state_dict() for part, module in modules.items()}
    head = HeadModel.bundled().name
    save_checkpoint(extension.base / "models" / "anifacediff" / name, parts, CONFIG, head=head)
    model, vae, clip_vision, reference_net, pose_encoder, *_ = extension.run("Loader", checkpoint=name)
    model, *_ = extension.run("ExpressionAdapterLoader", model=model, checkpoint="same as model", weight=1.0)
    settings = {name: value for name, value in SETTINGS.items() if name not in UNUSED}
    return {
        **settings,
        "model": model,
        "reference_net": reference_net,
        "vae": vae,
        "clip_vision": clip_vision,
        "pose_encoder": pose_encoder,
        "face_capture": extension.run("Loader", checkpoint="bundled")[5],
        "source_image": read_image(GROUP).movedim(1, -1),
        "size": 32,
        "length": "longest",
        "missing": "interpolate",
        "camera": "source",
        "shape": "ellipse",
        "feather": 0.08,
        "match_color": 0.0,
        "segment": 3,
    }


@pytest.fixture(scope="module")
def whole(extension: Extension, inputs: dict[str, Any], drivers: dict[str, Path]) -> tuple[Tensor, str, Path]:
    """Frames of a run that nothing stopped, its report and its file: faces 1 and 2 are driven."""
    made, report = extension.run("ReenactMany", **inputs, **two(drivers), filename_prefix="many/whole")
    path = Path(made.get_stream_source())
    return frames_of(path), report, path


def two(drivers: dict[str, Path]) -> dict[str, Any]:
    return {"driving_1": video(drivers["long"]), "driving_2": video(drivers["short"])}


def test_two_drivers_and_one_who_stays(whole: tuple[Tensor, str, Path]) -> None:
    frames, report, path = whole
    info = probe(path)
    assert (info.frames, info.rate, info.width, info.height) == (LONG, 24, 768, 512) and info.has_audio
    assert "1 is driven by driving.mp4, 2 is driven by turning.mp4, 3 stays." in report
    away = (frames - read_image(GROUP)).abs()[:, :, ROWS]
    changed = {number: float(away[..., columns].mean()) for number, columns in FACES.items()}
    assert changed[3] < 0.01 < 0.03 < min(changed[1], changed[2]), changed
    assert not list(path.parent.glob("*.work"))


def test_who_has_ended_rests(whole: tuple[Tensor, str, Path]) -> None:
    """Only the noise, and the compressor, change a face that rests."""
    frames, *_ = whole
    steps = (frames[1:] - frames[:-1]).abs()[:, :, ROWS]
    assert steps[SHORT:, ..., FACES[2]].mean() < steps[: SHORT - 1, ..., FACES[2]].mean()


def test_one_driver_for_all_and_the_shortest_decides(
    extension: Extension, inputs: dict[str, Any], drivers: dict[str, Path]
) -> None:
    given = inputs | {"length": "shortest", "mark": True, "segment": 96}
    both = {"driving": video(drivers["long"]), "driving_3": video(drivers["short"])}
    made, report = extension.run("ReenactMany", **given, **both, filename_prefix="many/all")
    frames = frames_of(made.get_stream_source())
    assert len(frames) == SHORT and report.count("is driven by driving.mp4") == 2
    away = (frames - read_image(GROUP)).abs()[:, :, ROWS]
    assert all(away[..., columns].mean() > 0.03 for columns in FACES.values())
    assert detect(frames.split(1)).found


def test_the_label(
    extension: Extension, inputs: dict[str, Any], drivers: dict[str, Path], whole: tuple[Tensor, str, Path]
) -> None:
    given = {**inputs, **two(drivers), "label": "AI MODIFIED", "filename_prefix": "many/label"}
    made, _ = extension.run("ReenactMany", **given)
    expected = put_label(whole[0], Label("AI MODIFIED"))
    assert (frames_of(made.get_stream_source()) - expected).abs().mean() < 0.004
    assert (whole[0] - expected).abs().mean() > 0.006


def test_a_cancelled_run_goes_on(
    comfy: ModuleType,
    extension: Extension,
    inputs: dict[str, Any],
    drivers: dict[str, Path],
    whole: tuple[Tensor, str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = extension.base / "output" / "many"

    def cancel(*_: Any, **__: Any) -> None:
        if (folder / "cancelled.work" / "0000.safetensors").exists():
            comfy.model_management.interrupt_current_processing()

    given = {**inputs, **two(drivers), "filename_prefix": "many/cancelled"}
    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            extension.run("ReenactMany", **given)
    assert 0 < probe(folder / "cancelled.partial.mp4").frames < LONG
    made, report = extension.run("ReenactMany", **given)
    assert "frames are there already" in report
    assert torch.equal(frames_of(made.get_stream_source()), whole[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "No face has a driver"),
        ({"driving_5": "long"}, "There are 3 faces in the picture but driving_5 is connected"),
        ({"driving": "long", "source_image": torch.full((1, 96, 96, 3), 0.5)}, "no face was found"),
        ({"driving": "long", "pose_encoder": None}, "pose encoder"),
        ({"driving": "long", "reference_net": None}, "ReferenceNet"),
        ({"driving": "long", "face_capture": None}, "face capture"),
        ({"driving": "long", "filename_prefix": "../outside"}, "outside"),
    ],
)
def test_refusals(
    extension: Extension,
    inputs: dict[str, Any],
    drivers: dict[str, Path],
    change: dict[str, Any],
    words: str,
) -> None:
    given = {"filename_prefix": "many/refused", **inputs, **change}
    connected = {name: video(drivers[value]) for name, value in change.items() if name.startswith("driving")}
    assert words in extension.refusal("ReenactMany", **given | connected)
