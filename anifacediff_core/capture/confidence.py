"""How sure a reading of a face is: from the detector's score, from two readings that agree, from a face that
stays itself over a video.

Measured with faces of avatars and of people, in the open and behind hands and blobs of seven colors: the
score and the agreement of an open face are higher than those of any that is covered wholly, and a covered
one's shape is twice as far from the video's own as an open one's. Half a face is read almost as a whole one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..head.parameters import FaceParameters
from ..motion.parts import require_numbers
from .detector import Detection

LEAST = 0.5  # what is less sure counts as missing
# How near to 1 score and agreement are together, see `_nines`, when a face is as likely open as covered.
SCORE_AND_AGREEMENT, SCORE_ALONE, SLOPE = 5.4, 2.0, 1.5
# Distance from the video's own shape, in multiples of the usual one, at which it is as likely another's; the
# usual one is at least a share of the shape itself, since few frames may be alike.
STRANGE, STRANGE_SLOPE, LEAST_USUAL = 2.5, 3.0, 0.25
# By how much the logarithm of the scale leaves that of the frames on both sides.
AROUND, JUMP, USUAL_JUMPS, JUMP_SLOPE = 4, 0.065, 4.0, 60.0
FEWEST = 5  # frames that can tell what is usual


def of_faces(faces: list[Detection]) -> Tensor:
    """Confidence (faces,) by what the detector tells alone."""
    nines = _nines(torch.tensor([face.score for face in faces]))
    return _by_others(faces, torch.sigmoid(SLOPE * (nines - SCORE_ALONE)))


def of_readings(faces: list[Detection], agreement: Tensor) -> Tensor:
    """Confidence (faces,) by what the detector tells and by how well two readings in a row agree.

    Args:
        agreement: (faces,), overlap of the face squares that the readings tell, see :func:`overlap`.
    """
    nines = _nines(torch.tensor([face.score for face in faces])) + _nines(agreement.cpu())
    return _by_others(faces, torch.sigmoid(SLOPE * (nines - SCORE_AND_AGREEMENT)))


def _by_others(faces: list[Detection], own: Tensor) -> Tensor:
    """Where another detector or a landmarker tells how sure it is, that counts in place of the score."""
    known = [face.sure for face in faces]
    return torch.stack(
        [mine if it is None else mine.new_tensor(it) for it, mine in zip(known, own, strict=True)]
    )


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of squares (faces, 3)."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    return shared / (first[:, 2].square() + second[:, 2].square() - shared)


def over_time(readings: FaceParameters) -> Tensor:
    """Confidence (frames,) of a video's readings by themselves and beside each other; 0 where there is none.

    What is surest tells the usual shape and scale; what differs much from it is doubted.
    """
    known = torch.ones_like(readings.shape[:, 0]) if readings.confidence is None else readings.confidence
    known = known * readings.valid
    sure = known >= LEAST
    if int(sure.sum()) < FEWEST:
        return known
    return torch.minimum(
        known, torch.minimum(_likeness(readings.shape, sure), _steadiness(readings.camera, sure))
    )


def sure_frames(
    raw: FaceParameters, least: float, missing: str = "interpolate"
) -> tuple[FaceParameters, Tensor]:
    """Readings of which only those that are sure stay valid, with their confidence over time; and which are
    sure (frames,).

    Where none is sure, as of a drawing that no network knows, all stay valid, unless unsure ones are to stop
    the run.

    Raises:
        InputError: the least confidence is no number.
    """
    require_numbers(least_confidence=least)
    confidence = over_time(raw)
    sure = raw.valid & (confidence >= least)
    valid = sure if sure.any() or missing == "stop" else raw.valid
    return replace(raw, valid=valid, confidence=confidence), sure


def _likeness(shape: Tensor, sure: Tensor) -> Tensor:
    """How likely each frame's shape (frames, modes) is the same person's as in those that are sure."""
    middle = shape[sure].median(0).values
    away = (shape - middle).norm(dim=1)
    usual = torch.maximum(away[sure].median(), LEAST_USUAL * middle.norm())
    if usual < 1e-6:  # read by something that tells no shape
        return torch.ones_like(away)
    return torch.sigmoid(STRANGE_SLOPE * (STRANGE - away / usual))


def _steadiness(camera: Tensor, sure: Tensor) -> Tensor:
    """How likely each frame's scale (frames, 3) is right, between those of the sure frames before and after:
    a head may come nearer, but not jump to and fro. At both ends that cannot be decided.
    """
    scale = camera[:, 0].clamp(min=1e-6).log()
    known, frames = torch.nonzero(sure).squeeze(1), torch.arange(len(scale), device=scale.device)
    nothing = scale.new_full((AROUND,), torch.nan)
    middle = torch.cat([nothing, scale[known], nothing]).unfold(0, AROUND, 1).nanmedian(1).values
    place = torch.searchsorted(known, frames)
    before, after = middle[place], middle[place + sure + AROUND]
    low, high = torch.minimum(before, after), torch.maximum(before, after)
    away = torch.maximum(low - scale, scale - high).nan_to_num(0.0).clamp(min=0)
    limit = torch.maximum(away.new_tensor(JUMP), USUAL_JUMPS * away[sure].median())
    return torch.sigmoid(JUMP_SLOPE * (limit - away))


def _nines(share: Tensor) -> Tensor:
    """How near to 1: 2.3 for 0.9, 4.6 for 0.99."""
    return -torch.log1p(-share.clamp(0, 1 - 1e-6))
