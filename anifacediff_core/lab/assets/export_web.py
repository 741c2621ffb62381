"""The bundled head as the Expression Editor's page draws it.

``python -m anifacediff_core.lab.assets.export_web FILE`` writes a safetensors file with what the page needs:
the average face, its expressions without the zeros in 16 bits, joints and weights, and a color for every
vertex.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from anifacediff_core.head.model import HeadModel
from anifacediff_core.storage import write_tensors

SKIN, TONGUE, EYES = (0.80, 0.71, 0.65), (0.66, 0.36, 0.36), (0.93, 0.93, 0.92)
CHART_UNIT = 1e-5  # meters
DEPTH = 0.75  # how much of the ambient occlusion is painted on, where it stays when the face moves


def web_tensors(head: HeadModel) -> dict[str, Tensor]:
    """What the page reads, for a head without pose correctives.

    ===============  ============================  =====================================================
    template         (vertices, 3) float32         meters
    faces            (triangles, 3) int16
    joints           (5, 3) float32                as POSE_JOINTS
    weights          (vertices, 5) float32         skinning
    delta_start      (expressions + 1,) int32      where each expression's entries begin in delta_*
    delta_vertex     (entries,) int16              moved vertex
    delta            (entries, 3) int16            displacement at 1, in parts of delta_unit
    delta_unit       (expressions,) float32        meters
    color            (vertices, 3) uint8           sRGB, occlusion painted on
    chart            (vertices, 3) int16           where lips and brows are painted, in parts of CHART_UNIT
    ===============  ============================  =====================================================
    """
    basis = head.expression_basis.permute(2, 0, 1)  # (expressions, vertices, 3)
    unit = basis.abs().amax((1, 2)).clamp(min=1e-9) / 32767
    quantized = (basis / unit[:, None, None]).round().short()
    expression, vertex = torch.nonzero(quantized.any(-1), as_tuple=True)
    count = torch.bincount(expression, minlength=len(basis))
    return {
        "template": head.template,
        "faces": head.faces.short(),
        "joints": head.joint_template,
        "weights": head.skin_weights,
        "delta_start": torch.cat([count.new_zeros(1), count.cumsum(0)]).int(),
        "delta_vertex": vertex.short(),
        "delta": quantized[expression, vertex],
        "delta_unit": unit,
        "color": (_colors(head) * 255).round().byte(),
        "chart": (head.chart / CHART_UNIT).round().short(),
    }


def export(path: str | Path) -> None:
    """Write the file anew."""
    head = HeadModel.bundled()
    header = {"expressions": head.expression_names, "parents": head.parents}
    write_tensors(Path(path), web_tensors(head), {"head": json.dumps(header)})


def _colors(head: HeadModel) -> Tensor:
    colors = torch.tensor(SKIN).repeat(len(head.template), 1)
    shadow = DEPTH * (1 - head.occlusion)
    for region, color in {"tongue": TONGUE, "left_eye": EYES, "right_eye": EYES}.items():
        colors[head.regions[region]] = torch.tensor(color)
        shadow[head.regions[region]] = 0
    return colors * (1 - shadow[:, None])


if __name__ == "__main__":
    export(sys.argv[1])
