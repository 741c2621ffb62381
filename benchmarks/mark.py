"""How well the mark is hidden, what it survives, what it costs, and whether it is found where there is none.

    python benchmarks/mark.py [--threads 2] [--only hidden|promised|harder|false|speed]

Prints the tables of docs/disclosure.md. Bit accuracy is that of the 48 bits of the message.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import anifacediff_core
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.avatars.identity import Identity
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.avatars.tracks import perform
from anifacediff_core.provenance.detect import THRESHOLD, Detection, detect
from anifacediff_core.provenance.mark import mark
from anifacediff_core.provenance.pattern import message_of
from anifacediff_core.video import read_frames, read_image, to_pixels, to_tensor

EXAMPLES = Path(anifacediff_core.__file__).parent / "assets" / "examples"
IDENTIFIER = 48879
FRAMES = 30
UNMARKED = 200

Attack = Callable[[Tensor], Tensor]


# ---- clips


def marked_clips() -> dict[str, Tensor]:
    """Moving and still, small and large, square and wide, busy and as flat as can be."""
    driving = torch.stack(list(read_frames(EXAMPLES / "driving.mp4"))[:FRAMES])
    source, scene = (read_image(EXAMPLES / name) for name in ("source.png", "scene.jpg"))
    return {
        "driving video 256×256": driving,
        "driving video 512×512": resized(driving, 2.0),
        "still avatar 256×256": source.expand(FRAMES, -1, -1, -1),
        "still scene 768×512": scene.expand(FRAMES, -1, -1, -1),
        "white card 480×270": torch.ones(FRAMES, 3, 270, 480),
    }


def unmarked_clips() -> list[Tensor]:
    """Avatars, the examples, noise and gradients, of many sizes, half of them compressed."""
    generator = torch.Generator().manual_seed(0)
    head = HeadModel.bundled()
    studio = Studio(head)
    driving = torch.stack(list(read_frames(EXAMPLES / "driving.mp4")))
    scene = read_image(EXAMPLES / "scene.jpg")
    clips = []
    for number in range(UNMARKED):
        height, width = (2 * int(side) for side in torch.randint(64, 150, (2,), generator=generator))
        kind = number // 2 % 4
        if kind == 0:
            identity = Identity.random(1, generator, head)
            params = perform(1, 24, 24.0, generator, head, talking=1.0).params[[0, 8, 16]]
            clip = studio.render(identity, replace(params, shape=identity.shape.expand(3, -1)), height, 1)
        elif kind == 1:
            start = int(torch.randint(0, 36, (1,), generator=generator))
            source = scene.expand(12, -1, -1, -1) if number % 16 == 2 else driving[start : start + 12]
            clip = shaken(source, generator, height, width)
        elif kind == 2:
            grain = torch.randn(8, 3, height // 2, width // 2, generator=generator)
            still = torch.randn(1, 3, height, width, generator=generator)
            clip = 0.5 + 0.1 * still + 0.2 * F.interpolate(grain, (height, width), mode="bicubic")
        else:
            down, across = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
            mix = torch.rand(3, 2, 1, 1, generator=generator)
            waves = 0.02 * torch.sin(across * 40 * mix[0, 0] + down * 90)
            clip = (mix[:, 0] * down + mix[:, 1] * across + waves).expand(6, -1, -1, -1)
        clip = in_bytes(clip.clamp(0, 1))
        clips.append(h264(23)(clip) if number % 2 else clip)
    return clips


def shaken(frames: Tensor, generator: torch.Generator, height: int, width: int) -> Tensor:
    """Mirrored, scaled, brightened and grainy."""
    brightness, grain = torch.rand(2, generator=generator).tolist()
    frames = F.interpolate(frames.flip(3), (height, width), mode="bicubic", antialias=True)
    return (0.6 + 0.5 * brightness) * frames + 0.03 * grain * torch.randn(frames.shape, generator=generator)


# ---- attacks


def in_bytes(frames: Tensor) -> Tensor:
    return torch.stack([to_tensor(to_pixels(frame)) for frame in frames])


def h264(crf: int) -> Attack:
    def compress(frames: Tensor) -> Tensor:
        file = io.BytesIO()
        height, width = (side // 2 * 2 for side in frames.shape[-2:])
        with av.open(file, "w", format="mp4") as target:
            stream = target.add_stream("libx264", rate=24, options={"crf": str(crf)})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for frame in frames[..., :height, :width]:
                target.mux(stream.encode(av.VideoFrame.from_ndarray(to_pixels(frame), format="rgb24")))
            target.mux(stream.encode())
        file.seek(0)
        with av.open(file) as source:
            return torch.stack([to_tensor(f.to_ndarray(format="rgb24")) for f in source.decode(video=0)])

    return compress


def resized(frames: Tensor, scale: float) -> Tensor:
    return F.interpolate(frames, scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)


def middle(frames: Tensor, share: float) -> Tensor:
    height, width = (round(share * side) for side in frames.shape[-2:])
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def at_rate(frames: Tensor, old: int, new: int) -> Tensor:
    """Frames dropped or shown twice."""
    return frames[(torch.arange(len(frames) * new // old) * old) // new]


def turned(frames: Tensor, degrees: float) -> Tensor:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    ratio = frames.shape[-1] / frames.shape[-2]
    matrix = torch.tensor([[[cosine, -sine / ratio, 0], [sine * ratio, cosine, 0]]])
    grid = F.affine_grid(matrix.expand(len(frames), -1, -1), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, "bilinear", "border", align_corners=False)


def blurred(frames: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-0.5 * (torch.arange(-6, 7) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    padded = F.pad(frames, (6, 6, 6, 6), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.mT, groups=3)


def median(frames: Tensor) -> Tensor:
    """A denoiser of the strong kind: the median of 5×5 pixels."""
    padded = F.pad(frames, (2, 2, 2, 2), mode="replicate")
    return torch.stack([f.unfold(1, 5, 1).unfold(2, 5, 1).flatten(3).median(3).values for f in padded])


def screenshot(frames: Tensor) -> Tensor:
    """One frame, shown larger, cut off-center, brighter, saved as JPEG."""
    shown = resized(frames[:1], 1.3)[..., 9:-25, 13:-21] ** 0.9
    file = io.BytesIO()
    Image.fromarray(to_pixels(shown[0])).save(file, "JPEG", quality=80)
    return to_tensor(np.array(Image.open(file)))[None]


PROMISED: dict[str, Attack] = {
    "untouched": lambda frames: frames,
    "H.264 crf 18": h264(18),
    "H.264 crf 23": h264(23),
    "H.264 crf 28": h264(28),
    "0.75 scale": lambda frames: resized(frames, 0.75),
    "1.5 scale": lambda frames: resized(frames, 1.5),
    "center crop, 10 % of each side": lambda frames: middle(frames, 0.9),
    "center crop, 10 % of the area": lambda frames: middle(frames, math.sqrt(0.9)),
    "30 to 24 frames a second": lambda frames: at_rate(frames, 30, 24),
    "25 to 30 frames a second": lambda frames: at_rate(frames, 25, 30),
    "12 frames": lambda frames: frames[9:21],
}
HARDER: dict[str, Attack] = {
    "H.264 crf 35": h264(35),
    "0.5 scale": lambda frames: resized(frames, 0.5),
    "center crop, 30 % of each side": lambda frames: middle(frames, 0.7),
    "1 frame": lambda frames: frames[:1],
    "mirrored": lambda frames: frames.flip(3),
    "stretched by 5 % in one direction": lambda frames: F.interpolate(
        frames, (frames.shape[-2], round(1.05 * frames.shape[-1])), mode="bilinear"
    ),
    "turned by 1°": lambda frames: turned(frames, 1.0),
    "blur, sigma 1.5 pixels": lambda frames: blurred(frames, 1.5),
    "median of 5×5 pixels": median,
    "screenshot of one frame, JPEG": screenshot,
}


# ---- measures


def bit_accuracy(found: Detection) -> float:
    pairs = zip(found.message, message_of(IDENTIFIER), strict=True)
    return 1 - sum((read ^ meant).bit_count() for read, meant in pairs) / (8 * len(found.message))


def psnr(frames: Tensor, marked: Tensor) -> float:
    """Of the worst frame."""
    error = (to_bytes(frames) - to_bytes(marked)).square().mean((1, 2, 3)).max()
    return float(10 * torch.log10(255**2 / error))


def to_bytes(frames: Tensor) -> Tensor:
    return (255 * frames).round()


def hidden() -> None:
    print("| clip | PSNR of the worst frame |\n| --- | --- |")
    for name, frames in marked_clips().items():
        print(f"| {name} | {psnr(frames, mark(frames, IDENTIFIER)):.1f} dB |")


def attacks(group: dict[str, Attack]) -> None:
    marked = [in_bytes(mark(frames, IDENTIFIER)) for frames in marked_clips().values()]
    packed = [h264(23)(frames) for frames in marked]
    print("\n| attack | found | bit accuracy | lowest score | found, crf 23 before and after "
          "| bit accuracy | lowest score |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, attack in group.items():
        alone = [detect([in_bytes(attack(frames))]) for frames in marked]
        between = [detect([h264(23)(attack(frames))]) for frames in packed]
        print(f"| {name} | {summary(alone)} | {summary(between)} |", flush=True)


def summary(found: list[Detection]) -> str:
    right = sum(each.identifier == IDENTIFIER for each in found)
    accuracy = statistics.mean(map(bit_accuracy, found))
    return f"{right} of {len(found)} | {accuracy:.3f} | {min(each.score for each in found):.1f}"


def false_positives() -> None:
    found = [detect([clip]) for clip in unmarked_clips()]
    scores = [each.score for each in found]
    print(f"\nunmarked clips: {len(found)}, found: {sum(each.found for each in found)}, "
          f"score above {THRESHOLD:g}: {sum(score > THRESHOLD for score in scores)}, "
          f"median score {statistics.median(scores):.1f}, highest {max(scores):.1f}", flush=True)  # fmt: skip


def speed() -> None:
    frames = resized(torch.stack(list(read_frames(EXAMPLES / "driving.mp4"))[:16]), 2.0)
    print(f"\n512×512, {torch.get_num_threads()} threads, milliseconds a frame, median of 15:")
    marking, clock = measured(lambda: mark(frames, IDENTIFIER), len(frames))
    plain, plain_clock = measured(lambda: [frame.mul(255).round().byte() for frame in frames], len(frames))
    print(f"mark {marking:.2f} (processor time {clock:.2f}), plain conversion to 8 bits {plain:.2f} "
          f"({plain_clock:.2f}), ratio {marking / plain:.1f} ({clock / plain_clock:.1f})")  # fmt: skip
    seconds, clock = measured(lambda: detect([frames[:1]]), 1, 3)
    print(f"detect in one frame {seconds:.0f} ({clock:.0f})")


def measured(work: Callable[[], object], frames: int, times: int = 15) -> tuple[float, float]:
    """Milliseconds a frame by the clock on the wall, and of the processors."""
    walls, clocks = [], []
    for _ in range(times):
        wall, clock = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        clocks.append(time.process_time() - clock)
    return 1e3 * statistics.median(walls) / frames, 1e3 * statistics.median(clocks) / frames


PARTS: dict[str, Callable[[], None]] = {
    "hidden": hidden,
    "promised": lambda: attacks(PROMISED),
    "harder": lambda: attacks(HARDER),
    "false": false_positives,
    "speed": speed,
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, part in PARTS.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
