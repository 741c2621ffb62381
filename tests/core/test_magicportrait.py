"""The profile of MagicPortrait against numbers that its own code computed, and against that code itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.alignment import align
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.render import GRAY, draw_guidance, iterate_guidance, shade, split_guidance
from anifacediff_core.head.texture import Appearance, TextureModel
from anifacediff_core.network.attention import AttentionInputs, project_reference
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.guidance import make_guidance_encoder
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.unet import run_unet
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.schedule import TERMINAL_ALPHA
from anifacediff_core.weights.importers.texture import load_texture
from anifacediff_core.weights.sources import open_checkpoint
from harness.magicportrait import (
    CFG,
    FULL,
    GOLDEN,
    NARROW,
    STEPS,
    TIMESTEP,
    Inputs,
    Networks,
    Theirs,
    random_vae,
)
from harness.magicportrait_head import SIZE, Face, checkout, draw, write_template, write_texture

needs_checkout = pytest.mark.skipif(checkout() is None, reason="MAGICPORTRAIT_PATH names no checkout")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks.random(NARROW)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs.random(NARROW, frames=2, size=128)


@pytest.fixture(scope="module")
def latent(inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return random_vae().encode(inputs.source * 2 - 1).latent_dist.mean * NARROW.scaling_factor


@pytest.fixture(scope="module")
def face() -> Face:
    return Face.random()


@pytest.fixture(scope="module")
def texture(face: Face, tmp_path_factory: pytest.TempPathFactory) -> TextureModel:
    path = tmp_path_factory.mktemp("flame") / "FLAME_texture.npz"
    write_texture(path, *face.places())
    return load_texture(path, face.head.faces)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
def reference_of(networks: Networks, inputs: Inputs, latent: Tensor) -> dict[str, Tensor]:
    """Features of the ReferenceNet, through half precision, as their code keeps them."""
    features: dict[str, Tensor] = {}
    start = torch.zeros(1, dtype=torch.long)
    run_unet(networks.reference, latent, start, inputs.text, conditions=AttentionInputs(record=features))
    return {name: tokens.half().float() for name, tokens in features.items()}


@torch.no_grad()
def predict(networks: Networks, inputs: Inputs, latent: Tensor) -> Tensor:
    """One call of the denoising UNet: (2 * frames, 4, h, w), unconditional rows first."""
    rows = 2 * len(inputs.noise)
    reference = project_reference(networks.unet, reference_of(networks, inputs, latent))
    prediction = run_unet(
        networks.unet,
        inputs.noise.repeat(2, 1, 1, 1),
        torch.full((rows,), TIMESTEP),
        inputs.text.expand(rows, -1, -1),
        conditions=AttentionInputs(conditional_rows=rows // 2, reference=reference),
        pose=(networks.guidance(inputs.pictures).repeat(2, 1, 1, 1),),
        motion=networks.motion,
        frames=rows // 2,
    )
    return torch.cat(prediction.chunk(2)[::-1])


def test_guidance_encoders(networks: Networks, inputs: Inputs, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert relative_error(networks.guidance(inputs.pictures), golden["features"]) < 1e-5


def test_prediction(networks: Networks, inputs: Inputs, latent: Tensor, golden: dict[str, Tensor]) -> None:
    assert relative_error(predict(networks, inputs, latent), golden["prediction"]) < 1e-4


@torch.no_grad()
def sample(networks: Networks, inputs: Inputs, latent: Tensor) -> Tensor:
    """The whole of our pipeline, from given noise."""
    model = AniFaceDiff(NARROW)
    model.unet, model.reference, model.motion = networks.unet, networks.reference, networks.motion
    conditioning = VideoConditioning(
        reference=reference_of(networks, inputs, latent),
        context=inputs.text,
        unconditional=inputs.text,
        pose=(networks.guidance(inputs.pictures),),
        expression=None,
    )
    pipeline = Pipeline(model, AutoEncoder(), HeadModel.bundled())
    return pipeline.sample(conditioning, steps=STEPS, cfg=CFG, window=12, overlap=1, noise=inputs.noise)


def test_sampling(networks: Networks, inputs: Inputs, latent: Tensor, golden: dict[str, Tensor]) -> None:
    # Their last time step has no signal at all, ours a little, as the host's has: 2e-4 of the noise.
    assert relative_error(sample(networks, inputs, latent), golden["latents"]) < 3e-4


def test_pictures(face: Face, texture: TextureModel, golden: dict[str, Tensor]) -> None:
    given = {"appearance": face.appearance, "texture": texture, "batch": 1}
    drawn = split_guidance(iterate_guidance(face.head, face.in_picture, SIZE, **given))
    assert list(drawn) == list(FULL.pose_inputs)
    for index, picture in enumerate(drawn.values()):
        theirs = golden["pictures"][:, 3 * index : 3 * index + 3].float()
        assert theirs.amax() > 200
        differs = ((picture * 255 - theirs).abs() > 1.01).any(dim=1)
        assert differs.float().mean() < 1e-3  # a pixel at the rim may fall to the other side


def test_pictures_of_a_batch_equal_those_of_single_frames(face: Face, texture: TextureModel) -> None:
    """Depth is scaled frame by frame."""
    together = draw_guidance(face.head, face.in_picture, SIZE, face.appearance, texture)
    single = [draw_guidance(face.head, face.in_picture[[i]], SIZE, face.appearance, texture) for i in (0, 1)]
    assert torch.allclose(together, torch.cat(single), atol=1e-3)


def test_without_a_texture_the_head_is_gray_in_the_same_light(face: Face) -> None:
    light = torch.zeros(1, 9, 3)
    light[:, 0] = torch.tensor([2.0, 1.0, 0.5])
    dim = Appearance(torch.zeros(1, 50), light)
    drawn = split_guidance(iterate_guidance(face.head, face.in_picture, SIZE, appearance=dim))["render"]
    covered = drawn.sum(1) > 0
    color = drawn.movedim(1, -1)[covered]
    assert torch.allclose(color, GRAY * light[0, 0] * (1 / (4 * np.pi)) ** 0.5, atol=1e-5)
    neutral = split_guidance(iterate_guidance(face.head, face.in_picture, SIZE))["render"].movedim(1, -1)[
        covered
    ]
    assert (neutral > 0.4).all() and torch.equal(neutral[:, 0], neutral[:, 2])


def test_light_comes_from_where_its_coefficients_say() -> None:
    """Band 1 is x, 2 is y, 3 is z: light from the right brightens what faces right."""
    normals = torch.eye(3).reshape(3, 3, 1, 1)
    for axis in range(3):
        light = torch.zeros(1, 9, 3)
        light[0, 1 + axis] = 1
        brightness = shade(normals, light)[:, 0, 0, 0]
        assert brightness.argmax() == axis and brightness[axis] == pytest.approx(1.0233, abs=1e-4)


def test_the_template_tells_the_same_places(face: Face, tmp_path: Path, texture: TextureModel) -> None:
    places, triangles = face.places()
    write_texture(tmp_path / "FLAME_texture.npz", places, torch.zeros_like(triangles))
    shuffled = torch.randperm(len(triangles), generator=torch.Generator().manual_seed(0))
    order = face.head.faces[shuffled].roll(1, 1), triangles[shuffled].roll(1, 1)
    write_template(tmp_path / "head_template.obj", face.head.template, *order, places)
    loaded = load_texture(tmp_path / "FLAME_texture.npz", face.head.faces)
    assert torch.allclose(loaded.corners, texture.corners, atol=1e-5)


def test_wrong_textures_are_refused_in_a_sentence(face: Face, tmp_path: Path) -> None:
    places, triangles = face.places()
    path = tmp_path / "FLAME_texture.npz"
    faces = face.head.faces
    with pytest.raises(InputError, match="missing or damaged"):
        load_texture(path, faces)
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="missing or damaged"):
        load_texture(path, faces)
    np.savez(path, MU=np.zeros(3))
    with pytest.raises(InputError, match="expected mean and tex_dir, found MU"):
        load_texture(path, faces)
    np.savez(path, mean=np.zeros((4, 4, 3)), tex_dir=np.zeros((4, 4, 3, 2)))
    with pytest.raises(InputError, match="mean of shape \\[4, 4, 3\\]: expected \\[512"):
        load_texture(path, faces)
    np.savez(path, mean=np.array([{}]), tex_dir=np.zeros(3))
    with pytest.raises(InputError, match="missing or damaged"):
        load_texture(path, faces)
    write_texture(path, places, triangles[:-1])
    with pytest.raises(InputError, match=f"with {len(faces) - 1} triangles: expected {len(faces)}"):
        load_texture(path, faces)
    write_texture(path, places, triangles)
    path.write_bytes(path.read_bytes()[:-1_000_000])
    with pytest.raises(InputError, match="missing or damaged"):
        load_texture(path, faces)


def test_wrong_number_of_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="depth, normals, render: expected 9 channels, found 3"):
        make_guidance_encoder(NARROW)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="pose_channels ends with 20"):
        make_guidance_encoder(replace(NARROW, pose_channels=(8, 20)))


def test_a_guidance_encoder_begins_silent(inputs: Inputs) -> None:
    assert not make_guidance_encoder(NARROW)(inputs.pictures).any()


def test_the_source_camera_keeps_the_source_in_its_place(face: Face) -> None:
    """MagicPortrait turns the source's head where it is in the source picture."""
    source = replace(face.parameters[0], camera=torch.tensor([[5.0, 0.1, 0.2]]))
    driving = face.parameters
    aligned = align(source, driving, camera="source")
    assert torch.equal(aligned.camera, source.camera.expand(len(driving), 3))
    assert torch.equal(aligned.pose, driving.pose) and torch.equal(aligned.expression, driving.expression)
    assert torch.equal(align(source, driving).camera, driving.camera)


@needs_checkout
def test_their_guidance_encoders_at_their_full_size() -> None:
    networks = Networks.random(replace(NARROW, pose_channels=FULL.pose_channels))
    inputs = Inputs.random(NARROW, frames=2, size=64)
    with torch.no_grad():
        assert relative_error(networks.guidance(inputs.pictures), Theirs(networks).features(inputs)) < 1e-5


@needs_checkout
def test_their_code_still_says_the_same(
    networks: Networks, inputs: Inputs, latent: Tensor, golden: dict[str, Tensor], face: Face, tmp_path: Path
) -> None:
    theirs = Theirs(networks)
    assert relative_error(theirs.features(inputs), golden["features"]) < 1e-5
    assert relative_error(theirs.predict(inputs, latent, TIMESTEP), golden["prediction"]) < 1e-5
    assert relative_error(theirs.sample(inputs, random_vae()), golden["latents"]) < 1e-4
    assert torch.equal(draw(face, tmp_path), golden["pictures"])
    theirs_like_ours = theirs.sample(inputs, random_vae(), terminal=TERMINAL_ALPHA)
    assert relative_error(sample(networks, inputs, latent), theirs_like_ours) < 1e-4


@needs_checkout
def test_a_folder_of_their_files_is_a_checkpoint(networks: Networks, tmp_path: Path) -> None:
    Theirs(networks).save(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    images = {name: getattr(NARROW, name) for name in NARROW.to_json() if name.startswith("image_")}
    assert replace(checkpoint.config, **images) == NARROW
    parts = {"unet": networks.unet, "reference": networks.reference}
    parts |= {"motion": networks.motion, "pose_encoder": networks.guidance}
    for part, network in parts.items():
        loaded, expected = checkpoint.part(part, torch.float32), network.state_dict()
        assert set(loaded) == set(expected)
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@needs_checkout
@pytest.mark.slow
def test_their_whole_network_at_its_full_size() -> None:
    """9 GB of memory and a minute."""
    networks = Networks.random(FULL)
    inputs = Inputs.random(FULL, frames=2, size=64)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = Theirs(networks).predict(inputs, latent, TIMESTEP)
    assert relative_error(predict(networks, inputs, latent), theirs) < 1e-4
