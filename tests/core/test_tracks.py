"""Motion tracks move like a person."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anifacediff_core.capture.detector import face_square
from anifacediff_core.capture.tracker import portrait_square
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.avatars.poses import PITCH, ROLL, YAW
from anifacediff_core.lab.avatars.tracks import Performance, perform, random_frames, random_tracks, track
from anifacediff_core.motion.curves import minimum_jerk, steps

FPS = 24.0


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def minutes(head) -> Performance:
    """24 people for 10 seconds, all of them talking."""
    return perform(24, 240, FPS, torch.Generator().manual_seed(7), head, talking=1.0)


def curve(performance: Performance, head: HeadModel, name: str) -> Tensor:
    """(clips, frames)."""
    return performance.params.expression[:, head.expression_names.index(name)].view(24, 240)


def test_tracks_are_valid_parameters_of_the_head(head):
    params = random_tracks(5, 24, FPS, torch.Generator().manual_seed(0), head)
    head.require(params)
    params.require_finite("tracks")
    assert len(params) == 120 and params.valid.all() and (params.shape == 0).all()
    assert params.expression.min() >= 0 and params.expression.max() <= 1
    torch.testing.assert_close(look_along(params, head.expression_names).pose, params.pose)


def test_tracks_follow_from_the_seed_alone(head):
    def draw(seed: int) -> Tensor:
        return random_tracks(3, 24, FPS, torch.Generator().manual_seed(seed), head).expression

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_single_frames_and_tracks_of_any_length(head):
    for frames in (1, 2, 7, 500):
        assert len(track(frames, FPS, torch.Generator().manual_seed(0), head)) == frames


def test_tracks_are_fast(head):
    generator = torch.Generator().manual_seed(0)
    random_tracks(2, 24, FPS, generator, head)
    started = time.process_time()
    random_tracks(300, 24, FPS, generator, head)
    assert time.process_time() - started < 1.0, "at least 300 clips of 24 frames per second of CPU time"


def test_heads_stay_within_their_range_and_turn_smoothly(head, minutes):
    matrices = rotation.matrix(minutes.params.pose[:, 3:6])
    forward, right = matrices[..., 2], matrices[..., 0]
    yaw = torch.atan2(forward[:, 0], forward[:, 2])
    pitch = torch.asin(-forward[:, 1])
    assert yaw.abs().max() <= YAW and pitch.abs().max() <= PITCH + 1e-4
    assert torch.asin(right[:, 1].clamp(-1, 1)).abs().max() < ROLL + 0.05
    assert 0.05 < yaw.std() < 0.25 and (minutes.params.pose[:, 9:] != 0).any()
    speed = yaw.view(24, 240).diff(dim=1) * FPS
    assert speed.abs().max() < 3.5, "radians a second"
    moving = (speed.abs() > 0.15).float().mean()
    assert 0.03 < moving < 0.6, "heads turn and rest, they do not drift all the time"


def test_speech_moves_the_jaw_a_few_times_a_second(head, minutes):
    jaw = curve(minutes, head, "jawOpen")
    spectrum = torch.fft.rfft(jaw - jaw.mean(1, keepdim=True)).abs().square().mean(0)
    frequency = torch.fft.rfftfreq(240, 1 / FPS)
    syllables = spectrum[(frequency > 1.5) & (frequency < 7)].sum()
    tremble = spectrum[frequency > 9].sum()
    assert syllables > 8 * tremble
    assert jaw.quantile(0.98) > 0.35 and (jaw < 0.12).float().mean() > 0.25


def test_lips_close_for_consonants_and_in_pauses(head):
    quiet = perform(40, 240, FPS, torch.Generator().manual_seed(3), head, talking=1.0, moods=0.0)
    closed = quiet.params.expression[:, head.expression_names.index("mouthClose")]
    jaw = quiet.params.expression[:, head.expression_names.index("jawOpen")]
    assert (closed <= jaw + 1e-6).all() and closed.max() > 0.05
    resting = (jaw < 0.08).view(40, 240).float()
    pauses = torch.nn.functional.avg_pool1d(resting[:, None], 6, 1).amax((1, 2))
    assert (pauses == 1).float().mean() > 0.8, "nearly everybody pauses for a quarter of a second"


def test_silent_people_keep_their_mouth_shut(head):
    silent = perform(30, 48, FPS, torch.Generator().manual_seed(5), head, talking=0.0, moods=0.0)
    assert silent.params.expression[:, head.expression_names.index("jawOpen")].max() < 0.1


def test_blinks_are_short_asymmetric_and_every_few_seconds(head):
    # Without moods: some of them hold the lids.
    calm = perform(24, 240, 60.0, torch.Generator().manual_seed(9), head, moods=0.0)
    lids = calm.params.expression[:, head.expression_names.index("eyeBlinkLeft")].view(24, 240)
    closed = lids > 0.45
    count = int((closed[:, 1:] & ~closed[:, :-1]).sum())
    assert 10 < count / (24 * 4 / 60) < 50, "blinks a minute"
    lengths = closed.sum() / max(count, 1) / 60
    assert 0.06 < lengths < 0.22, "seconds that the lids are mostly shut"
    speed = lids.diff(dim=1)
    assert speed.max() > 1.3 * -speed.min(), "lids close faster than they open"


def test_eyes_jump_and_rest_together(head, minutes):
    gaze = minutes.params.pose[:, 9:].view(24, 240, 2, 3)
    left, right = gaze[:, :, 0, 1], gaze[:, :, 1, 1]
    correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
    assert correlation > 0.97
    assert (right - left).mean() > 0, "both turn inwards a little"
    step = left.diff(dim=1).abs()
    still, jumps = (step < 0.02).float().mean(), (step > 0.08).float().mean()
    assert still > 0.7 and 0.005 < jumps < 0.15


def test_eyes_keep_their_target_while_the_head_turns(head, minutes):
    yaw = minutes.params.pose[:, 4].view(24, 240)
    eyes = minutes.params.pose[:, 10].view(24, 240)
    turn, counter = yaw.diff(dim=1).flatten(), eyes.diff(dim=1).flatten()
    turning = (turn.abs() > 0.01) & (counter.abs() < 0.06)
    assert torch.corrcoef(torch.stack([turn[turning], counter[turning]]))[0, 1] < -0.5


def test_faces_show_moods_and_a_little_asymmetry(head, minutes):
    smile = curve(minutes, head, "mouthSmileLeft")
    assert (smile.amax(1) > 0.5).float().mean() > 0.5 and (smile.amin(1) < 0.25).float().mean() > 0.5
    assert 0.1 < (minutes.laugh.amax(1) > 0.3).float().mean() < 0.9
    other = curve(minutes, head, "mouthSmileRight")
    assert 0.003 < (smile - other).abs().mean() < 0.1
    shown = minutes.params.expression.amax(0) > 0.05
    assert shown.sum() >= 48, [name for name, seen in zip(head.expression_names, shown) if not seen]


def test_cameras_hardly_move_within_a_clip(head, minutes):
    camera = minutes.params.camera.view(24, 240, 3)
    assert (camera[..., 0].std(1) / camera[..., 0].mean(1)).max() < 0.02
    assert camera[..., 0].mean(1).std() > 3 * camera[..., 0].std(1).mean()
    assert camera[..., 1:].std(1).max() < 0.004


def test_tracked_portraits_are_framed_like_captured_ones(head):
    """What capture cuts out of a large picture is framed like the pictures that the networks learn from."""
    params = random_frames(200, torch.Generator().manual_seed(0), head)
    face = face_square(head, replace(params, pose=torch.zeros_like(params.pose))).mean(0, keepdim=True)
    left, top, side = portrait_square(face, torch.ones(1, dtype=torch.bool), 1.0, 1.0, "portrait").tolist()
    assert abs(side - 1) < 0.06 and abs(left) < 0.06 and abs(top) < 0.06


def test_minimum_jerk_steps_reach_their_values():
    time_axis = torch.linspace(0, 4, 81)
    begin, duration = torch.tensor([[-9.0, 1.0, 2.5]]), torch.full((1, 3), 0.5)
    values = torch.tensor([[[1.0], [-2.0], [4.0]]])
    path = steps(time_axis, begin, duration, values)[0, :, 0]
    assert path[0] == 1 and path[40] == pytest.approx(-2) and path[-1] == pytest.approx(4)
    assert minimum_jerk(torch.tensor(0.5)) == 0.5


def test_other_heads_are_refused(head):
    other = HeadModel.bundled()
    other.expression_names = [f"expression {i}" for i in range(52)]
    with pytest.raises(InputError, match="no ARKit expressions"):
        track(4, FPS, torch.Generator(), other)
