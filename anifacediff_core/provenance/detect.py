"""Detect the mark in a video that was compressed, scaled, cropped or cut.

What stands out of its surroundings is added up over the frames, in one small picture, while they pass by.
In that picture the known chips are looked for at every size and place, by one correlation per size. Where
they fit best, the message is read; its checksum tells whether it is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..progress import Progress
from .mark import luma_of, require_frames
from .pattern import CHIPS, codebook, identifier_of, read_message, weights

SIDE = 256  # shorter side at which pictures are looked at
BACKGROUND = 9  # pixels over which a picture is averaged to tell the pattern from what it lies upon
MOST = 1.0  # gray levels by which a pixel can speak for or against a chip, since edges are far stronger
CONTRAST = 19  # pixels over which contrast is made equal
LEAST_CONTRAST = 0.3  # gray levels: flat parts are not blown up further
PHASES = 2  # places that are tried per chip
# Parts of the marked picture's shorter side that may be in sight, more than 1 where a border was added. Half
# a percent apart: the outermost chips of a wide picture are off by a seventh of a chip at most.
SHARES = torch.logspace(-1.0, 0.42, 198, base=2)
BATCH = 16  # of them at once
# In deviations. Pictures without a mark reach 5 to 5.9 at their best place; above, the checksum decides.
THRESHOLD = 6.0


@dataclass(frozen=True)
class Detection:
    """What was found.

    Attributes:
        identifier: of the mark; None when there is none.
        message: the bytes that fit best, a mark's or not.
        score: how far the known chips stand out at their best place, in standard deviations of all places.
        share: the part of the marked picture's shorter side that is in sight: 1 where nothing was cut off.
        mirrored: whether left and right are exchanged.
        frames: how many were looked at.
    """

    identifier: int | None
    message: bytes
    score: float
    share: float
    mirrored: bool
    frames: int

    @property
    def found(self) -> bool:
        return self.identifier is not None

    @property
    def note(self) -> str:
        """One sentence for the user."""
        seen = f"in {self.frames} frame{'s' if self.frames > 1 else ''}, score {self.score:.1f}"
        if self.found:
            side = f"{self.share:.0%} of the marked picture's shorter side in sight"
            mirrored = ", mirrored" if self.mirrored else ""
            return f"Made by AniFaceDiff, identifier {self.identifier} ({seen}, {side}{mirrored})."
        if self.score > THRESHOLD:
            return f"Traces of a mark, but its message cannot be read ({seen})."
        return f"No mark ({seen}; a mark needs more than {THRESHOLD:g})."


def detect(chunks: Iterable[Tensor], total: int = 0, progress: Progress | None = None) -> Detection:
    """Look for the mark in a video.

    Args:
        chunks: the video in chunks (frames, 3, height, width) in [0, 1], of any type and on any device.
        total: frames of the video, for `progress`; 0 where that is unknown.

    Raises:
        InputError: no frames, frames that are too small or not of one size.
    """
    added: Tensor | None = None
    size: torch.Size | None = None
    frames = 0
    for chunk in chunks:
        require_frames(chunk)
        if size is not None and chunk.shape[-2:] != size:
            raise InputError(
                "The frames of the video are not all of one size: give a video whose size doesn't change."
            )
        size = chunk.shape[-2:]
        for frame in chunk:
            residual = _residual(frame)
            added = residual if added is None else added.add_(residual)
            frames += 1
            if progress is not None:
                progress(frames, max(total, frames))
    if added is None:
        raise InputError("The video has no frames: give one with at least one.")
    score, share, mirrored, chips = _best_place(_even((added / frames).cpu()))
    message = read_message(chips)
    identifier = identifier_of(message) if score > THRESHOLD else None
    return Detection(identifier, message, score, share, mirrored, frames)


def _residual(frame: Tensor) -> Tensor:
    """What stands out of its surroundings, in gray levels, at the size of detection: (height, width)."""
    scale = SIDE / min(frame.shape[-2:])
    size = [round(side * scale) for side in frame.shape[-2:]]
    luma = F.interpolate(255 * luma_of(frame)[None, None], size, mode="bilinear", antialias=True)
    return (luma - _blur(luma, BACKGROUND)).clamp(-MOST, MOST)[0, 0]


def _even(residual: Tensor) -> Tensor:
    """The same contrast everywhere, so that no busy spot outvotes the rest."""
    contrast = _blur(residual.square()[None, None], CONTRAST)[0, 0].sqrt()
    return residual / (contrast + LEAST_CONTRAST)


def _blur(pictures: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(pictures, side, 1, side // 2, count_include_pad=False)


def _best_place(residual: Tensor) -> tuple[float, float, bool, Tensor]:
    """Where the known chips fit best: score, share in sight, whether mirrored, the chips (CHIPS, CHIPS)."""
    known = torch.zeros(2, PHASES * CHIPS, PHASES * CHIPS)
    known[0, ::PHASES, ::PHASES] = codebook().sync
    known[1] = known[0].flip(1)
    known = torch.fft.rfft2(known).conj()[:, None]
    best, share, mirrored, chips = -1.0, 1.0, False, residual
    for shares in SHARES.split(BATCH):
        down, across = (weights(length, CHIPS / SIDE * shares, PHASES) for length in residual.shape)
        fitted = down.mT @ residual @ across
        fit = torch.fft.irfft2(torch.fft.rfft2(fitted) * known)
        scores = fit / (fit.square().mean((2, 3), keepdim=True).sqrt() + 1e-9)
        score, place = scores.flatten().max(0)
        if score > best:
            side, number, y, x = (int(index) for index in torch.unravel_index(place, scores.shape))
            best, share, mirrored = float(score), float(shares[number]), side == 1
            chips = fitted[number].roll((-y, -x), (0, 1))
            chips = (chips.flip(1) if mirrored else chips)[::PHASES, ::PHASES]
    return best, share, mirrored, chips
