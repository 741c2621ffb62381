"""Portrait crops: which face, how calmly the square follows, frames without a face, faces of a group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anifacediff_core.capture import search
from anifacediff_core.capture.detector import Detection
from anifacediff_core.capture.extract import Models, crop_portrait
from anifacediff_core.capture.missing import MISSING, last_valid_index
from anifacediff_core.capture.portrait import Portrait, find_portrait, following
from anifacediff_core.capture.search import Follower
from anifacediff_core.capture.tracker import Tracker
from anifacediff_core.errors import InputError
from anifacediff_core.video import read_image
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models
from harness.allocations import Allocations
from harness.discs import Discs, discs
from harness.extension import ROOT

SIZE = 512  # pixels of a portrait's side, in which its motion is told
EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"


@pytest.fixture(scope="module")
def bundled() -> Models:
    """The detector that comes with the project."""
    checkpoint = load_checkpoint(ROOT / "anifacediff_core" / "assets" / "demo.safetensors")
    return load_face_models(checkpoint)


def known(squares: Tensor, gaps: tuple[int, ...]) -> list[list[Detection]]:
    places = [tuple(square) for square in squares.tolist()]
    return [[] if i in gaps else [Detection(0.9, place)] for i, place in enumerate(places)]


def walk(frames: int, noise: float = 0.0, distance: float = 0.3, pace: float = 1.5) -> tuple[Tensor, Tensor]:
    """Face squares of someone who steps aside in the middle, read with an error; and the true ones.

    Args:
        noise: of place, twice that of the side, as a share of the side.
    """
    step = distance * torch.sigmoid((torch.arange(frames) - frames / 2) / pace)
    true = torch.stack([0.2 + step, torch.full_like(step, 0.25), torch.full_like(step, 0.3)], 1)
    error = torch.randn(frames, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 2.0])
    return true + noise * 0.3 * error, true


def locate(squares: Tensor, gaps: tuple[int, ...] = (), **options: Any) -> Portrait:
    """The portrait of a video of 96 × 72 pixels whose faces are known."""
    frames = torch.zeros(len(squares), 3, 72, 96)
    return find_portrait(frames, Discs(), Tracker(), faces=known(squares, gaps), **options)


def motion(squares: Tensor) -> Tensor:
    """How far left, top and side stray, root mean square in pixels of the portrait (3,)."""
    return (squares - squares.mean(0)).square().mean(0).sqrt() / squares[:, 2].mean() * SIZE


def lag(true: Tensor, found: Tensor, most: int = 8) -> float:
    """Frames by which `found` is behind: where the speeds' correlation peaks, to parts of frames."""
    first, second = (values.diff() - values.diff().mean() for values in (true, found))
    inner = slice(most, len(first) - most)
    shifts = [(first[inner] * second.roll(-shift)[inner]).sum() for shift in range(-most, most + 1)]
    peak = int(torch.stack(shifts).argmax())
    before, here, after = shifts[peak - 1 : peak + 2]
    return peak - most + float((before - after) / (before - 2 * here + after) / 2)


# ---- still and following


@pytest.mark.parametrize("noise", [0.0005, 0.002, 0.004])
@pytest.mark.parametrize("frames", [24, 96, 240])
def test_a_still_face_keeps_the_crop_still(noise: float, frames: int) -> None:
    """The bundled detector errs by 0.0003 to 0.001 of the side on video noise, see the test below."""
    squares, _ = walk(frames, noise, distance=0)
    path = locate(squares, motion="follow").square
    raw = locate(squares, motion="follow", smoothing=0).square
    assert (motion(path)[:2] < 0.2).all() and (motion(raw) > 4 * motion(path)).all()


def test_the_bundled_detector_on_video_noise(bundled: Models) -> None:
    """Real pixels, real detector: still within 0.2 pixels of the portrait."""
    picture = read_image(EXAMPLES / "scene.jpg")
    noise = torch.randn(16, *picture.shape[1:], generator=torch.Generator().manual_seed(0))
    noisy = (picture + 0.02 * noise).clamp(0, 1)
    found = find_portrait(noisy, bundled, Tracker(), motion="follow")
    assert found.square.shape == (16, 3) and not found.frames_without_face
    assert (motion(found.square) < 0.2).all()
    assert find_portrait(noisy[:4], bundled, Tracker()).square.shape == (3,)


@pytest.mark.parametrize("pace", [0.5, 1.5, 4.0])
def test_a_moving_face_is_followed_without_lag(pace: float) -> None:
    squares, true = walk(120, noise=0.001, pace=pace)
    path = locate(squares, motion="follow").square
    found, center = path[:, 0] + path[:, 2] / 2, true[:, 0] + true[:, 2] / 2
    assert abs(lag(center, found)) < 0.2
    # nor is it rounded off: it is where the face is
    assert ((found - center).abs() / path[:, 2] * SIZE).max() < 3
    assert motion(path)[2] < 0.3


def test_what_lags_is_told_by_the_correlation() -> None:
    _, true = walk(120)
    assert lag(true[:, 0], true[:, 0].roll(3)) == pytest.approx(3, abs=0.1)


def test_one_square_for_a_whole_clip() -> None:
    squares, true = walk(48, noise=0.002)
    found = locate(squares)
    assert found.square.shape == (3,) and found.frames == 48
    left, top, side = found.square.tolist()
    assert left < float(true[:, 0].min()) and left + side > float((true[:, 0] + true[:, 2]).max())
    assert top >= 0 and top + side <= 0.75 + 1e-6


def test_a_turning_head_does_not_breathe() -> None:
    """The face square shrinks by a tenth and grows again, twice a second."""
    squares, _ = walk(96, distance=0)
    squares[:, 2] *= 1 + 0.1 * torch.sin(torch.arange(96) * 2 * torch.pi / 12)
    side = locate(squares, motion="follow").square[:, 2]
    assert (side.max() - side.min()) / side.mean() < 0.02 and side.diff().abs().max() / side.mean() < 0.0005


def test_someone_who_comes_nearer_fills_the_portrait() -> None:
    squares = torch.tensor([0.4, 0.3, 0.2]).repeat(240, 1)
    squares[:, 2] += torch.linspace(0, 0.2, 240)
    path = locate(squares, motion="follow").square
    assert path[0, 2] == pytest.approx(1.25 * 0.2, rel=0.15) and path[-1, 2] == pytest.approx(0.5, rel=0.1)


def test_squares_stay_in_the_picture_where_they_fit() -> None:
    squares, _ = walk(48, distance=0.6)
    for margin in (0.0, 0.25, 2.0):
        path = locate(squares, motion="follow", margin=margin).square
        assert (path[:, :2] >= 0).all() and (path[:, 0] + path[:, 2] <= 1 + 1e-6).all()
        assert (path[:, 1] + path[:, 2] <= 0.75 + 1e-6).all()


def test_outliers_do_not_move_the_crop() -> None:
    squares, _ = walk(48, noise=0.001, distance=0)
    squares[20] += torch.tensor([0.05, 0.0, 0.05])
    assert (motion(locate(squares, motion="follow").square)[:2] < 0.2).all()


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_short_clips(frames: int) -> None:
    found = locate(walk(frames)[0], motion="follow")
    assert found.square.shape == ((3,) if frames == 1 else (frames, 3)) and found.square.isfinite().all()


def test_the_margin_is_a_share_of_the_face() -> None:
    squares, _ = walk(5, distance=0)
    assert [float(locate(squares, margin=margin).square[2]) for margin in (0.2, 0.5, 1.0)] == pytest.approx(
        [0.36, 0.45, 0.6], rel=1e-4
    )
    assert float(locate(squares, margin=2.0).square[2]) == pytest.approx(0.75)


# ---- frames without a face


def test_frames_without_a_face_are_filled_in_or_held() -> None:
    squares, _ = walk(12, distance=0.3, pace=4.0)
    gap = (0, 5, 6, 7)
    path = locate(squares, gap, motion="follow", smoothing=0.0, missing="interpolate").square
    assert torch.allclose(path[5:8, 0], path[4, 0] + (path[8, 0] - path[4, 0]) * torch.arange(1, 4) / 4)
    path = locate(squares, gap, motion="follow", smoothing=0.0, missing="hold").square
    assert torch.equal(path[5:8], path[4].expand(3, 3)) and torch.equal(path[0], path[1])


def test_frames_without_a_face_are_left_out() -> None:
    squares, _ = walk(12)
    found = locate(squares, (0, 5, 6, 11), missing="skip", motion="follow")
    assert found.skipped == (0, 5, 6, 11) and found.kept == [1, 2, 3, 4, 7, 8, 9, 10]
    assert len(found.square) == found.frames == 8
    # where they were, time goes on: the others lie where they lie with the gap filled in
    whole = locate(squares, (0, 5, 6, 11), motion="follow").square
    assert torch.equal(found.square, whole[found.kept])
    assert "left out" in found.note and "0, 5-6, 11" in found.note


def test_frames_without_a_face_stop_the_run() -> None:
    squares, _ = walk(60)
    with pytest.raises(InputError, match="frame 3, 5-6:") as error:
        locate(squares, (3, 5, 6), missing="stop")
    assert len(str(error.value)) < 300
    with pytest.raises(InputError, match="…") as error:
        locate(squares, tuple(range(0, 60, 2)), missing="stop")
    assert len(str(error.value)) < 300
    assert locate(squares, missing="stop").frames_without_face == []


@pytest.mark.parametrize("missing", MISSING)
def test_no_face_at_all(missing: str) -> None:
    with pytest.raises(InputError, match="no face was found"):
        locate(torch.rand(3, 3), (0, 1, 2), missing=missing)


def test_unknown_choices() -> None:
    for options, said in (({"missing": "ignore"}, "ignore"), ({"motion": "wild"}, "wild")):
        with pytest.raises(InputError, match=said):
            locate(walk(3)[0], **options)


def test_held_frames() -> None:
    valid = torch.tensor([False, True, False, False, True, False])
    assert last_valid_index(valid).tolist() == [1, 1, 1, 1, 4, 4]


# ---- which face

GROUP = ((40, 50, 7), (110, 44, 8), (170, 60, 12), (250, 40, 6), (285, 110, 9))  # of 320 × 160 pixels


@pytest.mark.parametrize(
    ("tracker", "expected"),
    [
        *[(Tracker(face=number), number - 1) for number in range(1, 6)],
        (Tracker(choice="largest"), 2),
        (Tracker(choice="nearest", place=(0.8, 0.2)), 3),
        (Tracker(choice="nearest", place=(1.0, 1.0)), 4),
        (Tracker(choice="nearest", place=(0.0, 0.0), face=5), 0),
    ],
)
def test_every_face_of_a_group(tracker: Tracker, expected: int) -> None:
    """The detector sees none of them in the whole picture."""
    models = Discs(least=0.25)
    picture = discs(160, 320, *GROUP)
    assert models.detect(picture) == [[]]
    found = find_portrait(picture, models, tracker)
    x, _, radius = GROUP[expected]
    left, _, side = (320 * found.square).tolist()
    assert side == pytest.approx(5 * radius, abs=3) and left + side / 2 == pytest.approx(x, abs=1)
    assert "up to 5 faces" in found.note


def test_a_number_that_no_face_has() -> None:
    with pytest.raises(InputError, match="face number 6 from the left was not found among up to 5"):
        find_portrait(discs(160, 320, *GROUP), Discs(least=0.25), Tracker(face=6))


def test_a_large_face_needs_no_search() -> None:
    models, picture = Discs(), discs(100, 100, (50, 50, 24))
    find_portrait(picture, models, Tracker())
    assert models.sizes == [(100, 100)]


def test_people_who_come_in_later_are_counted_too() -> None:
    """Only the large face is seen in the whole picture."""
    empty, group = discs(160, 320), discs(160, 320, (40, 50, 7), (220, 80, 40))
    video = torch.cat([empty, empty, *[group] * 6])
    found = find_portrait(video, Discs(least=0.25), Tracker(face=1), motion="follow", missing="skip")
    left, _, side = (320 * found.square.median(0).values).tolist()
    assert found.skipped == (0, 1) and left + side / 2 == pytest.approx(40, abs=1)


def test_small_faces_are_followed_within_a_window() -> None:
    models = Discs(least=0.25)
    places = [(40 + 4 * number, 50, 7) for number in range(40)]
    video = torch.cat([discs(160, 320, place, (40, 120, 7)) for place in places])
    found = find_portrait(video, models, Tracker(choice="nearest", place=(0.1, 0.3)), motion="follow")
    assert found.frames_without_face == []
    center = 320 * (found.square[:, 0] + found.square[:, 2] / 2)
    assert (center - torch.tensor([float(x) for x, *_ in places])).abs().max() < 2
    assert max(models.sizes[-40:]) < (100, 100)


def test_the_window_rests_while_the_face_is_inside() -> None:
    follower = Follower(Discs(least=0.25), Tracker(face=1))
    regions = set()
    for number in range(8):
        follower.follow(discs(160, 320, (100 + number % 3, 60, 7)))
        regions.add(follower._region)
    assert len(regions) == 1


def test_parts_of_faces_are_no_faces() -> None:
    """Where a part's edge cuts a disc, what remains of it is not taken for a face of its own."""
    found = search.search(discs(160, 320, *GROUP), Discs(least=0.1))
    assert sorted(round(320 * face.center[0]) for face in found) == [place[0] for place in GROUP]


def test_the_bundled_detector_sees_every_face_of_a_group(bundled: Models) -> None:
    tile = F.interpolate(read_image(EXAMPLES / "source.png"), 96, mode="area")
    group = torch.cat([tile, tile.flip(-1), tile, tile.flip(-1), tile], 3)
    found = find_portrait(group, bundled, Tracker(face=4))
    assert "up to 5 faces" in found.note
    assert 3 < float(found.square[0] + found.square[2] / 2) * 5 < 4


# ---- pixels


def test_portraits_are_cut_out_of_what_remains() -> None:
    video = torch.rand(6, 3, 40, 50)
    squares = torch.tensor([0.1, 0.1, 0.5]) + 0.1 * torch.rand(4, 3)
    found = crop_portrait(video, squares, 24, [0, 2, 3, 5])
    assert found.movedim(1, -1).is_contiguous()
    for number, frame in enumerate((0, 2, 3, 5)):
        assert torch.allclose(found[number], crop_portrait(video[frame, None], squares[number], 24)[0])


@pytest.mark.parametrize("channels", [3, 4])
def test_nothing_but_the_result_grows_with_the_video(channels: int) -> None:
    frames, height, width = 200, 48, 64
    video, models, faces = torch.rand(frames, channels, height, width), Discs(), known(walk(frames)[0], ())
    with Allocations() as allocated:
        found = find_portrait(video, models, Tracker(), motion="follow", faces=faces)
        portrait = crop_portrait(video, found.square, 32)
    assert not allocated.larger_than(30 * 4 * 4 * height * width, video, portrait)


def test_progress_and_cancelling() -> None:
    seen: list[tuple[int, int]] = []

    def cancel(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        locate(walk(40)[0], progress=cancel)
    assert seen == [(16, 40)]


def test_following_counts_only_what_was_seen() -> None:
    """Filled frames tremble less; the noise is that of the others."""
    squares, _ = walk(60, noise=0.003, distance=0)
    valid = torch.ones(60, dtype=torch.bool)
    valid[10:50] = False
    squares[10:50] = torch.lerp(squares[9], squares[50], torch.linspace(0, 1, 40)[:, None])
    path = following(squares, valid, 1.0, 0.75, 0.25, 0.5)
    assert (motion(path)[:2] < 0.5).all()
