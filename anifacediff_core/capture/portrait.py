"""Where the portrait lies in a picture or a video: one square that stands still, or one that follows.

Squares are (left, top, side) as fractions of the picture's longer side, from its top left corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..motion.parts import require_numbers
from ..motion.smoothing import noise_std, without_spikes
from ..progress import Progress
from .detector import Detection
from .extract import Models, chunks, remaining
from .missing import describe_frames, invalid_frames, last_valid_index, require_faces
from .search import Follower
from .tracker import MARGIN, PORTRAIT_LIFT, Tracker, fill_gaps, portrait_square, pushed_inside

MOTIONS = ("still", "follow")
SMOOTHING = 0.5
# What is slower than this many frames is motion, never tremble.
SLOWEST = 128
# Trembling by less than this share of the side is never followed, however calm the detector is.
LEAST_TREMBLE = 0.002
# At full smoothing: how far above the tremble's own strength motion has to be, and the frames over which the
# side is averaged.
SUREST, SIDE_FRAMES = 6.0, 48.0


@dataclass(frozen=True)
class Portrait:
    """Where a portrait is to be cut out.

    Attributes:
        square: (3,) for all frames, or (frames, 3) for the frames that are kept, float32.
        frames_without_face: their numbers.
        skipped: those of them that are left out.
        note: sentences for people.
    """

    square: Tensor
    frames_without_face: list[int]
    skipped: tuple[int, ...]
    note: str
    frames: int

    @property
    def kept(self) -> list[int]:
        """Numbers of the frames to cut from."""
        return remaining(self.frames, self.skipped)


@torch.no_grad()
def find_portrait(
    frames: Tensor | Iterable[Tensor],
    models: Models,
    tracker: Tracker,
    *,
    motion: str = "still",
    margin: float = MARGIN,
    smoothing: float = SMOOTHING,
    missing: str = "interpolate",
    what: str = "the picture",
    faces: Sequence[list[Detection]] | None = None,
    progress: Progress | None = None,
) -> Portrait:
    """Find a face in a picture or a video and lay the portrait's square around it.

    Args:
        frames: as :func:`.extract.extract_parameters` takes them; one chunk is held at a time.
        tracker: a new one, which knows what face to choose.
        motion: "still" is one square for the whole video, "follow" one for each frame.
        margin: room around the face square, as a share of its side.
        smoothing: 0 to 1, how calmly the square follows; see :func:`steady`.
        missing: what becomes of frames without a face, one of :data:`.missing.MISSING`.
        faces: of every frame, where they are known already.

    Raises:
        InputError: no face at all, or not in every frame where that is to stop the run.
    """
    if motion not in MOTIONS:
        raise InputError(f"The motion '{motion}' is unknown; choose one of {', '.join(MOTIONS)}.")
    require_numbers(margin=margin, smoothing=smoothing)
    total = len(frames) if isinstance(frames, Tensor) else 0
    found: list[Detection | None] = []
    extent, follower = (1.0, 1.0), Follower(models, tracker)
    for chunk in chunks(frames, what):
        height, width = chunk.shape[-2:]
        extent = width / max(height, width), height / max(height, width)
        if faces is None:
            found += follower.follow(chunk.to(models.head.template.device))
        else:
            found += [tracker.follow(each, *extent) for each in faces[len(found) : len(found) + len(chunk)]]
        if progress is not None:
            progress(len(found), max(total, len(found)))
    valid = torch.tensor([face is not None for face in found])
    if not valid.any():
        raise tracker.no_face_error(what)
    require_faces(valid, missing, what)
    squares = torch.tensor([(0.0, 0.0, 1.0) if face is None else face.square for face in found])
    skipped = tuple(invalid_frames(valid)) if missing == "skip" else ()
    if motion == "still" or len(found) == 1:
        square = portrait_square(squares, valid, *extent, "portrait", margin)
    else:
        squares = squares[last_valid_index(valid)] if missing == "hold" else fill_gaps(squares, valid)
        square = following(squares, valid, *extent, margin, smoothing)
        square = square[valid] if skipped else square
    note = " ".join(describe_frames(valid, missing, what) + tracker.describe())
    return Portrait(square, invalid_frames(valid), skipped, note, len(found) - len(skipped))


def following(
    faces: Tensor, valid: Tensor, width: float, height: float, margin: float, smoothing: float
) -> Tensor:
    """Squares (frames, 3) that follow a head through the picture, without its tremble and without lag.

    Args:
        faces: (frames, 3) face squares without gaps.
        valid: (frames,) bool, where the face was seen: the others tell nothing about the tremble.
        width, height: extent of the picture as fractions of its longer side; a square that fits into it stays
            inside.
        margin: room around the face square, as a share of its side.
        smoothing: 0 to 1.
    """
    faces = faces.double()
    if smoothing > 0:
        faces = without_spikes(faces, LEAST_TREMBLE)
    center, side = faces[:, :2] + faces[:, 2:] / 2, faces[:, 2:].log()
    least = LEAST_TREMBLE * float(faces[:, 2].median())
    center = steady(center, noise_std(center[valid], least), smoothing)
    # In turns a face is narrower and in speech longer: the side has to be far slower than the place.
    side = steady(side, noise_std(side[valid], LEAST_TREMBLE), smoothing, SIDE_FRAMES * smoothing).exp()
    size = ((1 + margin) * side).clamp(max=min(width, height))
    low = center - size / 2 - torch.tensor([0.0, PORTRAIT_LIFT]) * size
    squares = torch.cat([low, size], dim=1).tolist()
    return torch.tensor(
        [(pushed_inside(x, each, width), pushed_inside(y, each, height), each) for x, y, each in squares]
    )


def steady(values: Tensor, noise: Tensor, amount: float, slowest: float = 0.0) -> Tensor:
    """Values without their tremble, and with their motion as it was: nothing lags, nothing is rounded off.

    The values are taken apart into what changes within 1, 2, 4, ... frames. Of each part, that remains which
    is stronger than the tremble alone would be in it. So a crop stands still, where a smoother that follows
    every sway would let it drift, and yet moves at once with a face that moves.

    Args:
        values: (frames, quantities).
        noise: deviation of their tremble (quantities,), see :func:`.smoothing.noise_std`.
        amount: 0 leaves the values, 1 keeps but the surest motion.
        slowest: what changes within fewer frames than this is left out in any case.
    """
    if amount <= 0 or len(values) < 3:
        return values
    levels = math.ceil(math.log2(min(len(values), SLOWEST)))
    # How much of white noise each part holds, an impulse tells.
    impulse = values.new_zeros(8 * 2**levels + 1, 1)
    impulse[len(impulse) // 2] = 1
    moving = torch.zeros_like(values)
    for step in (2**level for level in range(levels)):
        coarser, spread = _blurred(values, step), _blurred(impulse, step)
        if step > slowest:
            part, share = values - coarser, (impulse - spread).norm()
            strength = _blurred(part.square(), step).clamp(min=1e-30)
            moving += part * (1 - (SUREST * amount * share * noise).square() / strength).clamp(min=0)
        values, impulse = coarser, spread
    return moving + values


def _blurred(values: Tensor, step: int) -> Tensor:
    """Weighted means of every `step`-th frame around each (frames, quantities), by the B3 spline of the
    à-trous wavelet; beyond the ends the values are mirrored.
    """
    spline = values.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    period = 2 * (len(values) - 1)
    index = torch.arange(-2 * step, len(values) + 2 * step, device=values.device) % period
    mirrored = values[torch.minimum(index, period - index)]
    return F.conv1d(mirrored.T[:, None], spline[None, None], dilation=step)[:, 0].T
