"""Head model, camera, rasterizer, normals and face parameters."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.alignment import align, source_frame
from anifacediff_core.head.camera import crop_camera, project, to_pixels, uncrop_camera
from anifacediff_core.head.gaze import gaze_pose, look_along
from anifacediff_core.head.model import REQUIRED, HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.rasterize import interpolate, rasterize
from anifacediff_core.head.render import render_normals, vertex_normals


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def random_params(head: HeadModel, frames: int, seed: int = 0) -> FaceParameters:
    generator = torch.Generator().manual_seed(seed)
    neutral = head.neutral(frames)
    return replace(
        neutral,
        shape=torch.randn(frames, head.n_shape, generator=generator),
        expression=torch.rand(frames, head.n_expression, generator=generator) * 0.3,
        pose=torch.randn(frames, 15, generator=generator) * 0.2,
        camera=torch.tensor([5.0, 0.01, -0.02])
        + torch.randn(frames, 3, generator=generator) * torch.tensor([0.3, 0.01, 0.01]),
    )


# ---- head model


def test_bundled_head_has_the_promised_layout(head):
    assert head.template.shape == (4538, 3) and head.faces.shape == (9014, 3)
    assert (head.n_shape, head.n_expression) == (100, 52) and len(head.expression_names) == 52
    assert {"lips", "brows", "eyes", "scalp", "left_eye", "right_eye"} <= set(head.regions)
    assert len(set(head.landmarks.tolist())) == 68
    torch.testing.assert_close(head.skin_weights.sum(1), torch.ones(4538), atol=2e-3, rtol=0)
    torch.testing.assert_close(head.joint_regressor.sum(1), torch.ones(5), atol=1e-4, rtol=0)


def test_neutral_parameters_give_the_template(head):
    torch.testing.assert_close(head(head.neutral(2)), head.template.expand(2, -1, -1), atol=1e-4, rtol=0)


def test_global_rotation_moves_the_head_rigidly(head):
    pose = torch.zeros(1, 15)
    pose[0, 1] = 0.7
    posed = head(replace(head.neutral(), pose=pose))[0]
    turn = rotation.matrix(torch.tensor([0.0, 0.7, 0.0]))
    pivot = head.joints(torch.zeros(1, 100))[0, 0]
    torch.testing.assert_close(posed, (head.template - pivot) @ turn.T + pivot, atol=2e-4, rtol=0)
    nose = head.landmarks[30]
    assert posed[nose, 0] > head.template[nose, 0] + 0.02, (
        "positive yaw turns the nose to the picture's right"
    )


def test_neck_turns_the_face_but_not_the_neck_base(head):
    pose = torch.zeros(1, 15)
    pose[0, 4] = 0.5
    moved = (head(replace(head.neutral(), pose=pose))[0] - head.template).norm(dim=1)
    lowest = head.template[:, 1].argmin()
    assert moved[lowest] < 4e-3 and moved[head.landmarks[30]] > 0.03


def test_eyes_turn_in_place_and_gaze_follows_arkit(head):
    expression = torch.zeros(1, 52)
    for name in ("eyeLookOutLeft", "eyeLookInRight", "eyeLookUpLeft", "eyeLookUpRight"):
        expression[0, head.expression_names.index(name)] = 1.0
    pose = gaze_pose(expression, head.expression_names)
    forward = rotation.matrix(pose.view(1, 2, 3))[0] @ torch.tensor([0.0, 0.0, 1.0])
    assert (forward[:, 0] > 0.3).all() and (forward[:, 1] > 0.3).all(), "both eyes look to +x and up"
    # The turned eyeball stays on its sphere.
    posed = head(look_along(replace(head.neutral(), expression=expression), head.expression_names))[0]
    center = head.joints(torch.zeros(1, 100))[0, 3]
    before = (head.template[head.regions["left_eye"]] - center).norm(dim=1)
    after = (posed[head.regions["left_eye"]] - center).norm(dim=1)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_head_is_differentiable_at_the_neutral_pose(head):
    params = head.neutral()
    tensors = {
        name: getattr(params, name).clone().requires_grad_() for name in ("shape", "expression", "pose")
    }
    head(replace(params, **tensors)).square().sum().backward()
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().max() > 0, name


def test_pose_correctives_of_flame_files_are_applied(head, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "template": head.template[:50],
        "faces": torch.tensor([[0, 1, 2]]),
        "shape_basis": head.shape_basis[:50],
        "expression_basis": head.expression_basis[:50],
        "pose_basis": torch.randn(50, 3, 36, generator=generator) * 0.01,
        "joint_regressor": torch.full((5, 50), 0.02),
        "skin_weights": torch.eye(5)[torch.zeros(50, dtype=torch.long)],
        "parents": torch.tensor([-1, 0, 1, 1, 1]),
    }
    flame = HeadModel(tensors, {"name": "flame-like"})
    pose = torch.zeros(1, 15)
    pose[0, 6] = 0.3  # jaw
    moved = flame(replace(flame.neutral(), pose=pose))[0] - flame.template
    relative = (rotation.matrix(torch.tensor([0.3, 0.0, 0.0])) - torch.eye(3)).flatten()
    torch.testing.assert_close(moved, tensors["pose_basis"][..., 9:18] @ relative, atol=1e-6, rtol=1e-4)


def test_wrong_head_files_are_refused_in_a_sentence(head, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(InputError, match="missing or damaged"):
        HeadModel.load(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a head file"):
        HeadModel.load(tmp_path / "other.safetensors")
    save_file({str(number): torch.zeros(1) for number in range(1001)}, tmp_path / "many.safetensors")
    with pytest.raises(InputError, match="at most 1000 tensors, found 1001"):
        HeadModel.load(tmp_path / "many.safetensors")
    tensors = {name: getattr(head, name).clone() for name in REQUIRED if name != "parents"}
    tensors["parents"] = torch.tensor(head.parents)
    header = {"anifacediff-head": '{"name": "x"}'}
    wrong = {"faces": head.faces[:0], "template": torch.tensor(1.0), "skin_weights": head.skin_weights[:5]}
    for key, tensor in wrong.items():
        save_file({**tensors, key: tensor.clone()}, tmp_path / "wrong.safetensors", header)
        with pytest.raises(InputError, match=f"does not fit together: expected {key}"):
            HeadModel.load(tmp_path / "wrong.safetensors")
    for broken in ("{}", "[1]", '{"name": 1}'):
        save_file(tensors, tmp_path / "wrong.safetensors", {"anifacediff-head": broken})
        with pytest.raises(InputError, match="a header with a name"):
            HeadModel.load(tmp_path / "wrong.safetensors")
    for key in ("landmarks", "parents"):
        save_file({**tensors, key: torch.full((5,), 10**6)}, tmp_path / "wrong.safetensors", header)
        with pytest.raises(InputError, match=f"has {key} outside of 0 to"):
            HeadModel.load(tmp_path / "wrong.safetensors")
    other = replace(head.neutral(), head="flame")
    with pytest.raises(InputError, match="belong to the head 'flame'"):
        render_normals(head, other, 32)


# ---- camera


def test_camera_conventions():
    point = torch.tensor([[[0.1, 0.05, 0.02]]])
    ndc = project(point, torch.tensor([[5.0, 0.02, -0.01]]))
    torch.testing.assert_close(ndc[0, 0], torch.tensor([5 * 0.12, -5 * 0.04, -5 * 0.02]))
    torch.testing.assert_close(to_pixels(torch.tensor([-1.0, 1.0, 0.0]), 8), torch.tensor([0.0, 8.0, 0.0]))


def test_crop_and_uncrop_are_inverse_and_draw_the_same_head(head):
    camera, square = torch.tensor([[5.0, 0.02, -0.03]]), torch.tensor([[0.2, 0.1, 0.5]])
    inside = crop_camera(camera, square)
    torch.testing.assert_close(uncrop_camera(inside, square), camera)
    whole = to_pixels(project(head.template[None], camera), 200)[..., :2]
    cropped = to_pixels(project(head.template[None], inside), 100)[..., :2]
    torch.testing.assert_close(cropped, whole - torch.tensor([40.0, 20.0]), atol=1e-4, rtol=0)


# ---- rasterizer


def naive_rasterize(points, faces, size):
    """Every pixel against every triangle, in float64."""
    corners = points[faces].double()
    steps = torch.arange(size, dtype=torch.float64) + 0.5
    centers = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 1, 2)
    origin = corners[:, 0, :2]
    one, two = corners[:, 1, :2] - origin, corners[:, 2, :2] - origin
    area = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
    offset = centers - origin
    b1 = (offset[..., 0] * two[:, 1] - offset[..., 1] * two[:, 0]) / area
    b2 = (one[:, 0] * offset[..., 1] - one[:, 1] * offset[..., 0]) / area
    weights = torch.stack([1 - b1 - b2, b1, b2], -1)
    depth = torch.where((weights >= 0).all(-1), (weights * corners[..., 2]).sum(-1), torch.inf)
    nearest = depth.min(1)
    return torch.where(nearest.values < torch.inf, nearest.indices, -1).view(size, size)


def test_rasterizer_equals_brute_force(head):
    params = random_params(head, 2)
    pixels = to_pixels(project(head(params), params.camera), 40)
    fragments = rasterize(pixels, head.faces, 40, 40)
    for frame in range(2):
        expected = naive_rasterize(pixels[frame], head.faces, 40)
        assert (fragments.triangle[frame] == expected).float().mean() > 0.998
        assert ((fragments.triangle[frame] >= 0) == (expected >= 0)).all()


def test_rasterizer_pixel_centers_and_nearest_surface():
    near = torch.tensor([[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    points = torch.cat([near + torch.tensor([0, 0, 1.0]), near])[None]
    fragments = rasterize(points, torch.tensor([[0, 1, 2], [3, 4, 5]]), 4, 4)
    # Centers with x + y <= 4.
    inside = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    assert (fragments.covered[0] == inside).all() and (fragments.triangle[0][inside] == 1).all()
    position = interpolate(fragments, torch.tensor([[0, 1, 2], [3, 4, 5]]), points[0])
    torch.testing.assert_close(position[0, 1, 2, :2], torch.tensor([2.5, 1.5]))


def test_rasterizer_survives_points_outside_and_degenerate_triangles():
    points = torch.tensor([[[-1e9, 0, 0], [1e9, 0, 0], [0, 1e9, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]]])
    fragments = rasterize(points, torch.tensor([[3, 4, 5], [0, 1, 2]]), 4, 4)
    assert (fragments.triangle != 0).all()
    empty = rasterize(points[:, 3:], torch.tensor([[0, 1, 2]]), 4, 4)
    assert not empty.covered.any()


def test_pytorch3d_draws_the_same(head):
    pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed")
    from anifacediff_core.head import pytorch3d_rasterize

    params = random_params(head, 2)
    pixels = to_pixels(project(head(params), params.camera), 64)
    ours = rasterize(pixels, head.faces, 64, 64)
    theirs = pytorch3d_rasterize.rasterize(pixels, head.faces, 64, 64)
    assert (ours.triangle == theirs.triangle).float().mean() > 0.999
    same = ours.triangle == theirs.triangle
    torch.testing.assert_close(ours.barycentric[same], theirs.barycentric[same], atol=1e-3, rtol=0)


# ---- normals


def test_normals_point_at_the_camera_and_use_the_image_conventions(head):
    params = replace(head.neutral(), camera=torch.tensor([[5.0, 0.0, 0.0]]))
    image = render_normals(head, params, 128)[0]
    assert image.shape == (3, 128, 128) and image.min() >= 0 and image.max() <= 1
    assert (image[:, 0, 0] == 0).all(), "background is black"
    normal = image[:, 64, 40:90] * 2 - 1
    torch.testing.assert_close(normal.norm(dim=0), torch.ones(50), atol=1e-3, rtol=0)
    assert (normal[2] > 0).all() and normal[0, 0] < 0 < normal[0, -1], "z to the camera, x right"
    assert (image[1, 32, 64] * 2 - 1) > 0.3, "y up at the forehead"


def test_normals_of_a_batch_equal_those_of_single_frames(head):
    params = random_params(head, 3)
    together = render_normals(head, params, 48, batch=3)
    calls = []
    singly = render_normals(
        head, params, 48, batch=1, progress=lambda done, total: calls.append((done, total))
    )
    torch.testing.assert_close(together, singly, atol=1e-3, rtol=0)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_vertex_normals_of_a_known_surface():
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(
        vertex_normals(vertices, torch.tensor([[0, 1, 2]]))[0, 0], torch.tensor([0.0, 0.0, 1.0])
    )


# ---- rotations


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.4, 3.0, math.pi - 1e-3])
def test_axis_angle_round_trip(angle):
    axis = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    torch.testing.assert_close(
        rotation.axis_angle(rotation.matrix(axis * angle)), axis * angle, atol=1e-7, rtol=1e-6
    )


def test_slerp_runs_evenly_along_the_shortest_arc():
    # 0.283 rad apart through π.
    start, end = torch.tensor([[0.0, 3.0, 0.0]]), torch.tensor([[0.0, -3.0, 0.0]])
    middle = rotation.slerp(start, end, torch.tensor(0.5))
    assert abs(float(rotation.angle_between(start, middle)) - (math.pi - 3)) < 1e-4


# ---- face parameters


def test_parameters_slice_concatenate_and_interpolate(head):
    params = random_params(head, 4)
    assert len(params[1]) == 1 and len(params[1:3]) == 2 and len(params[[3, 0]]) == 2
    joined = FaceParameters.concatenate([params[:2], params[2:]])
    assert torch.equal(joined.pose, params.pose)
    mixed = params[:2].interpolate(params[2:], torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(mixed.expression[0], (params.expression[0] + params.expression[2]) / 2)
    torch.testing.assert_close(mixed.pose[1], params.pose[3], atol=1e-5, rtol=1e-4)


def test_parameters_survive_a_file_and_bad_files_are_refused(head, tmp_path):
    params = random_params(head, 3)
    path = tmp_path / "face.safetensors"
    params.save(path)
    loaded = FaceParameters.load(path)
    assert torch.equal(loaded.shape, params.shape) and loaded.head == params.head and loaded.valid.all()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="missing or damaged"):
        FaceParameters.load(path)
    with pytest.raises(InputError, match="missing or damaged"):
        FaceParameters.load(tmp_path / "nowhere.safetensors")
    params[torch.zeros(3, dtype=torch.bool)].save(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="of no frame"):
        FaceParameters.load(tmp_path / "none.safetensors")
    bad = replace(params, camera=params.camera.clone().fill_(torch.nan))
    with pytest.raises(InputError, match="NaN"):
        bad.save(tmp_path / "nan.safetensors")
    params.save(path)
    with safe_open(path, "pt") as file:
        names, metadata = list(file.keys()), file.metadata()
        tensors = {name: file.get_tensor(name) for name in names}
    save_file({**tensors, "camera": bad.camera}, path, metadata)
    with pytest.raises(InputError, match="NaN"):
        FaceParameters.load(path)


def test_shape_alignment_takes_only_the_shape_from_the_source(head):
    source, driving = random_params(head, 1, seed=1), random_params(head, 5, seed=2)
    aligned = align(source, driving)
    assert torch.equal(aligned.shape, source.shape.expand(5, -1))
    for name in ("pose", "expression", "camera"):
        assert torch.equal(getattr(aligned, name), getattr(driving, name))
    with pytest.raises(InputError, match="Mismatched heads"):
        align(replace(source, head="flame"), driving)
    with pytest.raises(InputError, match="give one frame"):
        align(random_params(head, 2), driving)


def test_the_first_frame_with_a_face_is_the_source(head):
    source = random_params(head, 3)
    source.valid[0] = False
    assert torch.equal(source_frame(source).shape, source.shape[1:2])
    source.valid[:] = False
    with pytest.raises(InputError, match="No face was found in the source picture"):
        source_frame(source)
