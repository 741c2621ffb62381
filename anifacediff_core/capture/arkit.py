"""Face parameters straight from ARKit's coefficients, so that a person's face can drive the bundled head.

Takes the FACE_LANDMARKS of ComfyUI's own landmarker, MediaPipe's results, or coefficients from anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..head import rotation
from ..head.camera import uncrop_camera
from ..head.gaze import look_along
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from . import mesh
from .confidence import LEAST
from .detector import SQUARE_SCALE, Detection, face_square
from .extract import SMOOTHING, Captured, finished
from .tracker import Tracker

# The landmarker's box reaches from the chin to the hairline, the face square counts from the brows.
BOX_SHARE = 0.9
# Points of MediaPipe's mesh at landmarks of the head: eye corners, nose, temples, mouth corners, chin.
CORRESPONDING = {
    36: 33, 39: 133, 42: 362, 45: 263, 27: 168, 30: 4, 33: 2, 0: 127, 16: 356, 2: 93, 14: 323, 48: 61,
    54: 291, 8: 152,
}  # fmt: skip


def from_arkit(
    coefficients: Sequence[Mapping[str, float]] | Tensor,
    turn: Tensor,
    square: Tensor,
    head: HeadModel,
    valid: Tensor | None = None,
) -> FaceParameters:
    """Parameters of the head from coefficients, rotation and place of a face.

    Args:
        coefficients: per frame a mapping of ARKit's names (unknown ones are ignored, missing ones are 0), or
            a tensor (frames, expressions) in the order of ``head.expression_names``.
        turn: the head's rotation, (frames, 3, 3) matrices (x right, y up, z to the camera) or (frames, 3)
            yaw, pitch, roll in radians as in :func:`.rotation.from_euler`.
        square: (frames, 3) or (3,), the face square as in :func:`.detector.face_square`: left, top, side as
            fractions of the picture's side.
        head: a head with ARKit's expressions.
        valid: (frames,) bool, by default all.

    Returns:
        (frames), average shape, on the CPU; the eyes follow the coefficients.

    Raises:
        InputError: the head has no ARKit expressions, or the parts differ in their number of frames.
    """
    expression = _expression(coefficients, head)
    frames = len(expression)
    turn, square = turn.float().cpu(), square.float().cpu().expand(frames, 3)
    neck = rotation.axis_angle(turn) if turn.dim() == 3 else rotation.from_euler(*turn.unbind(-1))
    if len(neck) != frames:
        raise InputError(
            f"There are coefficients for {frames} frames but rotations for {len(neck)}; give as many."
        )
    neutral = head.neutral(frames).to("cpu")
    pose = torch.cat([neutral.pose[:, :3], neck, neutral.pose[:, 6:]], dim=1)
    params = replace(neutral, expression=expression, pose=pose)
    if valid is not None:
        params = replace(params, valid=valid.cpu())
    # The same head seen by the neutral camera: how that picture lies in this one tells the camera.
    found = face_square(head, params).cpu()
    side = square[:, 2] / found[:, 2]
    placed = torch.cat([square[:, :2] - side[:, None] * found[:, :2], side[:, None]], dim=1)
    return look_along(replace(params, camera=uncrop_camera(params.camera, placed)), head.expression_names)


def from_face_landmarks(
    landmarks: Mapping[str, Any],
    head: HeadModel,
    mode: str = "auto",
    *,
    face: int = 0,
    smoothing: float = SMOOTHING,
    missing: str = "interpolate",
    least_confidence: float = LEAST,
    what: str = "the face landmarks",
) -> Captured:
    """Parameters from FACE_LANDMARKS: ``{"frames": [[face, ...], ...], "image_size": (height, width)}``.

    A face has ``blendshapes`` (coefficients by name), ``transformation_matrix`` (4 x 4), ``landmarks_xy``
    (478, 2) in pixels, ``landmarks_3d`` (478, 3), ``bbox_xyxy`` and ``score``. What is missing is worked out
    from the rest: the rotation and coarse coefficients from the points, the place from the box.

    Args:
        head: a head with ARKit's expressions.
        mode, face, smoothing, missing, least_confidence: as in :func:`.extract.extract_parameters`; the
            landmarker's scores tell the confidence.

    Raises:
        InputError: no face at all, or not in every frame where that is to stop the run, or too little is
            known about it.
    """
    frames, (height, width) = unpack(landmarks, what)
    longer = max(height, width)
    tracker = Tracker(face=face)
    followed = [follow(faces, tracker, width, height) for faces in frames]
    valid = torch.tensor([found is not None for found in followed])
    faces = [found for found in followed if found is not None]
    if not faces:
        raise InputError(f"No face was found in {what}; use pictures that show one large and from the front.")
    coefficients, estimated = expression_coefficients(faces, what)
    turn = torch.stack([_turn(found, what) for found in faces])
    squares = torch.tensor([_square(found, longer) for found in faces])
    seen = from_arkit(coefficients, turn, squares, head)
    if all("landmarks_xy" in found for found in faces):
        seen = replace(seen, camera=_fit_camera(faces, seen, head, longer))
    params = head.neutral(len(frames)).to("cpu")
    for name in ("expression", "pose", "camera"):
        getattr(params, name)[valid] = getattr(seen, name)
    confidence = torch.zeros(len(frames))
    confidence[valid] = torch.tensor([score_of(found) for found in faces])
    notes = tracker.describe()
    if estimated:
        notes.append("There are no blendshapes: the expression is estimated from the mesh and coarse.")
    raw, size = replace(params, valid=valid, confidence=confidence), (height, width)
    return finished(raw, head, size, mode, smoothing, missing, least_confidence, what, notes)


def _expression(coefficients: Sequence[Mapping[str, float]] | Tensor, head: HeadModel) -> Tensor:
    names = head.expression_names
    if "jawOpen" not in names:
        raise InputError(
            f"The head '{head.name}' has no ARKit expressions; use the bundled head for coefficients."
        )
    if isinstance(coefficients, Tensor):
        expression = coefficients.float().cpu()
        if expression.dim() != 2 or expression.shape[1] != len(names):
            raise InputError(
                f"The coefficients have the shape {list(coefficients.shape)}; give (frames, {len(names)})."
            )
    else:
        expression = torch.tensor([[float(frame.get(name, 0.0)) for name in names] for frame in coefficients])
    if not torch.isfinite(expression).all():
        raise InputError("The ARKit coefficients contain NaN or infinity; check where they come from.")
    return expression.clamp(0, 1)


def unpack(landmarks: Mapping[str, Any], what: str) -> tuple[list[list[Mapping[str, Any]]], tuple[int, int]]:
    """The faces of every frame, and height and width of the pictures, of FACE_LANDMARKS.

    Raises:
        InputError: it is no such mapping, without frames, or places in it are no finite numbers.
    """
    name = what[:1].upper() + what[1:]
    if not isinstance(landmarks, Mapping) or not {"frames", "image_size"} <= set(landmarks):
        raise InputError(f"{name} lack 'frames' or 'image_size'; connect the output of a face landmarker.")
    try:
        frames = [list(faces) for faces in landmarks["frames"]]
        height, width = (int(value) for value in landmarks["image_size"])
        finite = all(_is_finite(face) for faces in frames for face in faces)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name} have another form; connect the output of a face landmarker.") from error
    if not finite:
        raise InputError(f"{name} have NaN or infinity; leave out faces that were not found.")
    if not frames or height < 1 or width < 1:
        raise InputError(f"{name} hold no frame; give at least one picture to the landmarker.")
    return frames, (height, width)


def _is_finite(face: Mapping[str, Any]) -> bool:
    places = (face.get(name) for name in ("landmarks_xy", "landmarks_3d", "bbox_xyxy"))
    given = (torch.as_tensor(place, dtype=torch.float32) for place in places if place is not None)
    return all(bool(torch.isfinite(place).all()) for place in given)


def follow(
    faces: list[Mapping[str, Any]], tracker: Tracker, width: int, height: int
) -> Mapping[str, Any] | None:
    """The followed one among the faces of the next frame of ``width`` x ``height`` pixels, or None."""
    longer = max(width, height)
    usable = [found for found in faces if "bbox_xyxy" in found or "landmarks_xy" in found]
    squares = [Detection(score_of(found), _square(found, longer)) for found in usable]
    taken = tracker.follow(squares, width / longer, height / longer)
    return None if taken is None else usable[next(i for i, square in enumerate(squares) if square is taken)]


def score_of(found: Mapping[str, Any]) -> float:
    """The score that a face was found with, in [0, 1]; 1 where there is none, or one that is no number."""
    score = found.get("score", 1.0)
    known = isinstance(score, Real) and math.isfinite(score)
    return min(max(float(score), 0.0), 1.0) if known else 1.0


def _square(found: Mapping[str, Any], longer: int) -> tuple[float, float, float]:
    """The face square from the box, as fractions of the longer side."""
    if "bbox_xyxy" in found:
        box = torch.as_tensor(found["bbox_xyxy"], dtype=torch.float32)
    else:
        points = torch.as_tensor(found["landmarks_xy"], dtype=torch.float32)
        box = torch.cat([points.amin(0), points.amax(0)])
    side = float((box[2:] - box[:2]).mean().clamp(min=1.0)) * SQUARE_SCALE * BOX_SHARE / longer
    x, y = ((box[:2] + box[2:]) / 2 / longer).tolist()
    return x - side / 2, y - side / 2, side


def expression_coefficients(
    faces: list[Mapping[str, Any]], what: str
) -> tuple[list[Mapping[str, float]], bool]:
    """Coefficients per frame, and whether they are estimates."""
    if all(found.get("blendshapes") for found in faces):
        return [found["blendshapes"] for found in faces], False
    if not all("landmarks_xy" in found and "landmarks_3d" in found for found in faces):
        raise InputError(f"There are neither blendshapes nor mesh points in {what}; use another landmarker.")
    points = torch.stack([mesh_points(found) for found in faces])
    if points.shape[1] < mesh.MESH_POINTS:
        raise InputError(
            f"There are {points.shape[1]} points in {what} where MediaPipe's mesh has {mesh.IRIS_POINTS}; "
            "use a landmarker with blendshapes or with that mesh."
        )
    estimates = mesh.estimate_expression(points)
    return [
        {name: float(values[frame]) for name, values in estimates.items()} for frame in range(len(faces))
    ], True


def _turn(found: Mapping[str, Any], what: str) -> Tensor:
    """The head's rotation (3, 3)."""
    if found.get("transformation_matrix") is not None:
        scaled = torch.as_tensor(found["transformation_matrix"], dtype=torch.float32)[:3, :3]
        u, _, v = torch.linalg.svd(scaled)
        return u @ v
    if "landmarks_3d" not in found or "landmarks_xy" not in found:
        raise InputError(
            f"The head's rotation is missing in {what}; it takes transformation_matrix or landmarks_3d."
        )
    return mesh.rotation_of(mesh_points(found)[None])[0]


def mesh_points(found: Mapping[str, Any]) -> Tensor:
    """Mesh points (points, 3) in pixels: x right, y up, z to the camera.

    ``landmarks_3d`` may be in the axes of any crop of the picture: its depth is scaled as its x and y are to
    ``landmarks_xy``.
    """
    flat = torch.as_tensor(found["landmarks_xy"], dtype=torch.float32)
    deep = torch.as_tensor(found["landmarks_3d"], dtype=torch.float32)
    first, second = deep[:, :2] - deep[:, :2].mean(0), flat - flat.mean(0)
    scale = second.square().sum().sqrt() / first.square().sum().sqrt().clamp(min=1e-9)
    return torch.stack([flat[:, 0], -flat[:, 1], -deep[:, 2] * scale], dim=1)


def _fit_camera(
    faces: list[Mapping[str, Any]], params: FaceParameters, head: HeadModel, longer: int
) -> Tensor:
    """Least squares: the camera (frames, 3) that lays the head's landmarks onto the mesh's."""
    index = head.landmarks[list(CORRESPONDING)].cpu()
    model = head(params.to(head.template.device)).cpu()[:, index, :2]
    points = torch.stack([torch.as_tensor(found["landmarks_xy"], dtype=torch.float32) for found in faces])
    ndc = points[:, list(CORRESPONDING.values())] / longer * 2 - 1
    target = ndc * torch.tensor([1.0, -1.0])
    model_mean, target_mean = model.mean(1, keepdim=True), target.mean(1, keepdim=True)
    from_model, from_target = model - model_mean, target - target_mean
    scale = (from_model * from_target).sum((1, 2)) / from_model.square().sum((1, 2))
    scale = scale.clamp(min=1e-3)[:, None]
    return torch.cat([scale, target_mean[:, 0] / scale - model_mean[:, 0]], dim=1)
