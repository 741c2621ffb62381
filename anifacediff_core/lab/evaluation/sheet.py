"""The contact sheet of results: a row for each pair, a column for each method."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.video import contact_sheet

from .pairs import Pair, count_frames, one_frame

SHEET_SIDE = 160  # pixels of one picture


def small(picture: Tensor, side: int = SHEET_SIDE) -> Tensor:
    """(3, height, width) fitted into (3, side, side), on white."""
    height, width = picture.shape[-2:]
    scale = side / max(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    fitted = F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    sheet = torch.ones(3, side, side)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    sheet[:, top : top + size[0], left : left + size[1]] = fitted.clamp(0, 1)
    return sheet


def results_sheet(pictures: list[dict[str, Tensor]], pairs: list[Pair], rows: int) -> Tensor | None:
    """Source, driving frame, and each method's frame at the same time; gray where there is none.

    Args:
        pictures: of each method, small pictures by the name of the pair.
        rows: pairs shown at most.

    Returns:
        (3, height, width), or None where there is nothing to show.
    """
    shown = [pair for pair in pairs if any(pair.pair in known for known in pictures)][:rows]
    if not shown:
        return None
    gray = torch.full((3, SHEET_SIDE, SHEET_SIDE), 0.5)
    sources, driving = [], []
    for pair in shown:
        try:
            sources.append(small(one_frame(Path(pair.source), pair.source_frame)))
        except InputError:  # without CSIM nobody has needed it, and what was measured must not be lost
            sources.append(gray)
        count, _ = count_frames(Path(pair.driving), pair.first, pair.frames)
        driving.append(small(one_frame(Path(pair.driving), pair.first + count // 2)))
    columns = [torch.stack(sources), torch.stack(driving)]
    for known in pictures:
        columns.append(torch.stack([known.get(pair.pair, gray) for pair in shown]))
    return contact_sheet(columns)
