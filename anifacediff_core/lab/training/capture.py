"""Training the capture networks: the face encoder on jittered crops, the detector on composed pictures.

Both see the same strong augmentation, so that a real video's compression, blur, color casts and
occlusions are nothing new to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anifacediff_core.capture import detector as detection
from anifacediff_core.capture.detector import CANVAS, PortraitDetector, face_square
from anifacediff_core.capture.encoder import CROP, FaceEncoder, Reading
from anifacediff_core.head.camera import crop_camera, project
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.video import contact_sheet, write_image

from ..metrics import correlation, rotation_error
from .data import Pool
from .task import Tensors

# Of the 68 landmarks: pairs whose distance says how wide lids and lips are open; the eyes' outer corners.
OPENINGS = ((37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65))
OUTER_CORNERS = (36, 45)


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the augmentation; shares are of the rows.

    Args:
        color: greatest change of brightness, contrast, saturation and of each channel.
        gray: share without color.
        blur: share reduced and enlarged again, by up to `blur_factor`.
        noise: share with noise of a deviation up to `noise_deviation`.
        blocks: share with JPEG's quantization.
        occlusion: share with a rectangle laid over a part.
    """

    color: float = 0.35
    gray: float = 0.08
    blur: float = 0.4
    blur_factor: float = 3.5
    noise: float = 0.4
    noise_deviation: float = 0.08
    blocks: float = 0.4
    occlusion: float = 0.25


@dataclass(frozen=True)
class CaptureSettings:
    """Batches and weights of the losses.

    Args:
        batch_size: crops for the encoder in a batch, of each process; the detector gets as many pictures.
        shift, scale: greatest jitter of the crop, in parts of its side.
        shape_weight, expression_weight, neck_weight, camera_weight: in the loss of the normalized vector.
        landmark_weight: of the distance of projected landmarks, in parts of the crop.
        opening_weight: of the error of how wide lids and lips are open, in parts of the eyes' distance.
        detector_weight: of the detector's loss.
        augmentation: its strengths.
    """

    batch_size: int = 128
    shift: float = 0.08
    scale: float = 0.12
    shape_weight: float = 0.5
    expression_weight: float = 2.0
    neck_weight: float = 1.0
    camera_weight: float = 1.0
    landmark_weight: float = 10.0
    opening_weight: float = 0.0
    detector_weight: float = 1.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    OLD_NAMES: ClassVar[dict[str, str]] = {"rows": "batch_size", "spoil": "augmentation"}


class CaptureNetworks(nn.Module):
    """Encoder and detector side by side: one module, one optimizer, one loop."""

    def __init__(self, encoder: FaceEncoder, detector: PortraitDetector) -> None:
        super().__init__()
        self.encoder, self.detector = encoder, detector

    def forward(self, crops: Tensor, canvases: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(crops), self.detector(canvases)


# ---- pictures


def crop_resize_square(images: Tensor, squares: Tensor, size: int) -> Tensor:
    """Cut squares out of pictures and scale them.

    Args:
        images: (rows, 3, side, side) in [0, 1].
        squares: (rows, 3), left, top, side as fractions; what lies outside of the picture repeats its border.

    Returns:
        (rows, 3, size, size).
    """
    center = (squares[:, :2] + squares[:, 2:] / 2) * 2 - 1
    extent = squares[:, 2]
    zero = torch.zeros_like(extent)
    transform = torch.stack([extent, zero, center[:, 0], zero, extent, center[:, 1]], -1).view(-1, 2, 3)
    grid = F.affine_grid(transform, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def uniform(rows: int, low: float, high: float, device: torch.device) -> Tensor:
    """(rows, 1, 1, 1) random numbers."""
    return torch.rand(rows, 1, 1, 1, device=device) * (high - low) + low


def chosen(rows: int, share: float, device: torch.device) -> Tensor:
    """(rows, 1, 1, 1) bool, true for about `share` of the rows."""
    return torch.rand(rows, 1, 1, 1, device=device) < share


def augment(images: Tensor, strength: Augmentation) -> Tensor:
    """Change pictures (rows, 3, side, side) as cameras, codecs and hands do."""
    images = _occlude(images, strength)
    images = _recolor(images, strength)
    images = _soften(images, strength)
    rows, device = len(images), images.device
    deviation = uniform(rows, 0, strength.noise_deviation, device) * chosen(rows, strength.noise, device)
    images = (images + torch.randn_like(images) * deviation).clamp(0, 1)
    return torch.where(chosen(rows, strength.blocks, device), jpeg(images), images)


def _recolor(images: Tensor, strength: Augmentation) -> Tensor:
    rows, device, c = len(images), images.device, strength.color
    gray = images.mean(1, keepdim=True)
    saturation = uniform(rows, 1 - 2 * c, 1 + 2 * c, device).clamp(min=0)
    saturation = saturation.masked_fill(chosen(rows, strength.gray, device), 0)
    images = gray + (images - gray) * saturation
    cast = 1 + (torch.rand(rows, 3, 1, 1, device=device) - 0.5) * c
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (images - middle) * uniform(rows, 1 - c, 1 + c, device) + middle
    images = images * cast + uniform(rows, -0.4 * c, 0.4 * c, device)
    return images.clamp(1e-4, 1).pow(uniform(rows, 1 - c, 1 + c, device))


def _soften(images: Tensor, strength: Augmentation) -> Tensor:
    """Reduce and enlarge: in a few groups of rows, each with a factor of its own."""
    parts = []
    for part in images.chunk(8):
        factor = 1 + float(torch.rand(())) * (strength.blur_factor - 1)
        small = F.interpolate(part, scale_factor=1 / factor, mode="bilinear", antialias=True)
        soft = F.interpolate(small, size=part.shape[-2:], mode="bilinear")
        parts.append(torch.where(chosen(len(part), strength.blur, part.device), soft, part))
    return torch.cat(parts)


def _occlude(images: Tensor, strength: Augmentation) -> Tensor:
    """Lay a rectangle over a part: of one color, or cut from another picture of the batch."""
    rows, device, side = len(images), images.device, images.shape[-1]
    grid = (torch.arange(side, device=device) + 0.5) / side
    center = torch.rand(rows, 2, 1, device=device)
    half = torch.rand(rows, 2, 1, device=device) * 0.15 + 0.03
    inside = (grid - center).abs() < half
    patch = (
        inside[:, 0, None, None, :] & inside[:, 1, None, :, None] & chosen(rows, strength.occlusion, device)
    )
    cover = torch.where(
        chosen(rows, 0.5, device), torch.rand(rows, 3, 1, 1, device=device), images.roll(1, 0).flip(-2)
    )
    return torch.where(patch, cover, images)


def jpeg(images: Tensor) -> Tensor:
    """Quantize the cosine transform of 8 x 8 blocks, of each row more or less; sides are multiples of 8."""
    device = images.device
    k = torch.arange(8, device=device, dtype=images.dtype)
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) * 0.5
    basis[0] *= 0.5**0.5
    step = (1 + k[:, None] + k[None]) * 0.012 * uniform(len(images), 0.3, 3, device)[..., None, None]
    blocks = rearrange(images, "n c (y i) (x j) -> n c y x i j", i=8, j=8)
    spectrum = torch.einsum("ui,ncyxij,vj->ncyxuv", basis, blocks, basis)
    spectrum = (spectrum / step).round() * step
    blocks = torch.einsum("ui,ncyxuv,vj->ncyxij", basis, spectrum, basis)
    return rearrange(blocks, "n c y x i j -> n c (y i) (x j)").clamp(0, 1)


# ---- batches


def encoder_batch(pool: Pool, head: HeadModel, settings: CaptureSettings) -> tuple[Tensor, FaceParameters]:
    """Augmented crops (rows, 3, 224, 224) and their true parameters, the camera being the crop's."""
    device, rows = pool.spots.device, settings.batch_size
    index = torch.randint(len(pool), (rows,), device=device)
    params = pool.params[index]
    square = face_square(head, params)
    side = square[:, 2:]
    grown = side * (1 + (torch.rand(rows, 1, device=device) * 2 - 1) * settings.scale)
    shift = (torch.rand(rows, 2, device=device) * 2 - 1) * settings.shift * side
    jittered = torch.cat([square[:, :2] + (side - grown) / 2 + shift, grown], dim=1)
    crops = crop_resize_square(pool.images[index].float().div(255), jittered, CROP)
    return augment(crops, settings.augmentation), replace(params, camera=crop_camera(params.camera, jittered))


def detector_batch(pool: Pool, head: HeadModel, settings: CaptureSettings) -> tuple[Tensor, Tensor]:
    """Pictures with no face, one or two at random places, and the squares of their faces.

    Returns:
        canvases (rows, 3, 128, 128) and squares (rows, 2 faces, 3) in fractions of the canvas, side 0 for
        none.
    """
    device, rows = pool.spots.device, settings.batch_size
    canvas = _backgrounds(pool, rows)
    count = torch.randint(10, (rows, 1), device=device)  # 0: none, 9: two, else one
    squares = torch.zeros(rows, 2, 3, device=device)
    for face in range(2):
        wanted = (count > 0) if face == 0 else (count == 9)
        index = torch.randint(len(pool), (rows,), device=device)
        placed = _placement(rows, device)
        # Averaged before and after sampling, or a small face would alias.
        images = F.avg_pool2d(pool.images[index].float().div(255), 2)
        picture = F.avg_pool2d(crop_resize_square(images, placed, 2 * CANVAS), 2)
        square = face_square(head, pool.params[index])
        square = torch.cat([square[:, :2] - placed[:, :2], square[:, 2:]], dim=1) / placed[:, 2:]
        inside = _inside(placed) & wanted[..., None, None]
        if face == 1:
            hidden = _hides(square, squares[:, 0])
            inside = inside & ~hidden[:, None, None, None]
            wanted = wanted & ~hidden[:, None]
        canvas = torch.where(inside, picture, canvas)
        squares[:, face] = square * wanted
    canvas = _letterboxed(canvas)
    return augment(
        canvas, replace(settings.augmentation, blur_factor=1.8, occlusion=settings.augmentation.occlusion / 2)
    ), squares


def _placement(rows: int, device: torch.device) -> Tensor:
    """Where the canvas lies in an avatar's picture (rows, 3); above 1 the picture is a part of it."""
    side = torch.exp(torch.rand(rows, 1, device=device) * (math.log(3.5) - math.log(0.75)) + math.log(0.75))
    side = torch.where(torch.rand(rows, 1, device=device) < 0.35, torch.ones_like(side), side)
    room = (1 - side).abs()
    middle = 0.5 + (torch.rand(rows, 2, device=device) - 0.5) * room
    return torch.cat([middle - side / 2, side], dim=1)


def _inside(placed: Tensor) -> Tensor:
    """(rows, 1, canvas, canvas) bool: where the avatar's picture covers the canvas."""
    grid = (torch.arange(CANVAS, device=placed.device) + 0.5) / CANVAS
    position = placed[:, :2, None] + grid * placed[:, 2:, None]
    covered = (position > 0) & (position < 1)
    return covered[:, 0, None, None, :] & covered[:, 1, None, :, None]


def _hides(front: Tensor, back: Tensor) -> Tensor:
    """Whether two squares (rows, 3) come so close that one may cover the other; side 0 hides nothing."""
    distance = (front[:, :2] + front[:, 2:] / 2 - back[:, :2] - back[:, 2:] / 2).abs().amax(1)
    return (distance < 0.6 * (front[:, 2] + back[:, 2])) & (back[:, 2] > 0)


def _backgrounds(pool: Pool, rows: int) -> Tensor:
    """Pictures without a face: soft color fields, corners of avatars' pictures, scrambled avatars."""
    device = pool.spots.device
    fields = F.interpolate(torch.rand(rows, 3, 5, 5, device=device), size=CANVAS, mode="bicubic").clamp(0, 1)
    index = torch.randint(len(pool), (rows,), device=device)
    images = pool.images[index].float().div(255)
    corner = torch.cat([torch.rand(rows, 1, device=device) * 0.85, torch.zeros(rows, 1, device=device)], 1)
    corners = crop_resize_square(
        images, torch.cat([corner, torch.full((rows, 1), 0.15, device=device)], 1), CANVAS
    )
    pieces = rearrange(F.interpolate(images, size=CANVAS), "n c (y i) (x j) -> n (y x) c i j", i=16, j=16)
    order = torch.randperm(pieces.shape[1], device=device)
    pieces = rearrange(pieces[:, order], "n (y x) c i j -> n c (y i) (x j)", x=CANVAS // 16)
    kind = torch.rand(rows, 1, 1, 1, device=device)
    return torch.where(kind < 0.4, fields, torch.where(kind < 0.75, corners, pieces))


def _letterboxed(canvas: Tensor) -> Tensor:
    """Gray at the right or at the bottom of some pictures, as pictures that are not square have it."""
    rows, device = len(canvas), canvas.device
    grid = (torch.arange(CANVAS, device=device) + 0.5) / CANVAS
    edge = 1 - 0.4 * torch.rand(rows, 1, 1, 1, device=device) * chosen(rows, 0.3, device)
    right = (grid > edge).expand(-1, -1, CANVAS, -1)
    strip = torch.where(chosen(rows, 0.5, device), right, right.transpose(-1, -2))
    return canvas.masked_fill(strip, 0.5)


# ---- losses


def truth_reading(params: FaceParameters) -> Reading:
    return Reading(params.shape, params.expression, params.pose[:, 3:6], params.camera)


def denormalize(encoder: FaceEncoder, vector: Tensor) -> Reading:
    """Inverse of `FaceEncoder.normalize`, differentiable and without limits."""
    values = {
        name: part * getattr(encoder, f"{name}_deviation") + getattr(encoder, f"{name}_mean")
        for name, part in encoder.split(vector)._asdict().items()
    }
    return Reading(**values)


def as_parameters(reading: Reading, head: HeadModel) -> FaceParameters:
    rest = torch.zeros_like(reading.neck)
    params = FaceParameters(
        shape=reading.shape,
        expression=reading.expression,
        pose=torch.cat([rest, reading.neck, rest, rest, rest], dim=1),
        camera=reading.camera,
        valid=torch.ones_like(rest[:, 0], dtype=torch.bool),
        head=head.name,
    )
    return look_along(params, head.expression_names)


def landmark_vertices(head: HeadModel) -> Tensor:
    """Vertices whose projections are compared: the 68 landmarks and every fourth of lids and lips."""
    names = [name for name in ("lips", "eyes", "brows") if name in head.regions]
    return torch.cat([head.landmarks, *[head.regions[name][::4] for name in names]]).unique()


def projected(head: HeadModel, vertices: Tensor, params: FaceParameters) -> Tensor:
    """(frames, vertices, 2), some of the head's vertices in parts of the picture's side, from its center."""
    shaped = torch.einsum("fs,vcs->fvc", params.shape, head.shape_basis[vertices])
    expressed = torch.einsum("fe,vce->fvc", params.expression, head.expression_basis[vertices])
    rest = head.template[vertices] + shaped + expressed
    posed = head.skin(rest, params.pose, head.joints(params.shape), head.skin_weights[vertices])
    return project(posed, params.camera)[..., :2] / 2


def landmark_error(head: HeadModel, vertices: Tensor, found: FaceParameters, truth: FaceParameters) -> Tensor:
    """Mean distance of projected points, in parts of the crop's side."""
    apart = projected(head, vertices, found) - projected(head, vertices, truth)
    return apart.square().sum(-1).add(1e-8).sqrt().mean()


def openings(head: HeadModel, params: FaceParameters) -> Tensor:
    """(frames, len(OPENINGS)): how wide lids and lips are open, in parts of the outer corners' distance."""
    points = projected(head, head.landmarks, params)
    first, second = torch.tensor(OPENINGS, device=points.device).unbind(1)
    apart = (points[:, first] - points[:, second]).square().sum(-1).add(1e-8).sqrt()
    left, right = OUTER_CORNERS
    return apart / (points[:, left] - points[:, right]).norm(dim=-1, keepdim=True)


def detector_error(answer: Tensor, squares: Tensor) -> dict[str, Tensor]:
    """Penalty-reduced focal loss of the heat map (CornerNet); error of offset and size where faces are."""
    heat, values = detection.encode(squares)
    logit = answer[:, 0].float()
    score = logit.sigmoid()
    peak = heat == 1
    hit = F.logsigmoid(logit) * (1 - score).square()
    miss = F.logsigmoid(-logit) * score.square() * (1 - heat).pow(4)
    faces = peak.sum().clamp(min=1)
    focal = -torch.where(peak, hit, miss).sum() / faces
    near = heat * (heat > 0.3)
    distance = ((answer[:, 1:].float() - values).abs() * near[:, None]).sum() / near.sum().clamp(min=1)
    return {"faces": focal, "squares": distance}


class CaptureTask:
    """Face encoder and portrait detector; see `task.Task`."""

    name = "capture"
    period = 1

    def __init__(self, head: HeadModel, pool: Pool, held_out: Pool, settings: CaptureSettings) -> None:
        self.head, self.pool, self.held_out, self.settings = head, pool, held_out, settings
        self.encoder = FaceEncoder(head.n_shape, head.n_expression).to(head.template.device)
        self.detector = PortraitDetector()
        self.vertices = landmark_vertices(head)
        crops = [encoder_batch(pool, head, settings)[1] for _ in range(8)]
        self.encoder.set_statistics(truth_reading(FaceParameters.concatenate(crops)))
        self.module = CaptureNetworks(self.encoder, self.detector)
        s = settings
        sizes = zip(self.encoder.sizes, (s.shape_weight, s.expression_weight, s.neck_weight, s.camera_weight))
        weight = torch.cat([torch.full((size,), value / size) for size, value in sizes])
        self.weight = weight.to(head.template.device)

    def draw(self, fraction: float) -> tuple[Tensors, Tensors]:
        self.pool.tick()
        with torch.no_grad():
            crops, params = encoder_batch(self.pool, self.head, self.settings)
            canvases, squares = detector_batch(self.pool, self.head, self.settings)
        return (crops, canvases), (params.shape, params.expression, params.pose, params.camera, squares)

    def losses(self, outputs: Any, targets: Tensors) -> dict[str, Tensor]:
        vector, answer = outputs[0].float(), outputs[1]
        shape, expression, pose, camera, squares = targets
        valid = torch.ones(len(shape), dtype=torch.bool, device=shape.device)
        truth = FaceParameters(shape, expression, pose, camera, valid, self.head.name)
        wanted = self.encoder.normalize(truth_reading(truth))
        # Huber: rare, large coefficients must not rule the batch.
        error = F.smooth_l1_loss(vector, wanted, reduction="none", beta=0.5)
        parameters = (error * self.weight).sum(1).mean()
        found = as_parameters(denormalize(self.encoder, vector), self.head)
        points = landmark_error(self.head, self.vertices, found, truth)
        opened = (openings(self.head, found) - openings(self.head, truth)).abs().mean()
        faces = detector_error(answer, squares)
        s = self.settings
        loss = parameters + s.landmark_weight * points + s.opening_weight * opened
        loss = loss + s.detector_weight * (faces["faces"] + faces["squares"])
        return {"loss": loss, "parameters": parameters, "points": points, "openings": opened, **faces}

    def weights(self) -> dict[str, Tensor]:
        encoder = {f"face_encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        return encoder | {f"face_detector.{key}": value for key, value in self.detector.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return self.pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state)

    def validate(self, path: Path, fraction: float) -> dict[str, float]:
        params = self.held_out.params
        squares = face_square(self.head, params)
        crops = crop_resize_square(self.held_out.images.float().div(255), squares, CROP)
        readings = [self.encoder.read(part) for part in crops.split(64)]
        found = as_parameters(Reading(*(torch.cat(parts) for parts in zip(*readings))), self.head)
        used = params.expression.std(0) > 0.02
        measures = {
            "expression_r": float(correlation(found.expression, params.expression)[used].nanmean()),
            "shape_r": float(correlation(found.shape[:, :10], params.shape[:, :10]).nanmean()),
            "rotation": float(rotation_error(found, params).mean()),
        }
        canvases, squares = detector_batch(self.held_out, self.head, replace(self.settings, batch_size=64))
        measures |= {
            key: float(value) for key, value in detector_error(self.detector(canvases), squares).items()
        }
        augmented = augment(crops[torch.arange(16) % len(crops)], self.settings.augmentation)
        drawn = [F.interpolate(canvases[i : i + 4], size=CROP) for i in range(0, 12, 4)]
        write_image(path, contact_sheet([*[augmented[i : i + 4] for i in range(0, 16, 4)], *drawn]))
        return measures
