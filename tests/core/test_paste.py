"""Putting a portrait back: the inverse of cutting it out, edges, colors, masks, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anifacediff_core.capture.extract import crop_portrait, rgb
from anifacediff_core.capture.paste import paste_back
from anifacediff_core.errors import InputError
from harness.allocations import Allocations

SQUARE = torch.tensor([0.2103, 0.1511, 0.4871])
SQUARES = {
    "whole pixels": torch.tensor([0.25, 0.125, 0.5]),
    "parts of pixels": SQUARE,
    "over the left and upper border": torch.tensor([-0.1, -0.05, 0.5]),
    "over the right and lower border": torch.tensor([0.6, 0.4, 0.5]),
    "larger than the picture": torch.tensor([-0.1, -0.2, 1.2]),
}


def picture(height: int = 240, width: int = 320, frames: int = 1, seed: int = 0) -> Tensor:
    """Smooth noise with an edge in it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, height // 8, width // 8, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    smooth[..., height // 3 : height // 2, width // 3 : width // 2] *= 0.7
    return smooth


def psnr(found: Tensor, expected: Tensor) -> float:
    return float(-10 * torch.log10((found - expected).square().mean() + 1e-12))


@pytest.mark.parametrize("square", SQUARES.values(), ids=SQUARES)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_an_untouched_portrait_changes_nothing_that_one_sees(square: Tensor, factor: int) -> None:
    original = picture()
    portrait = crop_portrait(original, square, factor * round(float(square[2]) * 320))
    found, mask = paste_back(portrait, original, square, feather=0.0)
    inside = mask[0] > 0
    assert found.shape == original.shape and mask.shape == (1, 240, 320)
    assert psnr(found[0][:, inside], original[0][:, inside]) > 40
    assert torch.equal(found[0][:, ~inside], original[0][:, ~inside])


@pytest.mark.parametrize("square", SQUARES.values(), ids=SQUARES)
def test_pixels_land_where_they_were_cut_out(square: Tensor) -> None:
    """Colors that tell the place, so that half a pixel of shift would show."""
    height, width = 60, 80
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    y = ((torch.arange(height) + 0.5) / width)[:, None].expand(height, width)
    steps = (torch.arange(64) + 0.5) / 64 * square[2]
    across, down = (square[0] + steps).expand(64, 64), (square[1] + steps)[:, None].expand(64, 64)
    portrait = torch.stack([across, down, torch.zeros(64, 64)])[None].mul(0.5).add(0.3)
    found, mask = paste_back(portrait, torch.zeros(1, 3, height, width), square, feather=0.0)
    expected = torch.stack([x, y, torch.zeros(height, width)]).mul(0.5).add(0.3)
    inner = F.avg_pool2d(mask[None], 7, 1, 3)[0, 0] > 0.999  # away from the portrait's own border
    assert inner.any()
    assert (found[0] - expected)[:, inner].abs().max() < 0.05 * 0.5 / width  # of a pixel


def test_outside_of_the_mask_nothing_changes_by_a_bit() -> None:
    original = picture()
    found, mask = paste_back(torch.rand(1, 3, 99, 99), original, SQUARE, feather=0.1, match_color=1.0)
    outside = mask[0] == 0
    assert 0.6 < outside.float().mean() < 0.8
    assert torch.equal(found[0][:, outside], original[0][:, outside])


def test_the_result_lies_in_memory_as_hosts_keep_it() -> None:
    found, _ = paste_back(torch.rand(3, 3, 32, 32), picture(64, 64), SQUARE)
    assert found.movedim(1, -1).is_contiguous()


def test_a_large_portrait_is_averaged() -> None:
    """A checkerboard of single pixels becomes gray, not moiré."""
    board = ((torch.arange(512)[:, None] + torch.arange(512)) % 2).float().expand(1, 3, 512, 512)
    found, mask = paste_back(board, torch.full((1, 3, 160, 160), 0.5), torch.tensor([0.1, 0.1, 0.71]))
    assert (found[0][:, mask[0] > 0] - 0.5).abs().max() < 0.02


def test_sizes_are_changed_as_pillow_does_it() -> None:
    portrait, whole = torch.rand(1, 3, 200, 200), torch.tensor([0.0, 0.0, 1.0])
    for size in (60, 333):
        found, _ = paste_back(portrait, torch.zeros(1, 3, size, size), whole)
        scaled = Image.fromarray(portrait[0, 0].numpy()).resize((size, size), Image.Resampling.LANCZOS)
        expected = torch.from_numpy(np.array(scaled)).clamp(0, 1)
        inner = slice(10, -10)  # at the border Pillow leaves out what this repeats
        assert (found[0, 0, inner, inner] - expected[inner, inner]).abs().max() < 1e-3


def test_results_are_colors() -> None:
    """Around an edge the resampling swings beyond black and white."""
    portrait = torch.zeros(1, 3, 32, 32)
    portrait[..., 16:] = 1
    found, _ = paste_back(portrait, torch.full((1, 3, 100, 100), 0.5), torch.tensor([0.0, 0.0, 1.0]))
    assert found.min() == 0 and found.max() == 1


def test_the_edge_is_soft_inside_the_square() -> None:
    square = torch.tensor([0.25, 0.25, 0.5])
    _, mask = paste_back(torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 80, 80), square, feather=0.25)
    row = mask[0, 40]
    assert (row[:20] == 0).all() and (row[60:] == 0).all()
    assert (row[20:30].diff() > 0).all() and (row[30:50] == 1).all()
    assert torch.equal(row, row.flip(0)) and torch.equal(mask[0], mask[0].T)
    assert 2 * row[20:22].diff() < row[24:26].diff() > 2 * row[28:30].diff()


def test_an_edge_on_the_border_is_not_soft() -> None:
    """There the original would show through along the picture's own border."""
    whole = torch.tensor([0.0, 0.0, 1.0])
    _, mask = paste_back(torch.rand(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), whole)
    assert (mask == 1).all()
    _, mask = paste_back(torch.rand(1, 3, 32, 32), picture(80, 80), torch.tensor([-0.1, 0.2, 0.5]))
    assert (mask[0, 20:50, 0] > 0).any() and mask[0, 36, 0] == 1 and mask[0, 36, 30:34].max() < 1


def test_videos_are_pasted_frame_by_frame() -> None:
    original, portrait = picture(frames=3, seed=1), torch.rand(3, 3, 50, 50)
    told: list[tuple[int, int]] = []
    found, _ = paste_back(portrait, original, SQUARE, progress=lambda done, total: told.append((done, total)))
    for number in range(3):
        single, _ = paste_back(portrait[number, None], original[number, None], SQUARE)
        assert torch.allclose(found[number], single[0], atol=1e-6)
    assert told == [(1, 3), (2, 3), (3, 3)]
    still, _ = paste_back(portrait, original[:1], SQUARE)
    assert torch.allclose(still[0], found[0], atol=1e-6)
    assert not torch.allclose(still[1], found[1], atol=1e-2)


def test_cancelling_stops_at_once() -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        seen.append(done)
        raise Cancelled

    seen: list[int] = []
    with pytest.raises(Cancelled):
        paste_back(torch.rand(9, 3, 32, 32), picture(64, 64), SQUARE, progress=cancel)
    assert seen == [1]


def test_colors_of_the_ring_are_matched() -> None:
    original = picture()
    portrait = crop_portrait(original, SQUARE, 156) * torch.tensor([0.7, 0.8, 0.9])[:, None, None] + 0.05
    none, half, whole = (paste_back(portrait, original, SQUARE, match_color=a)[0] for a in (0.0, 0.5, 1.0))
    assert (whole - original).abs().mean() < 0.003 < 0.015 < (none - original).abs().mean()
    assert (half - (none + whole) / 2).abs().mean() < 1e-4


def test_the_middle_has_no_say_in_the_colors() -> None:
    original = picture()
    portrait = crop_portrait(original, SQUARE, 156)
    portrait[..., 40:-40, 40:-40] = 1
    found, _ = paste_back(portrait, original, SQUARE, match_color=1.0)
    without, _ = paste_back(portrait, original, SQUARE)
    assert torch.allclose(found, without, atol=0.02)


def test_one_correction_for_all_frames() -> None:
    """Frames that differ in brightness keep differing, whatever the ring of each says."""
    original, portrait = torch.full((1, 3, 64, 64), 0.5), torch.full((2, 3, 32, 32), 0.4)
    portrait[1] += 0.1
    found, _ = paste_back(portrait, original, SQUARE, match_color=1.0)
    middle = found[:, 0, 25, 29]
    assert middle[1] - middle[0] > 0.02 and middle.mean() == pytest.approx(0.5, abs=0.01)


def test_color_matching_without_an_edge_leaves_the_portrait() -> None:
    portrait = torch.rand(1, 3, 32, 32)
    found, _ = paste_back(portrait, torch.zeros(1, 3, 32, 32), torch.tensor([0.0, 0.0, 1.0]), match_color=1.0)
    assert torch.allclose(found, portrait, atol=1e-5)


def test_a_mask_says_where_the_portrait_may_show() -> None:
    original, portrait = picture(), torch.rand(2, 3, 50, 50)
    allowed = torch.zeros(1, 240, 320)
    allowed[:, :, :150] = 1
    found, mask = paste_back(portrait, original, SQUARE, mask=allowed)
    free, _ = paste_back(portrait, original, SQUARE)
    assert mask.shape == (1, 240, 320) and (mask[..., 150:] == 0).all()
    assert torch.equal(found[..., 150:], original[..., 150:].expand(2, -1, -1, -1))
    assert torch.allclose(found[..., :150], free[..., :150], atol=1e-6)
    smaller, _ = paste_back(portrait, original, SQUARE, mask=allowed[:, ::2, ::2])
    assert torch.allclose(smaller[..., :140], found[..., :140], atol=1e-6)
    assert torch.equal(smaller[..., 160:], found[..., 160:])


def test_each_frame_can_have_a_mask() -> None:
    original, portrait = picture(), torch.rand(2, 3, 50, 50)
    allowed = torch.stack([torch.zeros(240, 320), torch.ones(240, 320)])
    found, mask = paste_back(portrait, original, SQUARE, mask=allowed)
    free, shown = paste_back(portrait, original, SQUARE)
    assert torch.equal(found[0], original[0]) and torch.allclose(found[1], free[1], atol=1e-6)
    assert (mask[0] == 0).all() and torch.allclose(mask[1], shown[0], atol=1e-6)


def test_a_mask_beyond_its_limits_is_cut_off() -> None:
    original, portrait = picture(), torch.rand(2, 3, 50, 50)
    allowed = torch.ones(1, 240, 320)
    expected, shown = paste_back(portrait, original, SQUARE, mask=allowed)
    found, mask = paste_back(portrait, original, SQUARE, mask=3 * allowed)
    assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(mask, shown, atol=1e-6)


# ---- squares that follow the face, frames that were left out


def path(frames: int, start: float = 0.1, end: float = 0.4) -> Tensor:
    """Squares that move by parts of pixels."""
    left = torch.linspace(start, end, frames)
    return torch.stack([left, 0.1 + 0.2 * left, torch.full_like(left, 0.4)], 1)


def test_moving_squares_are_pasted_one_by_one() -> None:
    original, squares, portrait = picture(frames=4, seed=1), path(4), torch.rand(4, 3, 50, 50)
    found, mask = paste_back(portrait, original, squares)
    assert mask.shape == (4, 240, 320)
    for number in range(4):
        single, shown = paste_back(portrait[number, None], original[number, None], squares[number])
        assert torch.allclose(found[number], single[0], atol=1e-6)
        assert torch.allclose(mask[number], shown[0], atol=1e-6)


def test_a_following_crop_comes_back_where_it_was() -> None:
    original, squares = picture(frames=3, seed=2), path(3, 0.0, 0.6)
    for size in (128, 300):
        found, _ = paste_back(crop_portrait(original, squares, size), original, squares)
        assert psnr(found, original) > 40


def test_the_edge_of_a_moving_square_does_not_flicker() -> None:
    """White over black: over many small steps no pixel of the edge leaps or trembles to and fro."""
    steps = 31
    squares = path(steps, 0.1, 0.1 + 6 / 160)  # 6 pixels in 30 steps
    found, mask = paste_back(torch.ones(steps, 3, 32, 32), torch.zeros(1, 3, 120, 160), squares, feather=0.16)
    # the steepest ramp over 0.16 · 64 pixels rises by 1.5 / 10.24 per pixel, and the square moves a fifth
    assert mask.diff(dim=0).abs().max() < 1.1 * 0.2 * 1.5 / 10.24
    # what it uncovers on the left only falls, what it covers on the right only rises
    changes = found[:, 0, 50].diff(dim=0)
    assert (changes[:, :40] < 1e-5).all() and (changes[:, 60:] > -1e-5).all()


@pytest.mark.parametrize("feather", [0.0, 0.08])
def test_an_edge_fades_where_it_meets_the_border(feather: float) -> None:
    """A soft edge that vanished all at once when it touches the border would flash."""
    steps = 120
    squares = torch.tensor([0.0, 0.25, 0.5]).repeat(steps, 1)
    squares[:, 0] = torch.linspace(-2.0, 14.0, steps) / 80
    _, mask = paste_back(torch.ones(steps, 3, 32, 32), torch.zeros(1, 3, 80, 80), squares, feather=feather)
    speed = 16 / steps
    assert mask.diff(dim=0).abs().max() < 3 * speed
    assert mask[0, 40, 0] == 1 and mask[-1, 40, 0] == 0


def test_frames_that_were_left_out_stay_as_they_are() -> None:
    original, portrait, skipped = picture(frames=6, seed=3), torch.rand(4, 3, 40, 40), (1, 4)
    for square in (SQUARE, path(4)):
        found, mask = paste_back(portrait, original, square, skipped=skipped, match_color=0.5)
        kept = [0, 2, 3, 5]
        expected, shown = paste_back(portrait, original[kept], square, match_color=0.5)
        assert torch.allclose(found[kept], expected, atol=1e-6)
        assert torch.allclose(mask[kept], shown.expand(4, -1, -1), atol=1e-6)
        assert torch.equal(found[[1, 4]], original[[1, 4]]) and (mask[[1, 4]] == 0).all()
    # only the kept frames, or a single picture: one after the other
    assert len(paste_back(portrait, original[:4], SQUARE, skipped=skipped)[0]) == 4
    assert len(paste_back(portrait, original[:1], SQUARE, skipped=skipped)[0]) == 4


def test_colors_do_not_flicker_with_a_moving_square() -> None:
    """The ring lies on another ground in each frame, the correction is one for all."""
    original, squares = picture(frames=1).expand(4, -1, -1, -1), path(4, 0.0, 0.6)
    portrait = torch.full((4, 3, 48, 48), 0.4)
    found, mask = paste_back(portrait, original, squares, match_color=1.0)
    middle = torch.stack([frame[:, shown == 1].mean(1) for frame, shown in zip(found, mask)])
    assert middle.std(0).max() < 1e-4


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("moving", [False, True])
def test_nothing_but_the_result_grows_with_the_video(channels: int, moving: bool) -> None:
    frames, height, width = 40, 48, 64
    original, portrait = torch.rand(frames, channels, height, width), torch.rand(frames, channels, 32, 32)
    with Allocations() as allocated:
        found, mask = paste_back(portrait, original, path(frames) if moving else SQUARE, match_color=1.0)
    # the ring's colors are of 16 frames at most
    assert not allocated.larger_than(6 * 4 * 3 * height * width, original, portrait, found, mask)


# ---- forms of pictures


def test_an_ellipse_leaves_out_the_corners() -> None:
    square = torch.tensor([0.25, 0.25, 0.5])
    _, mask = paste_back(torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 160, 160), square, shape="ellipse")
    shown = mask[0, 40:120, 40:120]
    assert shown[40, 40] == 1 and shown[:8, :8].max() == 0 and (mask[0, :40] == 0).all()
    assert torch.allclose(shown, shown.flip(0)) and torch.allclose(shown, shown.flip(1))
    assert (shown[40] > 0.5).sum() < (shown[:, 40] > 0.5).sum()
    ramp = shown[40, :20]
    assert (ramp.diff() >= 0).all() and ramp.diff().max() < 0.3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_channels(channels: int) -> None:
    """Gray is repeated and transparency laid over gray, of the portrait as well as of the original."""
    original, portrait = torch.rand(2, channels, 60, 80), torch.rand(2, channels, 40, 40)
    found, _ = paste_back(portrait, original, SQUARE, match_color=0.5)
    expected, _ = paste_back(rgb(portrait), rgb(original), SQUARE, match_color=0.5)
    assert found.shape == (2, 3, 60, 80) and torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [24, 64, 100, 500, 1024])
def test_portraits_of_any_size(size: int) -> None:
    """A flat ground with a soft spot, as any upscaler would give it back."""
    y, x = torch.arange(90)[:, None] / 160, torch.arange(160) / 160
    original = (0.3 + 0.4 * torch.exp(-((x - 0.45) ** 2 + (y - 0.3) ** 2) / 0.02)).expand(1, 3, 90, 160)
    found, _ = paste_back(crop_portrait(original, SQUARE, size), original, SQUARE)
    assert (found - original).abs().max() < 0.01


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_precisions(kind: torch.dtype) -> None:
    original, portrait = picture(), torch.rand(2, 3, 50, 50)
    found, _ = paste_back(portrait.to(kind), original.to(kind), SQUARE, match_color=0.5)
    expected, _ = paste_back(portrait, original, SQUARE, match_color=0.5)
    assert found.dtype == kind and (found.float() - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"portrait": torch.rand(2, 3, 32, 40)}, "The portrait is 40×32 pixels"),
        ({"original": torch.rand(3, 3, 64, 64)}, "The original has 3 frames but the portrait has 2"),
        ({"mask": torch.rand(5, 64, 64)}, "The mask has 5 frames but the result has 2"),
        ({"mask": torch.rand(1, 64, 80)}, "The mask has 80×64 pixels but the original 64×64"),
        ({"mask": torch.full((1, 64, 64), torch.nan)}, "The mask has no pixels, or NaN"),
        ({"mask": torch.rand(1, 0, 0)}, "The mask has no pixels"),
        ({"square": SQUARE.repeat(3, 1)}, "follows the face through 3 frames but the portrait has 2"),
        ({"original": torch.rand(3, 3, 64, 64), "skipped": (4, 5)}, "or the 4 that it was cut out of"),
        ({"shape": "star"}, "The shape 'star' is unknown"),
        ({"square": torch.tensor([1.5, 0.0, 0.5])}, "lies outside of the 64×64 pixels"),
        ({"square": torch.tensor([0.5, 0.5, 0.0])}, "lies outside of the 64×64 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    given = {"portrait": torch.rand(2, 3, 32, 32), "original": torch.rand(1, 3, 64, 64), "square": SQUARE}
    with pytest.raises(InputError, match=message):
        paste_back(**{**given, **change})
