"""Tiny networks as ONNX files: the mean of each color, then a linear layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_onnx(
    path: Path,
    weight: np.ndarray,
    *,
    side: int | None = None,
    batch: int | str = "batch",
    channels_last: bool = False,
) -> Path:
    """Pictures [batch, 3, side, side] -> mean color [batch, 3] @ weight [3, outputs]."""
    sides: list[int | str] = [side, side] if side else ["height", "width"]
    shape = [batch, *sides, 3] if channels_last else [batch, 3, *sides]
    axes = [1, 2] if channels_last else [2, 3]
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["color"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["color", "weight"], ["numbers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path
