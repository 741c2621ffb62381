"""DECA, SMIRK and FLAME: the networks against their originals' parts, the head, the crops, the whole way."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from anifacediff_core.capture import locate
from anifacediff_core.capture.deca import CROP, DecaEncoder, DecaReading, split
from anifacediff_core.capture.detector import Detection
from anifacediff_core.capture.extract import crop_portrait, extract_parameters
from anifacediff_core.capture.flame import FlameModels, cut, deca_squares, smirk_squares
from anifacediff_core.capture.locate import FacesAtHand, from_boxes, from_landmarks, square_of_landmarks
from anifacediff_core.capture.smirk import SmirkEncoder
from anifacediff_core.capture.tracker import smooth_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head.camera import crop_camera, project, to_pixels
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.rasterize import rasterize
from anifacediff_core.head.render import render_normals, vertex_normals
from anifacediff_core.video import read_image
from anifacediff_core.weights.faces import load_head
from anifacediff_core.weights.importers.face_encoders import load_deca, load_smirk
from anifacediff_core.weights.importers.flame import load_flame
from harness.flame import Fields, make_fields, write_hostile, write_pickle
from harness.weights import randomize

ASSETS = Path(__file__).resolve().parents[2] / "anifacediff_core" / "assets"


@pytest.fixture(scope="module")
def fields() -> Fields:
    return make_fields()


@pytest.fixture(scope="module")
def flame_path(fields: Fields, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flame") / "generic_model.pkl"
    write_pickle(path, fields)
    return path


@pytest.fixture(scope="module")
def flame(flame_path: Path) -> HeadModel:
    return load_flame(flame_path)


@pytest.fixture(scope="module")
def deca() -> DecaEncoder:
    return lively(DecaEncoder(), 0)


@pytest.fixture(scope="module")
def smirk() -> SmirkEncoder:
    return lively(SmirkEncoder(), 1)


def lively(network: Any, seed: int) -> Any:
    """Random weights of a trained size, also in the statistics of the batch norms."""
    generator = torch.Generator().manual_seed(seed)
    randomize(network, seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval().requires_grad_(False)


def pixels(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, CROP, CROP, generator=torch.Generator().manual_seed(seed))


def motion(flame: HeadModel, frames: int, seed: int = 0) -> FaceParameters:
    """FLAME with all that DECA and SMIRK tell of it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(size: int, deviation: float) -> Tensor:
        return deviation * torch.randn(frames, size, generator=generator)

    zero = torch.zeros(frames, 3)
    pose = torch.cat([noise(3, 0.2), zero, noise(3, 0.1), zero, zero], dim=1)
    camera = torch.cat([8 + noise(1, 0.3), noise(2, 0.01)], dim=1)
    return replace(
        flame.neutral(frames), shape=noise(300, 0.7), expression=noise(50, 0.3), pose=pose, camera=camera
    )


# --- The networks --------------------------------------------------------------------------------


def test_deca_is_torchvisions_resnet(deca: DecaEncoder) -> None:
    reference = pytest.importorskip("torchvision").models.resnet50()
    reference.fc = nn.Identity()
    found = {name: tensor.shape for name, tensor in deca.encoder.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in reference.state_dict().items()}
    reference.load_state_dict(deca.encoder.state_dict())
    expected, given = reference.eval()(pixels()), deca.encoder(pixels())
    assert expected.std() > 0.01
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


def test_smirk_is_timms_mobilenets(smirk: SmirkEncoder) -> None:
    timm = pytest.importorskip("timm")
    for name, kind in (("pose", "small"), ("shape", "large"), ("expression", "large")):
        ours = smirk.get_submodule(f"{name}_encoder.encoder")
        reference = timm.create_model(f"tf_mobilenetv3_{kind}_minimal_100", features_only=True)
        found = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        assert found == {name: tensor.shape for name, tensor in reference.state_dict().items()}
        reference.load_state_dict(ours.state_dict())
        expected = reference.eval()(pixels())[-1].mean((2, 3))
        assert expected.std() > 0.001
        torch.testing.assert_close(ours(pixels()), expected, rtol=1e-4, atol=1e-6)


def test_decas_vector_is_split_in_its_order() -> None:
    reading = split(torch.arange(236.0)[None])
    firsts = [part.flatten()[0].item() for part in reading]
    assert firsts == [0, 100, 150, 200, 203, 206, 209]
    assert reading.light.shape == (1, 9, 3) and reading.light[0, 1, 0] == 212


def test_smirks_jaw_and_eyelids_are_limited(smirk: SmirkEncoder) -> None:
    strong = copy.deepcopy(smirk)
    last = strong.expression_encoder.expression_layers[0]
    last.bias[50:] = torch.tensor([-9.0, 9.0, -9.0, 9.0, -9.0])
    reading = strong.read(pixels())
    assert reading.eyelids.tolist() == [[0, 1]] * 2
    torch.testing.assert_close(reading.jaw, torch.tensor([[0.0, 0.2, -0.2]] * 2))
    last.bias[52] = 9.0
    expression, jaw = strong.read_expression(pixels())
    assert torch.equal(expression, reading.expression) and (jaw[:, 0] > 1).all()


def test_files_of_deca_and_smirk(deca: DecaEncoder, smirk: SmirkEncoder, tmp_path: Path) -> None:
    """As their authors give them out, beside networks that are left alone."""
    counters = {"encoder.bn1.num_batches_tracked"}
    kept = {name: tensor for name, tensor in deca.state_dict().items() if name not in counters}
    torch.save(
        {"E_flame": kept, "E_detail": {"layers.2.bias": torch.zeros(128)}}, tmp_path / "deca_model.tar"
    )
    torch.save(
        {f"smirk_encoder.{name}": tensor for name, tensor in smirk.state_dict().items()}
        | {"smirk_generator.conv.weight": torch.zeros(3)},
        tmp_path / "SMIRK_em1.pt",
    )
    found = load_deca(tmp_path / "deca_model.tar")
    assert torch.equal(found(pixels()), deca(pixels())) and not found.training
    assert torch.equal(load_smirk(tmp_path / "SMIRK_em1.pt").read(pixels()).shape, smirk.read(pixels()).shape)
    with pytest.raises(InputError, match="'SMIRK_em1.pt' is not DECA: expected the encoder E_flame"):
        load_deca(tmp_path / "SMIRK_em1.pt")
    with pytest.raises(InputError, match="'deca_model.tar' is not SMIRK: .* choose SMIRK_em1.pt"):
        load_smirk(tmp_path / "deca_model.tar")
    torch.save({"E_flame": kept | {"layers.2.weight": torch.zeros(128, 1024)}}, tmp_path / "other.tar")
    with pytest.raises(InputError, match=r"expected layers.2.weight \[236, 1024\], found \[128, 1024\]"):
        load_deca(tmp_path / "other.tar")
    (tmp_path / "short.tar").write_bytes((tmp_path / "deca_model.tar").read_bytes()[:100_000])
    with pytest.raises(InputError, match="short.tar"):
        load_deca(tmp_path / "short.tar")


# --- The head ------------------------------------------------------------------------------------


def flame_vertices(fields: Fields, params: FaceParameters) -> np.ndarray:
    """FLAME's blend shapes and skinning from its paper, in NumPy: (frames, 5023, 3)."""
    result = []
    parents = fields["kintree_table"][0].astype(np.int64)
    for frame in range(len(params)):
        shape, expression, pose = (
            getattr(params, name)[frame].double().numpy() for name in ("shape", "expression", "pose")
        )
        coefficients = np.concatenate([shape, expression, np.zeros(50)])
        shaped = fields["v_template"] + fields["shapedirs"] @ coefficients
        joints = fields["J_regressor"] @ shaped
        turns = np.stack([exponential(axis_angle) for axis_angle in pose.reshape(5, 3)])
        shaped = shaped + fields["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
        world = np.zeros((5, 4, 4))
        for joint in range(5):
            local = np.eye(4)
            local[:3, :3] = turns[joint]
            local[:3, 3] = joints[joint] - (joints[parents[joint]] if joint else 0)
            world[joint] = world[parents[joint]] @ local if joint else local
        for joint in range(5):
            world[joint, :3, 3] -= world[joint, :3, :3] @ joints[joint]
        blended = np.einsum("vj,jab->vab", fields["weights"], world)
        result.append(np.einsum("vab,vb->va", blended[:, :3, :3], shaped) + blended[:, :3, 3])
    return np.stack(result)


def exponential(axis_angle: np.ndarray) -> np.ndarray:
    x, y, z = axis_angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result, term = np.eye(3), np.eye(3)
    for power in range(1, 20):
        term = term @ skew / power
        result = result + term
    return result


def test_flame_is_flames(flame: HeadModel, fields: Fields) -> None:
    params = motion(flame, 3)
    expected = torch.tensor(flame_vertices(fields, params)).float()
    assert (expected - flame.template).abs().max() > 0.01
    torch.testing.assert_close(flame(params), expected, rtol=0, atol=2e-6)
    # FLAME's joints follow the expression, the bundled head's do not.
    assert (flame.joints(params.shape, params.expression) - flame.joints(params.shape)).abs().max() > 1e-5
    bundled = HeadModel.bundled()
    assert torch.equal(bundled.joints(params.shape[:, :100], torch.ones(3, 52)), bundled.joint_template
                       + torch.einsum("fs,jcs->fjc", params.shape[:, :100], bundled.joint_basis))  # fmt: skip


def test_normals_are_decas(flame: HeadModel, fields: Fields) -> None:
    """Face cross products summed per vertex; x' = s(x + tx), y' = s(y + ty), then y and z negated; (x' + 1) /
    2 of the picture's width, pixel centers at i + 0.5.
    """
    params, size = motion(flame, 1), 64
    vertices = flame_vertices(fields, params)[0]
    faces = fields["f"].astype(np.int64)
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], cross)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(min=1e-30)
    found = vertex_normals(flame(params), flame.faces)[0]
    near = np.abs(found.numpy() - normals).max(axis=1)
    assert np.nanquantile(near, 0.99) < 1e-3
    s, tx, ty = params.camera[0].double().tolist()
    moved = s * (vertices + np.array([tx, ty, 0]))
    moved[:, 1:] *= -1
    points = to_pixels(project(flame(params), params.camera), size)[0].numpy()
    np.testing.assert_allclose(points[:, :2], (moved[:, :2] + 1) / 2 * size, atol=2e-3)
    np.testing.assert_allclose(points[:, 2], moved[:, 2] * size / 2, atol=2e-3)
    image = render_normals(flame, params, size)[0]
    fragments = rasterize(torch.tensor(points)[None], flame.faces, size, size)
    assert torch.equal(image.sum(0) > 0, fragments.covered[0])
    # the nose's tip, the nearest vertex of the face, shows its own normal
    tip = int(flame.landmarks[30])
    column, row = int(points[tip, 0]), int(points[tip, 1])
    shown = F.normalize(image[:, row, column] * 2 - 1, dim=0)
    assert shown @ torch.tensor(normals[tip]).float() > 0.9


def test_landmarks_lie_on_the_face(flame: HeadModel) -> None:
    bundled = HeadModel.bundled()
    torch.testing.assert_close(flame.template[flame.landmarks], bundled.template[bundled.landmarks])


def change(**given: Any) -> Any:
    return lambda fields: fields | given


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda fields: {k: v for k, v in fields.items() if k != "posedirs"}, "expected posedirs .* none"),
        (lambda f: f | {"v_template": f["v_template"][:4000]}, r"v_template \[5023, 3\], found \[4000, 3\]"),
        (lambda f: f | {"shapedirs": f["shapedirs"][..., :100]}, "400 modes, found 100"),
        (lambda f: f | {"weights": f["weights"] * np.nan}, "NaN"),
        (lambda f: f | {"f": f["f"] * 2}, "triangles outside"),
        (lambda f: f | {"kintree_table": f["kintree_table"][:, ::-1].copy()}, "broken joint tree"),
    ],
)
def test_other_files_are_not_flame(fields: Fields, tmp_path: Path, broken: Any, said: str) -> None:
    write_pickle(tmp_path / "other.pkl", broken(fields))
    with pytest.raises(InputError, match=said) as error:
        load_head(tmp_path / "other.pkl")
    assert "other.pkl" in str(error.value) and "\n" not in str(error.value)


def test_hostile_and_damaged_pickles_are_refused(flame_path: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    write_hostile(tmp_path / "hostile.pkl", evidence)
    (tmp_path / "short.pkl").write_bytes(flame_path.read_bytes()[:1_000_000])
    (tmp_path / "noise.pkl").write_bytes(b"no pickle")
    for name in ("hostile", "short", "noise", "absent"):
        with pytest.raises(InputError, match=f"{name}.pkl"):
            load_head(tmp_path / f"{name}.pkl")
    assert not evidence.exists()


def test_flame_in_safetensors(flame: HeadModel, fields: Fields, tmp_path: Path) -> None:
    plain = {name: torch.tensor(value.astype(np.float32)) for name, value in fields.items()}
    plain |= {name: torch.tensor(fields[name].astype(np.int64)) for name in ("f", "kintree_table")}
    save_file(plain, tmp_path / "flame.safetensors")
    assert torch.equal(load_head(tmp_path / "flame.safetensors").shape_basis, flame.shape_basis)


# --- Crops ---------------------------------------------------------------------------------------

LANDMARKS = torch.tensor([[100.5, 80.0], [183.25, 120.0], [140.0, 171.75], *[[141.0, 120.0]] * 65])


def warp(picture: np.ndarray, center: tuple[float, float], size: int) -> np.ndarray:
    """A square between pixel centers to 224 pixels, bilinear, black outside: as DECA loads pictures."""
    black = np.pad(picture, ((size, size), (size, size), (0, 0)))
    steps = np.arange(CROP) / (CROP - 1) * size - size / 2
    rows, columns = steps + center[1] + size, steps + center[0] + size
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper, lower = black[top][:, [left, left + 1]], black[top + 1][:, [left, left + 1]]
    mixed = upper * (1 - down[..., None]) + lower * down[..., None]
    return mixed[:, 0] * (1 - right) + mixed[:, 1] * right


def test_the_expected_crops_are_scikit_images() -> None:
    skimage = pytest.importorskip("skimage.transform")
    picture, (x, y), size = np.random.default_rng(0).random((60, 80, 3)), (31.7, 22.1), 51
    low, high = size / 2, size / 2
    corners = np.array([[x - low, y - low], [x - low, y + high], [x + high, y - low]])
    there = np.array([[0, 0], [0, CROP - 1], [CROP - 1, 0]])
    transform = skimage.estimate_transform("similarity", corners, there)
    expected = skimage.warp(picture, transform.inverse, output_shape=(CROP, CROP))
    np.testing.assert_allclose(warp(picture, (x, y), size), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["landmarks", "box", "smirk", "beside the picture"])
def test_crops_are_decas_and_smirks(kind: str) -> None:
    height, width = 240, 300
    picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))
    if kind == "box":
        (face,) = from_boxes([100.0, 60.0, 201.0, 190.0], 1, (height, width))[0]
        old = (101 + 130) / 2
        center, size = (150.5, 125 + 0.12 * old), int(old * 1.25)
    elif kind == "smirk":
        mesh = torch.rand(478, 2, generator=torch.Generator().manual_seed(4)) * 100 + 90
        given = {"frames": [[{"landmarks_xy": mesh}]], "image_size": (height, width)}
        (face,) = from_landmarks(given, 1, (height, width))[0]
        low, high = mesh.amin(0).double(), mesh.amax(0).double()
        center, size = tuple(((low + high) / 2).tolist()), int((high - low).mean() * 1.4)
    else:
        points = LANDMARKS + (torch.tensor([100.0, 60.0]) if kind == "beside the picture" else 0)
        given = {"frames": [[{"landmarks_xy": points}]], "image_size": (height, width)}
        (face,) = from_landmarks(given, 1, (height, width))[0]
        low, high = points.amin(0).double(), points.amax(0).double()
        center, size = tuple(((low + high) / 2).tolist()), int((high - low).mean() * 1.1 * 1.25)
    squares = (smirk_squares if kind == "smirk" else deca_squares)([face], max(height, width))
    found = cut(picture[None], squares)[0].permute(1, 2, 0)
    expected = torch.tensor(warp(picture.permute(1, 2, 0).double().numpy(), center, size)).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    assert (expected == 0).any() == (kind == "beside the picture")


def test_the_crops_squares_follow_a_steadied_face() -> None:
    face = Detection(0.9, (0.2, 0.2, 0.4), (0.25, 0.22, 0.3))
    moved = face.moved((0.3, 0.1, 0.8))
    assert moved.mesh == pytest.approx((0.4, 0.14, 0.6))
    before, after = smirk_squares([face], 1000)[0], smirk_squares([moved], 1000)[0]
    assert after[2] == pytest.approx(2 * before[2].item(), rel=0.01)


# --- Where the faces are -------------------------------------------------------------------------

SIZE = (100, 200)  # height and width of the pictures
BOX = (20.0, 10.0, 80.0, 90.0)


@pytest.mark.parametrize(
    "boxes",
    [
        {"x": 20, "y": 10, "width": 60, "height": 80},
        [{"x": 20, "y": 10, "width": 60, "height": 80, "label": "face", "score": 1.0}] * 3,
        [[{"x": 20, "y": 10, "width": 60, "height": 80}]] * 3,
        [[{"x1": 20, "y1": 10, "x2": 80, "y2": 90}]] * 3,
        [list(BOX)] * 3,
        list(BOX),
        torch.tensor([BOX] * 3),
        np.array([[BOX]] * 3),
        [[(20, 10, 80, 90, 0.7)]] * 3,
    ],
)
def test_boxes_of_every_form(boxes: Any) -> None:
    found = from_boxes(boxes, 3, SIZE)
    assert [len(faces) for faces in found] == [1, 1, 1]
    # around the box's middle and 0.12 of its size below, twice its size but for the growth of landmarks
    assert found[2][0].center == pytest.approx((50 / 200, (50 + 0.12 * 70) / 200))
    assert found[2][0].square[2] == pytest.approx(2 * 70 / 1.1 / 200)


def test_boxes_of_few_numbers_may_be_sizes() -> None:
    (face,) = from_boxes([150.0, 60.0, 40.0, 30.0], 1, SIZE)[0]
    assert face.center[0] == pytest.approx(170 / 200)


def test_frames_without_boxes() -> None:
    assert [len(faces) for faces in from_boxes([[], [BOX, BOX], None], 3, SIZE)] == [0, 2, 0]


def test_landmarks_in_pictures_of_another_scale() -> None:
    given = {"frames": [[{"landmarks_xy": LANDMARKS, "score": 0.5}]] * 2, "image_size": (200, 400)}
    found = from_landmarks(given, 2, SIZE)
    left, top, side = square_of_landmarks(LANDMARKS)
    assert found[1][0].square == pytest.approx((left / 400, top / 400, side / 400))
    assert found[1][0].score == 0.5 and found[1][0].mesh is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: from_boxes("no boxes", 3, SIZE), "are no boxes"),
        (lambda: from_boxes(3.5, 3, SIZE), "are no boxes"),
        (lambda: from_boxes([[BOX], [BOX]], 3, SIZE), "3 pictures but the bounding boxes are for 2"),
        (lambda: from_boxes([[{"a": 1}]], 1, SIZE), "something else than a box"),
        (lambda: from_boxes([[(5, 5, 0, 0)]], 1, SIZE), "empty box"),
        (lambda: from_landmarks({}, 3, SIZE), "lack 'frames'"),
        (lambda: from_boxes([[{"x1": 5, "y1": 50, "x2": 20, "y2": 50}]], 1, SIZE), "empty box"),
        (lambda: from_boxes([3, 4], 2, SIZE), "something else than a box"),
        (lambda: from_landmarks({"frames": [], "image_size": (100, 90)}, 3, SIZE), "hold no frame"),
        (lambda: from_landmarks({"frames": [[]], "image_size": (100, 90)}, 3, SIZE), "90x100 pixels but"),
        (
            lambda: from_landmarks(
                {"frames": [[{"landmarks_xy": LANDMARKS * float("nan")}]], "image_size": SIZE}, 1, SIZE
            ),
            "NaN",
        ),
        (lambda: from_landmarks({"frames": [[]] * 2, "image_size": SIZE}, 3, SIZE), "are for 2"),
        (
            lambda: from_landmarks(
                {"frames": [[{"landmarks_xy": LANDMARKS[:5]}]], "image_size": SIZE}, 1, SIZE
            ),
            "neither 68 points",
        ),
    ],
)
def test_poor_faces_are_refused(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


class Nobody:
    def detect(self, frames: Tensor) -> list[list[Detection]]:
        return [[] for _ in frames]


def test_mediapipe_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed(Nobody):
        name = "something"

        @staticmethod
        def available() -> bool:
            return True

    monkeypatch.setattr(locate.MediapipeFaces, "available", staticmethod(lambda: False))
    nothing = FacesAtHand(Nobody())
    assert (
        nothing.detect(pixels(2)) == [[], []] and nothing.name == "the detector that comes with AniFaceDiff"
    )
    monkeypatch.setattr(locate, "MediapipeFaces", Installed)
    chosen = FacesAtHand(Nobody())
    chosen.detect(pixels(1))
    assert chosen.name == "something"


def test_an_installed_detector_finds_a_face() -> None:
    if not locate.MediapipeFaces.available():
        pytest.skip("MediaPipe is not installed, or carries no detector (optional)")
    picture = read_image(ASSETS / "examples" / "source.png")
    frames = torch.cat([picture, torch.zeros_like(picture)])
    shown, nothing = locate.MediapipeFaces().detect(frames)
    assert nothing == [] and len(shown) == 1
    assert shown[0].center == pytest.approx((0.5, 0.62), abs=0.06)
    assert shown[0].square[2] == pytest.approx(0.95, abs=0.2)


# --- The whole way -------------------------------------------------------------------------------


class Knows(nn.Module):
    """Stands for a trained DECA: reads a crop's place from its colors, and knows the rest."""

    def __init__(self, params: FaceParameters) -> None:
        super().__init__()
        self.params = params

    def frames(self, height: int, width: int) -> Tensor:
        """Red tells x, green y, blue the frame's number."""
        longer = max(height, width)
        x = ((torch.arange(width) + 0.5) / longer).expand(height, width)
        y = ((torch.arange(height) + 0.5) / longer)[:, None].expand(height, width)
        numbers = range(len(self.params))
        return torch.stack([torch.stack([x, y, torch.full_like(x, i / 255)]) for i in numbers])

    def read(self, crops: Tensor) -> DecaReading:
        index = (crops[:, 2, 112, 112] * 255).round().long()
        first, last = crops[:, :2, 56, 56], crops[:, :2, 167, 167]
        step = (last - first).mean(1, keepdim=True) / 111
        square = torch.cat([first - 56.5 * step, step * CROP], dim=1)
        seen = self.params[index]
        return DecaReading(
            seen.shape[:, :100],
            index[:, None].float().expand(-1, 50),
            seen.expression,
            seen.pose[:, :3],
            seen.pose[:, 6:9],
            crop_camera(seen.camera, square),
            index[:, None, None].float().expand(-1, 9, 3),
        )


@pytest.fixture(scope="module")
def wandering(flame: HeadModel) -> FaceParameters:
    """A head in the right half of a wide picture."""
    params = motion(flame, 6, seed=5)
    params.shape[:, 100:] = 0
    params.camera[:] = torch.tensor([4.5, 0.06, 0.07])
    params.camera[:, 1] += torch.linspace(0, 0.01, 6)
    return params


def landmarks_of(head: HeadModel, params: FaceParameters, size: tuple[int, int]) -> dict[str, Any]:
    """FACE_LANDMARKS of a head, 68 points."""
    points = to_pixels(project(head(params), params.camera), max(size))[:, head.landmarks, :2]
    return {"frames": [[{"landmarks_xy": each}] for each in points], "image_size": size}


def test_the_head_lands_on_the_pixels_it_was_read_from(flame: HeadModel, wandering: FaceParameters) -> None:
    size, knows = (300, 400), Knows(wandering)
    frames = knows.frames(*size)
    given = landmarks_of(flame, wandering, size)
    faces = from_landmarks(given, 6, size)
    faces[2] = []
    found = extract_parameters(
        frames, FlameModels(Nobody(), flame, knows), "portrait", smoothing=0.0, faces=faces
    )
    assert found.frames_without_face == [2]
    seen = [0, 1, 3, 4, 5]
    for name in ("shape", "expression", "pose"):
        torch.testing.assert_close(getattr(found.parameters, name)[seen], getattr(wandering, name)[seen])
    portrait = crop_portrait(frames, found.square, 160)
    points = to_pixels(project(flame(found.parameters), found.parameters.camera), 160)[:, flame.landmarks, :2]
    column, row = points.long().clamp(0, 159).unbind(-1)
    shown = portrait[torch.arange(6)[:, None], :2, row, column] * 400
    there = torch.stack([face[0]["landmarks_xy"] for face in given["frames"]])
    pixel = float(found.square[2]) * 400 / 160  # of the portrait, in those of the picture
    assert (shown[seen] - there[seen]).abs().max() < pixel
    assert found.appearance is not None and found.appearance.light.shape == (6, 9, 3)
    # a frame without a face lies between its neighbors
    assert found.appearance.texture[:, 0].tolist() == pytest.approx([0, 1, 2, 3, 4, 5])


def test_smirk_reads_expression_and_jaw_and_deca_the_rest(
    flame: HeadModel, deca: DecaEncoder, smirk: SmirkEncoder
) -> None:
    frames = pixels(2)
    faces = [Detection(0.9, (0.1, 0.1, 0.8))] * 2
    both, appearance = FlameModels(Nobody(), flame, deca, smirk).read(frames, faces)
    only_deca, _ = FlameModels(Nobody(), flame, deca).read(frames, faces)
    only_smirk, none = FlameModels(Nobody(), flame, None, smirk).read(frames, faces)
    assert torch.equal(both.expression, only_smirk.expression)
    assert torch.equal(both.pose[:, 6:9], only_smirk.pose[:, 6:9])
    for part in (both.shape, both.camera, both.pose[:, :3]):
        other = {100: only_deca}.get(part.shape[1], only_deca)
        assert any(torch.equal(part, value) for value in (other.shape, other.camera, other.pose[:, :3]))
    assert not torch.equal(both.expression, only_deca.expression)
    assert (both.shape[:, 100:] == 0).all() and only_smirk.shape[:, 100:].abs().min() > 0
    assert (both.pose[:, 3:6] == 0).all() and (both.pose[:, 9:] == 0).all()
    assert appearance is not None and none is None


def test_untrained_networks_run(flame: HeadModel, deca: DecaEncoder) -> None:
    faces = from_boxes([[60.0, 50.0, 180.0, 200.0]], 3, (240, 256))
    frames = torch.rand(3, 3, 240, 256)
    models = FlameModels(FacesAtHand(Nobody()), flame, deca).to(torch.device("cpu"))
    found = extract_parameters(frames, models, faces=faces)
    assert torch.isfinite(found.parameters.camera).all() and found.parameters.head == "flame"
    with pytest.raises(InputError, match="no face was found"):
        extract_parameters(frames, models, faces=[[], [], []])


def test_smoothing_calms_flame_without_limits(flame: HeadModel) -> None:
    params = motion(flame, 40)
    params.expression[:] = 3.0 + 0.1 * params.expression
    params.pose[:] = 0.1 * params.pose  # as much as readings tremble; more would be motion
    calm = smooth_parameters(params, flame.expression_names, 0.5)
    assert calm.expression.mean() == pytest.approx(3.0, abs=0.05)
    for part in (slice(0, 3), slice(6, 9)):
        assert calm.pose[:, part].diff(dim=0).norm() < 0.8 * params.pose[:, part].diff(dim=0).norm()
