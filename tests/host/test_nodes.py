"""The nodes in the host's own process: schemas, results against the core, answers to bad input."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anifacediff_core.capture import mediapipe
from anifacediff_core.capture.arkit import from_face_landmarks
from anifacediff_core.capture.detector import Detection, PortraitDetector
from anifacediff_core.capture.encoder import FaceEncoder, Reading
from anifacediff_core.capture.extract import CaptureModels, crop_portrait, extract_parameters
from anifacediff_core.capture.paste import paste_back
from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab import client
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.windows import initial_noise
from anifacediff_core.weights.checkpoint import (
    bundled_checkpoint,
    load_checkpoint,
    load_network,
    save_checkpoint,
)
from harness.extension import Extension, one_sentence
from harness.weights import randomize

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("nodes.json")
SIZE, FRAMES = 64, 5
SAMPLING = {
    "seed": 3,
    "steps": 2,
    "cfg": 1.5,
    "sampler_name": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
    "window": 4,
    "overlap": 2,
    "shared_noise": 1.0,
}


# --- A small checkpoint with random weights -------------------------------------------------------


def small_config() -> NetworkConfig:
    return replace(
        NetworkConfig.tiny(),
        block_out_channels=(32, 32, 32),
        attention_heads=(1, 1, 1),
        motion_heads=(1, 1, 1),
    )


def write_checkpoint(path: Path, head: str = "anifacediff-head-1", without: tuple[str, ...] = ()) -> None:
    network = randomize(AniFaceDiff(small_config(), motion=True), 0)
    names = ("unet", "motion", "reference", "pose_encoder", "expression_adapter", "image_encoder")
    modules = {name: getattr(network, name) for name in names}
    modules |= {"vae": AutoEncoder(), "face_encoder": FaceEncoder(), "face_detector": PortraitDetector()}
    parts = {name: module.state_dict() for name, module in modules.items() if name not in without}
    save_checkpoint(path, parts, small_config(), head=head)


@pytest.fixture(scope="session")
def checkpoint(extension: Extension) -> Path:
    path = extension.base / "models" / "anifacediff" / "random.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def loaded(extension: Extension, checkpoint: Path) -> dict[str, Any]:
    names = ("model", "vae", "clip_vision", "reference_net", "pose_encoder", "face_capture")
    return dict(zip(names, extension.run("Loader", checkpoint=checkpoint.name), strict=True))


@pytest.fixture(scope="session")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="session")
def driving(head: HeadModel) -> FaceParameters:
    generator = torch.Generator().manual_seed(1)
    expression = torch.rand(FRAMES, head.n_expression, generator=generator) * 0.4
    pose = torch.randn(FRAMES, 15, generator=generator) * 0.05
    shape = torch.randn(FRAMES, head.n_shape, generator=generator) * 0.3
    return replace(head.neutral(FRAMES), expression=expression, pose=pose, shape=shape)


@pytest.fixture(scope="session")
def conditions(extension: Extension, loaded: dict[str, Any], driving: FaceParameters) -> dict[str, Any]:
    """Everything that the sampler takes."""
    # what stands between the loaders clones the MODEL, as LoRA loaders do
    adapted, *_ = extension.run(
        "ExpressionAdapterLoader", model=loaded["model"].clone(), checkpoint="same as model", weight=1.0
    )
    (normals,) = extension.run("RenderNormals", parameters=driving, size=SIZE, head="bundled")
    (pose,) = extension.run("PoseEncode", pose_encoder=loaded["pose_encoder"], normals=normals)
    (reference,) = extension.run("ReferenceNetEncode", **reference_inputs(loaded, picture(1)))
    return {"model": adapted, "reference": reference, "pose": pose, "parameters": driving}


def reference_inputs(loaded: dict[str, Any], image: Tensor, size: int = SIZE) -> dict[str, Any]:
    networks = {name: loaded[name] for name in ("reference_net", "vae", "clip_vision")}
    return {**networks, "source_image": image, "size": size}


def picture(frames: int = 1, height: int = 80, width: int = 72, channels: int = 3, seed: int = 0) -> Tensor:
    """The host's IMAGE with smooth noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, channels, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


class FoundFaces(nn.Module):
    """A detector that finds what it is told: of every frame the squares of its faces."""

    def __init__(self, *faces: list[tuple[float, float, float]]) -> None:
        super().__init__()
        self.faces, self.seen = faces, 0

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        start, self.seen = self.seen, self.seen + len(frames)
        each = [self.faces[number % len(self.faces)] for number in range(start, self.seen)]
        return [[Detection(0.9, square) for square in squares] for squares in each]


class ReadsBrightness(nn.Module):
    """An encoder whose shape is the brightness of the crop."""

    def read(self, pixels: Tensor) -> Reading:
        count, device = len(pixels), pixels.device
        shape = pixels.mean((1, 2, 3))[:, None].expand(count, 100)
        camera = torch.tensor([7.6, 0.0, 0.02], device=device).expand(count, 3)
        return Reading(shape, torch.full((count, 52), 0.1), torch.zeros(count, 3), camera)


LEFT, RIGHT = (0.1, 0.2, 0.3), (0.6, 0.2, 0.3)


def models_that_find(*faces: list[tuple[float, float, float]]) -> CaptureModels:
    return CaptureModels(FoundFaces(*faces), ReadsBrightness(), HeadModel.bundled())


def extract(extension: Extension, models: Any, image: Tensor | None, **inputs: Any) -> dict[str, Any]:
    given = {"region": "auto", "size": SIZE, "face": 0, "smoothing": 0.3, **inputs}
    result = extension.run("DECAExtract", face_capture=models, image=image, **given)
    names = ("parameters", "portrait", "report", "crop", "appearance", "frames_without_face")
    return dict(zip(names, result, strict=True))


# --- Schemas -------------------------------------------------------------------------------------


def described(extension: Extension) -> dict[str, Any]:
    """What saved workflows depend on."""
    found = {}
    for name, node in sorted(extension.classes.items()):
        info = node.GET_NODE_INFO_V1()
        inputs = {
            key: kind
            for part in ("required", "optional")
            for key, kind in info["input"].get(part, {}).items()
        }
        found[name] = {
            "display_name": info["display_name"],
            "inputs": {key: kind[0] if isinstance(kind[0], str) else "COMBO" for key, kind in inputs.items()},
            "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
        }
    return found


def test_saved_workflows_keep_loading(extension: Extension, request: pytest.FixtureRequest) -> None:
    """What nodes.json holds may grow; whatever is in it stays within a major version."""
    found = described(extension)
    if request.config.getoption("--write-node-record"):
        SNAPSHOT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8")), "pytest --write-node-record renews it"


@pytest.mark.parametrize("node", ["Sampler", "ReenactLongVideo", "ReenactMany"])
def test_a_fresh_node_samples_as_the_bundled_checkpoint_wants_it(extension: Extension, node: str) -> None:
    wanted = load_checkpoint(bundled_checkpoint()).sampling
    inputs = extension.classes[f"AniFaceDiff{node}"].GET_NODE_INFO_V1()["input"]["required"]
    found = {name: inputs[name][1]["default"] for name in ("steps", "cfg", "sampler_name", "scheduler")}
    assert list(found.values()) == [wanted.steps, wanted.cfg, wanted.sampler, wanted.scheduler]


def test_every_name_explains_itself(extension: Extension) -> None:
    assert set(extension.classes) == set(json.loads(SNAPSHOT.read_text(encoding="utf-8")))
    texts = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    for name, node in extension.classes.items():
        info = node.GET_NODE_INFO_V1()
        category, _, stage = info["category"].partition("/")
        assert category == "AniFaceDiff" and stage in texts["nodeCategories"] and info["description"], name
        for part in ("required", "optional"):
            for key, kind in info["input"].get(part, {}).items():
                assert kind[1].get("tooltip"), f"{name}.{key}"
        schema = node.GET_SCHEMA()
        assert all(output.display_name and output.tooltip for output in schema.outputs), name


def test_every_node_has_a_help_page(extension: Extension) -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "web" / "docs").glob("*.md")}
    assert set(pages) == set(extension.classes)
    for name, node in extension.classes.items():
        schema, page = node.GET_SCHEMA(), pages[name]
        assert page.startswith(f"# {schema.display_name}\n") and "## Example" in page, name
        told = [entry.id for entry in schema.inputs] + [output.display_name for output in schema.outputs]
        assert [word for word in told if not re.search(rf"\b{word}\b", page)] == [], name


# --- Results -------------------------------------------------------------------------------------


def test_shape_align_is_the_cores(extension: Extension, head: HeadModel, driving: FaceParameters) -> None:
    source = replace(head.neutral(3), shape=torch.randn(3, 100), valid=torch.tensor([False, True, True]))
    (found,) = extension.run("FacialShapeAlign", source=source, driving=driving)
    expected = align(source[1], driving)
    assert torch.equal(found.shape, expected.shape) and torch.equal(found.pose, expected.pose)
    assert torch.equal(found.shape[0], source.shape[1])


def test_normals_are_the_cores(extension: Extension, head: HeadModel, driving: FaceParameters) -> None:
    (found,) = extension.run("RenderNormals", parameters=driving, size=SIZE, head="bundled")
    assert found.shape == (FRAMES, SIZE, SIZE, 3)
    assert torch.equal(found.movedim(-1, 1), render_normals(head, driving, SIZE))


def test_pose_is_the_cores(
    extension: Extension, loaded: dict[str, Any], checkpoint: Path, conditions: dict[str, Any]
) -> None:
    (normals,) = extension.run(
        "RenderNormals", parameters=conditions["parameters"], size=SIZE, head="bundled"
    )
    expected = load_network(load_checkpoint(checkpoint)).pose_encoder(normals.movedim(-1, 1))
    found = conditions["pose"].features
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_extract_is_the_cores(extension: Extension) -> None:
    image = picture(FRAMES, 120, 160)
    found = extract(extension, models_that_find([LEFT]), image)
    frames = image.movedim(-1, 1)
    expected = extract_parameters(frames, models_that_find([LEFT]), what="the video")
    assert torch.equal(found["parameters"].shape, expected.parameters.shape)
    assert torch.equal(found["parameters"].camera, expected.parameters.camera)
    assert found["report"] == expected.note
    portrait = crop_portrait(frames, expected.square, SIZE)
    assert torch.equal(found["portrait"].movedim(-1, 1), portrait)
    crop = found["crop"]
    assert torch.equal(crop.square, expected.square) and (crop.width, crop.height) == (160, 120)


def paste(extension: Extension, portrait: Tensor, original: Tensor, crop: Any, **inputs: Any) -> tuple:
    given = {"feather": 0.1, "match_color": 0.5, **inputs}
    return extension.run("PasteBack", portrait=portrait, original=original, crop=crop, **given)


def test_paste_back_is_the_cores(extension: Extension) -> None:
    image, portrait = picture(1, 120, 160), picture(FRAMES, 90, 90, seed=1)
    crop = extract(extension, models_that_find([LEFT]), image, region="portrait")["crop"]
    found, mask = paste(extension, portrait, image, crop)
    expected, shown = paste_back(
        portrait.movedim(-1, 1), image.movedim(-1, 1), crop.square, feather=0.1, match_color=0.5
    )
    assert found.shape == (FRAMES, 120, 160, 3) and found.is_contiguous()
    assert torch.equal(found.movedim(-1, 1), expected) and torch.equal(mask, shown)
    outside = mask[0] == 0
    assert outside.any() and torch.equal(found[:, outside], image[:, outside].expand(FRAMES, -1, -1))


def test_what_was_cut_out_fits_where_it_was(extension: Extension) -> None:
    image = picture(FRAMES, 240, 320)
    found = extract(extension, models_that_find([LEFT]), image, size=256, region="portrait")
    pasted, mask = paste(extension, found["portrait"], image, found["crop"])
    assert (mask == 1).any() and (pasted - image).abs().max() < 0.01
    larger = nn.functional.interpolate(image.movedim(-1, 1), (480, 640), mode="bilinear").movedim(1, -1)
    pasted, _ = paste(extension, found["portrait"], larger, found["crop"])
    assert pasted.shape == larger.shape and (pasted - larger).abs().max() < 0.02


def landmarks(head: HeadModel, frames: int = FRAMES, missing: tuple[int, ...] = ()) -> dict[str, Any]:
    """FACE_LANDMARKS as the host's landmarker gives them: a face that opens its mouth."""

    def face(number: int) -> dict[str, Any]:
        return {
            "bbox_xyxy": torch.tensor([60.0, 40.0, 160.0, 150.0]),
            "blendshapes": dict.fromkeys(head.expression_names, 0.0) | {"jawOpen": number / frames},
            "transformation_matrix": torch.eye(4),
            "score": 0.9,
        }

    found = [[] if number in missing else [face(number)] for number in range(frames)]
    return {"frames": found, "image_size": (200, 240)}


LANDMARKING = {"region": "auto", "face": 0, "smoothing": 0.0}


def test_landmarks_are_the_cores(extension: Extension, head: HeadModel) -> None:
    given = landmarks(head, missing=(2,))
    parameters, report, missing = extension.run(
        "ParametersFromFaceLandmarks", face_landmarks=given, **LANDMARKING
    )
    expected = from_face_landmarks(given, head, smoothing=0.0)
    assert torch.equal(parameters.expression, expected.parameters.expression)
    assert torch.equal(parameters.camera, expected.parameters.camera)
    assert report == expected.note and missing == "2" and not parameters.valid[2]
    opening = parameters.expression[:, head.expression_names.index("jawOpen")]
    assert (opening.diff() > 0).all()


def test_heads_are_offered_and_textures_are_not(extension: Extension) -> None:
    folder = extension.base / "models" / "flame"
    for name in ("converted.safetensors", "some_model.pkl", "FLAME_texture.npz"):
        (folder / name).write_bytes(b"")
    options = extension.classes["AniFaceDiffRenderNormals"].INPUT_TYPES()["required"]["head"][1]["options"]
    assert options[0] == "bundled" and {"converted.safetensors", "some_model.pkl"} < set(options)
    assert "FLAME_texture.npz" not in options
    for name in ("converted.safetensors", "some_model.pkl", "FLAME_texture.npz"):
        (folder / name).unlink()


def test_damaged_head(extension: Extension, driving: FaceParameters) -> None:
    (extension.base / "models" / "flame" / "damaged.safetensors").write_bytes(b"no head")
    extension.refusal("RenderNormals", parameters=driving, size=SIZE, head="damaged.safetensors")


def test_bad_landmarks(extension: Extension, head: HeadModel) -> None:
    nobody = landmarks(head, missing=tuple(range(FRAMES)))
    for given in (None, {}, {"frames": [], "image_size": (8, 8)}, nobody):
        extension.refusal("ParametersFromFaceLandmarks", face_landmarks=given, **LANDMARKING)
    if not mediapipe.available():
        message = extension.refusal("ParametersFromFaceLandmarks", image=picture(), **LANDMARKING)
        assert "MediaPipe" in message


def test_sampler_is_apply_and_a_stock_sampler(extension: Extension, conditions: dict[str, Any]) -> None:
    import comfy.sample

    (found,) = extension.run("Sampler", **conditions, **SAMPLING)
    model, positive, negative, latent = extension.run("Apply", **conditions, window=4, overlap=2)
    empty = latent["samples"]
    assert empty.shape == (FRAMES, 4, SIZE // 8, SIZE // 8) and not empty.any()
    noise = initial_noise(*empty.shape, SAMPLING["seed"], SAMPLING["shared_noise"])
    expected = comfy.sample.sample(
        model, noise, 2, 1.5, "euler", "simple", positive, negative, empty, seed=SAMPLING["seed"]
    )
    assert torch.isfinite(expected).all() and float(expected.std()) > 0
    assert torch.allclose(found["samples"], expected, rtol=1e-4, atol=1e-5)


def test_the_expression_reaches_the_sampler(
    extension: Extension, loaded: dict[str, Any], conditions: dict[str, Any]
) -> None:
    def sampled(weight: float) -> Tensor:
        (model,) = extension.run(
            "ExpressionAdapterLoader", model=loaded["model"], checkpoint="random.safetensors", weight=weight
        )
        return extension.run("Sampler", **{**conditions, "model": model}, **SAMPLING)[0]["samples"]

    (bare,) = extension.run("Sampler", **{**conditions, "model": loaded["model"]}, **SAMPLING)
    assert torch.equal(sampled(0.0), bare["samples"])
    assert not torch.allclose(sampled(1.0), bare["samples"], rtol=1e-2)


def test_denoise_starts_from_the_still_source(extension: Extension, conditions: dict[str, Any]) -> None:
    still = conditions["reference"].latent.repeat(FRAMES, 1, 1, 1)
    sampling = {**SAMPLING, "denoise": 0.5}
    (found,) = extension.run("Sampler", **conditions, **sampling)
    (expected,) = extension.run("Sampler", **conditions, **sampling, latent={"samples": still})
    assert torch.equal(found["samples"], expected["samples"])


def test_the_whole_way_ends_in_pictures(
    extension: Extension, loaded: dict[str, Any], conditions: dict[str, Any]
) -> None:
    (latent,) = extension.run("Sampler", **conditions, **SAMPLING)
    video = loaded["vae"].decode(latent["samples"])
    assert video.shape == (FRAMES, SIZE, SIZE, 3) and torch.isfinite(video).all()


def test_parameters_survive_the_disk(extension: Extension, driving: FaceParameters) -> None:
    output = extension.output("SaveFaceParameters", parameters=driving, filename_prefix="kept/take")
    _, name = output.result
    assert name == "kept/take_00001_.safetensors" and name in output.ui.as_dict()["text"][0]
    listed = extension.classes["AniFaceDiffLoadFaceParameters"].INPUT_TYPES()["required"]["file"][1][
        "options"
    ]
    assert f"{name} [output]" in listed
    found, frames = extension.run("LoadFaceParameters", file=f"{name} [output]")
    assert frames == FRAMES and found.head == driving.head
    assert all(
        torch.equal(getattr(found, part), getattr(driving, part)) for part in ("shape", "pose", "valid")
    )
    again = extension.run("SaveFaceParameters", parameters=driving, filename_prefix="kept/take")
    assert again[1] == "kept/take_00002_.safetensors"


# --- Pictures of every kind ----------------------------------------------------------------------


def test_gray_and_transparent_pictures(extension: Extension, loaded: dict[str, Any]) -> None:
    gray = picture(channels=1)
    alike = gray.expand(-1, -1, -1, 3)
    opaque = torch.cat([alike, torch.ones_like(gray)], dim=-1)
    hollow = torch.cat([alike, torch.zeros_like(gray)], dim=-1)
    embeddings = [
        extension.run("ReferenceNetEncode", **reference_inputs(loaded, image))[0].latent
        for image in (alike, gray, opaque, hollow)
    ]
    assert torch.equal(embeddings[0], embeddings[1]) and torch.equal(embeddings[0], embeddings[2])
    assert not torch.equal(embeddings[0], embeddings[3])
    shapes = [
        extract(extension, models_that_find([LEFT]), image)["parameters"].shape
        for image in (alike, gray, opaque)
    ]
    assert torch.equal(shapes[0], shapes[1]) and torch.equal(shapes[0], shapes[2])


def test_of_several_sources_the_first(extension: Extension, loaded: dict[str, Any], caplog: Any) -> None:
    several = torch.cat([picture(seed=1), picture(seed=2)])
    with caplog.at_level("INFO"):
        (found,) = extension.run("ReferenceNetEncode", **reference_inputs(loaded, several))
    (expected,) = extension.run("ReferenceNetEncode", **reference_inputs(loaded, several[:1]))
    assert torch.equal(found.latent, expected.latent) and "2 pictures" in caplog.text


def test_8k_picture(extension: Extension, loaded: dict[str, Any]) -> None:
    image = torch.full((1, 4320, 7680, 3), 0.5)
    found = extract(extension, models_that_find([LEFT]), image)
    assert found["portrait"].shape == (1, SIZE, SIZE, 3) and len(found["parameters"]) == 1
    (reference,) = extension.run("ReferenceNetEncode", **reference_inputs(loaded, image))
    assert reference.size == SIZE


def test_size_that_the_network_halves_unevenly(
    extension: Extension, loaded: dict[str, Any], driving: Any
) -> None:
    (reference,) = extension.run("ReferenceNetEncode", **reference_inputs(loaded, picture(), size=72))
    (normals,) = extension.run("RenderNormals", parameters=driving, size=72, head="bundled")
    (pose,) = extension.run("PoseEncode", pose_encoder=loaded["pose_encoder"], normals=normals)
    inputs = {"model": loaded["model"], "reference": reference, "pose": pose, "parameters": driving}
    (latent,) = extension.run("Sampler", **inputs, **SAMPLING)
    assert latent["samples"].shape == (FRAMES, 4, 9, 9)


def test_one_frame_video(extension: Extension, loaded: dict[str, Any], conditions: dict[str, Any]) -> None:
    one = conditions["parameters"][0]
    (normals,) = extension.run("RenderNormals", parameters=one, size=SIZE, head="bundled")
    (pose,) = extension.run("PoseEncode", pose_encoder=loaded["pose_encoder"], normals=normals)
    (latent,) = extension.run("Sampler", **{**conditions, "pose": pose, "parameters": one}, **SAMPLING)
    assert latent["samples"].shape[0] == 1 and torch.isfinite(latent["samples"]).all()
    assert len(extract(extension, models_that_find([LEFT]), picture(1))["parameters"]) == 1


BAD_PICTURES = {
    "nothing": None,
    "empty": torch.zeros(0, 32, 32, 3),
    "no pixels": torch.zeros(1, 0, 32, 3),
    "one pixel": torch.zeros(1, 1, 1, 3),
    "nan": torch.full((2, 32, 32, 3), float("nan")),
    "infinite": torch.full((1, 32, 32, 3), float("inf")),
    "many channels": torch.zeros(1, 32, 32, 7),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures(extension: Extension, loaded: dict[str, Any], kind: str) -> None:
    image = BAD_PICTURES[kind]
    extension.refusal("ReferenceNetEncode", **reference_inputs(loaded, image))
    extension.refusal("PoseEncode", pose_encoder=loaded["pose_encoder"], normals=image)
    capturing = {"region": "auto", "size": SIZE, "face": 0, "smoothing": 0.3, "image": image}
    extension.refusal("DECAExtract", face_capture=models_that_find([LEFT]), **capturing)
    pasting = {
        "crop": extract(extension, models_that_find([LEFT]), picture(1, 32, 32))["crop"],
        "feather": 0.1,
        "match_color": 0.0,
    }
    whole = torch.zeros(1, 32, 32, 3)
    assert "portrait" in extension.refusal("PasteBack", portrait=image, original=whole, **pasting)
    assert "original" in extension.refusal("PasteBack", portrait=whole, original=image, **pasting)


def test_no_face(extension: Extension) -> None:
    with pytest.raises(InputError, match="no face was found") as error:
        extract(extension, models_that_find([]), picture())
    one_sentence(str(error.value))


def test_frames_without_a_face_are_named(extension: Extension) -> None:
    found = extract(extension, models_that_find([LEFT], [LEFT], [], [LEFT]), picture(FRAMES))
    assert found["parameters"].valid.tolist() == [True, True, False, True, True]
    assert "4 of 5" in found["report"] and "frame 2" in found["report"]
    assert torch.isfinite(found["parameters"].camera).all()


def test_two_faces(extension: Extension) -> None:
    image = picture(1, 100, 100)
    image[:, :, 50:] = 0.9
    first, second = (
        extract(extension, models_that_find([RIGHT, LEFT]), image, face=face, region="portrait")
        for face in (1, 2)
    )
    assert "2 faces" in first["report"]
    assert float(second["parameters"].shape.mean()) > float(first["parameters"].shape.mean()) + 0.1
    message = extension.refusal(
        "DECAExtract",
        face_capture=models_that_find([RIGHT, LEFT]),
        image=image,
        region="auto",
        size=SIZE,
        face=3,
        smoothing=0.0,
    )
    assert "number 3" in message


# --- Things that don't belong together -----------------------------------------------------------


def foreign(params: FaceParameters) -> FaceParameters:
    return replace(params, head="flame-2020")


def test_mismatched_heads(extension: Extension, driving: FaceParameters, conditions: dict[str, Any]) -> None:
    assert "flame-2020" in extension.refusal("FacialShapeAlign", source=driving[0], driving=foreign(driving))
    assert "flame-2020" in extension.refusal(
        "RenderNormals", parameters=foreign(driving), size=SIZE, head="bundled"
    )
    other = {**conditions, "parameters": foreign(driving)}
    assert "flame-2020" in extension.refusal("Apply", **other, window=4, overlap=2)
    assert "flame-2020" in extension.refusal("Sampler", **other, **SAMPLING)


def test_source_without_a_face(extension: Extension, driving: FaceParameters) -> None:
    blind = replace(driving[0], valid=torch.tensor([False]))
    assert "source" in extension.refusal("FacialShapeAlign", source=blind, driving=driving)


def test_sizes_that_differ(extension: Extension, loaded: dict[str, Any], conditions: dict[str, Any]) -> None:
    (reference,) = extension.run("ReferenceNetEncode", **reference_inputs(loaded, picture(), size=128))
    message = extension.refusal("Sampler", **{**conditions, "reference": reference}, **SAMPLING)
    assert "128" in message and str(SIZE) in message


def test_lengths_that_differ(extension: Extension, conditions: dict[str, Any]) -> None:
    shorter = {**conditions, "parameters": conditions["parameters"][:3]}
    message = extension.refusal("Sampler", **shorter, **SAMPLING)
    assert "3 frames" in message and f"{FRAMES}" in message
    latent = {"samples": torch.zeros(3, 4, SIZE // 8, SIZE // 8)}
    assert "latent" in extension.refusal("Sampler", **conditions, **SAMPLING, latent=latent)


def test_vae_and_text_of_other_models(extension: Extension, loaded: dict[str, Any]) -> None:
    inputs = reference_inputs(loaded, picture())
    for shape in ((1, 16, 8, 8), (1, 4, 1, 8, 8)):
        vae = SimpleNamespace(encode=lambda pixels, shape=shape: torch.zeros(shape))
        message = extension.refusal("ReferenceNetEncode", **(inputs | {"vae": vae}))
        assert f"latents of shape {list(shape)}" in message
    message = extension.refusal("ReferenceNetEncode", **inputs, context=[[torch.zeros(1, 77, 2048), {}]])
    assert "2048 channels" in message


def test_normals_of_other_forms(extension: Extension, loaded: dict[str, Any]) -> None:
    encoder = loaded["pose_encoder"]
    assert "square" in extension.refusal("PoseEncode", pose_encoder=encoder, normals=picture(1, 64, 72))
    assert "multiple of 8" in extension.refusal(
        "PoseEncode", pose_encoder=encoder, normals=picture(1, 60, 60)
    )


def test_a_portrait_of_another_picture(extension: Extension) -> None:
    crop = extract(extension, models_that_find([LEFT]), picture(1, 120, 160))["crop"]
    given = {"crop": crop, "feather": 0.1, "match_color": 0.0}
    square, two = picture(1, 64, 64), picture(2, 120, 160)
    message = extension.refusal("PasteBack", portrait=square, original=picture(1, 120, 120), **given)
    assert "120×120" in message and "160×120" in message
    assert "2 frames" in extension.refusal("PasteBack", portrait=square, original=two, **given)
    assert "square" in extension.refusal("PasteBack", portrait=two, original=two, **given)
    mask = torch.ones(1, 64, 64)
    assert "mask" in extension.refusal("PasteBack", portrait=square, original=two[:1], mask=mask, **given)


def test_windows_that_cannot_be(extension: Extension, conditions: dict[str, Any]) -> None:
    extension.refusal("Apply", **conditions, window=4, overlap=4)
    message = extension.refusal("Apply", **conditions, window=64, overlap=4)
    assert "64" in message and "32" in message


def test_nodes_in_the_wrong_order(
    extension: Extension, loaded: dict[str, Any], conditions: dict[str, Any]
) -> None:
    applied, *_ = extension.run("Apply", **conditions, window=4, overlap=2)
    extension.refusal("Apply", **{**conditions, "model": applied}, window=4, overlap=2)
    extension.refusal("ExpressionAdapterLoader", model=applied, checkpoint="same as model", weight=1.0)


def test_the_given_model_stays_as_it_is(extension: Extension, conditions: dict[str, Any]) -> None:
    (before,) = extension.run("Sampler", **conditions, **SAMPLING)
    extension.run("Sampler", **conditions, **{**SAMPLING, "window": 5, "overlap": 0})
    (after,) = extension.run("Sampler", **conditions, **SAMPLING)
    assert torch.equal(before["samples"], after["samples"])


# --- Checkpoints and files -----------------------------------------------------------------------


def test_checkpoints_that_are_none(extension: Extension, checkpoint: Path) -> None:
    from safetensors.torch import save_file

    folder = checkpoint.parent
    whole = checkpoint.read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.safetensors").write_text("not a checkpoint", encoding="utf-8")
    save_file({"model.weight": torch.zeros(2)}, folder / "foreign.safetensors")
    try:
        for name in ("truncated", "text", "foreign", "absent"):
            assert name in extension.refusal("Loader", checkpoint=f"{name}.safetensors")
    finally:
        for name in ("truncated", "text", "foreign"):
            (folder / f"{name}.safetensors").unlink()


def test_checkpoint_without_some_parts(
    extension: Extension, checkpoint: Path, driving: FaceParameters
) -> None:
    path = checkpoint.with_name("parts.safetensors")
    missing = ("vae", "reference", "pose_encoder", "face_encoder", "expression_adapter", "motion")
    write_checkpoint(path, without=missing)
    model, vae, clip_vision, reference, pose_encoder, face_capture = extension.run(
        "Loader", checkpoint=path.name
    )
    path_inputs = {"vae": vae, "clip_vision": clip_vision, "reference_net": reference}
    assert "ReferenceNet" in extension.refusal(
        "ReferenceNetEncode", **path_inputs, source_image=picture(), size=SIZE
    )
    assert "pose encoder" in extension.refusal(
        "PoseEncode", pose_encoder=pose_encoder, normals=picture(1, 64, 64)
    )
    assert "face capture" in extension.refusal(
        "DECAExtract",
        face_capture=face_capture,
        image=picture(),
        region="auto",
        size=SIZE,
        face=0,
        smoothing=0.0,
    )
    extension.refusal("ExpressionAdapterLoader", model=model, checkpoint="same as model", weight=1.0)


def test_adapter_of_another_head(extension: Extension, checkpoint: Path, loaded: dict[str, Any]) -> None:
    write_checkpoint(checkpoint.with_name("other.safetensors"), head="flame-2020", without=("unet", "vae"))
    message = extension.refusal(
        "ExpressionAdapterLoader", model=loaded["model"], checkpoint="other.safetensors", weight=1.0
    )
    assert "flame-2020" in message


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../b [output]", "absent.safetensors"]
)
def test_files_outside_and_absent(extension: Extension, name: str) -> None:
    (extension.base / "secret.safetensors").write_bytes(b"")
    extension.refusal("LoadFaceParameters", file=name)
    answer = extension.classes["AniFaceDiffLoadFaceParameters"].validate_inputs(file=name)
    assert isinstance(answer, str) and one_sentence(answer)


@pytest.mark.parametrize("prefix", ["../escape", "/tmp/escape", "a/../../escape"])
def test_saving_outside(extension: Extension, driving: FaceParameters, prefix: str) -> None:
    extension.refusal("SaveFaceParameters", parameters=driving, filename_prefix=prefix)


def test_other_files_as_parameters(extension: Extension, checkpoint: Path) -> None:
    (extension.base / "input" / "noise.safetensors").write_bytes(b"no parameters")
    (extension.base / "input" / "checkpoint.safetensors").write_bytes(checkpoint.read_bytes())
    for name in ("noise", "checkpoint"):
        assert name in extension.refusal("LoadFaceParameters", file=f"{name}.safetensors")


# --- Cancelling ----------------------------------------------------------------------------------


def test_cancelled_runs_leave_everything_usable(
    extension: Extension, loaded: dict[str, Any], conditions: dict[str, Any]
) -> None:
    import comfy.model_management as management

    (normals,) = extension.run(
        "RenderNormals", parameters=conditions["parameters"], size=SIZE, head="bundled"
    )
    runs: list[tuple[str, dict[str, Any]]] = [
        ("RenderNormals", {"parameters": conditions["parameters"], "size": SIZE, "head": "bundled"}),
        ("PoseEncode", {"pose_encoder": loaded["pose_encoder"], "normals": normals}),
        ("DECAExtract", {"face_capture": models_that_find([LEFT]), "image": picture(3), "region": "auto",
                         "size": SIZE, "face": 0, "smoothing": 0.0}),
        ("Sampler", {**conditions, **SAMPLING}),
    ]  # fmt: skip
    (before,) = extension.run("Sampler", **conditions, **SAMPLING)
    for node, inputs in runs:
        management.interrupt_current_processing(True)
        with pytest.raises(management.InterruptProcessingException):
            extension.run(node, **inputs)
        management.interrupt_current_processing(False)
    (after,) = extension.run("Sampler", **conditions, **SAMPLING)
    assert torch.equal(before["samples"], after["samples"])


# --- Over the host's queue -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def queue(running_comfyui: client.Server) -> client.Server:
    """A running ComfyUI with the checkpoint of random weights, and odd pictures in its input folder."""
    folder = running_comfyui.base / "models" / "anifacediff"
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "random.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "random.safetensors").read_bytes()[:100_000])
    pictures = running_comfyui.base / "input"
    Image.new("RGB", (1, 1)).save(pictures / "one_pixel.png")
    Image.new("RGB", (96, 96), "gray").save(pictures / "no_face.png")
    FaceParameters.neutral(20, "anifacediff-head-1", 100, 52).save(pictures / "neutral.safetensors")
    return running_comfyui


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def capturing(image: str, checkpoint: str = "random.safetensors") -> dict[str, Any]:
    settings = {"region": "auto", "size": SIZE, "face": 0, "smoothing": 0.3}
    return {
        "1": node("LoadImage", image=image),
        "2": node("AniFaceDiffLoader", checkpoint=checkpoint),
        "3": node("AniFaceDiffDECAExtract", face_capture=["2", 5], image=["1", 0], **settings),
        "4": node("PreviewImage", images=["3", 1]),
    }


@pytest.mark.parametrize(
    ("graph", "culprit"),
    [
        (capturing("one_pixel.png"), "AniFaceDiffDECAExtract"),
        (capturing("no_face.png"), "AniFaceDiffDECAExtract"),
        (capturing("no_face.png", "truncated.safetensors"), "AniFaceDiffLoader"),
    ],
)
def test_the_host_shows_one_sentence(queue: client.Server, graph: dict[str, Any], culprit: str) -> None:
    run = client.run_prompt(queue, graph)
    assert run.error is not None and run.error["node_type"] == culprit
    assert one_sentence(run.error["exception_message"].strip())


def test_the_host_serves_help_pages(queue: client.Server) -> None:
    for page in (ROOT / "web" / "docs").glob("*.md"):
        served = client.request(queue.address, f"/extensions/ComfyUI-AniFaceDiff/docs/{page.name}")
        assert served == page.read_bytes()


def test_the_host_refuses_absent_files(queue: client.Server) -> None:
    graph = {
        "1": node("AniFaceDiffLoadFaceParameters", file="../neutral.safetensors"),
        "2": node("AniFaceDiffSaveFaceParameters", parameters=["1", 0], filename_prefix="x"),
    }
    run = client.run_prompt(queue, graph)
    assert run.node_errors and "leads out of the folder" in run.message()


def test_the_host_shows_progress(queue: client.Server) -> None:
    graph = {
        "1": node("AniFaceDiffLoadFaceParameters", file="neutral.safetensors"),
        "2": node("AniFaceDiffRenderNormals", parameters=["1", 0], size=SIZE, head="bundled"),
        "3": node("PreviewImage", images=["2", 0]),
    }
    seen: list[tuple[int, int]] = []

    def watch(key: str, done: int, total: int) -> None:
        if key == "2" and total:
            seen.append((done, total))

    client.run_prompt(queue, graph, watch).check()
    assert seen == sorted(seen) and seen[-1] == (20, 20)
