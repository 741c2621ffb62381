"""MagicPortrait's own drawing of the head: what it would save as pictures for our parameters of our head.

Its `decode`, projection, texture and renderer run as they are; our head stands in for FLAME, and below its
renderer a rasterizer of the form of PyTorch3D's, which has no package that could be installed for a test.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import save_image

from anifacediff_core.head.camera import uncrop_camera
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.texture import Appearance

PATH = "MAGICPORTRAIT_PATH"
SIZE = 64  # of the drawn pictures
INPUT = 224  # of DECA
CODES = 3  # that our texture has; FLAME's has 200, of which 50 are used


def checkout() -> Path | None:
    return Path(os.environ[PATH]) if os.environ.get(PATH) else None


@contextmanager
def on_path() -> Iterator[None]:
    """Its packages have names like `models` and `utils`: known only for as long as they are imported."""
    path, before = str(checkout()), set(sys.modules)
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and sys.modules[name].__file__.startswith(path):
                del sys.modules[name]


@dataclass(frozen=True)
class Face:
    """A head, its skin and where it is in a picture.

    Args:
        parameters: frames; the camera is that of DECA's own square.
        square: (3,) left, top, side of the source points of DECA's square in the picture, in pixels.
    """

    head: HeadModel
    parameters: FaceParameters
    appearance: Appearance
    square: Tensor

    @classmethod
    def random(cls, frames: int = 2) -> Face:
        head = HeadModel.bundled()
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        pose = torch.zeros(frames, 15)
        pose[:, :3], pose[:, 6:7] = 0.3 * normal(frames, 3), 0.2
        light = 0.3 * normal(1, 9, 3)
        light[:, 0] += 3
        parameters = FaceParameters(
            shape=normal(1, head.n_shape).expand(frames, -1),
            expression=torch.rand(frames, head.n_expression, generator=generator) * 0.5,
            pose=pose,
            camera=torch.tensor([7.0, 0.01, -0.02]).expand(frames, 3),
            valid=torch.ones(frames, dtype=torch.bool),
            head=head.name,
        )
        appearance = Appearance(normal(1, CODES), light)
        return cls(head, parameters, appearance, torch.tensor([5.0, 3.0, 52.0]))

    @property
    def in_picture(self) -> FaceParameters:
        """The same frames with the camera of the whole picture.

        DECA's crop puts the ends of its square on the centers of the first and last pixel, but its renderer
        takes 224 pixels for the whole width.
        """
        left, top, side = (self.square / SIZE).unbind()
        square = torch.stack([left, top, side * INPUT / (INPUT - 1)])
        return FaceParameters(
            **{name: getattr(self.parameters, name) for name in ("shape", "expression", "pose", "valid")},
            camera=uncrop_camera(self.parameters.camera, square),
            head=self.parameters.head,
        )

    def places(self) -> tuple[Tensor, Tensor]:
        """Where the vertices are in the texture: places (n, 2), v up, and triangles of their indices."""
        x, y, z = self.head.template.unbind(-1)
        u = 0.5 + torch.atan2(x, z) / (2 * torch.pi)
        v = (y - y.min()) / (y.max() - y.min())
        order = torch.randperm(len(u), generator=torch.Generator().manual_seed(8))
        return torch.stack([u, v], -1)[order], torch.argsort(order)[self.head.faces]


def write_texture(path: Path, places: Tensor, triangles: Tensor, directions: int = CODES) -> None:
    """A file in the form of FLAME_texture.npz, with as many directions as wanted."""
    random = np.random.default_rng(9)
    basis = np.zeros((512, 512, 3, directions), np.int8)
    basis[..., :CODES] = random.integers(-20, 20, (512, 512, 3, CODES))
    mean = random.integers(60, 200, (512, 512, 3)).astype(np.float32)
    np.savez(path, mean=mean, tex_dir=basis, vt=places.numpy(), ft=triangles.numpy())


def write_template(path: Path, vertices: Tensor, faces: Tensor, triangles: Tensor, places: Tensor) -> None:
    """A file in the form of DECA's head_template.obj."""
    with path.open("w") as file:
        file.writelines(f"v {x} {y} {z}\n" for x, y, z in vertices.tolist())
        file.writelines(f"vt {u} {v}\n" for u, v in places.tolist())
        for corners, own in zip((faces + 1).tolist(), (triangles + 1).tolist(), strict=True):
            file.write("f " + " ".join(f"{v}/{t}" for v, t in zip(corners, own, strict=True)) + "\n")


def rasterize_meshes(meshes: Any, image_size: list[int], **_: object) -> tuple[Tensor, ...]:
    """The nearest triangle at every pixel center; x to the left, y up, z into the picture as in PyTorch3D."""
    points, faces = meshes.verts[0].double().numpy(), meshes.faces[0].numpy()
    height, width = image_size
    nearest = np.full((height, width), np.inf)
    owner = np.full((height, width), -1)
    weights = np.zeros((height, width, 3))
    columns, rows = 1 - (2 * np.arange(width) + 1) / width, 1 - (2 * np.arange(height) + 1) / height
    for index, corners in enumerate(points[faces]):
        low, high = corners.min(0), corners.max(0)
        inside_x = np.flatnonzero((columns >= low[0]) & (columns <= high[0]))
        inside_y = np.flatnonzero((rows >= low[1]) & (rows <= high[1]))
        system = np.vstack([corners[:, :2].T, np.ones(3)])
        if not len(inside_x) or not len(inside_y) or abs(np.linalg.det(system)) < 1e-12:
            continue
        inverse = np.linalg.inv(system)
        for row in inside_y:
            for column in inside_x:
                own = inverse @ (columns[column], rows[row], 1)
                depth = own @ corners[:, 2]
                if (own > 0).all() and depth < nearest[row, column]:
                    nearest[row, column], owner[row, column], weights[row, column] = depth, index, own
    pixels = (torch.from_numpy(array)[None, :, :, None] for array in (owner, nearest, weights))
    packed, depth, barycentric = pixels
    return packed, depth, barycentric.float()[:, :, :, 0][..., None, :], depth


class _Missing(ModuleType):
    """Stands in for packages that are imported there but not used here."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


def stand_ins() -> dict[str, ModuleType]:
    names = ["yacs", "yacs.config", "mediapipe", "mediapipe.tasks", "mediapipe.tasks.python", "pytorch3d"]
    names += ["mediapipe.tasks.python.vision", "pytorch3d.structures", "pytorch3d.io", "pytorch3d.renderer"]
    names += ["pytorch3d.renderer.mesh", "decalib.datasets", "decalib.datasets.datasets"]
    names += ["decalib.smirk.smirk_encoder", "decalib.smirk.mediapipe_utils", "scipy.ndimage.morphology"]
    names += ["skimage", "skimage.io", "skimage.transform", "cv2", "kornia", "kornia.geometry"]
    names += ["kornia.geometry.transform", "kornia.geometry.transform.imgwarp"]
    return {name: _Missing(name) for name in names}


def draw(face: Face, folder: Path) -> Tensor:
    """The three pictures of every frame as its script saves them, (frames, 9, SIZE, SIZE) uint8.

    Args:
        folder: for the files that it reads.
    """
    places, triangles = face.places()
    write_texture(folder / "FLAME_texture.npz", places, triangles, directions=200)
    write_template(folder / "head_template.obj", face.head.template, face.head.faces, triangles, places)
    absent = {name: module for name, module in stand_ins().items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        with on_path():
            deca = importlib.import_module("decalib.deca_with_smirk")
            renderer = importlib.import_module("decalib.utils.renderer")
            flame = importlib.import_module("decalib.models.FLAME")
            util = importlib.import_module("decalib.utils.util")
    finally:
        for name in absent:
            sys.modules.pop(name, None)
    return _draw(face, folder, deca, renderer, flame, util)


def _draw(face: Face, folder: Path, deca: Any, renderer: Any, flame: Any, util: Any) -> Tensor:
    def load_obj(path: Path) -> tuple[Any, Any, Any]:
        vertices, places, faces, triangles = util.load_obj(path)
        return (
            vertices,
            SimpleNamespace(verts_idx=faces, textures_idx=triangles),
            SimpleNamespace(verts_uvs=places),
        )

    renderer.load_obj, renderer.rasterize_meshes = load_obj, rasterize_meshes
    renderer.Meshes = SimpleNamespace
    texture = flame.FLAMETex(
        SimpleNamespace(tex_type="FLAME", tex_path=folder / "FLAME_texture.npz", n_tex=50)
    )
    codes = torch.zeros(1, 50)
    codes[:, :CODES] = face.appearance.texture
    left, top, side = face.square.tolist()
    to_crop = torch.tensor([[1, 0, -left], [0, 1, -top], [0, 0, side / (INPUT - 1)]]) * (INPUT - 1) / side
    vertices = face.head(face.parameters)
    fake = SimpleNamespace(
        image_size=INPUT,
        uv_size=256,
        cfg=SimpleNamespace(model=SimpleNamespace(use_tex=True)),
        flametex=texture,
        render=renderer.SRenderY(INPUT, folder / "head_template.obj"),
    )
    frames = []
    for index in range(len(vertices)):
        marks = torch.zeros(1, 68, 3)
        fake.flame = lambda index=index, marks=marks, **_: (vertices[[index]], marks.clone(), marks.clone())
        drawn, _ = deca.DECA.decode(
            fake,
            {
                "images": torch.zeros(1, 3, INPUT, INPUT),
                "shape": face.parameters.shape[[index]],
                "exp": face.parameters.expression[[index]],
                "pose": face.parameters.pose[[index], :6],
                "cam": face.parameters.camera[[index]],
                "tex": codes,
                "light": face.appearance.light,
            },
            render_orig=True,
            original_image=torch.zeros(1, 3, SIZE, SIZE),
            tform=torch.inverse(to_crop)[None].transpose(1, 2),
        )
        pictures = [drawn[f"{kind}_images"][0] for kind in ("depth", "normal", "rendered")]
        frames.append(torch.cat([through_a_file(picture) for picture in pictures]))
    return torch.stack(frames)


def through_a_file(picture: Tensor) -> Tensor:
    """(1 or 3, H, W), of any range, as it is read back: (3, H, W) uint8."""
    file = io.BytesIO()
    save_image(picture, file, format="png")
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).movedim(-1, 0)
