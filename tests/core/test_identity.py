"""CSIM: face recognition networks in their public files, what they are shown, and the cosine by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("onnxruntime", reason="the extra eval is not installed")
pytest.importorskip("onnx", reason="the extra dev is not installed")

from anifacediff_core.errors import InputError
from anifacediff_core.lab.evaluation.identity import (
    TEMPLATE,
    Embedder,
    FaceRecognizer,
    Sizes,
    cut_points,
    cut_portrait,
    similarity,
)
from anifacediff_core.lab.evaluation.onnx_model import OnnxModel
from harness.flame import write_hostile
from harness.onnx_files import write_onnx
from harness.weights import randomize

UNITS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


def sizes(units: tuple[int, ...], widths: tuple[int, ...], squeeze: bool, scaled: bool) -> Sizes:
    blocks, inputs = [], widths[0]
    for count, width in zip(units, widths, strict=True):
        blocks += [(inputs, width, 2)] + [(width, width, 1)] * (count - 1)
        inputs = width
    hidden = tuple(max(width // 16, 1) if squeeze else 0 for _, width, _ in blocks)
    return Sizes(widths[0], tuple(blocks), hidden, 512 if widths[0] == 64 else 24, scaled)


NARROW = sizes((2, 1, 2, 1), (8, 12, 16, 20), True, True)
PLAIN = sizes((1, 2, 1, 1), (8, 12, 16, 20), False, False)


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    statistics = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, *statistics, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"))


def by_the_book(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """ArcFace's IR(-SE), as published, straight from the names in the file."""
    x = F.conv2d(x, weights["input_layer.0.weight"], padding=1)
    x = F.prelu(norm(x, weights, "input_layer.1"), weights["input_layer.2.weight"])
    block = 0
    while f"body.{block}.res_layer.0.weight" in weights:
        name = f"body.{block}"
        first, second = (weights[f"{name}.res_layer.{i}.weight"] for i in (1, 3))
        stride = 2 if block == 0 or first.shape[0] != first.shape[1] else 1
        short = F.max_pool2d(x, 1, stride)
        if f"{name}.shortcut_layer.0.weight" in weights:
            short = F.conv2d(x, weights[f"{name}.shortcut_layer.0.weight"], stride=stride)
            short = norm(short, weights, f"{name}.shortcut_layer.1")
        y = F.conv2d(norm(x, weights, f"{name}.res_layer.0"), first, padding=1)
        y = F.conv2d(F.prelu(y, weights[f"{name}.res_layer.2.weight"]), second, stride=stride, padding=1)
        y = norm(y, weights, f"{name}.res_layer.4")
        if f"{name}.res_layer.5.fc1.weight" in weights:
            s = F.conv2d(F.adaptive_avg_pool2d(y, 1), weights[f"{name}.res_layer.5.fc1.weight"])
            y = y * F.conv2d(F.relu(s), weights[f"{name}.res_layer.5.fc2.weight"]).sigmoid()
        x = y + short
        block += 1
    x = norm(x, weights, "output_layer.0").flatten(1)
    x = F.linear(x, weights["output_layer.3.weight"], weights["output_layer.3.bias"])
    return F.normalize(norm(x, weights, "output_layer.4"))


@pytest.mark.parametrize(("kind", "wrapper"), [(NARROW, ""), (PLAIN, "module.")])
def test_recognition_files_give_the_published_embedding(kind: Sizes, wrapper: str, tmp_path: Path) -> None:
    network = randomize(FaceRecognizer(kind), 0).eval()
    weights = network.state_dict()
    assert ("output_layer.4.weight" in weights) == kind.scaled
    torch.save({wrapper + name: value for name, value in weights.items()}, tmp_path / "net.pth")
    faces = torch.rand(3, 3, 112, 112)
    found = Embedder.load(tmp_path / "net.pth")(faces)
    torch.testing.assert_close(found, by_the_book(weights, faces * 2 - 1).double(), atol=1e-6, rtol=1e-5)
    assert torch.allclose(found.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_the_full_networks_have_the_published_sizes() -> None:
    widths = (64, 128, 256, 512)
    with torch.device("meta"):
        squeezed = FaceRecognizer(sizes(UNITS[50], widths, True, True))
        curricular = FaceRecognizer(sizes(UNITS[100], widths, False, False))
    # insightface's PyTorch models: IR-SE50 has 43.8 M, IR-101 has 65.2 M parameters
    assert sum(p.numel() for p in squeezed.parameters()) == pytest.approx(43.8e6, rel=2e-3)
    assert sum(p.numel() for p in curricular.parameters()) == pytest.approx(65.15e6, rel=2e-3)
    assert sizes(UNITS[50], widths, True, True).name == "IR-SE-50"
    assert sizes(UNITS[100], widths, False, False).name == "IR-100"


def test_files_that_are_no_recognition_network_are_refused(tmp_path: Path) -> None:
    weights = FaceRecognizer(NARROW).state_dict()
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({**weights, "body.2.res_layer.3.weight": torch.zeros(4, 4)}, tmp_path / "odd.pth")
    torch.save({**weights, "body.1.extra": torch.zeros(4)}, tmp_path / "more.pth")
    write_hostile(tmp_path / "hostile.pth", tmp_path / "evidence")
    for name, why in (
        ("other", "no face recognition network"),
        ("odd", r"expected body\.2\.res_layer\.3\.weight"),
        ("more", r"expected body\.1\.extra absent"),
        ("hostile", "hostile"),
    ):
        with pytest.raises(InputError, match=why):
            Embedder.load(tmp_path / f"{name}.pth")
    assert not (tmp_path / "evidence").exists()


# ---- ONNX


@pytest.mark.parametrize(("batch", "last"), [("batch", False), (1, False), ("batch", True)])
def test_cosine_of_an_onnx_embedding_computed_by_hand(batch: int | str, last: bool, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", np.eye(3), side=112, batch=batch, channels_last=last)
    embed = Embedder.load(path)
    faces = torch.zeros(3, 3, 112, 112)
    faces[0] = torch.tensor([1.0, 0.5, 0.5])[:, None, None]  # (1, 0, 0) in [-1, 1]
    faces[1] = torch.tensor([1.0, 1.0, 0.5])[:, None, None]  # (1, 1, 0)
    faces[2] = torch.tensor([0.75, 0.5, 1.0])[:, None, None]  # (.5, 0, 1)
    found = embed(faces)
    assert float(found[0] @ found[1]) == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert float(found[0] @ found[2]) == pytest.approx(0.5 / math.sqrt(1.25), abs=1e-6)
    assert float(found[1] @ found[1]) == pytest.approx(1, abs=1e-9)


def test_onnx_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07 this is no model")
    with pytest.raises(InputError, match=r"broken\.onnx could not be opened"):
        Embedder.load(tmp_path / "broken.onnx")
    write_onnx(tmp_path / "large.onnx", np.eye(3), side=224)
    with pytest.raises(InputError, match="112 x 112"):
        Embedder.load(tmp_path / "large.onnx")
    with pytest.raises(InputError, match="There is no file"):
        Embedder.load(tmp_path / "none.onnx")


def test_an_embedding_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    embed = Embedder.load(write_onnx(tmp_path / "net.onnx", np.full((3, 8), np.nan), side=112))
    with pytest.raises(InputError, match="net.onnx .* not finite"):
        embed(torch.rand(1, 3, 112, 112))


def test_an_onnx_file_with_one_number_for_all_pictures_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [])]
    node = helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0)
    graph = helper.make_graph([node], "mean", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "mean.onnx")
    with pytest.raises(InputError, match="mean.onnx gives no rows of numbers as mean"):
        OnnxModel.load(tmp_path / "mean.onnx")(torch.rand(2, 3, 8, 8))


# ---- crops


def test_the_fixed_part_is_that_of_encoding_in_style() -> None:
    picture = torch.zeros(1, 3, 256, 256)
    picture[..., 35:223, 32:220] = 1
    assert cut_portrait(picture).shape == (1, 3, 112, 112)
    assert torch.allclose(cut_portrait(picture), torch.ones(1, 3, 112, 112))
    assert cut_portrait(1 - picture).abs().max() == 0
    noise = torch.rand(2, 3, 256, 256)
    expected = F.adaptive_avg_pool2d(noise[:, :, 35:223, 32:220], (112, 112))
    assert torch.equal(cut_portrait(noise), expected)


def test_a_similarity_is_found_again() -> None:
    angle, scale = 0.4, 1.7
    matrix = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = TEMPLATE @ matrix.T + torch.tensor([5.0, -3.0])
    found, shift = similarity(TEMPLATE[None], moved[None])
    assert torch.allclose(found[0], matrix, atol=1e-5)
    assert torch.allclose(shift[0], torch.tensor([5.0, -3.0]), atol=1e-3)


def test_faces_come_to_lie_on_arcfaces_points() -> None:
    picture = torch.zeros(1, 3, 200, 240)
    x, y = torch.meshgrid(torch.arange(240) + 0.5, torch.arange(200) + 0.5, indexing="xy")
    points = TEMPLATE.flip(1) * torch.tensor([-1.2, 1.2]) + torch.tensor(
        [190.0, 20.0]
    )  # turned by 90 degrees
    for px, py in points.tolist():
        picture += torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 8)
    face = cut_points(picture, points[None])
    for px, py in TEMPLATE.tolist():
        column, row = int(px), int(py)
        around = face[0, 0, row - 6 : row + 7, column - 6 : column + 7]
        best = divmod(int(around.argmax()), 13)
        assert abs(best[0] - 6) <= 1 and abs(best[1] - 6) <= 1
        assert around.max() > 0.8
