"""The judges of the avatar benchmark: what they see, their file, measures, training at toy size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from anifacediff_core.errors import InputError
from anifacediff_core.head.camera import crop_camera, project
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.avatars.identity import Identity
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.evaluation import judges as judging
from anifacediff_core.lab.evaluation.cases import SEED_OFFSET, draw_cases
from anifacediff_core.lab.evaluation.judges import (
    IdentityNet,
    Judges,
    Motion,
    MotionNet,
    camera_distance,
    expression_distance,
    judge_weights,
    load_judges,
    pose_distance,
    rotation_angle,
    save_judges,
    similarity,
    true_motion,
    view,
)
from anifacediff_core.lab.evaluation.protocol import Protocol
from anifacediff_core.lab.training.capture import crop_resize_square
from anifacediff_core.lab.training.data import PoolPlan
from anifacediff_core.lab.training.judges import (
    FAMILY,
    HELD_OUT_SEED,
    TRAINING_SEED,
    FamilyPool,
    JudgesSettings,
    JudgesTask,
    accuracy,
    auc,
    contrast,
    draw_families,
    jittered_squares,
    motion_vector,
    points_in,
    verification,
)
from anifacediff_core.lab.training.phase import HELD_OUT
from anifacediff_core.lab.training.settings import read_experiment

TOY = """
seed: 2
phases:
  judges:
    pool: {identities: 16, stills: 1, track: 1, fps: 1, size: 64, batch: 8, renew_every: 2}
    settings: {families: 2, side: 64, widths: [8, 8, 8, 16]}
    loop: {steps: 3, check_every: 1, snapshots: [0.5]}
"""


def small_judges() -> Judges:
    torch.manual_seed(0)
    identity, motion = IdentityNet(64, (8, 8, 8, 16)), MotionNet(5, 64, (8, 8, 8, 16))
    motion.mean.uniform_(0.1, 0.3)
    motion.mean[8] = 8.0  # the camera's scale is never near 0
    motion.deviation.uniform_(0.1, 0.3)
    return Judges(identity.eval(), motion.eval(), 64)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def studio(head: HeadModel) -> Studio:
    return Studio(head)


@pytest.fixture(scope="module")
def pool(studio: Studio, head: HeadModel) -> FamilyPool:
    """Three families of four avatars with two pictures each."""
    plan = PoolPlan(identities=12, stills=2, size=64, batch=16)
    filled = FamilyPool(studio, head, plan, TRAINING_SEED)
    filled.fill()
    return filled


# ---- the networks and what they see


def test_both_judges_fit_into_three_megabytes_and_answer_in_their_forms(tmp_path: Path) -> None:
    save_judges(tmp_path / "j.safetensors", judge_weights(IdentityNet(), MotionNet()), {})
    assert (tmp_path / "j.safetensors").stat().st_size <= 3_000_000
    judges = load_judges(tmp_path / "j.safetensors")
    assert judges.side == judging.SIDE
    with torch.random.fork_rng():
        pictures = torch.rand(2, 3, 256, 256)
    unit, read = judges.predict(pictures).face, judges.predict(pictures).motion
    assert unit.shape == (2, 128) and judges.predict(pictures).features.shape == (2, 256)
    assert unit.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert read.expression.shape == (2, 52) and read.neck.shape == (2, 3) and read.camera.shape == (2, 3)


def test_judges_look_at_the_same_part_of_a_picture_of_any_size() -> None:
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 256, 256)
    seen = view(ramp, judging.SIDE)
    assert torch.equal(seen, ramp[..., 48:240, 32:224])
    small = F.interpolate(ramp, size=(128, 128), mode="area")
    assert (view(small, judging.SIDE) - seen).abs().max() < 0.01


def test_every_face_of_the_benchmark_lies_in_the_view_from_brows_to_mouth(head: HeadModel) -> None:
    from anifacediff_core.head.regions import face_spots

    motion = draw_cases(Protocol(pairs=24, frames=4, fps=2), head).motion
    spots = face_spots(head, motion, 256)[:, :3]
    left, top, side = (256 * v for v in judging.VIEW)
    for axis, start in ((0, left), (1, top)):
        assert (spots[..., axis] - spots[..., 2]).min() > start
        assert (spots[..., axis] + spots[..., 2]).max() < start + side


def test_the_camera_that_is_read_is_the_whole_pictures(head: HeadModel) -> None:
    judges = small_judges()
    motion = MotionNet(5, 64, (8, 8, 8, 16))
    camera = torch.tensor([[6.1, 0.01, -0.02]])
    wanted = crop_camera(camera, torch.tensor(judging.VIEW))
    motion.mean.copy_(torch.cat([torch.zeros(8), wanted[0]]))
    torch.nn.init.zeros_(motion.answer.weight)
    torch.nn.init.zeros_(motion.answer.bias)
    read = replace(judges, motion=motion).predict(torch.rand(1, 3, 64, 64)).motion
    torch.testing.assert_close(read.camera, camera)


# ---- the file


def test_a_file_gives_back_the_same_judges_their_sizes_and_their_making(tmp_path: Path) -> None:
    judges = small_judges()
    path = tmp_path / "judges.safetensors"
    save_judges(path, judge_weights(judges.identity, judges.motion), {"seed": 5})
    found = load_judges(path)
    assert found.side == 64 and found.provenance == {"seed": 5}
    pictures = torch.rand(3, 3, 85, 85)
    seen, expected = found.predict(pictures), judges.predict(pictures)
    torch.testing.assert_close(seen.face, expected.face, atol=5e-3, rtol=0)
    torch.testing.assert_close(seen.motion.neck, expected.motion.neck, atol=1e-3, rtol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == judging.FORMAT
        assert file.get_tensor("identity.answer.weight").dtype == torch.float16
        assert file.get_tensor("motion.deviation").dtype == torch.float32


@pytest.mark.parametrize("kind", ["missing", "damaged", "something else", "half"])
def test_a_wrong_file_is_refused_in_one_sentence_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "judges.safetensors"
    if kind == "damaged":
        path.write_bytes(b"\x00" * 100)
    elif kind == "something else":
        save_file({"unet.weight": torch.zeros(3)}, path)
    elif kind == "half":
        judges = small_judges()
        weights = judge_weights(judges.identity, judges.motion)
        save_file({name: value for name, value in weights.items() if name != "motion.answer.bias"}, path)
    with pytest.raises(InputError, match="judges.safetensors") as refusal:
        load_judges(path)
    assert str(refusal.value).count(". ") == 0 and "train --config judges" in str(refusal.value)


# ---- measures


def test_the_same_picture_is_the_same_face_with_the_same_motion() -> None:
    judges = small_judges()
    pictures = torch.rand(4, 3, 64, 64)
    unit, read = judges.predict(pictures).face, judges.predict(pictures).motion
    assert similarity(unit, unit).tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert (similarity(unit, unit.roll(1, 0)) < 1 - 1e-6).all()
    for distance in (expression_distance, pose_distance, camera_distance):
        assert distance(read, read).abs().max() == 0
        assert (distance(read, judges.predict(1 - pictures).motion) > 0).all()
    assert rotation_angle(read, read).max() < 0.05


def test_distances_are_the_mean_differences_of_their_coefficients() -> None:
    zero = Motion(torch.zeros(1, 4), torch.zeros(1, 3), torch.tensor([[6.0, 0.0, 0.0]]))
    other = Motion(
        torch.tensor([[0.4, 0, 0, 0.2]]), torch.tensor([[0.0, 0.3, 0.0]]), torch.tensor([[6.0, 0.01, 0.0]])
    )
    assert float(expression_distance(zero, other)) == pytest.approx(0.15)
    assert float(pose_distance(zero, other)) == pytest.approx(0.1)
    assert float(rotation_angle(zero, other)) == pytest.approx(math.degrees(0.3), abs=1e-3)
    # 6 * 0.01 in NDC is 3 hundredths of the side, in one of three numbers.
    assert float(camera_distance(zero, other)) == pytest.approx(1.0)


def test_the_area_under_the_curve_of_known_pairs() -> None:
    assert auc(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2, 0.3])) == 1
    assert auc(torch.tensor([0.9, 0.2]), torch.tensor([0.1, 0.5])) == pytest.approx(0.75)
    assert auc(torch.tensor([0.0]), torch.tensor([0.1, 0.5])) == 0


# ---- training


def test_a_family_is_two_looks_times_two_shapes_under_any_light(pool: FamilyPool) -> None:
    shapes = pool.params.shape.view(-1, FAMILY, pool.plan.frames, pool.head.n_shape)[:, :, 0]
    for family in shapes:
        assert torch.equal(family[0], family[2]) and torch.equal(family[1], family[3])
        assert not torch.equal(family[0], family[1])
    assert not torch.equal(shapes[0, 0], shapes[1, 0])
    faces = pool.images.view(-1, FAMILY, pool.plan.frames, 3, 64, 64).float()
    hair = faces[:, :, :, :, 8:14, 28:36].mean((-1, -2, 2))
    looks, others = (hair[:, 0] - hair[:, 1]).abs().mean(), (hair[:, 0] - hair[:, 2]).abs().mean()
    assert looks < others, "the first two share their look, the third wears another"
    corners = pool.images.view(-1, pool.plan.frames, 3, 64, 64)[:, :, :, :3, :3].float().mean((-1, -2))
    assert (corners[:, 0] - corners[:, 1]).abs().amax(1).min() > 1, "every picture has its own backdrop"


def test_families_that_would_be_torn_are_refused(studio: Studio, head: HeadModel) -> None:
    with pytest.raises(InputError, match="fours"):
        FamilyPool(studio, head, PoolPlan(identities=10, stills=2), 1)
    with pytest.raises(InputError, match="fours"):
        FamilyPool(studio, head, PoolPlan(identities=8, stills=2, batch=12), 1)
    with pytest.raises(InputError, match="multiple of 16"):
        JudgesSettings(side=100)


def test_a_batch_holds_two_different_pictures_of_each_avatar_of_different_families(pool: FamilyPool) -> None:
    index = draw_families(pool, 2).view(2, FAMILY, 2)
    avatars = index // pool.plan.frames
    assert (avatars[..., 0] == avatars[..., 1]).all() and (index[..., 0] != index[..., 1]).all()
    families = avatars // FAMILY
    assert (families == families[:, :1, :1]).all() and families[0, 0, 0] != families[1, 0, 0]


def test_views_their_cameras_and_landmarks_agree(pool: FamilyPool, head: HeadModel) -> None:
    torch.manual_seed(0)
    settings = JudgesSettings(side=64, shift=0.1, scale=0.1)
    squares = jittered_squares(24, settings, torch.device("cpu"))
    still = jittered_squares(24, replace(settings, shift=0, scale=0), torch.device("cpu"))
    torch.testing.assert_close(still, torch.tensor(judging.VIEW).expand(24, -1))
    vector = motion_vector(pool.params, squares)
    places = points_in(squares, pool.points).view(24, -1, 2)
    drawn = project(head(pool.params)[:, head.landmarks], vector[:, -3:])[..., :2] / 2
    torch.testing.assert_close(places, drawn, atol=1e-4, rtol=0)
    assert (places - points_in(still, pool.points).view(24, -1, 2)).abs().mean() > 0.02
    images = pool.images.float() / 255
    assert (crop_resize_square(images, still, 64) - view(images, 64)).abs().mean() < 0.02


def test_the_contrast_is_small_when_only_partners_are_alike_and_log_n_when_all_are() -> None:
    faces = torch.eye(128)[:4].repeat_interleave(2, 0)[None]
    assert float(contrast(faces, 0.05)) < 1e-6
    assert float(contrast(faces.roll(1, 1), 0.05)) > 10, "neighbors that are no partners"
    same = torch.eye(128)[:1].expand(1, 8, 128)
    assert float(contrast(same, 0.05)) == pytest.approx(math.log(7), abs=1e-4)


def test_verification_tells_the_kinds_of_pairs_apart() -> None:
    look = torch.eye(128)[torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])]
    shape = torch.eye(128)[torch.tensor([4, 5, 4, 5, 6, 7, 6, 7])]
    found = verification(F.normalize(2 * look + shape, dim=1).repeat_interleave(2, 0), frames=2)
    assert found["auc_anyone"] == found["auc_shape"] == found["auc_look"] == 1
    assert found["cosine_same"] == pytest.approx(1)
    assert found["cosine_shape"] == pytest.approx(0.8) and found["cosine_look"] == pytest.approx(0.2)
    assert found["cosine_anyone"] == pytest.approx(0)
    blind = verification(look.repeat_interleave(2, 0), frames=2)
    assert blind["auc_shape"] == 0 and blind["cosine_shape"] == 1, "blind to the shape"


def test_accuracy_of_a_perfect_reader_is_perfect(pool: FamilyPool) -> None:
    truth = true_motion(pool.params)
    found = accuracy(pool.head, truth, pool.params)
    assert found["expression_r"] == pytest.approx(1, abs=1e-4) == found["visible_r"]
    assert found["aed"] == found["apd"] == found["camera"] == 0 and found["rotation"] < 0.05
    rolled = Motion(truth.expression.roll(1, 0), truth.neck.roll(1, 0), truth.camera)
    worse = accuracy(pool.head, rolled, pool.params)
    assert worse["expression_r"] < 0.5 and worse["rotation"] > 1


def test_the_toy_task_learns_within_a_few_steps(pool: FamilyPool) -> None:
    torch.manual_seed(0)
    settings = JudgesSettings(families=3, side=64, widths=(8, 8, 16, 16), begin=0.0)
    task = JudgesTask(pool.head, pool, pool, settings)
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=2e-3)
    history = []
    for step in range(40):
        torch.manual_seed(step % 4)  # the same few batches again: what can't be learnt by heart is broken
        inputs, targets = task.draw(0.0)
        losses = task.losses(task.module(*inputs), targets)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in ("everyone", "family", "shape", "motion", "points"):
        assert history[-1][name] < 0.93 * history[0][name], name


def test_no_avatar_of_training_is_in_the_benchmark_or_in_another_pool(head: HeadModel) -> None:
    seeds = {TRAINING_SEED, TRAINING_SEED + 1000, HELD_OUT_SEED, HELD_OUT, SEED_OFFSET, SEED_OFFSET + 2024}
    # As a pool makes them of its seed and its groups, and the benchmark takes its own as they are.
    shapes = [
        Identity.random(2, torch.Generator().manual_seed(seed * 1_000_003 + group), head).shape
        for seed in (TRAINING_SEED, TRAINING_SEED + 1000, HELD_OUT_SEED, HELD_OUT)
        for group in (0, 1)
    ]
    shapes += [draw_cases(Protocol(pairs=2, frames=1, seed=seed), head).sources.shape for seed in (0, 2024)]
    rows = torch.cat(shapes)
    distances = torch.cdist(rows, rows) + torch.eye(len(rows)) * 100
    assert len(seeds) == 6 and distances.min() > 1
    # Pools of other phases: seeds up to a hundred thousand times the experiment's seed, which stays small.
    assert TRAINING_SEED > 100 * 100_000 and abs(HELD_OUT_SEED - TRAINING_SEED) > 1_000_000


def test_the_shipped_experiment_is_complete() -> None:
    experiment = read_experiment("judges")
    settings = experiment["phases"]["judges"]
    from anifacediff_core.lab.training.settings import build
    from anifacediff_core.lab.training.task import Loop

    plan, own = build(PoolPlan, settings["pool"]), build(JudgesSettings, settings["settings"])
    assert build(Loop, settings["loop"]).steps == 3850, "those of the shipped weights"
    assert plan.identities % FAMILY == 0 and (plan.batch // plan.frames) % FAMILY == 0
    assert own.widths == judging.WIDTHS and own.side == judging.SIDE


def test_the_command_line_trains_judges_and_leaves_a_file_ready_for_use(tmp_path: Path) -> None:
    config = tmp_path / "toy.yaml"
    config.write_text(TOY)
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--phase", "judges", "--out", str(run)]) == 0
    judges = load_judges(run / "judges.safetensors")
    assert judges.side == 64
    assert judges.provenance["experiment"]["seed"] == 2 and judges.provenance["head"] == "anifacediff-head-1"
    assert 0 <= judges.provenance["held_out"]["auc_shape"] <= 1
    with safe_open(run / "judges.safetensors", "pt") as file:
        assert file.get_tensor("identity.answer.weight").dtype == torch.float16
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    snapshots = [entry for entry in log if entry["event"] == "snapshot"]
    assert [entry["fraction"] for entry in snapshots][-1] == 1.0
    assert "sample_failed" not in snapshots[-1] and snapshots[-1]["rotation"] > 0
    assert (run / "judges_100.jpg").stat().st_size > 1000


def test_known_parameters_have_the_form_of_a_reading(head: HeadModel) -> None:
    params: FaceParameters = head.neutral(2)
    pose = params.pose.clone()
    pose[:, 1], pose[:, 4] = 0.1, 0.2
    truth = true_motion(replace(params, pose=pose))
    torch.testing.assert_close(truth.neck, torch.tensor([[0, 0.3, 0]] * 2), atol=1e-5, rtol=0)
    assert truth.expression is params.expression
