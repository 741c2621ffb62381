"""The AniPortrait profile against AniPortrait's own code, live or by its numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anifacediff_core.capture.drawing import draw, retarget
from anifacediff_core.capture.geometry import project
from anifacediff_core.head.model import HeadModel
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.landmark_guider import LandmarkGuider
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.pipeline import Pipeline
from harness.aniportrait import (
    CFG,
    GOLDEN,
    NARROW,
    STEPS,
    TIMESTEP,
    Inputs,
    Networks,
    Theirs,
    can_draw,
    checkout,
    random_motion,
    their_drawings,
    to_arrays,
    unpacked,
)
from harness.magicportrait import random_vae


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks.random(NARROW)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs.random(NARROW, frames=2, size=128)


@pytest.fixture(scope="module")
def model(networks: Networks) -> AniFaceDiff:
    model = AniFaceDiff(NARROW).eval().requires_grad_(False)
    for name, network in (
        ("unet", networks.unet),
        ("reference", networks.reference),
        ("pose_encoder", networks.guider),
        ("motion", networks.motion),
    ):
        setattr(model, name, network)
    return model


@pytest.fixture(scope="module")
def latent(inputs: Inputs) -> Tensor:
    return random_vae().encode(inputs.source * 2 - 1).latent_dist.mean * NARROW.scaling_factor


@pytest.fixture(scope="module")
def conditioning(model: AniFaceDiff, inputs: Inputs, latent: Tensor) -> VideoConditioning:
    context = inputs.embedding[:, None]
    return VideoConditioning(
        reference=model.encode_reference(latent, context),
        context=context,
        pose=model.encode_pose(inputs.drawings),
        expression=None,
    )


@pytest.fixture(scope="module", params=["golden", "live"])
def theirs(request: pytest.FixtureRequest, networks: Networks, inputs: Inputs, latent: Tensor) -> dict:
    if request.param == "golden":
        return load_file(GOLDEN)
    if checkout() is None:
        pytest.skip("ANIPORTRAIT_PATH names no checkout of AniPortrait")
    return Theirs(networks).results(inputs, latent, random_vae())


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_pose_features(theirs: dict, conditioning: VideoConditioning) -> None:
    assert len(conditioning.pose) == 5
    for level, found in enumerate(conditioning.pose):
        assert error(found, theirs[f"features.{level}"]) < 5e-5


def test_one_call_of_the_network(
    theirs: dict, model: AniFaceDiff, inputs: Inputs, conditioning: VideoConditioning
) -> None:
    found = model.predict(
        inputs.noise, torch.tensor([TIMESTEP]), conditioning, expression_scale=1.0, guided=True
    )
    conditional, unconditional = found.chunk(2)
    assert error(torch.cat([unconditional, conditional]), theirs["prediction"]) < 2e-5


def test_sampling(theirs: dict, model: AniFaceDiff, inputs: Inputs, conditioning: VideoConditioning) -> None:
    pipeline = Pipeline(model, AutoEncoder(), HeadModel.bundled())
    found = pipeline.sample(conditioning, steps=STEPS, cfg=CFG, window=16, noise=inputs.noise)
    assert error(found, theirs["sampled_finite"]) < 1e-4
    # Its first step starts from pure noise; ours, as ComfyUI's, from a very high but finite noise level.
    assert error(found, theirs["sampled"]) < 3e-4


def test_every_level_of_the_pose_matters(
    model: AniFaceDiff, inputs: Inputs, conditioning: VideoConditioning
) -> None:
    def predict(pose: tuple[Tensor, ...]) -> Tensor:
        changed = replace(conditioning, pose=pose)
        return model.predict(
            inputs.noise, torch.tensor([TIMESTEP]), changed, expression_scale=1.0, guided=False
        )

    full = predict(conditioning.pose)
    for level in range(len(conditioning.pose)):
        pose = list(conditioning.pose)
        pose[level] = torch.zeros_like(pose[level])
        assert error(predict(tuple(pose)), full) > 1e-3


def test_features_of_a_long_video_do_not_depend_on_the_chunks(model: AniFaceDiff) -> None:
    drawings = torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    drawings[4:] *= 0.2  # chunks of their own would have other statistics
    whole = model.encode_pose(drawings, chunk=7)
    parts = model.encode_pose(drawings, chunk=3)
    guider = model.pose_encoder
    assert isinstance(guider, LandmarkGuider)
    alone = guider(drawings[4:])
    for level, one, other in zip(whole, parts, alone, strict=True):
        assert error(one, level) < 1e-3
        assert error(other, level[4:]) > 1e-2


def drawn(size: int = 512) -> np.ndarray:
    source, driving, neutral = random_motion(frames=4)
    moved = retarget(source, driving, neutral)
    return to_arrays(draw(project(moved.surface, moved.turn, moved.place), size))


def test_drawings_are_pixel_by_pixel_its_drawings() -> None:
    """But for a point that another processor rounds to the next pixel."""
    differs = (drawn() != unpacked(load_file(GOLDEN)["drawings"])).any(-1)
    assert differs.mean() < 5e-4


@pytest.mark.parametrize("size", [512, 256, 768])
def test_drawings_against_its_code(size: int) -> None:
    if checkout() is None or not can_draw():
        pytest.skip("ANIPORTRAIT_PATH names no checkout of AniPortrait, or mediapipe is not installed")
    expected = their_drawings(*random_motion(frames=4), size)
    difference = np.abs(drawn(size).astype(int) - expected).max()
    assert difference <= (0 if size == 512 else 1)  # OpenCV scales in whole numbers
    assert (expected > 0).any((1, 2, 3)).all()
