"""Motion as material: smoothing, editing, mixing, retiming, files, plots."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anifacediff_core.capture.tracker import smooth_parameters
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.alignment import align
from anifacediff_core.head.editing import edit
from anifacediff_core.head.gaze import gaze_pose
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import TENSORS, FaceParameters
from anifacediff_core.motion.edit import edit_motion, rest_frame
from anifacediff_core.motion.mix import LENGTHS, combine, join, mix
from anifacediff_core.motion.parts import BEGINNINGS, PARTS, expression_names, part_of, require_motion
from anifacediff_core.motion.plot import WIDTH, evenly, plot, preview
from anifacediff_core.motion.retime import DIRECTIONS, exact_rate, loop, retime, trim, turn_back
from anifacediff_core.motion.smoothing import (
    FACE_REACH,
    HEAD_REACH,
    LEAST_EXPRESSION,
    LEAST_TURN,
    noise_std,
    smooth,
    smooth_motion,
    without_spikes,
)

SMOOTHING = 0.3  # what the nodes do by default
# What the bundled encoder's readings of a still portrait tremble by, in degrees about x, y and z, when every
# pixel has noise of 16/255; 8/255, a dark indoor shot, gives half of it.
ENCODER_NOISE = torch.tensor([0.26, 0.18, 0.07])
ONES = dict.fromkeys(("head", *PARTS), 1.0)
STILL = dict.fromkeys(("head", *PARTS), 0.0)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def names(head: HeadModel) -> list[str]:
    return head.expression_names


@pytest.fixture
def driving(head: HeadModel, names: list[str]) -> FaceParameters:
    return motion(head, names)


def motion(head: HeadModel, names: list[str], frames: int = 24, seed: int = 0) -> FaceParameters:
    """A head that turns and talks; frame 5 is at rest."""
    generator = torch.Generator().manual_seed(seed)
    params = head.neutral(frames)
    away = (torch.arange(frames) - 5.0).abs()[:, None] / frames
    params.expression[:] = away * torch.rand(1, len(names), generator=generator)
    params.pose[:, :6] = away * torch.randn(1, 6, generator=generator) * 0.5
    params.pose[:, :6] += 0.02
    params.camera[:] += away * torch.tensor([[3.0 + seed, 0.05, -0.03]])
    params.shape[:] = torch.randn(1, params.shape.shape[1], generator=generator)
    return replace(params, pose=torch.cat([params.pose[:, :9], gaze_pose(params.expression, names)], 1))


def flame(frames: int = 12) -> FaceParameters:
    generator = torch.Generator().manual_seed(3)
    params = FaceParameters.neutral(frames, "flame", 10, 6)
    params.expression[:] = torch.randn(frames, 6, generator=generator)
    params.pose[:] = 0.3 * torch.randn(frames, 15, generator=generator)
    return params


def same(first: FaceParameters, second: FaceParameters, tolerance: float = 1e-5) -> bool:
    return len(first) == len(second) and all(
        torch.allclose(getattr(first, name).float(), getattr(second, name).float(), atol=tolerance)
        for name in TENSORS
    )


def degrees(turns: Tensor) -> Tensor:
    return turns * 180 / math.pi


def noisy_turns(clean: Tensor, seed: int) -> Tensor:
    """Yaw in degrees (frames,) to axis-angle (frames, 3) as the encoder reads it."""
    noise = torch.randn(len(clean), 3, generator=torch.Generator().manual_seed(seed)) * ENCODER_NOISE
    return (torch.stack([0 * clean, clean, 0 * clean], 1) + noise) * math.pi / 180


def read(head: HeadModel, turns: Tensor) -> FaceParameters:
    params = head.neutral(len(turns))
    return replace(params, pose=torch.cat([params.pose[:, :3], turns, params.pose[:, 6:]], 1))


# ---- smoothing


@pytest.mark.parametrize("seed", range(5))
def test_a_still_head_stays_still(head: HeadModel, names: list[str], seed: int) -> None:
    params = read(head, noisy_turns(torch.zeros(150), seed))
    for smoothed in (
        smooth_motion(params, names, SMOOTHING, SMOOTHING),
        smooth_parameters(params, names, SMOOTHING),  # what DECA Extract does
    ):
        turns = degrees(smoothed.pose[:, 3:6])
        assert (turns - turns.mean(0)).square().sum(1).mean().sqrt() < 0.1
    turns = degrees(params.pose[:, 3:6])
    assert (turns - turns.mean(0)).square().sum(1).mean().sqrt() > 0.28, "the noise is as measured"


@pytest.mark.parametrize("rate", [25, 60])
@pytest.mark.parametrize("speed", [60, 120, 240])
@pytest.mark.parametrize("seed", range(2))
def test_a_fast_turn_neither_lags_nor_shrinks(
    head: HeadModel, names: list[str], rate: int, speed: int, seed: int
) -> None:
    clean = ((torch.arange(3 * rate) / rate - 1) * speed).clamp(0, 30)
    params = read(head, noisy_turns(clean, seed))
    yaw = degrees(smooth_parameters(params, names, SMOOTHING).pose[:, 4])
    assert yaw[-rate:].mean() - yaw[: rate // 2].mean() == pytest.approx(30, rel=0.02)
    assert abs(lag(clean, yaw)) < 0.25, "of a frame"
    assert (yaw - clean).abs().max() < 1.2, "corners stay corners"


def lag(clean: Tensor, found: Tensor) -> float:
    """Frames by which `found` comes later: the peak of the cross-correlation, to a part of a frame."""
    first, second = (values.diff() for values in (clean, found))
    shifts = range(-6, 7)
    scores = torch.stack([(first[6:-6] * second[6 + k : len(second) - 6 + k]).sum() for k in shifts])
    best = int(scores.argmax())
    left, middle, right = scores[best - 1 : best + 2].tolist()
    return shifts[best] + 0.5 * (left - right) / (left - 2 * middle + right)


@pytest.mark.parametrize(("height", "hertz"), [(15.0, 1.0), (10.0, 2.0), (5.0, 0.5)])
def test_shaking_the_head_keeps_its_height(height: float, hertz: float) -> None:
    clean = height * torch.sin(2 * math.pi * hertz * torch.arange(100) / 25)
    smoothed = degrees(smooth(noisy_turns(clean, 1), SMOOTHING, LEAST_TURN, HEAD_REACH, together=True)[:, 1])
    assert (smoothed * clean).sum() / clean.square().sum() == pytest.approx(1, abs=0.03)


def test_blinks_and_speech_survive(head: HeadModel, names: list[str]) -> None:
    params, time = head.neutral(80), torch.arange(80.0)
    generator = torch.Generator().manual_seed(0)
    params.expression[:] = 0.03 * torch.randn(80, len(names), generator=generator).abs()
    blink, jaw = names.index("eyeBlinkLeft"), names.index("jawOpen")
    params.expression[20:24, blink] = torch.tensor([0.5, 1.0, 0.7, 0.2])
    speech = 0.4 + 0.2 * torch.sin(2 * math.pi * time / 6)  # four syllables a second
    params.expression[:, jaw] = speech + 0.03 * torch.randn(80, generator=generator)
    smoothed = smooth_motion(params, names, SMOOTHING, SMOOTHING).expression
    assert smoothed[21, blink] > 0.95
    kept = ((smoothed[:, jaw] - 0.4) * (speech - 0.4)).sum() / (speech - 0.4).square().sum()
    assert kept == pytest.approx(1, abs=0.1)
    assert (
        smoothed[:, names.index("mouthLeft")].std()
        < 0.5 * params.expression[:, names.index("mouthLeft")].std()
    )
    assert smoothed.min() >= 0 and smoothed.max() <= 1


def test_blinks_survive_strong_smoothing(head: HeadModel, names: list[str]) -> None:
    params, blink = head.neutral(60), names.index("eyeBlinkLeft")
    params.expression[:, blink] = 0.02 * torch.randn(60, generator=torch.Generator().manual_seed(0)).abs()
    params.expression[20:24, blink] = torch.tensor([0.5, 1.0, 0.7, 0.2])
    params.expression[30:, names.index("jawOpen")] = 1.0
    smoothed = smooth_motion(params, names, 1.0, 1.0).expression
    assert smoothed[21, blink] > 0.9
    assert smoothed.min() == 0 and smoothed.max() == 1, (
        "a smooth curve that swings over its ends is cut there"
    )


def test_a_moving_head_trembles_less(head: HeadModel, names: list[str]) -> None:
    clean = 20 * torch.sin(torch.arange(150.0) / 12)
    errors = [
        degrees(smooth_motion(read(head, noisy_turns(clean, 2)), names, strength, 0.0).pose[:, 4]) - clean
        for strength in (0.0, 0.6)
    ]
    assert errors[1].std() < 0.8 * errors[0].std()


def test_smoothing_keeps_lines_and_what_it_must_not_touch(head: HeadModel, names: list[str]) -> None:
    line = torch.arange(40.0)[:, None] * torch.tensor([[0.01, -0.02]])
    torch.testing.assert_close(smooth(line, 1.0, 1.0, HEAD_REACH), line, atol=1e-4, rtol=0)
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smooth(noise, 0.0, 0.1, HEAD_REACH), noise)
    for frames in (1, 2, 3, 5):
        assert torch.isfinite(smooth(noise[:frames], 1.0, 0.1, HEAD_REACH)).all()
    params = read(head, noisy_turns(torch.zeros(40), 0))
    only_face = smooth_motion(params, names, 0.0, 1.0)
    assert torch.equal(only_face.pose[:, :6], params.pose[:, :6])
    assert torch.equal(only_face.shape, params.shape)
    only_head = smooth_motion(params, names, 1.0, 0.0)
    assert torch.equal(only_head.expression, params.expression)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_smoothing_in_any_precision(head: HeadModel, names: list[str], dtype: torch.dtype) -> None:
    smoothed = smooth_motion(motion(head, names).to(dtype=dtype), names, 0.5, 0.5)
    assert smoothed.pose.dtype == dtype and torch.isfinite(smoothed.pose.float()).all()


def test_smoothing_does_not_depend_on_the_direction_of_time() -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(4)).cumsum(0)
    forward = smooth(values, 0.5, LEAST_EXPRESSION, FACE_REACH)
    backward = smooth(values.flip(0), 0.5, LEAST_EXPRESSION, FACE_REACH).flip(0)
    torch.testing.assert_close(forward, backward)
    assert not torch.allclose(forward, values, atol=0.01)


def test_tremble_is_the_noises_deviation() -> None:
    time = torch.arange(300.0)[:, None]
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 0.4])
    found = noise_std(torch.sin(time / 4) + noise, 0.01)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.4]), rtol=0.2, atol=0)
    assert torch.equal(noise_std(noise[:3], 0.01), torch.tensor([0.01, 0.01]))


def test_single_outliers_vanish_and_tips_stay() -> None:
    clean = 0.2 * torch.sin(2 * math.pi * torch.arange(50) / 12.5)[:, None]  # 2 Hz
    spiked = clean.clone()
    spiked[30] += 0.5
    assert (without_spikes(spiked, LEAST_TURN) - clean).abs().max() < 0.02
    assert torch.equal(without_spikes(clean, LEAST_TURN), clean)
    turn = ((torch.arange(50.0) - 20) * 0.04).clamp(0, 0.5)[:, None]
    assert torch.equal(without_spikes(turn, LEAST_TURN), turn)


# ---- editing


def test_parts_hold_every_expression_once(names: list[str]) -> None:
    found = [part_of(name) for name in names]
    assert set(found) == set(BEGINNINGS)
    assert part_of("mouthClose") == part_of("jawOpen") == "jaw" and part_of("eyeLookInLeft") == "gaze"


def test_a_gain_of_one_is_the_driver_and_of_zero_is_none(driving: FaceParameters, names: list[str]) -> None:
    assert same(edit_motion(driving, names, ONES), driving)
    still = edit_motion(driving, names, STILL)
    assert not still.expression.any() and not still.pose.any()
    assert torch.allclose(still.camera, driving.camera[[5]].expand_as(still.camera))
    assert torch.equal(still.shape, driving.shape)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("part", ["head", *PARTS])
def test_one_part_alone(driving: FaceParameters, names: list[str], part: str, relative: bool) -> None:
    edited = edit_motion(driving, names, STILL | {part: 1.0}, relative=relative)
    moved = {part_of(names[i]) for i in torch.nonzero(edited.expression.std(0) > 1e-4).flatten()}
    assert moved == ({part} if part != "head" else set())
    assert (edited.pose[:, :6].std(0).amax() > 0.01) == (part == "head")
    assert (edited.camera.std(0).amax() > 0.01) == (part == "head")
    assert (edited.pose[:, 9:].std(0).amax() > 0.001) == (part == "gaze"), "eyeballs follow the gaze"


def test_gains_scale_along_the_arc(driving: FaceParameters, names: list[str]) -> None:
    half = edit_motion(driving, names, ONES | {"head": 0.5})
    torch.testing.assert_close(half.pose[:, 3:6], 0.5 * driving.pose[:, 3:6], atol=1e-5, rtol=0)
    wild = edit_motion(driving, names, dict.fromkeys(ONES, 3.0))
    assert wild.expression.max() == 1 and wild.expression.min() >= 0
    torch.testing.assert_close(wild.pose[:, 9:], gaze_pose(wild.expression, names))
    double = edit_motion(driving, names, ONES | {"head": 2.0})
    change = (driving.camera[:, 0] / driving.camera[5, 0]).log()
    torch.testing.assert_close((double.camera[:, 0] / driving.camera[5, 0]).log(), 2 * change)


def test_relative_motion_adds_the_drivers_changes_to_the_source(
    head: HeadModel, driving: FaceParameters, names: list[str]
) -> None:
    source = motion(head, names, seed=7)[20]
    edited = edit_motion(driving, names, ONES, relative=True, source=source, rest=5)
    assert torch.allclose(edited.expression[5], source.expression[0])
    assert torch.allclose(edited.pose[5, :6], source.pose[0, :6], atol=1e-5)
    assert torch.allclose(edited.camera[5], source.camera[0])
    expected = (source.expression + driving.expression - driving.expression[5]).clamp(0, 1)
    torch.testing.assert_close(edited.expression, expected)
    by = rotation.angle_between(driving.pose[5, 3:6], driving.pose[20, 3:6])
    assert rotation.angle_between(edited.pose[5, 3:6], edited.pose[20, 3:6]) == pytest.approx(
        float(by), abs=1e-5
    )
    # a head twice as large moves twice as far, and keeps its share of growth
    large = replace(source, camera=source.camera * torch.tensor([2.0, 1.0, 1.0]))
    twice = edit_motion(driving, names, ONES, relative=True, source=large, rest=5)
    once, far = ((p.camera[:, :1] * p.camera[:, 1:]).diff(dim=0) for p in (edited, twice))
    torch.testing.assert_close(far, 2 * once, atol=1e-5, rtol=0)
    assert torch.equal(edited.shape, driving.shape)


def test_the_sources_expression_can_be_taken_away(
    head: HeadModel, driving: FaceParameters, names: list[str]
) -> None:
    source = motion(head, names, seed=7)[20]
    for amount in (0.0, 0.4, 1.0):
        edited = edit_motion(driving, names, STILL, source=source, neutralize=amount)
        torch.testing.assert_close(edited.expression, (1 - amount) * source.expression.expand(24, -1))
        assert torch.allclose(edited.pose[:, :6], source.pose[:, :6].expand(24, -1), atol=1e-5)


def test_rest_frame(driving: FaceParameters, names: list[str]) -> None:
    assert rest_frame(driving) == 5
    unseen = replace(driving, valid=torch.arange(24) != 5)
    assert rest_frame(unseen) in (4, 6)
    assert rest_frame(driving[0]) == 0 and rest_frame(driving[:2]) in (0, 1)
    with pytest.raises(InputError, match="rest frame 24"):
        edit_motion(driving, names, ONES, rest=24)


def test_heads_without_names() -> None:
    params = flame()
    assert expression_names(params) == []
    assert same(edit_motion(params, [], ONES), params)
    still = edit_motion(params, [], STILL | {"jaw": 1.0})
    assert not still.expression.any() and torch.allclose(still.pose[:, 6:9], params.pose[:, 6:9], atol=1e-5)
    assert not still.pose[:, :6].any() and not still.pose[:, 9:].any()
    tripled = edit_motion(params, [], ONES | dict.fromkeys(("brows", "eyes", "mouth"), 3.0))
    torch.testing.assert_close(tripled.expression, 3 * params.expression)
    calmer = edit_motion(params, [], STILL, source=params[3], neutralize=0.5)
    torch.testing.assert_close(calmer.pose[0, 6:], 0.5 * params.pose[3, 6:], atol=1e-5, rtol=0)
    torch.testing.assert_close(calmer.pose[0, :6], params.pose[3, :6], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="the same gain"):
        edit_motion(params, [], ONES | {"brows": 2.0})


# ---- mixing


def test_parts_of_two_drivers(head: HeadModel, driving: FaceParameters, names: list[str]) -> None:
    other = motion(head, names, frames=24, seed=9)
    nothing = dict.fromkeys(("head", "place", *PARTS), False)
    assert same(combine(driving, other, names, nothing), driving)
    everything = combine(driving, other, names, dict.fromkeys(nothing, True))
    assert same(everything, replace(other, shape=driving.shape))
    mixed = combine(driving, other, names, nothing | {"gaze": True, "place": True})
    gaze = torch.tensor([part_of(name) == "gaze" for name in names])
    assert torch.equal(mixed.expression[:, gaze], other.expression[:, gaze])
    assert torch.equal(mixed.expression[:, ~gaze], driving.expression[:, ~gaze])
    assert torch.equal(mixed.camera, other.camera) and torch.equal(mixed.pose[:, :6], driving.pose[:, :6])
    assert torch.allclose(mixed.pose[:, 9:], other.pose[:, 9:])
    with pytest.raises(InputError, match="the same driver"):
        combine(flame(), flame(), [], nothing | {"mouth": True})
    with pytest.raises(InputError, match="Mismatched heads"):
        combine(driving, flame(), names, nothing)


def test_expressions_of_another_number_are_refused(driving: FaceParameters) -> None:
    cut = replace(driving, expression=driving.expression[:, :10])
    for blend in (lambda: mix(driving, cut, 0.5), lambda: join(driving, cut, 2)):
        with pytest.raises(InputError, match="52 and 10 expression values"):
            blend()
    with pytest.raises(InputError, match="10 expression values"):
        expression_names(cut)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(head: HeadModel, names: list[str], length: str, swapped: bool) -> None:
    first, second = motion(head, names, 10), motion(head, names, 7, seed=1)
    if swapped:
        first, second = second, first
    found = mix(first, second, 1.0, length)
    frames = {"first": len(first), "shorter": 7, "loop shorter": 10}[length]
    assert len(found) == frames
    for frame in range(frames):
        place = frame % len(second) if length == "loop shorter" else min(frame, len(second) - 1)
        assert torch.allclose(found.expression[frame], second.expression[place])


def test_mixing_and_joining(head: HeadModel, driving: FaceParameters, names: list[str]) -> None:
    other = motion(head, names, frames=24, seed=9)
    assert same(mix(driving, other, 0.0), driving)
    half = mix(driving, other, 0.5)
    torch.testing.assert_close(half.expression, (driving.expression + other.expression) / 2)
    assert torch.equal(half.shape, driving.shape)
    short = other[:10]
    for overlap in (0, 1, 6, 10):
        joined = join(driving, short, overlap)
        assert len(joined) == 34 - overlap
        assert same(joined[: 24 - overlap], driving[: 24 - overlap])
        assert torch.equal(joined.expression[24:], short.expression[overlap:])
        assert torch.equal(joined.shape, driving.shape[:1].expand(len(joined), -1))
    between = join(driving, short, 1).expression[23]
    torch.testing.assert_close(between, (driving.expression[23] + short.expression[0]) / 2)
    step = join(driving, short, 10).expression.diff(dim=0).norm(dim=1).max()
    assert step < 0.5 * join(driving, short, 0).expression.diff(dim=0).norm(dim=1).max()
    with pytest.raises(InputError, match="smaller overlap"):
        join(driving, short, 11)


# ---- time


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (25.0, Fraction(25)),
        (12.5, Fraction(25, 2)),
        (30.0, Fraction(30)),
    ],
)
def test_frame_rates(given: float, meant: Fraction) -> None:
    assert exact_rate(given) == meant


@pytest.mark.parametrize("rate", [0.0, 1e-5, -1.0, float("nan"), float("inf")])
def test_impossible_frame_rates(rate: float) -> None:
    with pytest.raises(InputError, match="impossible"):
        exact_rate(rate)
    with pytest.raises(InputError, match="impossible"):
        retime(FaceParameters.neutral(2, "test", 1, 1), Fraction(24), Fraction(24), rate)


@pytest.mark.parametrize(
    ("frames", "old", "new", "speed", "expected"),
    [
        (100, 25, 25, 1.0, 100),
        (100, 25, 30, 1.0, 120),
        (48, 24, 30, 1.0, 60),
        (60, 60, 24, 1.0, 24),
        (100, 25, 29.97, 1.0, 120),
        (3000, 29.97, 30, 1.0, 3003),
        (3003, 30, 29.97, 1.0, 3000),
        (10, 25, 25, 2.0, 5),
        (10, 25, 25, 0.5, 20),
        (1, 25, 50, 1.0, 2),
        (2, 60, 24, 20.0, 1),
    ],
)
def test_frame_counts_are_exact(frames: int, old: float, new: float, speed: float, expected: int) -> None:
    params = FaceParameters.neutral(frames, "test", 1, 1)
    params.expression[:, 0] = torch.arange(frames)
    found = retime(params, exact_rate(old), exact_rate(new), speed)
    assert len(found) == expected
    step = float(exact_rate(old) / exact_rate(new)) * speed
    wanted = (torch.arange(expected, dtype=torch.float64) * step).clamp(max=frames - 1).float()
    torch.testing.assert_close(found.expression[:, 0], wanted, atol=1e-3, rtol=0)


def test_parts_and_directions(driving: FaceParameters) -> None:
    assert same(trim(driving, 4, 6), driving[4:10]) and same(trim(driving, -5, 0), driving[19:])
    assert same(trim(driving, 20, 100), driving[20:])
    for start in (24, -25):
        with pytest.raises(InputError, match=f"no frame {start} .* from -24 to 23"):
            trim(driving, start, 0)
    forward, back, both = (turn_back(driving, direction) for direction in DIRECTIONS)
    assert same(forward, driving) and same(back, driving[list(range(23, -1, -1))])
    assert len(both) == 46 and same(both[:24], driving) and same(both[45], driving[1])
    assert same(turn_back(driving[0], "ping-pong"), driving[0])
    with pytest.raises(InputError, match="speed"):
        retime(driving, Fraction(25), Fraction(25), 0.0)
    with pytest.raises(InputError, match="more than"):
        retime(driving, Fraction(1), Fraction(240), 0.001)


def test_a_loop_has_no_seam(driving: FaceParameters) -> None:
    looped = loop(driving, 8)
    assert len(looped) == 16 and same(looped[8:], driving[8:16])

    def jumps(params: FaceParameters) -> Tensor:
        twice = FaceParameters.concatenate([params, params])
        return twice.expression.diff(dim=0).norm(dim=1)

    assert jumps(driving).max() > 8 * jumps(driving).median(), "the open one jumps"
    assert jumps(looped)[15] < 1.5 * jumps(driving).median()
    assert same(loop(driving, 0), driving) and len(loop(driving, 12)) == 12
    with pytest.raises(InputError, match="at most 12"):
        loop(driving, 13)


# ---- files


def test_json_is_exact_and_readable(driving: FaceParameters, tmp_path: Path) -> None:
    awkward = replace(driving, camera=driving.camera / 3, valid=torch.arange(24) % 2 == 0)
    awkward.save(tmp_path / "motion.json", {"prompt": '{"1": {}}'})
    found = FaceParameters.load(tmp_path / "motion.json")
    assert all(torch.equal(getattr(found, name), getattr(awkward, name)) for name in TENSORS)
    assert found.head == awkward.head
    content = json.loads((tmp_path / "motion.json").read_text())
    assert content["version"] == 1 and len(content["pose"]) == 24 and content["prompt"] == '{"1": {}}'
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(
    head: HeadModel, names: list[str], driving: FaceParameters, value: float
) -> None:
    works = [
        lambda: smooth_motion(driving, names, value, 0.3),
        lambda: smooth_motion(driving, names, 0.3, value),
        lambda: edit_motion(driving, names, ONES | {"mouth": value}),
        lambda: edit_motion(driving, names, ONES, source=driving[0], neutralize=value),
        lambda: mix(driving, driving, value),
        lambda: mix(driving, driving, torch.full((24,), value)),
        lambda: retime(driving, Fraction(24), Fraction(24), value),
        lambda: exact_rate(value),
        lambda: edit(head, driving, {"headYaw": value}),
    ]
    for work in works:
        with pytest.raises(InputError, match="give"):
            work()


@pytest.mark.parametrize("name", ["motion.json", "motion.safetensors"])
def test_confidence_is_saved_and_old_files_have_none(
    driving: FaceParameters, tmp_path: Path, name: str
) -> None:
    driving.save(tmp_path / name)
    assert FaceParameters.load(tmp_path / name).confidence is None
    sure = replace(driving, confidence=torch.arange(24) / 27)
    sure.save(tmp_path / name)
    assert torch.equal(FaceParameters.load(tmp_path / name).confidence, sure.confidence)
    assert torch.equal(FaceParameters.from_bytes(sure.to_bytes(), "the data").confidence, sure.confidence)
    replace(driving, confidence=torch.full((24,), 1.5)).save(tmp_path / name)
    with pytest.raises(InputError, match="not from 0 to 1"):
        FaceParameters.load(tmp_path / name)


def test_confidence_goes_with_the_frames(driving: FaceParameters) -> None:
    sure = replace(driving, confidence=torch.arange(24) / 24)
    assert torch.equal(sure[[3, 5]].confidence, torch.tensor([3 / 24, 5 / 24]))
    assert torch.equal(sure[7].expand(3).confidence, torch.full((3,), 7 / 24))
    joined = FaceParameters.concatenate([driving[:2], sure[:2]]).confidence
    assert torch.equal(joined, torch.tensor([1, 1, 0, 1 / 24])), "nothing doubts what is not told"
    assert FaceParameters.concatenate([driving, driving]).confidence is None
    everything = dict.fromkeys(("head", "place", *PARTS), True)
    for blend in (driving.interpolate(sure, 0.5), combine(driving, sure, [], everything)):
        assert torch.equal(blend.confidence, sure.confidence)
    assert torch.equal(turn_back(sure, "reverse").confidence, sure.confidence.flip(0))
    assert len(retime(sure, Fraction(24), Fraction(60)).confidence) == 60
    assert torch.equal(align(driving[0], sure).confidence, sure.confidence)
    with pytest.raises(InputError, match=r"confidence has shape \[3\]"):
        replace(driving, confidence=torch.ones(3))


@pytest.mark.parametrize("name", ["motion.json", "motion.safetensors"])
@pytest.mark.parametrize("part", ["expression", "camera", "confidence"])
def test_what_could_not_be_loaded_is_not_saved(
    driving: FaceParameters, tmp_path: Path, name: str, part: str
) -> None:
    sure = replace(driving, confidence=torch.ones(24))
    getattr(sure, part)[5] = math.nan
    with pytest.raises(InputError, match=f"NaN or infinity in {part} at frame 5"):
        sure.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"confidence": [[1.0]] * 24},
        {"confidence": [1.0] * 23},
        {"confidence": ["1"] * 24},
        {"confidence": [float("nan")] * 24},
        {"confidence": [-0.5] * 24},
        {"pose": [[0.0] * 15] * 23},
        {"pose": [[0.0] * 15] * 23 + [[0.0]]},
        {"pose": "none"},
        {"pose": [1.0] * 24},
        {"pose": [[[0.0] * 15]] * 24},
        {"pose": [["0.0"] * 15] * 24},
        {"pose": [[10**400] * 15] * 24},
        {"pose": [[1e300] * 15] * 24},
        {"pose": [[float("nan")] * 15] * 24},
        {"valid": [1.0] * 24},
        {"valid": [[True]] * 24},
        {"shape": []},
        {"format": "other"},
        {"version": 2},
        {"version": None},
    ],
)
def test_hostile_json_is_refused(driving: FaceParameters, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "motion.json"
    driving.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError):
        FaceParameters.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100000, "\0", "{}", '{"version": 1}'])
def test_what_is_no_face_parameters_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "motion.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"motion\.json"):
        FaceParameters.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"motion\.json"):
        FaceParameters.load(path)
    with pytest.raises(InputError, match="missing"):
        FaceParameters.load(tmp_path / "none.json")


# ---- pictures


def test_the_plot_shows_the_motion(driving: FaceParameters, names: list[str]) -> None:
    drawn = plot(driving, names)
    assert drawn.shape[0] == 3 and drawn.shape[2] == WIDTH and drawn.min() >= 0 and drawn.max() <= 1
    shaken = driving.pose.clone()
    shaken[10, 4] += 0.3
    other = replace(driving, pose=shaken)
    assert not torch.equal(plot(other, names)[:, :120], drawn[:, :120]), "the head's panel"
    assert torch.equal(plot(other, names)[:, 400:], drawn[:, 400:]), "no other panel than head and place"
    assert not torch.equal(plot(driving, names, before=other), drawn)
    assert plot(flame(), []).shape[2] == WIDTH
    for frames in (1, 2, 1000):
        assert torch.isfinite(plot(driving[[0] * frames], names)).all()


def test_the_preview_has_heads_above(head: HeadModel, driving: FaceParameters, names: list[str]) -> None:
    assert evenly(24)[0] == 0 and evenly(24)[-1] == 23 and evenly(3) == [0, 1, 2]
    alone = preview(head, driving, names)
    compared = preview(head, driving, names, driving[:10])
    assert compared.shape[1] > alone.shape[1] > plot(driving, names).shape[1]
    assert alone[:, :128].std() > 0.1
    with pytest.raises(InputError, match="belong to the head"):
        preview(head, flame(), [])


def test_unusable_motion_is_refused(driving: FaceParameters) -> None:
    assert require_motion(driving, "parameters") is driving
    behind = driving.camera * torch.tensor([-1.0, 1.0, 1.0])
    for bad in (
        driving[:0],
        replace(driving, pose=driving.pose * float("nan")),
        replace(driving, camera=behind),
    ):
        with pytest.raises(InputError, match="parameters"):
            require_motion(bad, "parameters")


def test_euler_angles_are_the_inverse() -> None:
    angles = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = rotation.to_euler(rotation.from_euler(*angles.unbind(1)))
    torch.testing.assert_close(torch.stack(found, 1), angles, atol=1e-5, rtol=0)


def test_frames_far_apart_are_no_noise(head: HeadModel, names: list[str]) -> None:
    """Every twentieth frame of a clip: heads and mouths jump from each to the next, all of it is motion."""
    generator = torch.Generator().manual_seed(0)
    params, jaw = head.neutral(16), names.index("jawOpen")
    params.expression[:, jaw] = torch.rand(16, generator=generator)
    params.pose[:, 3:6] = 0.4 * (torch.rand(16, 3, generator=generator) - 0.5)
    smoothed = smooth_motion(params, names, 0.3, 0.3)
    assert (smoothed.expression - params.expression).abs().max() < 0.09
    assert (smoothed.pose - params.pose).abs().max() < 0.04


def test_syllables_keep_their_width(head: HeadModel, names: list[str]) -> None:
    """Five opened mouths a second at 25 frames a second, read with the noise of a good encoder."""
    params, jaw = head.neutral(100), names.index("jawOpen")
    spoken = 0.25 + 0.25 * torch.sin(torch.arange(100.0) * 2 * torch.pi / 5)
    noise = 0.01 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    params.expression[:, jaw] = (spoken + noise).clamp(0, 1)
    smoothed = smooth_motion(params, names, 0.3, 0.3).expression[:, jaw]
    assert smoothed[10:90].std() > 0.95 * spoken[10:90].std()
