"""Load DECA and what follows it, in the host's own process: random weights of DECA's and SMIRK's sizes, and a
file of FLAME's form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anifacediff_core.capture.deca import DecaEncoder
from anifacediff_core.capture.smirk import SmirkEncoder
from anifacediff_core.head.camera import project, to_pixels
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab import client
from anifacediff_core.video import read_image
from anifacediff_core.weights.importers.flame import load_flame
from harness.extension import Extension
from harness.flame import make_fields, write_hostile, write_pickle
from harness.weights import randomize

EXAMPLES = Path(__file__).resolve().parents[2] / "anifacediff_core" / "assets" / "examples"
SIZE = 96
SETTINGS = {"region": "auto", "size": SIZE, "face": 0, "smoothing": 0.0}
CAMERA = slice(206, 209)  # in DECA's 236 values


@pytest.fixture(scope="module")
def files(extension: Extension) -> Iterator[Path]:
    """The models' folder with the three files; without them afterwards, for the tests of other modules."""
    models = extension.base / "models"
    write_pickle(models / "flame" / "generic_model.pkl", make_fields())
    deca = randomize(DecaEncoder(), 0)
    # as if trained: a small face in the middle of the crop, whatever the crop shows
    deca.layers[2].weight.mul_(0.02)
    deca.layers[2].bias.zero_()[CAMERA] = torch.tensor([8.0, 0.0, 0.0])
    torch.save({"E_flame": deca.state_dict(), "E_detail": {}}, models / "deca" / "deca_model.tar")
    smirk = {
        f"smirk_encoder.{name}": value for name, value in randomize(SmirkEncoder(), 1).state_dict().items()
    }
    torch.save(smirk, models / "deca" / "SMIRK_em1.pt")
    yield models
    for file in (*(models / "flame").glob("*.pkl"), *(models / "deca").iterdir()):
        file.unlink()


@pytest.fixture(scope="module")
def loaded(extension: Extension, files: Path) -> tuple[Any, Any]:
    return extension.run("LoadDECA", deca="deca_model.tar", flame="generic_model.pkl")


def still() -> Tensor:
    """The host's IMAGE of a rendered avatar."""
    return read_image(EXAMPLES / "source.png").movedim(1, -1)


def boxes(frames: int) -> list[list[dict[str, float]]]:
    """As the host's face landmarker gives them: around the avatar's face."""
    return [[{"x": 60.0, "y": 70.0, "width": 140.0, "height": 150.0, "score": 0.9}]] * frames


def options(extension: Extension, name: str) -> list[str]:
    inputs = extension.classes["AniFaceDiffLoadDECA"].INPUT_TYPES()
    found: list[str] = (inputs["required"] | inputs["optional"])[name][1]["options"]
    return found


# --- The whole way -------------------------------------------------------------------------------


def test_from_files_to_normals(extension: Extension, loaded: tuple[Any, Any], files: Path) -> None:
    models, head = loaded
    source, portrait, *_ = extension.run(
        "DECAExtract", face_capture=models, image=still(), bounding_boxes=boxes(1), **SETTINGS
    )
    video = torch.cat([still(), still().flip(2), still() * 0.5])
    driving, _, report, crop, appearance, _ = extension.run(
        "DECAExtract", face_capture=models, image=video, bounding_boxes=boxes(3), **SETTINGS
    )
    assert source.head == driving.head == "flame" and len(driving) == 3
    assert source.shape.shape == (1, 300) and driving.expression.shape == (3, 50)
    assert portrait.shape == (1, SIZE, SIZE, 3) and (crop.width, crop.height) == (256, 256)
    assert appearance.texture.shape == (3, 50) and appearance.light.shape == (3, 9, 3)
    assert "3 of 3 frames" in report
    (aligned,) = extension.run("FacialShapeAlign", source=source, driving=driving)
    assert torch.equal(aligned.shape[2], source.shape[0]) and torch.equal(aligned.pose, driving.pose)
    (normals,) = extension.run(
        "RenderNormals", parameters=aligned, size=SIZE, head="bundled", head_model=head
    )
    flame = load_flame(files / "flame" / "generic_model.pkl")
    assert torch.equal(normals.movedim(-1, 1), render_normals(flame, aligned, SIZE))
    assert 0.05 < (normals.sum(-1) > 0).float().mean() < 0.9
    (chosen,) = extension.run("RenderNormals", parameters=aligned, size=SIZE, head="generic_model.pkl")
    assert torch.equal(chosen, normals)


def test_smirk_with_deca_and_alone(extension: Extension, files: Path) -> None:
    found = {}
    for deca, smirk in (
        ("deca_model.tar", "none"),
        ("deca_model.tar", "SMIRK_em1.pt"),
        ("none", "SMIRK_em1.pt"),
    ):
        models, _ = extension.run("LoadDECA", deca=deca, flame="generic_model.pkl", smirk=smirk)
        found[deca, smirk] = extension.run(
            "DECAExtract", face_capture=models, image=still(), bounding_boxes=boxes(1), **SETTINGS
        )
    alone, both, smirk_alone = (result[0] for result in found.values())
    assert torch.equal(both.shape, alone.shape) and torch.equal(both.expression, smirk_alone.expression)
    assert not torch.equal(both.expression, alone.expression)
    reports = [result[2] for result in found.values()]
    assert [("eyelids" in report) for report in reports] == [False, True, True]
    assert [result[4] is None for result in found.values()] == [False, False, True]


def test_landmarks_go_before_boxes(extension: Extension, loaded: tuple[Any, Any]) -> None:
    models, head = loaded
    params = head.neutral()
    points = to_pixels(project(head(params), params.camera), 256)[0, head.landmarks, :2]
    given = {"frames": [[{"landmarks_xy": points.numpy()}]], "image_size": (256, 256)}
    extracted = [
        extension.run("DECAExtract", face_capture=models, image=still(), **SETTINGS, **inputs)[0]
        for inputs in (
            {"face_landmarks": given},
            {"face_landmarks": given, "bounding_boxes": boxes(1)},
            {"bounding_boxes": boxes(1)},
        )
    ]
    assert torch.equal(extracted[0].camera, extracted[1].camera)
    assert not torch.equal(extracted[0].camera, extracted[2].camera)


def test_faces_are_looked_for_where_none_are_given(extension: Extension, loaded: tuple[Any, Any]) -> None:
    """By whatever is installed where the test runs, the bundled detector at last."""
    parameters, _, report, *_ = extension.run(
        "DECAExtract", face_capture=loaded[0], image=still(), **SETTINGS
    )
    assert parameters.valid.all() and "Faces were found by" in report


def test_boxes_serve_the_bundled_encoder(extension: Extension) -> None:
    *_, models = extension.run("Loader", checkpoint="bundled")
    parameters, _, _, _, appearance, _ = extension.run(
        "DECAExtract", face_capture=models, image=still(), bounding_boxes=boxes(1), **SETTINGS
    )
    assert parameters.head != "flame" and appearance is None


def test_parameters_survive_a_file(extension: Extension, loaded: tuple[Any, Any], files: Path) -> None:
    neutral: FaceParameters = loaded[1].neutral(2)
    neutral.save(extension.base / "input" / "flame.safetensors")
    parameters, frames = extension.run("LoadFaceParameters", file="flame.safetensors")
    assert frames == 2 and parameters.head == "flame" and parameters.shape.shape == (2, 300)


# --- What is missing or wrong --------------------------------------------------------------------


def sentence(text: str) -> str:
    assert "\n" not in text and len(text) < 300 and text.endswith("."), text
    return text


def refusal(extension: Extension, **inputs: Any) -> str:
    """What Load DECA says; before the run already."""
    answer = extension.classes["AniFaceDiffLoadDECA"].validate_inputs(**inputs)
    assert extension.refusal("LoadDECA", **inputs) == answer
    return str(answer)


def test_missing_files_are_named_with_their_source(extension: Extension, files: Path) -> None:
    names = {"deca": "deca_model.tar", "flame": "generic_model.pkl", "smirk": "SMIRK_em1.pt"}
    sources = {"deca": "DECA project", "flame": "flame.is.tue.mpg.de", "smirk": "SMIRK project"}
    for missing, source in sources.items():
        said = refusal(extension, **(names | {missing: "absent.bin"}))
        folder = "flame" if missing == "flame" else "deca"
        for part in ("'absent.bin'", source, names[missing], f"models/{folder}"):
            assert part in said, said
    assert "no head" in refusal(extension, **(names | {"flame": "none"}))
    assert "no encoder" in refusal(extension, **(names | {"deca": "none", "smirk": "none"}))
    validate = extension.classes["AniFaceDiffLoadDECA"].validate_inputs
    assert validate(**names) is True and validate(deca="deca_model.tar", flame="generic_model.pkl") is True


def test_empty_folders_are_told_in_the_lists(
    extension: Extension, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension.folder_paths, "get_filename_list", lambda folder: [])
    assert options(extension, "deca") == ["no file in models/deca", "none"]
    assert options(extension, "flame") == ["no file in models/flame"]
    assert options(extension, "smirk") == ["none"]
    said = refusal(extension, deca="no file in models/deca", flame="generic_model.pkl")
    assert said.startswith("DECA is missing, there is no file: download deca_model.tar")


def test_folders_of_extra_model_paths(extension: Extension, files: Path, tmp_path: Path) -> None:
    write_pickle(tmp_path / "elsewhere.pkl", make_fields(1))
    extension.folder_paths.add_model_folder_path("flame", str(tmp_path))
    assert {"generic_model.pkl", "elsewhere.pkl"} <= set(options(extension, "flame"))
    _, head = extension.run("LoadDECA", deca="deca_model.tar", flame="elsewhere.pkl")
    assert head.name == "flame"


@pytest.mark.parametrize("name", ["../../secret.pkl", "/etc/passwd"])
def test_files_outside_of_the_folders(extension: Extension, files: Path, name: str) -> None:
    (extension.base / "secret.pkl").write_bytes(b"")
    assert "is not there" in refusal(extension, deca="deca_model.tar", flame=name)


def test_wrong_and_hostile_files(extension: Extension, files: Path) -> None:
    evidence = files / "evidence"
    write_hostile(files / "flame" / "hostile.pkl", evidence)
    (files / "flame" / "short.pkl").write_bytes(
        (files / "flame" / "generic_model.pkl").read_bytes()[:100_000]
    )
    given = {"deca": "deca_model.tar", "flame": "generic_model.pkl"}
    for wrong in (
        {"flame": "hostile.pkl"},
        {"flame": "short.pkl"},
        {"deca": "SMIRK_em1.pt"},
        {"smirk": "deca_model.tar"},
    ):
        with pytest.raises(ValueError) as error:
            extension.run("LoadDECA", **(given | wrong))
        assert next(iter(wrong.values())) in sentence(str(error.value))
    assert not evidence.exists()


def test_a_picture_without_a_face(extension: Extension, loaded: tuple[Any, Any]) -> None:
    said = extension.refusal(
        "DECAExtract", face_capture=loaded[0], image=torch.full((1, 64, 64, 3), 0.5), **SETTINGS
    )
    assert "no face was found" in said
    assert "no face" in extension.refusal(
        "DECAExtract", face_capture=loaded[0], image=still(), bounding_boxes=[[]], **SETTINGS
    )


def test_faces_of_another_video(extension: Extension, loaded: tuple[Any, Any]) -> None:
    said = extension.refusal(
        "DECAExtract", face_capture=loaded[0], image=still(), bounding_boxes=boxes(4), **SETTINGS
    )
    assert "1 pictures but the bounding boxes are for 4" in said


def test_flame_parameters_are_not_drawn_with_another_head(
    extension: Extension, loaded: tuple[Any, Any]
) -> None:
    said = extension.refusal("RenderNormals", parameters=loaded[1].neutral(), size=SIZE, head="bundled")
    assert "Load DECA" in said and "FLAME" in said


# --- Over the host's queue -----------------------------------------------------------------------


LINKED = {"deca": "linked_deca_model.tar", "flame": "linked_generic_model.pkl"}


@pytest.fixture(scope="module")
def queue(running_comfyui: client.Server, files: Path) -> Iterator[client.Server]:
    """A running ComfyUI that has the files as well."""
    links = []
    for folder, name in (("deca", "deca_model.tar"), ("flame", "generic_model.pkl")):
        link = running_comfyui.base / "models" / folder / f"linked_{name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(files / folder / name)
        links.append(link)
    yield running_comfyui
    for link in links:
        link.unlink()


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(**files: str) -> dict[str, Any]:
    return {
        "1": node("LoadImage", image="anifacediff_source.png"),
        "2": node("AniFaceDiffLoadDECA", **files),
        "3": node("AniFaceDiffDECAExtract", face_capture=["2", 0], image=["1", 0], **SETTINGS),
        "4": node("AniFaceDiffFacialShapeAlign", source=["3", 0], driving=["3", 0]),
        "5": node(
            "AniFaceDiffRenderNormals", parameters=["4", 0], size=SIZE, head="bundled", head_model=["2", 1]
        ),
        "6": node("PreviewImage", images=["5", 0]),
    }


def test_the_host_runs_it(queue: client.Server) -> None:
    client.run_prompt(queue, graph(**LINKED)).check()


def test_the_host_tells_what_is_missing_before_the_run(queue: client.Server) -> None:
    run = client.run_prompt(queue, graph(**(LINKED | {"flame": "flame2023.pkl"})))
    assert run.node_errors and "'flame2023.pkl' is not there: download generic_model.pkl" in run.message()
