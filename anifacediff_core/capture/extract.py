"""Pictures to face parameters: detect, follow, crop, read, return to the portrait's camera (paper 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..head.camera import crop_camera, uncrop_camera
from ..head.gaze import look_along
from ..head.model import HeadModel
from ..head.parameters import FaceParameters
from ..head.texture import Appearance
from ..motion.parts import require_numbers
from ..progress import Progress
from .confidence import LEAST, of_faces, of_readings, overlap, sure_frames
from .detector import Detection, PortraitDetector, face_square
from .encoder import CROP, FaceEncoder, Reading
from .look import with_looks
from .missing import describe_frames, invalid_frames, last_valid_index, require_faces
from .tracker import Tracker, fill_gaps, portrait_square, smooth_parameters

MODES = ("auto", "portrait", "whole")
SMOOTHING = 0.3
LEAST_PIXELS = 16
PIXELS_AT_ONCE = 32 * 512 * 512
FRAMES_AT_ONCE = 16
BACKGROUND = 128 / 255  # behind transparent pixels, as in `video.read_image`

Part = TypeVar("Part")


class FindsFaces(Protocol):
    """What :class:`.detector.PortraitDetector` does for :func:`extract_parameters`."""

    def detect(self, frames: Tensor) -> list[list[Detection]]: ...


class Reads(Protocol):
    """What :class:`.encoder.FaceEncoder` does for :func:`extract_parameters`."""

    def read(self, pixels: Tensor) -> Reading: ...


class Models(Protocol):
    """What :func:`extract_parameters` works with: :class:`CaptureModels` or :class:`.flame.FlameModels`."""

    @property
    def head(self) -> HeadModel:
        """The head that the parameters belong to; the networks are on its device."""
        ...

    def to(self, device: torch.device) -> Models: ...

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        """Faces of pictures (frames, 3, height, width) in [0, 1], per picture."""
        ...

    def read(self, frames: Tensor, faces: list[Detection]) -> tuple[FaceParameters, Appearance | None]:
        """Parameters of one face per picture, with their confidence, camera of the whole picture; on any
        device.
        """
        ...

    def remarks(self) -> list[str]:
        """Sentences for people about what was used."""
        ...


@dataclass(frozen=True)
class CaptureModels:
    """The networks and the head that their parameters belong to, all on one device."""

    detector: FindsFaces = field(repr=False)  # ComfyUI prints the inputs of a node that failed
    encoder: Reads = field(repr=False)
    head: HeadModel = field(repr=False)

    @classmethod
    def from_weights(
        cls, detector: Mapping[str, Tensor], encoder: Mapping[str, Tensor], head: HeadModel
    ) -> CaptureModels:
        """From saved weights of the two networks, on the head's device."""
        device = head.template.device
        networks = PortraitDetector.from_weights(detector), FaceEncoder.from_weights(encoder)
        return cls(networks[0].to(device), networks[1].to(device), head)

    def to(self, device: torch.device) -> CaptureModels:
        return CaptureModels(moved(self.detector, device), moved(self.encoder, device), self.head.to(device))

    def detect(self, frames: Tensor) -> list[list[Detection]]:
        return self.detector.detect(frames)

    def read(self, frames: Tensor, faces: list[Detection]) -> tuple[FaceParameters, None]:
        """Read twice: the second time from the square that the first reading says, since the encoder is best
        at a centered face. Of a covered face the two readings tell different squares.
        """
        squares = torch.tensor([face.square for face in faces], device=frames.device)
        better = face_square(self.head, _encode(frames, squares, self))
        trusted = overlap(better, squares) > 0.35
        read = _encode(frames, torch.where(trusted[:, None], better, squares), self)
        confidence = of_readings(faces, overlap(better, face_square(self.head, read)))
        return replace(read, confidence=confidence), None

    def remarks(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Captured:
    """What was read from pictures.

    Attributes:
        parameters: (frames) on the CPU, camera of the portrait square; ``valid`` is False where no face was
            found, or not for sure, such frames are filled in.
        square: (3,) left, top, side of the portrait square, as fractions of the picture's longer side.
        frames_without_face: their numbers in what was captured.
        skipped: those of them that were left out of the parameters.
        note: one or two sentences for people.
        appearance: texture and light (frames), from networks that tell them.
    """

    parameters: FaceParameters
    square: Tensor
    frames_without_face: list[int]
    note: str
    skipped: tuple[int, ...] = ()
    appearance: Appearance | None = None

    @property
    def kept(self) -> list[int]:
        """Numbers of the captured frames that the parameters are of."""
        return remaining(len(self.parameters), self.skipped)


@torch.no_grad()
def extract_parameters(
    frames: Tensor | Iterable[Tensor],
    models: Models,
    mode: str = "auto",
    *,
    face: int = 0,
    smoothing: float = SMOOTHING,
    missing: str = "interpolate",
    least_confidence: float = LEAST,
    what: str = "the picture",
    faces: list[list[Detection]] | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> Captured:
    """Read the face of a picture or a video.

    Args:
        frames: (frames, channels, height, width) in [0, 1], or an iterator of such chunks or of single
            frames, of which one chunk is held at a time. One channel is gray, a fourth is transparency.
        mode: which part of the pictures is the portrait, see :func:`.tracker.portrait_square`.
        face: 0 for the most prominent one, 1 for the first from the left, and so on.
        smoothing: 0 to 1, see :func:`.tracker.smooth_parameters`; has no effect on a single frame.
        missing: what becomes of frames without a face, one of :data:`.missing.MISSING`.
        least_confidence: 0 to 1, frames whose reading is less sure count as such without a face, unless all
            of them are.
        what: name of the input in messages, for example "the driving video".
        faces: of every frame, where they are known already; see :mod:`.locate`. By default the models look
            for them.
        total: number of frames, for the progress of an iterator.

    Raises:
        InputError: no face at all, or not in every frame where that is to stop the run, or pictures that
            cannot be read.
    """
    if mode not in MODES:
        raise InputError(f"The capture mode '{mode}' is unknown; choose one of {', '.join(MODES)}.")
    total = len(frames) if isinstance(frames, Tensor) else total or 0
    tracker = Tracker(face=face)
    readings: list[FaceParameters] = []
    looks: list[Appearance | None] = []
    done, size = 0, (0, 0)
    for chunk in chunks(frames, what):
        if readings and chunk.shape[-2:] != size:
            raise InputError(f"The frames of {what} differ in size; scale them to one size first.")
        size = (int(chunk.shape[-2]), int(chunk.shape[-1]))
        given = None if faces is None else faces[done : done + len(chunk)]
        parameters, look = read_faces(chunk, tracker, models, given)
        readings.append(parameters)
        looks.append(look)
        done += len(chunk)
        if progress is not None:
            progress(done, max(total, done))
    if not readings:
        raise InputError(f"{what[:1].upper()}{what[1:]} has no frame; give at least one picture.")
    raw = FaceParameters.concatenate(readings)
    if not raw.valid.any():
        raise tracker.no_face_error(what)
    notes = tracker.describe() + models.remarks()
    captured = finished(raw, models.head, size, mode, smoothing, missing, least_confidence, what, notes)
    valid = torch.ones_like(raw.valid)
    valid[captured.frames_without_face] = False
    look = _all_frames(looks, raw.valid, valid, missing)
    return replace(captured, appearance=None if look is None else look[captured.kept])


def finished(
    raw: FaceParameters,
    head: HeadModel,
    size: tuple[int, int],
    mode: str,
    smoothing: float,
    missing: str,
    least_confidence: float,
    what: str,
    notes: list[str],
) -> Captured:
    """Readings of a clip without gaps and tremble, in the camera of its portrait square.

    Args:
        raw: frame by frame; camera of the picture, made square at its right or bottom.
        size: height and width of the pictures in pixels.
        mode, smoothing, missing, least_confidence, what: see :func:`extract_parameters`.
        notes: more sentences for people.

    Raises:
        InputError: see :func:`.missing.require_faces`; or a number is NaN or infinite.
    """
    used, sure = sure_frames(raw, least_confidence, missing)
    require_numbers(smoothing=smoothing)
    require_faces(used.valid, missing, what)
    readings = used[last_valid_index(used.valid)] if missing == "hold" else used
    smoothed = smooth_parameters(readings, head.expression_names, smoothing)
    params = replace(smoothed, valid=used.valid, confidence=used.confidence)
    params = look_along(params, head.expression_names).to("cpu")
    longer = max(size)
    squares = face_square(head, params).cpu()
    square = portrait_square(squares, params.valid, size[1] / longer, size[0] / longer, mode)
    params = replace(params, camera=crop_camera(params.camera, square))
    empty = invalid_frames(params.valid)
    skipped = tuple(empty) if missing == "skip" else ()
    if skipped:
        params = params[params.valid]
    note = " ".join(describe_frames(raw.valid, missing, what, sure) + notes)
    return Captured(params, square, empty, note, skipped)


def remaining(count: int, skipped: Sequence[int]) -> list[int]:
    """Numbers of the `count` frames that remain where those of `skipped` were left out."""
    gone = set(skipped)
    return [number for number in range(count + len(gone)) if number not in gone]


def crop_portrait(
    frames: Tensor,
    square: Tensor,
    size: int,
    kept: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The portrait's pixels. Nothing but the result grows with the length of the video.

    Args:
        frames: (frames, 1 to 4, height, width), see :func:`rgb`.
        square: (3,) or one for each of the result's frames (frames, 3), as fractions of the longer side; what
            lies outside repeats the border.
        size: side of the result in pixels.
        kept: numbers of the frames to cut from, by default all.

    Returns:
        (frames, 3, size, size) in [0, 1]; in memory channels come last, as pictures are kept outside.
    """
    numbers = list(range(len(frames)) if kept is None else kept)
    squares = square.to(frames.device, torch.float32).expand(len(numbers), 3)
    result = torch.empty(len(numbers), size, size, 3, device=frames.device).movedim(-1, 1)
    count = _at_once(frames)
    for start in range(0, len(numbers), count):
        part = rgb(frames[numbers[start : start + count]].float())
        where = squares[start : start + count]
        result[start : start + count] = crop_resize(part, where, size, "bicubic").clamp(0, 1)
        if progress is not None:
            progress(start + len(part), len(numbers))
    return result


def rgb(frames: Tensor) -> Tensor:
    """Pictures (frames, 1 to 4, height, width) as RGB in [0, 1]: gray is repeated, transparency laid over
    middle gray.
    """
    frames = frames.clamp(0, 1)
    if frames.shape[1] in (2, 4):
        color, alpha = frames[:, :-1], frames[:, -1:]
        frames = color * alpha + BACKGROUND * (1 - alpha)
    return frames.expand(-1, 3, -1, -1)


def prepare(frames: Tensor, what: str) -> Tensor:
    """Pictures of any usual form to RGB (frames, 3, height, width) float32 in [0, 1].

    Raises:
        InputError: wrong number of channels, too small, NaN or infinity.
    """
    if frames.dim() == 3:
        frames = frames[None]
    name = what[:1].upper() + what[1:]
    if frames.dim() != 4 or frames.shape[1] not in (1, 2, 3, 4):
        raise InputError(
            f"{name} has the shape {list(frames.shape)}; give frames, channels (1 to 4), height and width."
        )
    height, width = frames.shape[-2:]
    if min(height, width) < LEAST_PIXELS:
        least = f"{LEAST_PIXELS} x {LEAST_PIXELS}"
        raise InputError(f"{name} has only {width} x {height} pixels; give at least {least}.")
    frames = frames.float()
    if not torch.isfinite(frames).all():
        raise InputError(f"{name} contains NaN or infinite pixels; check the node that made it.")
    return rgb(frames)


def chunks(frames: Tensor | Iterable[Tensor], what: str) -> Iterator[Tensor]:
    """Prepared frames in pieces of bounded memory. Single frames of an iterator are gathered."""
    if isinstance(frames, Tensor):
        if frames.dim() == 3:
            frames = frames[None]
        count = _at_once(frames)
        for start in range(0, len(frames), count):
            yield prepare(frames[start : start + count], what)
        return
    waiting: list[Tensor] = []
    for frame in frames:
        if frame.dim() == 4:
            yield from chunks(frame, what)
            continue
        if waiting and (len(waiting) >= _at_once(frame) or frame.shape != waiting[0].shape):
            yield prepare(torch.stack(waiting), what)
            waiting = []
        waiting.append(frame)
    if waiting:
        yield prepare(torch.stack(waiting), what)


def _at_once(frames: Tensor) -> int:
    pixels = max(int(frames.shape[-1] * frames.shape[-2]), 1)
    return max(1, min(FRAMES_AT_ONCE, PIXELS_AT_ONCE // pixels))


def read_faces(
    frames: Tensor, tracker: Tracker, models: Models, given: list[list[Detection]] | None
) -> tuple[FaceParameters, Appearance | None]:
    """Parameters of a chunk, camera of the whole picture; frames without a face are neutral and not valid.
    The appearance is that of the valid frames, where the models tell it.
    """
    frames = frames.to(models.head.template.device)
    height, width = frames.shape[-2:]
    longer = max(height, width)
    seen: list[int] = []
    followed: list[Detection] = []
    per_frame = with_looks(frames, models.detect(frames) if given is None else given)
    for index, faces in enumerate(per_frame):
        found = tracker.follow(faces, width / longer, height / longer)
        if found is not None:
            seen.append(index)
            followed.append(found.moved(tracker.crop(found.square)))
    neutral = models.head.neutral(len(frames)).to("cpu")
    result = replace(
        neutral, valid=torch.zeros(len(frames), dtype=torch.bool), confidence=torch.zeros(len(frames))
    )
    if not seen:
        return result, None
    result.valid[seen] = True
    parameters, look = models.read(frames[seen], followed)
    if parameters.confidence is None:  # networks that do not tell how sure they are
        parameters = replace(parameters, confidence=of_faces(followed))
    for name in ("shape", "expression", "pose", "camera", "confidence"):
        getattr(result, name)[seen] = getattr(parameters, name).to(getattr(result, name))
    return result, look


def _all_frames(
    looks: list[Appearance | None], found: Tensor, valid: Tensor, missing: str
) -> Appearance | None:
    """The appearance of all frames from that of the found ones, held or interpolated between the valid."""
    known = [look for look in looks if look is not None]
    if not known:
        return None
    parts = []
    for name in ("texture", "light"):
        seen = torch.cat([getattr(look, name).cpu() for look in known])
        whole = seen.new_zeros(len(valid), *seen.shape[1:])
        whole[found] = seen
        filled = whole[last_valid_index(valid)] if missing == "hold" else fill_gaps(whole.flatten(1), valid)
        parts.append(filled.view_as(whole))
    return Appearance(*parts)


def _encode(frames: Tensor, squares: Tensor, models: CaptureModels) -> FaceParameters:
    """Read crops at ``squares`` (frames, 3); the camera is that of the whole picture."""
    reading = models.encoder.read(crop_resize(frames, squares, CROP))
    neutral = models.head.neutral(len(frames))
    pose = torch.cat([neutral.pose[:, :3], reading.neck.to(neutral.pose), neutral.pose[:, 6:]], dim=1)
    # A camera behind the head has no meaning, whatever an untrained network says.
    scale = reading.camera[:, :1].clamp(min=0.5)
    camera = uncrop_camera(torch.cat([scale, reading.camera[:, 1:]], dim=1), squares)
    return replace(neutral, shape=reading.shape, expression=reading.expression, pose=pose, camera=camera)


def crop_resize(
    frames: Tensor, squares: Tensor, size: int, mode: str = "bilinear", outside: str = "border"
) -> Tensor:
    """Cut squares (frames, 3) out of frames, scaled to ``size``².

    Args:
        outside: of a picture its "border" repeats, or there are "zeros".
    """
    height, width = frames.shape[-2:]
    longer = max(height, width)
    # Average blocks first where the crop is reduced by two or more, or it would alias.
    block = max(1, min(int(float(squares[:, 2].min()) * longer / size), min(height, width) // 2))
    if block > 1:
        # A last incomplete block is left out; the fraction of the picture that remains changes the mapping.
        frames = F.avg_pool2d(frames, block)
    covered_x, covered_y = frames.shape[-1] * block / longer, frames.shape[-2] * block / longer
    steps = (torch.arange(size, device=frames.device, dtype=frames.dtype) + 0.5) / size
    left, top, side = squares.to(frames).unbind(-1)
    x = (left[:, None] + side[:, None] * steps) / covered_x * 2 - 1
    y = (top[:, None] + side[:, None] * steps) / covered_y * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return F.grid_sample(frames, grid, mode=mode, padding_mode=outside, align_corners=False)


def moved(part: Part, device: torch.device) -> Part:
    """A network on a device; what is no network stays where it is."""
    return part.to(device) if isinstance(part, nn.Module) else part
