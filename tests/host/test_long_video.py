"""Reenact Long Video in the host: the file, going on after a cancel, pasting back; previews of all frames."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from anifacediff_core.capture.detector import Detection, PortraitDetector
from anifacediff_core.capture.encoder import FaceEncoder
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.model import PARTS, AniFaceDiff
from anifacediff_core.provenance.label import Label, put_label
from anifacediff_core.storage import file_lock
from anifacediff_core.video import VideoWriter, probe, read_frames
from anifacediff_core.weights.checkpoint import save_checkpoint
from harness.extension import Extension
from harness.videos import RATE, steady, write_driver
from harness.weights import narrow_config, randomize

SIZE, FRAMES, SEGMENT = 32, 14, 5
CONFIG = replace(narrow_config(2), image_layers=2)  # the host reads the last but one
SETTINGS: dict[str, Any] = {
    "seed": 3,
    "steps": 2,
    "cfg": 1.0,
    "sampler_name": "euler",
    "scheduler": "simple",
    "window": 4,
    "overlap": 2,
    "shared_noise": 0.5,
    "segment": SEGMENT,
    "region": "whole",
    "face": 0,
    "smoothing": 0.0,
    "missing": "interpolate",
    "camera": "driving",
    "head": "bundled",
    "mark": False,
}


@dataclass
class Shown:
    """What the host's front-end would show of the run: (done, total, picture)."""

    steps: list[tuple[int, int, Image.Image | None]] = field(default_factory=list)
    stop_at: int | None = None  # frame at which the user cancels

    def pictures(self) -> list[Image.Image]:
        return [picture for *_, picture in self.steps if picture is not None]


@pytest.fixture
def shown(comfy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        shown.steps.append((value, total, preview and preview[1]))
        if shown.stop_at is not None and total == FRAMES and value >= shown.stop_at:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return shown


@pytest.fixture
def previews(comfy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the user's choice of previews."""
    method = comfy.cli_args.LatentPreviewMethod

    def choose(name: str) -> None:
        monkeypatch.setattr(comfy.cli_args.args, "preview_method", method(name))

    return choose


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver") / "driver.mp4"
    write_driver(path, steady(FRAMES), float(FRAMES / RATE))
    return path


@pytest.fixture(scope="module")
def inputs(extension: Extension, driver: Path) -> dict[str, Any]:
    """Everything that the node takes, of a network with random weights."""
    network = randomize(AniFaceDiff(CONFIG, motion=True), 0)
    modules = {name: getattr(network, name) for name in PARTS}
    modules |= {"vae": randomize(AutoEncoder(), 1), "face_encoder": FaceEncoder()}
    modules |= {"face_detector": PortraitDetector()}
    name, head = "long_video.safetensors", HeadModel.bundled()
    parts = {part: module.state_dict() for part, module in modules.items()}
    save_checkpoint(extension.base / "models" / "anifacediff" / name, parts, CONFIG, head=head.name)
    model, vae, clip_vision, reference_net, pose_encoder, *_ = extension.run("Loader", checkpoint=name)
    model, *_ = extension.run("ExpressionAdapterLoader", model=model, checkpoint="same as model", weight=1.0)
    portrait = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(4))
    networks = {"reference_net": reference_net, "vae": vae, "clip_vision": clip_vision}
    (reference,) = extension.run("ReferenceNetEncode", **networks, source_image=portrait, size=SIZE)
    motion = FaceParameters.neutral(FRAMES, head.name, head.n_shape, head.n_expression)
    turns = 0.3 * torch.randn(FRAMES, 15, generator=torch.Generator().manual_seed(5))
    return {
        "model": model,
        "reference": reference,
        "vae": vae,
        "pose_encoder": pose_encoder,
        "source": motion[0],
        "driving": video(driver),
        "driving_parameters": replace(motion, pose=turns),
        **SETTINGS,
    }


def video(path: Path) -> Any:
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path))


def frames_of(path: str | Path) -> Tensor:
    return torch.stack(list(read_frames(path)))


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return sum(frame.samples for frame in container.decode(stream)) / stream.codec_context.sample_rate


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"long/{request.node.name.replace('[', '_').rstrip(']')}"


@pytest.fixture(scope="module")
def whole(extension: Extension, inputs: dict[str, Any]) -> Tensor:
    """Frames of a run that nothing stopped."""
    made, _ = extension.run("ReenactLongVideo", **inputs, filename_prefix="long/whole")
    return frames_of(made.get_stream_source())


def test_the_file(extension: Extension, inputs: dict[str, Any], prefix: str) -> None:
    output = extension.output("ReenactLongVideo", **inputs, filename_prefix=prefix)
    made, report = output.result
    path = extension.base / "output" / f"{prefix}_00001_.mp4"
    assert made.get_stream_source() == str(path)
    info = probe(path)
    assert (info.frames, info.rate, info.width) == (FRAMES, RATE, SIZE)
    assert (probe(made.get_stream_source()).frames, probe(made.get_stream_source()).rate) == (FRAMES, RATE)
    assert abs(sound_seconds(path) - FRAMES / RATE) < 1 / RATE + 1024 / 16000
    assert f"{prefix}_00001_.mp4: {FRAMES} frames at 29.97 frames a second." in report
    assert output.ui.as_dict()["images"] == [{"filename": path.name, "subfolder": "long", "type": "output"}]
    beside = [entry.name for entry in path.parent.iterdir() if entry.name.startswith(path.name[:8])]
    assert beside == [path.name], "nothing else is left"
    extension.run("ReenactLongVideo", **inputs, filename_prefix=prefix)
    assert (path.with_name(path.name.replace("00001", "00002"))).exists()


def test_a_segment_that_holds_the_video_is_the_ordinary_graph(
    extension: Extension, inputs: dict[str, Any], prefix: str, tmp_path: Path
) -> None:
    made, _ = extension.run("ReenactLongVideo", **inputs | {"segment": FRAMES}, filename_prefix=prefix)
    (parameters,) = extension.run(
        "FacialShapeAlign", source=inputs["source"], driving=inputs["driving_parameters"]
    )
    (normals,) = extension.run("RenderNormals", parameters=parameters, size=SIZE, head="bundled")
    (pose,) = extension.run("PoseEncode", pose_encoder=inputs["pose_encoder"], normals=normals)
    sampling = ("seed", "steps", "cfg", "sampler_name", "scheduler", "window", "overlap", "shared_noise")
    (latent,) = extension.run(
        "Sampler",
        **{name: inputs[name] for name in ("model", "reference", *sampling)},
        pose=pose,
        parameters=parameters,
        denoise=1.0,
    )
    with VideoWriter(tmp_path / "expected.mp4", RATE, repeatable=True) as expected:
        expected.write(inputs["vae"].decode(latent["samples"]).movedim(-1, 1))
    found = frames_of(made.get_stream_source())
    assert (found - frames_of(tmp_path / "expected.mp4")).abs().mean() < 1 / 255


@pytest.mark.parametrize("stop_at", [6, 11])
def test_cancelling_keeps_what_is_finished_and_the_next_run_goes_on(
    comfy: ModuleType,
    extension: Extension,
    inputs: dict[str, Any],
    whole: Tensor,
    shown: Shown,
    prefix: str,
    stop_at: int,
) -> None:
    shown.stop_at = stop_at
    folder = extension.base / "output" / prefix
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extension.run("ReenactLongVideo", **inputs, filename_prefix=prefix)
    partial = folder.with_name(f"{folder.name}.partial.mp4")
    kept = len(frames_of(partial))
    assert 0 < kept <= stop_at and not folder.with_name(f"{folder.name}_00001_.mp4").exists()
    shown.stop_at = None
    shown.steps.clear()
    made, report = extension.run("ReenactLongVideo", **inputs, filename_prefix=prefix)
    assert f"{kept} of {FRAMES} frames are there already" in report
    assert min(done for done, *_ in shown.steps) >= kept
    assert torch.equal(frames_of(made.get_stream_source()), whole)
    assert not partial.exists() and not folder.with_name(f"{folder.name}.work").exists()


def test_the_label(extension: Extension, inputs: dict[str, Any], whole: Tensor, prefix: str) -> None:
    made, _ = extension.run("ReenactLongVideo", **inputs, label="AI", filename_prefix=prefix)
    expected = put_label(whole, Label("AI"))
    away = (frames_of(made.get_stream_source()) - expected).abs().mean()
    assert away < 0.03 < (whole - expected).abs().mean()


def test_other_settings_start_anew(
    comfy: ModuleType, extension: Extension, inputs: dict[str, Any], shown: Shown, prefix: str
) -> None:
    shown.stop_at = 8
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extension.run("ReenactLongVideo", **inputs, filename_prefix=prefix)
    shown.stop_at = None
    _, report = extension.run("ReenactLongVideo", **inputs | {"seed": 4}, filename_prefix=prefix)
    assert "starting anew" in report


def test_another_source_of_a_list_does_not_go_on_with_the_first_ones_work(
    comfy: ModuleType,
    extension: Extension,
    inputs: dict[str, Any],
    shown: Shown,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One workflow, one name: only the face tells them apart."""
    module = sys.modules[extension.classes["AniFaceDiffReenactLongVideo"].__module__]
    monkeypatch.setattr(module, "workflow_fingerprint", lambda *_: "the same")
    shown.stop_at = 8
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extension.run("ReenactLongVideo", **inputs, filename_prefix=prefix)
    shown.stop_at = None
    shape = inputs["source"].shape + 0.5
    other = inputs | {"source": replace(inputs["source"], shape=shape)}
    _, report = extension.run("ReenactLongVideo", **other, filename_prefix=prefix)
    assert "starting anew" in report


class Portrait:
    """A face in the middle of every picture, whatever it shows."""

    def __init__(self) -> None:
        self.head = HeadModel.bundled()

    def to(self, device: torch.device) -> Portrait:
        return self

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        return [[Detection(1.0, (0.2, 0.2, 0.6))] for _ in frames]

    def read(self, frames: Tensor, faces: list[Detection]) -> tuple[FaceParameters, None]:
        return self.head.neutral(len(frames)), None

    def remarks(self) -> list[str]:
        return []


def test_the_driver_is_read_as_a_stream(
    extension: Extension, inputs: dict[str, Any], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(inputs["driving"]), "get_components")
    given = inputs | {"driving_parameters": None, "face_capture": Portrait()}
    made, report = extension.run("ReenactLongVideo", **given, filename_prefix=prefix)
    assert f"A face was found in {FRAMES} of {FRAMES} frames of the driving video." in report
    assert probe(made.get_stream_source()).frames == FRAMES


def test_a_video_that_is_in_memory(extension: Extension, inputs: dict[str, Any], prefix: str) -> None:
    from comfy_api.latest import InputImpl, Types

    components = Types.VideoComponents(
        images=torch.rand(FRAMES, 32, 32, 3), frame_rate=Fraction(24), audio=None
    )
    driving = InputImpl.VideoFromComponents(components)
    made, _ = extension.run("ReenactLongVideo", **inputs | {"driving": driving}, filename_prefix=prefix)
    assert (probe(made.get_stream_source()).frames, probe(made.get_stream_source()).rate) == (FRAMES, 24)


def test_pasted_back_in_the_colors_of_the_picture(
    extension: Extension, inputs: dict[str, Any], whole: Tensor, prefix: str
) -> None:
    crop_type = type(extension.run("DECAExtract", face_capture=Portrait(), image=torch.rand(1, 48, 64, 3),
                                   region="portrait", size=SIZE, face=0, smoothing=0.0)[3])  # fmt: skip
    original = torch.full((1, 48, 64, 3), 0.25)
    original[:, :, :32] = 0.75
    crop = crop_type(torch.tensor([0.25, 0.125, 0.5]), 64, 48)
    pasting = {"original": original, "crop": crop, "match_color": 1.0}
    made, _ = extension.run("ReenactLongVideo", **inputs, **pasting, filename_prefix=prefix)
    found = frames_of(made.get_stream_source())
    assert found.shape == (FRAMES, 3, 48, 64)
    outside = found[:, :, :, :12]
    assert (outside - 0.75).abs().max() < 0.05, "the picture itself stays"
    inside = found[:, :, 16:32, 24:40]
    assert (inside - 0.5).abs().max() > 0.1
    # one correction for the whole video: every frame is the portrait's, up to the same gain and offset
    portrait = whole[:, :, 10:26, 8:24].mean((1, 2, 3))
    pasted = inside.mean((1, 2, 3))
    assert torch.corrcoef(torch.stack([portrait, pasted]))[0, 1] > 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlap": 4}, "overlap"),
        ({"window": 40, "overlap": 2}, "window"),
        ({"vae": None}, "VAE"),
        ({"pose_encoder": None}, "pose encoder"),
        ({"driving_parameters": None}, "face capture"),
        ({"original": torch.rand(1, 32, 32, 3)}, "no crop"),
        ({"filename_prefix": "../outside"}, "outside"),
    ],
)
def test_refusals(extension: Extension, inputs: dict[str, Any], change: dict[str, Any], words: str) -> None:
    given = {"filename_prefix": "long/refused", **inputs, **change}
    assert words in extension.refusal("ReenactLongVideo", **given)


class Spoiled:
    """A VAE that decodes to what is no number."""

    def __init__(self, bad: float) -> None:
        self.bad = bad

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.full((len(latents), SIZE, SIZE, 3), self.bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_video_is_made_of_what_is_no_number(
    extension: Extension, inputs: dict[str, Any], prefix: str, bad: float
) -> None:
    """Pictures of it would be black or white, and called finished."""
    spoiled = {**inputs, "vae": Spoiled(bad), "filename_prefix": prefix}
    told = extension.refusal("ReenactLongVideo", **spoiled)
    assert told.startswith("Frame 0 came out of the networks as NaN or infinity")
    assert not list((extension.base / "output").glob(f"{prefix}*.mp4"))

    reference = inputs["reference"]
    tokens = {name: token * float("nan") for name, token in reference.tokens.items()}
    spoiled = {**inputs, "reference": replace(reference, tokens=tokens), "filename_prefix": prefix}
    assert "came out of the networks" in extension.refusal("ReenactLongVideo", **spoiled)
    assert not list((extension.base / "output").glob(f"{prefix}*.mp4"))


def test_damaged_drivers(extension: Extension, inputs: dict[str, Any], tmp_path: Path) -> None:
    for name, content in (("empty.mp4", b""), ("broken.mp4", b"no video at all")):
        (tmp_path / name).write_bytes(content)
        given = inputs | {"driving": video(tmp_path / name)}
        with pytest.raises(InputError, match=name):
            extension.run("ReenactLongVideo", **given, filename_prefix="long/damaged")


def test_what_another_run_makes_is_refused(extension: Extension, inputs: dict[str, Any], prefix: str) -> None:
    with file_lock(extension.base / "output" / f"{prefix}.work" / "lock", "busy"):
        told = extension.refusal("ReenactLongVideo", filename_prefix=prefix, **inputs)
    assert "is being made by another run" in told


def test_the_workflow_decides(extension: Extension) -> None:
    """What leads to the node counts, not the numbers of nodes; and files by what is in them."""
    node = extension.classes["AniFaceDiffReenactLongVideo"]
    graph = __import__("sys").modules[node.__module__].workflow_fingerprint
    picture = extension.base / "input" / "picture.png"
    picture.write_bytes(b"a")

    def prompt(strength: float = 1.0, loader: str = "1", other: int = 0) -> dict[str, Any]:
        return {
            loader: {"class_type": "Loader", "inputs": {"file": "picture.png"}},
            "2": {"class_type": "Lora", "inputs": {"model": [loader, 0], "strength": strength}},
            "3": {"class_type": "Long", "inputs": {"model": ["2", 0], "steps": 4}},
            "9": {"class_type": "Unrelated", "inputs": {"value": other}},
        }

    def found(given: dict[str, Any], *names: str) -> str | None:
        return graph(SimpleNamespace(prompt=given, unique_id="3"), *names)

    same = found(prompt())
    assert same == found(prompt(loader="77", other=5)) != found(prompt(strength=0.5))
    assert found(prompt(), "model") != found(prompt(strength=0.5), "model")
    picture.write_bytes(b"b")
    assert found(prompt()) != same
    assert graph(None) is None and graph(SimpleNamespace(prompt=None, unique_id="3")) is None


# ---- previews


def sampled(extension: Extension, inputs: dict[str, Any], frames: int) -> None:
    parameters = inputs["driving_parameters"][list(range(frames))]
    (normals,) = extension.run("RenderNormals", parameters=parameters, size=SIZE, head="bundled")
    (pose,) = extension.run("PoseEncode", pose_encoder=inputs["pose_encoder"], normals=normals)
    sampling = (
        "model",
        "reference",
        "seed",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "window",
        "overlap",
    )
    given = {name: inputs[name] for name in sampling}
    extension.run("Sampler", **given, pose=pose, parameters=parameters, denoise=1.0, shared_noise=0.0)


@pytest.mark.parametrize(("frames", "grid"), [(1, (1, 1)), (2, (2, 1)), (4, (3, 2)), (FRAMES, (3, 2))])
def test_previews_show_frames_from_all_over_the_video(
    extension: Extension,
    inputs: dict[str, Any],
    shown: Shown,
    previews: Any,
    frames: int,
    grid: tuple[int, int],
) -> None:
    previews("latent2rgb")
    sampled(extension, inputs, frames)
    steps = shown.steps[-SETTINGS["steps"] :]
    assert [(done, total) for done, total, _ in steps] == [(1, 2), (2, 2)]
    for *_, picture in steps:
        assert picture is not None
        columns, rows = grid
        assert picture.width * rows == picture.height * columns and max(picture.size) <= 512
        side = picture.width // columns
        tiles = [picture.crop((side * x, side * y, side * x + side, side * y + side)).tobytes()
                 for y in range(rows) for x in range(columns)]  # fmt: skip
        assert len(set(tiles)) == min(frames, 6) + (frames < columns * rows), "all differ; the rest is black"


def test_no_previews_for_those_who_want_none(
    extension: Extension, inputs: dict[str, Any], shown: Shown, previews: Any
) -> None:
    previews("none")
    sampled(extension, inputs, 2)
    assert [picture for *_, picture in shown.steps[-2:]] == [None, None]


def test_long_videos_show_what_is_finished(
    extension: Extension, inputs: dict[str, Any], shown: Shown, previews: Any, prefix: str
) -> None:
    previews("none")
    extension.run("ReenactLongVideo", **inputs, filename_prefix=prefix)
    done = [value for value, total, _ in shown.steps if total == FRAMES]
    assert done == sorted(done) and done[-1] == FRAMES
    assert len(shown.pictures()) == 3 and shown.pictures()[0].size == (SIZE, SIZE)


@pytest.fixture(autouse=True)
def not_interrupted(comfy: ModuleType) -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)
