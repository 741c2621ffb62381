"""ONNX files are programs: what they would do is looked at before anything of it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra eval is not installed")
pytest.importorskip("onnx", reason="the extra dev is not installed")

from onnx import TensorProto, helper, numpy_helper

from anifacediff_core.errors import InputError
from anifacediff_core.lab.evaluation.onnx_model import OnnxModel

PICTURE = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
RESULT = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def write(path: Path, nodes: list[Any], weights: Any = (), **parts: Any) -> Path:
    graph = helper.make_graph(nodes, "g", [PICTURE], [RESULT], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **parts)
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        OnnxModel.load(path)(torch.zeros(1, 3, 16, 16))
    return str(caught.value)


def count(*lengths: int) -> Any:
    return numpy_helper.from_array(np.array(lengths, np.int64), "s")


def test_a_plain_network_runs(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((768, 2), np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = OnnxModel.load(write(tmp_path / "a.onnx", nodes, [weight]))
    assert model(torch.ones(3, 3, 16, 16)).tolist() == [[768, 768]] * 3


def test_control_flow_and_foreign_operators(tmp_path: Path) -> None:
    flag = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [RESULT])
    cases = [
        ([helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch)], [flag]),
        ([helper.make_node("Evil", ["x"], ["y"], domain="evil")], []),
        ([helper.make_node("Loop\x1b[2J", ["x"], ["y"])], []),
        ([helper.make_node("RandomNormalLike", ["x"], ["y"])], []),
    ]
    for nodes, weights in cases:
        text = refused(write(tmp_path / "a.onnx", nodes, weights))
        assert "expected a plain network" in text and text.isprintable()
    function = helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])],
                                    [helper.make_opsetid("", 17)])  # fmt: skip
    nodes = [helper.make_node("Flatten", ["x"], ["y"])]
    assert "functions" in refused(write(tmp_path / "a.onnx", nodes, functions=[function]))


def test_weights_elsewhere_or_larger_than_their_bytes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["y"])]
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.dims[0] = 2**40
    assert "could not be opened" in refused(write(tmp_path / "a.onnx", nodes, [tensor]))
    tensor.dims[0] = 4
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    assert "other files" in refused(write(tmp_path / "a.onnx", nodes, [tensor]))


def test_memory_is_bounded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["d"], keepdims=0),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    assert "could not read the pictures" in refused(
        write(tmp_path / "a.onnx", nodes, [count(100_000, 100_000)])
    )


@pytest.mark.parametrize("content", [b"", b"text", bytes(100), b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 50])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    assert "could not be opened" in refused(tmp_path / "a.onnx")
