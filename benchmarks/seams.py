"""Does a reenacted video change more where two windows meet than elsewhere?

    python benchmarks/seams.py result.mp4 driving.mp4 --window 24 --overlap 6

Compares the mean difference of neighboring frames inside the overlaps with that elsewhere, both as multiples
of the driver's own: a driver that turns its head just there would look like a seam otherwise.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anifacediff_core.sampling.windows import context_windows


def frame_differences(path: Path) -> np.ndarray:
    """Mean absolute difference (frames - 1,) of neighboring frames, in 8-bit levels."""
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(np.float32) for frame in video.decode(video=0)]
    return np.array([np.abs(second - first).mean() for first, second in pairwise(frames)])


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("driving", type=Path)
    parser.add_argument("--window", type=int, default=24)
    parser.add_argument("--overlap", type=int, default=6)
    options = parser.parse_args()
    result, driving = frame_differences(options.result), frame_differences(options.driving)
    windows = context_windows(len(result) + 1, options.window, options.overlap)
    border = np.zeros(len(result), bool)
    for first, second in pairwise(windows):
        border[second[0] - 1 : first[-1] + 1] = True
    if border.all() or not border.any():
        raise SystemExit("The video is one window: there are no seams.")
    at, inside = (result[mask].sum() / driving[mask].sum() for mask in (border, ~border))
    print(f"windows: {[(window[0], window[-1]) for window in windows]}")
    print(f"change relative to the driver: {at:.3f} at borders, {inside:.3f} inside, ratio {at / inside:.3f}")


if __name__ == "__main__":
    main()
