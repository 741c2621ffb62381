"""Render Guidance and a pose encoder of several pictures, as nodes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import GUIDANCE, render_guidance
from anifacediff_core.head.texture import TextureModel
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.guidance import make_guidance_encoder
from harness.extension import Extension
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
    texture = TextureModel.load(extension.base / "models" / "flame" / "FLAME_texture.npz", face.head.faces)
    expected = render_guidance(
        face.head, face.in_picture, SIZE, appearance=face.appearance, texture=texture, batch=3
    )
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


def test_the_source_stays_in_its_place(extension: Extension, face: Face) -> None:
    source: FaceParameters = replace(face.parameters[0], camera=torch.tensor([[4.0, 0.1, 0.0]]))
    align = {"source": source, "driving": face.parameters}
    (found,) = extension.run("FacialShapeAlign", **align, camera="source")
    assert torch.equal(found.camera, source.camera.expand(3, 3))
    (found,) = extension.run("FacialShapeAlign", **align)
    assert torch.equal(found.camera, face.parameters.camera)
