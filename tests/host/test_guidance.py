"""MagicPortrait as nodes: Render Guidance, a pose encoder of several pictures, a text as context."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anifacediff_core.errors import InputError
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import GUIDANCE, iterate_guidance, split_guidance
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.guidance import make_guidance_encoder
from anifacediff_core.weights.checkpoint import save_checkpoint
from anifacediff_core.weights.importers.texture import load_texture
from harness.extension import Extension
from harness.magicportrait import CFG, GOLDEN, NARROW, STEPS, Inputs, Networks, random_vae
from harness.magicportrait_head import Face, write_texture
from harness.weights import randomize

CONFIG = NetworkConfig(
    block_out_channels=(32, 32, 32, 32),
    pose_encoder="attention",
    pose_inputs=GUIDANCE,
    pose_channels=(8, 32, 32, 32),
)
SIZE = 64


@pytest.fixture(scope="module")
def face(extension: Extension) -> Face:
    face = Face.random(frames=3)
    write_texture(extension.base / "models" / "flame" / "FLAME_texture.npz", *face.places())
    return face


@pytest.fixture(scope="module")
def drawn(extension: Extension, face: Face) -> dict[str, torch.Tensor]:
    given = {"parameters": face.in_picture, "size": SIZE, "head": "bundled", "texture": "FLAME_texture.npz"}
    pictures = extension.run("RenderGuidance", **given, appearance=face.appearance)
    return dict(zip(GUIDANCE, pictures, strict=True))


@pytest.fixture(scope="module")
def encoder(host: SimpleNamespace) -> object:
    return host.parts.load_pose_encoder(CONFIG, randomize(make_guidance_encoder(CONFIG), 0).state_dict())


def test_pictures_are_the_cores(extension: Extension, face: Face, drawn: dict[str, torch.Tensor]) -> None:
    texture = load_texture(extension.base / "models" / "flame" / "FLAME_texture.npz", face.head.faces)
    given = {"appearance": face.appearance, "texture": texture, "batch": 3}
    expected = split_guidance(iterate_guidance(face.head, face.in_picture, SIZE, **given))
    for kind, picture in drawn.items():
        assert picture.shape == (3, SIZE, SIZE, 3) and picture.is_contiguous()
        assert torch.allclose(picture.movedim(-1, 1), expected[kind], atol=1e-3), kind


def test_without_files_the_head_is_gray(extension: Extension, face: Face) -> None:
    *_, render = extension.run("RenderGuidance", parameters=face.in_picture, size=SIZE, head="bundled")
    assert torch.equal(render[..., 0], render[..., 2]) and render.amax() > 0.5


def test_all_pictures_are_encoded_in_the_order_of_the_encoder(
    extension: Extension, encoder: object, drawn: dict[str, torch.Tensor]
) -> None:
    (pose,) = extension.run("PoseEncode", pose_encoder=encoder, **drawn)
    core = randomize(make_guidance_encoder(CONFIG), 0).eval()
    expected = core(torch.cat([drawn[kind] for kind in GUIDANCE], -1).movedim(-1, 1))
    assert (pose.features - expected).norm() / expected.norm() < 1e-4


def test_missing_and_misfitting_pictures_are_refused(
    extension: Extension, encoder: object, drawn: dict[str, torch.Tensor]
) -> None:
    only = {"pose_encoder": encoder, "normals": drawn["normals"]}
    assert "no depth" in extension.refusal("PoseEncode", **only)
    assert "no render" in extension.refusal("PoseEncode", **only, depth=drawn["depth"])
    short = {**drawn, "render": drawn["render"][:2]}
    refusal = extension.refusal("PoseEncode", pose_encoder=encoder, **short)
    assert "2 pictures of 64×64 as render but 3 pictures of 64×64 as depth" in refusal
    wide = {**drawn, "depth": drawn["depth"][:, :, :40]}
    assert "depth are 40×64" in extension.refusal("PoseEncode", pose_encoder=encoder, **wide)


def test_pictures_that_no_node_draws(
    extension: Extension, host: SimpleNamespace, drawn: dict[str, torch.Tensor]
) -> None:
    """Champ's."""
    config = replace(CONFIG, pose_inputs=("normals", "semantic_map"))
    encoder = host.parts.load_pose_encoder(config, make_guidance_encoder(config).state_dict())
    refusal = extension.refusal("PoseEncode", pose_encoder=encoder, normals=drawn["normals"])
    assert "reads semantic_map, which no node draws" in refusal


def test_the_source_stays_in_its_place(extension: Extension, face: Face) -> None:
    source: FaceParameters = replace(face.parameters[0], camera=torch.tensor([[4.0, 0.1, 0.0]]))
    align = {"source": source, "driving": face.parameters}
    (found,) = extension.run("FacialShapeAlign", **align, camera="source")
    assert torch.equal(found.camera, source.camera.expand(3, 3))
    (found,) = extension.run("FacialShapeAlign", **align)
    assert torch.equal(found.camera, face.parameters.camera)


class Vae:
    """The host's VAE around the one of the core's test."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return random_vae().encode(pixels.movedim(-1, 1) * 2 - 1).latent_dist.mean


@pytest.fixture(scope="module")
def magicportrait(extension: Extension) -> dict[str, Any]:
    """Load AniFaceDiff's outputs for a narrow MagicPortrait with the weights of the core's test."""
    networks = Networks.random(NARROW)
    modules = {name: getattr(networks, name) for name in ("unet", "reference", "motion")}
    parts = {name: module.state_dict() for name, module in modules.items()}
    path = extension.base / "models" / "anifacediff" / "magicportrait.safetensors"
    encoder = networks.guidance.state_dict()
    save_checkpoint(
        path, parts | {"pose_encoder": encoder}, NARROW, head="anifacediff-head-1", dtype=torch.float32
    )
    names = ("model", "vae", "clip_vision", "reference_net", "pose_encoder", "face_capture")
    return dict(zip(names, extension.run("Loader", checkpoint=path.name), strict=True))


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs.random(NARROW, frames=2, size=128)


@pytest.fixture(scope="module")
def pose(extension: Extension, magicportrait: dict[str, Any], inputs: Inputs) -> Any:
    pictures = dict(zip(GUIDANCE, inputs.pictures.movedim(1, -1).split(3, dim=-1), strict=True))
    return extension.run("PoseEncode", pose_encoder=magicportrait["pose_encoder"], **pictures)[0]


def reference(extension: Extension, loaded: dict[str, Any], inputs: Inputs, **context: Any) -> Any:
    networks = {name: loaded[name] for name in ("reference_net", "clip_vision")}
    source = inputs.source.movedim(1, -1)
    return extension.run(
        "ReferenceNetEncode", **networks, vae=Vae(), source_image=source, size=128, **context
    )[0]


def test_the_stock_sampler_ends_where_their_code_does(
    comfy: ModuleType, extension: Extension, magicportrait: dict[str, Any], inputs: Inputs, pose: Any
) -> None:
    found = reference(extension, magicportrait, inputs, context=[[inputs.text, {}]])
    model, positive, negative, latent = extension.run(
        "Apply", model=magicportrait["model"], reference=found, pose=pose, window=12, overlap=1
    )
    samples = comfy.sample.sample(
        model, inputs.noise, STEPS, CFG, "euler", "simple", positive, negative, latent["samples"], seed=0
    )
    expected = load_file(GOLDEN)["latents"] / NARROW.scaling_factor
    assert (samples - expected).norm() / expected.norm() < 1e-3


def test_text_and_picture_are_not_mixed_up(
    extension: Extension, magicportrait: dict[str, Any], inputs: Inputs, pose: Any
) -> None:
    with pytest.raises(InputError, match="or connect a text to context"):
        reference(extension, magicportrait, inputs)
    of_picture = replace(
        reference(extension, magicportrait, inputs, context=[[inputs.text, {}]]),
        embedding=torch.zeros(1, NARROW.cross_attention_dim),
    )
    given = {"model": magicportrait["model"], "pose": pose, "window": 12, "overlap": 1}
    assert "reads a text" in extension.refusal("Apply", **given, reference=of_picture)
