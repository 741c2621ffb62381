"""MediaPipe as a landmarker, where it is installed. It is never required, and imported only when it is used.

``pip install --no-deps mediapipe==0.10.21`` carries its face mesh: 478 points, no blendshapes. With a model
file ``face_landmarker.task`` of the user's, newer releases give blendshapes and the head's rotation as well.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..progress import Progress
from ..video import to_pixels
from .extract import prepare

Face = dict[str, Any]


def available() -> bool:
    """Whether MediaPipe is installed; does not import it."""
    return importlib.util.find_spec("mediapipe") is not None


def detect_landmarks(
    frames: Tensor | Iterable[Tensor],
    model: str | Path | None = None,
    faces: int = 4,
    what: str = "the driving video",
    total: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Landmarks of all frames in the form that :func:`.arkit.from_face_landmarks` takes.

    Args:
        frames: (frames, channels, height, width) in [0, 1], or single frames one after the other.
        model: a ``face_landmarker.task``; without it the face mesh that MediaPipe carries.
        faces: greatest number of faces in a frame.
        total: number of frames, for the progress of an iterator.

    Raises:
        InputError: MediaPipe is missing or carries no mesh.
    """
    if not available():
        raise InputError(
            "MediaPipe is not installed; install it with 'pip install --no-deps mediapipe==0.10.21'."
        )
    result: list[list[Face]] = []
    size = (0, 0)
    total = len(frames) if isinstance(frames, Tensor) else total
    with _mesh(faces) if model is None else _landmarker(Path(model), faces) as detect:
        for frame in frames:
            image = prepare(frame, what)[0]
            size = (int(image.shape[1]), int(image.shape[2]))
            result.append(detect(to_pixels(image)))
            if progress is not None:
                progress(len(result), max(total, len(result)))
    return {"frames": result, "image_size": size}


@contextmanager
def _mesh(faces: int) -> Iterator[Callable[[np.ndarray], list[Face]]]:
    """The face mesh that comes with MediaPipe up to 0.10.21."""
    try:
        module = importlib.import_module("mediapipe.python.solutions.face_mesh")
    except ImportError as error:
        raise InputError(
            f"MediaPipe's face mesh cannot be loaded ({error}); install mediapipe==0.10.21 with what it "
            "needs, or give a face_landmarker.task."
        ) from error
    with module.FaceMesh(refine_landmarks=True, max_num_faces=faces, min_detection_confidence=0.4) as mesh:

        def detect(pixels: np.ndarray) -> list[Face]:
            found = mesh.process(pixels).multi_face_landmarks or []
            return [_face(one.landmark, pixels.shape) for one in found]

        yield detect


@contextmanager
def _landmarker(model: Path, faces: int) -> Iterator[Callable[[np.ndarray], list[Face]]]:
    """MediaPipe's face landmarker with a model file: blendshapes and rotation, too."""
    if not model.is_file():
        raise InputError(
            f"There is no landmarker model {model}; download face_landmarker.task and give its path."
        )
    mediapipe = importlib.import_module("mediapipe")
    vision = importlib.import_module("mediapipe.tasks.python.vision")
    base = importlib.import_module("mediapipe.tasks.python").BaseOptions(model_asset_path=str(model))
    options = vision.FaceLandmarkerOptions(
        base_options=base,
        num_faces=faces,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    with vision.FaceLandmarker.create_from_options(options) as landmarker:

        def detect(pixels: np.ndarray) -> list[Face]:
            found = landmarker.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels))
            results = []
            for one, matrix, shapes in zip(
                found.face_landmarks,
                found.facial_transformation_matrixes,
                found.face_blendshapes,
                strict=True,
            ):
                face = _face(one, pixels.shape)
                face["transformation_matrix"] = np.asarray(matrix)
                face["blendshapes"] = {shape.category_name: float(shape.score) for shape in shapes}
                results.append(face)
            return results

        yield detect


def _face(points: Any, shape: tuple[int, ...]) -> Face:
    """Normalized landmarks to pixels; z has the scale of x."""
    height, width = shape[:2]
    mesh = np.array([[point.x * width, point.y * height, point.z * width] for point in points], np.float32)
    box = np.concatenate([mesh[:, :2].min(0), mesh[:, :2].max(0)])
    return {"bbox_xyxy": box, "landmarks_xy": mesh[:, :2], "landmarks_3d": mesh, "score": 1.0}
