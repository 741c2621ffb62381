"""CSIM: how much a face stays the same person (paper 4.1), by a face recognition network that users own.

"Encoding in Style", which the paper follows, compares pictures by the cosine of their embeddings: RGB scaled
to [-1, 1], 112² pixels, five points of the face laid on ArcFace's. The networks are ArcFace's IR and IR-SE
(model_ir_se50.pth, CurricularFace's IR-101) and any that comes as ONNX (insightface's w600k_r50.onnx).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifacediff_core.errors import InputError
from anifacediff_core.weights.fill import fill
from anifacediff_core.weights.importers.recognition import Listing
from anifacediff_core.weights.reading import open_tensors

from .onnx_model import OnnxModel

SIDE = 112
# ArcFace's places of right eye, left eye (the subject's), nose, right and left corner of the mouth; pixel
# centers at i + 0.5.
TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
) + torch.tensor(0.5)
# What "Encoding in Style" cuts out of an aligned portrait of 256²: rows 35 to 223, columns 32 to 220.
PORTRAIT_ROWS, PORTRAIT_COLUMNS, PORTRAIT_SIDE = (35, 223), (32, 220), 256
MOST_BLOCKS = 200
DEPTHS = {24: "50", 49: "100", 50: "152"}  # blocks -> what people call it
POINTS, FIXED = "points", "fixed"


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weight.sigmoid()


class Unit(nn.Module):
    """A residual block of IR (`hidden` 0) or IR-SE."""

    def __init__(self, inputs: int, width: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer: nn.Module | None = None
        if inputs != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        layers = [
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.res_layer = nn.Sequential(*layers, *([Squeeze(width, hidden)] if hidden else []))

    def forward(self, x: Tensor) -> Tensor:
        kept = x[..., :: self.stride, :: self.stride] if self.shortcut_layer is None else None
        return self.res_layer(x) + (self.shortcut_layer(x) if self.shortcut_layer is not None else kept)


@dataclass(frozen=True)
class Sizes:
    """Of an IR network, read off its tensors; `hidden` is 0 for one without squeeze and excitation.

    Args:
        blocks: channels in, channels out and stride of each.
        scaled: whether the last normalization has weights of its own.
    """

    stem: int
    blocks: tuple[tuple[int, int, int], ...]
    hidden: tuple[int, ...]
    embedding: int
    scaled: bool

    @classmethod
    def of(cls, listing: Listing) -> Sizes | None:
        """Those of a file, None where it is no such network."""
        wanted = ("input_layer.0.weight", "output_layer.3.weight", "body.0.res_layer.1.weight")
        if any(not listing.shape(name) for name in wanted):
            return None
        count = 1 + max(int(m[1]) for m in (re.match(r"body\.(\d{1,4})\.", n) for n in listing.infos) if m)
        if count > MOST_BLOCKS:
            return None
        blocks, hidden = [], []
        for index in range(count):
            shape = listing.shape(f"body.{index}.res_layer.1.weight")
            if shape is None or len(shape) != 4 or 0 in shape:
                return None
            width, inputs = shape[:2]
            # Every stage begins with a block that halves the picture; only there do channels change.
            blocks.append((inputs, width, 2 if index == 0 or inputs != width else 1))
            squeeze = listing.shape(f"body.{index}.res_layer.5.fc1.weight")
            hidden.append(squeeze[0] if squeeze else 0)
        stem, last = listing.shape("input_layer.0.weight"), listing.shape("output_layer.3.weight")
        assert stem is not None and last is not None
        return cls(stem[0], tuple(blocks), tuple(hidden), last[0], "output_layer.4.weight" in listing)

    @property
    def name(self) -> str:
        kind = "IR-SE" if any(self.hidden) else "IR"
        return f"{kind}-{DEPTHS.get(len(self.blocks), f'{len(self.blocks)} blocks')}"


class FaceRecognizer(nn.Module):
    """ArcFace's IR and IR-SE with their public names: (faces, 3, 112, 112) in [-1, 1] -> embeddings."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.blocks[-1][1]
        side = SIDE
        for *_, stride in sizes.blocks:
            side = -(-side // stride)
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, sizes.stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(sizes.stem),
            nn.PReLU(sizes.stem),
        )
        self.body = nn.Sequential(
            *(Unit(*block, hidden) for block, hidden in zip(sizes.blocks, sizes.hidden, strict=True))
        )
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(width * side * side, sizes.embedding),
            nn.BatchNorm1d(sizes.embedding, affine=sizes.scaled),
        )

    def forward(self, faces: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(faces)))


class Embedder:
    """Pictures to unit vectors, of which the inner product is CSIM.

    Attributes:
        name: what the network is, for the report.
    """

    def __init__(self, network: nn.Module | OnnxModel, name: str, device: torch.device | str = "cpu") -> None:
        self.network = network.to(device) if isinstance(network, nn.Module) else network
        self.name, self.device = name, torch.device(device)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Embedder:
        """Read a face recognition network, recognized by its content.

        Raises:
            InputError: the file is missing, damaged, or of another kind.
        """
        path = Path(path)
        if path.suffix.lower() == ".onnx":
            model = OnnxModel.load(path, device)
            if model.size not in (None, (SIDE, SIDE)):
                raise InputError(
                    f"{path.name} reads pictures of {model.size}: expected 112 x 112; choose a network of "
                    "the ArcFace kind, such as w600k_r50.onnx."
                )
            return cls(model, f"{path.name} (ONNX)", device)
        with open_tensors(path) as file:
            listing = Listing.of(file)
            sizes = Sizes.of(listing)
            if sizes is None:
                raise InputError(
                    f"{path.name} is no face recognition network: expected IR or IR-SE, found "
                    f"{min(file.infos, default='no tensor')}; choose model_ir_se50.pth, CurricularFace's "
                    "backbone, or an ONNX file such as w600k_r50.onnx."
                )
            weights = {name: file.read(original) for name, original in listing.originals.items()}
        with torch.device("meta"):
            network = FaceRecognizer(sizes)
        network = fill(network, weights, path.name).eval().requires_grad_(False)
        return cls(network, f"{sizes.name} ({path.name})", device)

    @torch.no_grad()
    def __call__(self, faces: Tensor) -> Tensor:
        """Crops (faces, 3, 112, 112) in [0, 1] -> unit vectors (faces, features) float64 on the CPU.

        Raises:
            InputError: the network gives NaN or infinity.
        """
        found = self.network((faces * 2 - 1).to(self.device))
        if not torch.isfinite(found).all():
            raise InputError(f"{self.name} gives numbers that are not finite; use a copy in float32.")
        return F.normalize(found.double().cpu(), dim=1)


# ---- crops


def cut_portrait(frames: Tensor) -> Tensor:
    """The fixed part of portraits (frames, 3, height, width) that "Encoding in Style" reads, as 112²."""
    size = (PORTRAIT_SIDE, PORTRAIT_SIDE)
    if frames.shape[-2:] != size:
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
    rows, columns = slice(*PORTRAIT_ROWS), slice(*PORTRAIT_COLUMNS)
    return F.adaptive_avg_pool2d(frames[..., rows, columns], (SIDE, SIDE))


def cut_points(frames: Tensor, points: Tensor) -> Tensor:
    """Faces with their five points laid on ArcFace's by a similarity transform.

    Args:
        frames: (frames, 3, height, width).
        points: (frames, 5, 2) x, y in pixels, in the order of `TEMPLATE`.

    Returns:
        (frames, 3, 112, 112); black outside of the picture.
    """
    height, width = frames.shape[-2:]
    matrix, shift = similarity(TEMPLATE.to(points).expand_as(points), points)
    steps = torch.arange(SIDE, device=frames.device, dtype=torch.float32) + 0.5
    places = torch.stack(torch.broadcast_tensors(steps[None, :], steps[:, None]), dim=-1)
    where = torch.einsum("nij,yxj->nyxi", matrix.to(frames), places) + shift.to(frames)[:, None, None]
    grid = where / where.new_tensor([width, height]) * 2 - 1
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def similarity(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation with scale (n, 2, 2) and shift (n, 2) that best map points (n, points, 2) onto others.

    Least squares, without reflection: in two dimensions a complex factor.
    """
    middle_a, middle_b = start.mean(1), end.mean(1)
    a, b = start - middle_a[:, None], end - middle_b[:, None]
    power = a.square().sum((1, 2)).clamp(min=1e-12)
    real = (a * b).sum((1, 2)) / power
    turn = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1) / power
    matrix = torch.stack([torch.stack([real, -turn], -1), torch.stack([turn, real], -1)], dim=-2)
    return matrix, middle_b - torch.einsum("nij,nj->ni", matrix, middle_a)
