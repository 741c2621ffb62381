"""Geometry of MediaPipe's face mesh: 478 points to head rotation and estimates of ARKit's coefficients.

The estimates are for meshes that come without blendshapes. They are plain distances in the face's own axes,
in units of the distance between the outer corners of the eyes, compared with the same person's neutral face.
A long clip shows that face; for a short one an average face stands in.

Points here are (frames, 478, 3), x right, y up, z to the camera, in any unit; "left" is the subject's, +x.
"""

from __future__ import annotations

import torch
from torch import Tensor

MESH_POINTS, IRIS_POINTS = 468, 478

# Pairs of points, right and left of the middle, that hold still when the face moves.
ACROSS = ((33, 263), (133, 362), (127, 356), (234, 454), (93, 323), (132, 361))
FOREHEAD, NOSE_BASE = (10, 151, 9, 8), (2, 97, 326, 98, 327)
# The line from the nose's base to the forehead leans back by this angle in the average face.
PROFILE_LEAN = 0.078

EYES = {  # outer corner, inner corner, upper lid, lower lid, iris
    "Left": (263, 362, (385, 386, 387), (380, 374, 373), 473),
    "Right": (33, 133, (160, 159, 158), (144, 145, 153), 468),
}
BROWS = {"Left": ((285, 336, 295), (300, 293, 334)), "Right": ((55, 107, 65), (70, 63, 105))}  # inner, outer
CORNERS = {"Left": 291, "Right": 61}
UPPER_LIP, LOWER_LIP = (13, 0), (14, 17)  # inner and outer edge
CHIN, NOSE_TIP, UNDER_NOSE = 152, 1, 2

# A neutral average face, for clips too short to tell.
AVERAGE = {
    "open": 0.31, "gap": 0.015, "width": 0.54, "corner": -0.005, "brow_inner": 0.20, "brow_outer": 0.23,
    "iris_x": 0.0, "iris_y": 0.05, "upper": 0.19, "lower": 0.46, "chin": 0.0, "mouth": 0.0,
    "roll_upper": 0.07, "roll_lower": 0.09,
}  # fmt: skip
TRUSTED_FRAMES = 40  # a clip this long tells the neutral face alone
CLOSED_SHARE = 0.25  # opening of a shut eye against the open one, in the mesh


def rotation_of(points: Tensor) -> Tensor:
    """Rotation matrices (frames, 3, 3) from the face's axes to the picture's."""
    right = _unit(
        sum((points[:, left] - points[:, right] for right, left in ACROSS), torch.zeros_like(points[:, 0]))
    )
    profile = points[:, list(FOREHEAD)].mean(1) - points[:, list(NOSE_BASE)].mean(1)
    profile = _unit(profile - (profile * right).sum(-1, keepdim=True) * right)
    lean = torch.tensor(PROFILE_LEAN)
    up = lean.cos() * profile + lean.sin() * torch.linalg.cross(right, profile)
    return torch.stack([right, up, torch.linalg.cross(right, up)], dim=-1)


def estimate_expression(points: Tensor) -> dict[str, Tensor]:
    """ARKit coefficients by name, (frames,) in [0, 1]; those that the mesh does not show are left out.

    Args:
        points: (frames, 468 or 478, 3), successive frames of one person. The last 10 are the irises; without
            them there is no gaze.
    """
    face = in_face(points)
    result: dict[str, Tensor] = {}
    for side in ("Left", "Right"):
        result |= _eye(face, side) | _brow(face, side)
    inner = torch.minimum(result.pop("browInnerUpLeft"), result.pop("browInnerUpRight"))
    return result | {"browInnerUp": inner} | _mouth(face)


def in_face(points: Tensor) -> Tensor:
    """The same points in the face's axes, origin between the eyes, unit the eyes' outer distance."""
    corners = points[:, [33, 263]]
    origin = corners.mean(dim=1, keepdim=True)
    unit = (corners[:, 1] - corners[:, 0]).norm(dim=-1)[:, None, None].clamp(min=1e-6)
    return torch.einsum("fpa,fab->fpb", (points - origin) / unit, rotation_of(points))


def _eye(face: Tensor, side: str) -> dict[str, Tensor]:
    outer, inner, upper, lower, iris = EYES[side]
    width = (face[:, outer] - face[:, inner]).norm(dim=-1).clamp(min=1e-6)
    opening = (face[:, list(upper)] - face[:, list(lower)]).norm(dim=-1).mean(-1) / width
    neutral = _neutral(opening, AVERAGE["open"], 0.75)
    closed = (neutral - opening) / (neutral * (1 - CLOSED_SHARE))
    blink = _ramp(closed, 0.10, 1.0)
    found = {f"eyeBlink{side}": blink, f"eyeWide{side}": _ramp(opening / neutral - 1, 0.12, 0.50)}
    if face.shape[1] < IRIS_POINTS:
        return found
    middle = (face[:, outer] + face[:, inner]) / 2
    offset = (face[:, iris] - middle)[:, :2] / width[:, None]
    # Under a closing lid the mesh only guesses where the iris is.
    seen = 1 - blink
    across = (offset[:, 0] - _neutral(offset[:, 0], AVERAGE["iris_x"])) * seen
    along = (offset[:, 1] - _neutral(offset[:, 1], AVERAGE["iris_y"])) * seen
    outward = across if side == "Left" else -across
    # An eyeball of 12 mm in a slit of 30 mm, turned by the angles of `head.gaze`.
    found[f"eyeLookOut{side}"], found[f"eyeLookIn{side}"] = _ramp(outward, 0, 0.19), _ramp(-outward, 0, 0.19)
    found[f"eyeLookUp{side}"], found[f"eyeLookDown{side}"] = _ramp(along, 0, 0.15), _ramp(-along, 0, 0.15)
    return found


def _brow(face: Tensor, side: str) -> dict[str, Tensor]:
    inner, outer = (face[:, list(part), 1].mean(1) for part in BROWS[side])
    raised = inner - _neutral(inner, AVERAGE["brow_inner"])
    outside = outer - _neutral(outer, AVERAGE["brow_outer"])
    return {
        f"browInnerUp{side}": _ramp(raised, 0.008, 0.085),
        f"browOuterUp{side}": _ramp(outside, 0.010, 0.11),
        f"browDown{side}": _ramp(-raised, 0.008, 0.07),
    }


def _mouth(face: Tensor) -> dict[str, Tensor]:
    y = face[..., 1]
    gap = (y[:, UPPER_LIP[0]] - y[:, LOWER_LIP[0]]).clamp(min=0)
    jaw = _ramp(gap - _neutral(gap, AVERAGE["gap"], 0.10), 0.01, 0.42)
    width = (face[:, CORNERS["Left"]] - face[:, CORNERS["Right"]]).norm(dim=-1)
    # Opening the jaw draws the corners together by itself.
    wider = width - _neutral(width, AVERAGE["width"]) + 0.12 * jaw
    round_lips = _ramp(-wider, 0.025, 0.16)
    found = {
        "jawOpen": jaw,
        "mouthPucker": round_lips * (1 - jaw),
        "mouthFunnel": (2 * round_lips * jaw).clamp(max=1),
    }
    middle = (y[:, UPPER_LIP[0]] + y[:, LOWER_LIP[0]]) / 2
    for side, corner in CORNERS.items():
        height = y[:, corner] - middle
        raised = height - _neutral(height, AVERAGE["corner"])
        smile = _ramp(raised + 0.5 * wider, 0.015, 0.14)
        found[f"mouthSmile{side}"] = smile
        found[f"cheekSquint{side}"] = 0.5 * smile
        found[f"mouthFrown{side}"] = _ramp(-raised, 0.015, 0.08) * (1 - smile)
    upper = y[:, UNDER_NOSE] - y[:, UPPER_LIP[0]]
    lower = y[:, LOWER_LIP[0]] - y[:, CHIN]
    lifted = _ramp(_neutral(upper, AVERAGE["upper"]) - upper, 0.01, 0.09)
    lowered = _ramp(_neutral(lower, AVERAGE["lower"]) - lower, 0.015, 0.12)
    for side in ("Left", "Right"):
        found[f"mouthUpperUp{side}"], found[f"mouthLowerDown{side}"] = lifted, lowered
    for name, (inner, outer) in (("Upper", UPPER_LIP), ("Lower", LOWER_LIP)):
        thickness = (face[:, inner] - face[:, outer]).norm(dim=-1)
        neutral = _neutral(thickness, AVERAGE[f"roll_{name.lower()}"])
        found[f"mouthRoll{name}"] = _ramp(1 - thickness / neutral, 0.25, 0.80)
    chin = face[:, CHIN, 0] - face[:, NOSE_TIP, 0]
    aside = chin - _neutral(chin, AVERAGE["chin"])
    found["jawLeft"], found["jawRight"] = _ramp(aside, 0.02, 0.14), _ramp(-aside, 0.02, 0.14)
    mouth = (face[:, CORNERS["Left"], 0] + face[:, CORNERS["Right"], 0]) / 2 - face[:, UNDER_NOSE, 0]
    shifted = mouth - _neutral(mouth, AVERAGE["mouth"])
    found["mouthLeft"], found["mouthRight"] = _ramp(shifted, 0.02, 0.14), _ramp(-shifted, 0.02, 0.14)
    return found


def _neutral(values: Tensor, average: float, quantile: float = 0.5) -> Tensor:
    """What ``values`` (frames,) are on the neutral face: a quantile of the clip, if the clip is long."""
    trust = min(len(values) / TRUSTED_FRAMES, 1.0)
    return trust * values.quantile(quantile) + (1 - trust) * average


def _ramp(values: Tensor, low: float, high: float) -> Tensor:
    """0 up to ``low``, 1 from ``high``."""
    return ((values - low) / (high - low)).clamp(0, 1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-9)
