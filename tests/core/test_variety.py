"""Avatars beyond the gallery's looks: the gallery stays, frames of one agree, ψ stays exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anifacediff_core.head.camera import project
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.avatars.identity import Identity
from anifacediff_core.lab.avatars.leaves import dead_leaves
from anifacediff_core.lab.avatars.poses import random_frames
from anifacediff_core.lab.avatars.studio import Studio
from anifacediff_core.lab.avatars.styles import FAMILIES, HELD_OUT
from anifacediff_core.lab.avatars.texture import solid_noise
from anifacediff_core.lab.avatars.variety import wander, widen
from anifacediff_core.lab.options import Style
from anifacediff_core.lab.training.capture import openings


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def studio(head: HeadModel) -> Studio:
    return Studio(head)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_those_not_chosen_stay_as_they_are(head: HeadModel, studio: Studio) -> None:
    plain = Identity.random(2, seeded(0), head)
    params = replace(random_frames(2, seeded(1), head), shape=plain.shape)
    unchanged = widen(plain, 0.0, seeded(2), head)
    pictures = [studio.render(identity, params, size=64) for identity in (plain, unchanged)]
    assert torch.equal(*pictures)
    still = wander(params, 1, 0.0, seeded(3), head)
    assert torch.equal(still.camera, params.camera) and torch.equal(still.expression, params.expression)


def test_the_seed_decides_and_all_frames_of_an_avatar_agree(head: HeadModel, studio: Studio) -> None:
    plain = Identity.random(2, seeded(0), head)
    wide = widen(plain, 1.0, seeded(2), head)
    params = replace(head.neutral(2), shape=wide.shape[:1].expand(2, -1).contiguous())
    pictures = [
        studio.render(one, params, size=64)
        for one in (wide[0].repeat_interleave(2), widen(plain, 1.0, seeded(2), head)[0].repeat_interleave(2))
    ]
    assert torch.equal(*pictures), "the same seed"
    # Rows of a batch may differ in the last bit, and pixels at an edge with it.
    assert (pictures[0][0] - pictures[0][1]).abs().mean() < 1e-4, "the same pose"
    other = studio.render(widen(plain, 1.0, seeded(5), head)[0], params[:1], size=64)
    assert (other - pictures[0][:1]).abs().mean() > 0.02
    assert torch.isfinite(other).all() and other.amin() >= 0 and other.amax() <= 1


def test_how_a_face_rests_is_no_part_of_its_expression(head: HeadModel, studio: Studio) -> None:
    """Narrow lids at rest show in the picture; wide open ones and closed ones stay what ψ says."""
    identity = Identity.random(1, seeded(0), head)
    blink = [head.expression_names.index(f"eyeBlink{side}") for side in ("Left", "Right")]
    rest = identity.rest.clone()
    rest[:, blink] = 0.4
    narrow = replace(identity, rest=rest)
    open_eyes, closed = head.neutral(1), head.neutral(1)
    closed.expression[:, blink] = 1.0
    params = [replace(one, shape=identity.shape) for one in (open_eyes, closed)]
    change = [
        (studio.render(narrow, one, size=128) - studio.render(identity, one, size=128)).abs().mean()
        for one in params
    ]
    assert change[0] > 1e-3 and change[1] < 1e-6


def test_heads_stay_in_the_picture_wherever_they_go(head: HeadModel) -> None:
    frames = 5
    motion = random_frames(200, seeded(0), head)
    moved = wander(motion, frames, 1.0, seeded(1), head)
    scale = moved.camera[:, 0]
    assert scale.amax() / scale.amin() > 2
    nose = project(head(moved)[:, head.landmarks[30:31]], moved.camera)[:, 0, :2]
    assert (nose.abs() < 1).all(1).float().mean() > 0.97
    jaw = head.expression_names.index("jawOpen")
    assert moved.expression[:, jaw].mean() > motion.expression[:, jaw].mean()
    assert (moved.expression >= motion.expression - 1e-6).all() and moved.expression.amax() <= 1


def test_textures_stick_to_the_surface(head: HeadModel) -> None:
    texture = widen(Identity.random(3, seeded(0), head), 1.0, seeded(1), head).texture
    position = torch.rand(500, 3, generator=seeded(2))
    owner = torch.randint(3, (500,), generator=seeded(3))
    noise = solid_noise(position, texture, owner)
    assert noise.abs().mean() > 0.2
    order = torch.randperm(500, generator=seeded(4))
    torch.testing.assert_close(solid_noise(position[order], texture, owner[order]), noise[order])


def test_the_gallery_offers_every_family() -> None:
    assert Style.__args__ == (*FAMILIES, *HELD_OUT)


def test_openings_are_those_of_lids_and_lips(head: HeadModel) -> None:
    names, params = head.expression_names, head.neutral(3)
    params.expression[1, names.index("jawOpen")] = 0.8
    params.expression[2, [names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")]] = 1.0
    still, spoken, closed = openings(head, params)
    assert (spoken[4:] > still[4:] + 0.1).all(), "lips"
    torch.testing.assert_close(spoken[:4], still[:4], atol=5e-3, rtol=0)
    assert (closed[:4] < 0.4 * still[:4]).all(), "lids"
    nearer = replace(params, camera=params.camera * torch.tensor([1.7, 1.0, 1.0]))
    torch.testing.assert_close(openings(head, nearer), openings(head, params))


def test_strands_lie_in_front_of_what_is_behind_them_only(head: HeadModel, studio: Studio) -> None:
    identity = Identity.random(1, seeded(0), head)
    wide = widen(identity, 1.0, seeded(3), head)
    params = replace(head.neutral(1), shape=identity.shape)
    zeros = torch.zeros_like(wide.strands.polar)

    def strands_at(azimuth: float) -> torch.Tensor:
        """Short curves down the skull at one azimuth, on a bald head: what they change in the picture."""
        one = replace(
            wide.strands,
            polar=zeros + 1.0,
            azimuth=zeros + azimuth,
            length=zeros + 0.05,
            lean=zeros,
            spread=zeros,
            curl=zeros,
        )
        pictures = [
            studio.render(replace(identity, strands=each), params, size=64)
            for each in (one, replace(one, length=zeros))
        ]
        return (pictures[0] - pictures[1]).abs().amax()

    assert strands_at(0.0) > 0.02, "over the forehead"
    assert strands_at(torch.pi) == 0, "behind the head"


def test_strands_follow_the_head(head: HeadModel, studio: Studio) -> None:
    many = widen(Identity.random(8, seeded(0), head), 1.0, seeded(3), head)
    wide = many[int((many.strands.length > 0).any(1).nonzero()[0])]
    params = replace(head.neutral(1), shape=wide.shape)
    turned = replace(params, pose=params.pose.clone())
    turned.pose[:, 0:3] = torch.tensor([0.0, 0.4, 0.0])
    still, moved = (studio._build(wide, each).strands for each in (params, turned))
    assert still is not None and moved is not None
    lengths = [(each[:, :, 1:] - each[:, :, :-1]).norm(dim=-1) for each in (still, moved)]
    torch.testing.assert_close(*lengths, atol=1e-5, rtol=0)
    assert (still - moved).norm(dim=-1).amax() > 0.01


def test_an_expression_draws_wrinkles_where_it_folds_the_face(head: HeadModel, studio: Studio) -> None:
    names, plain = head.expression_names, Identity.random(1, seeded(0), head)
    wide = widen(plain, 1.0, seeded(3), head).texture
    deep = replace(plain, texture=replace(wide, wrinkles=torch.ones(1), skin=torch.zeros(1)))
    smooth = replace(deep, texture=replace(deep.texture, wrinkles=torch.zeros(1)))
    still, raised = (replace(head.neutral(1), shape=plain.shape) for _ in range(2))
    raised.expression[:, names.index("browInnerUp")] = 1.0
    change = [
        (studio.render(smooth, each, size=128) - studio.render(deep, each, size=128)).clamp(min=0).sum()
        for each in (still, raised)
    ]
    assert 0 < change[0] < change[1]


def test_things_in_front_stay_where_they_are(head: HeadModel, studio: Studio) -> None:
    identity = Identity.random(1, seeded(0), head)
    leaf = torch.tensor([[[0.1, 0.2, 0.3, 0.3, 0.0, 2.0, 0.0, 1.0, 0.0]]])
    covered = replace(identity, foreground=replace(identity.foreground, leaves=leaf))
    moved = replace(random_frames(2, seeded(1), head), shape=identity.shape.expand(2, -1))
    first, second = studio.render(covered, moved, size=64)
    assert torch.equal(first[:, 38, 35], second[:, 38, 35]) and first[1, 38, 35] > 0.9
    assert (first - second).abs().amax() > 0.1


def test_dead_leaves_follow_their_seed_and_hold_every_size() -> None:
    pictures = dead_leaves(3, 64, seeded(0))
    assert pictures.shape == (3, 3, 64, 64) and pictures.amin() >= 0 and pictures.amax() <= 1
    assert torch.equal(pictures, dead_leaves(3, 64, seeded(0)))
    assert (pictures[0] - pictures[1]).abs().mean() > 0.05
    coarse = torch.nn.functional.avg_pool2d(pictures, 16)
    assert coarse.std((2, 3)).mean() > 0.05, "large leaves"
    fine = pictures - torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)
    assert fine.std() > 0.02, "edges and grain"
