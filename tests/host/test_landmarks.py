"""AniPortrait in the host: its landmarks drawn, its features at five places of the native MODEL."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_native import relative_error
from torch import Tensor, nn

from anifacediff_core.capture import mediapipe
from anifacediff_core.capture.drawing import draw_reenactment
from anifacediff_core.capture.geometry import BASIS
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.weights.checkpoint import save_checkpoint
from harness.aniportrait import NARROW
from harness.extension import Extension
from harness.weights import randomize

FRAMES, SIZE = 5, 64
DRAWING = {"size": SIZE, "head_motion": "relative", "face": 0}


@pytest.fixture(scope="module")
def core() -> AniFaceDiff:
    return randomize(AniFaceDiff(NARROW, motion=True), 0).eval()


@pytest.fixture(scope="module")
def drawings() -> Tensor:
    return torch.rand(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def conditioning(core: AniFaceDiff, drawings: Tensor) -> VideoConditioning:
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(1, 1, NARROW.cross_attention_dim, generator=generator)
    latent = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=generator)
    return VideoConditioning(
        core.encode_reference(latent, context), context, core.encode_pose(drawings), None
    )


def face(x: float = 0.0, jaw: float = 0.0, size: int = 200) -> dict[str, Any]:
    """A face of MediaPipe's mesh before a camera of 63°, `x` and `jaw` in centimeters."""
    places = torch.randn(478, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, -3, 5])
    for number, _, *place in BASIS:
        places[int(number)] = torch.tensor(place)
    places[17, 1] -= jaw
    places = places + torch.tensor([x, 0.0, -40.0])
    flat = places[:, :2] * torch.tensor([1.0, -1.0]) / -places[:, 2:] * 0.8 * size + size / 2
    deep = (-places[:, 2:] / 40 - 1) * 0.8 * size
    blendshapes = {"jawOpen": jaw}
    return {"landmarks_xy": flat, "landmarks_3d": torch.cat([flat, deep], 1), "blendshapes": blendshapes}


def landmarks(*faces: dict[str, Any] | None) -> dict[str, Any]:
    return {"frames": [[] if each is None else [each] for each in faces], "image_size": (200, 200)}


DRIVER = landmarks(face(x=1.0), face(x=2.0, jaw=1.0), None, face(x=3.0, jaw=2.0), face(x=2.0))


def test_pose_features(host: SimpleNamespace, core: AniFaceDiff, drawings: Tensor) -> None:
    encoder = host.parts.load_pose_encoder(NARROW, core.pose_encoder.state_dict())
    for chunk in (FRAMES, 2):
        found = host.parts.encode_pose(encoder, drawings, chunk=chunk)
        expected = core.encode_pose(drawings)
        assert len(found) == 5
        assert all(relative_error(*levels) < 1e-4 for levels in zip(found, expected, strict=True))


@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_native_model(
    comfy: ModuleType, host: SimpleNamespace, core: AniFaceDiff, conditioning: VideoConditioning, cfg: float
) -> None:
    model = host.apply.apply_anifacediff(
        host.model.load_model(core.unet.state_dict(), NARROW),
        reference=conditioning.reference,
        pose=conditioning.pose,
        motion=host.parts.load_motion(NARROW, core.motion.state_dict()),
        window=3,
        overlap=1,
    )
    noise = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    guidance = host.apply.image_conditioning(conditioning.context)
    samples = comfy.sample.sample(
        model, noise, 4, cfg, "euler", "simple", *guidance, torch.zeros_like(noise), seed=0
    )
    pipeline = Pipeline(core, AutoEncoder(), nn.Identity())
    expected = pipeline.sample(conditioning, steps=4, cfg=cfg, noise=noise, window=3, overlap=1)
    assert relative_error(samples * NARROW.scaling_factor, expected) < 1e-3


def test_drawings_are_the_cores(extension: Extension) -> None:
    given = {"source_landmarks": landmarks(face()), "driving_landmarks": DRIVER}
    drawings, source, report = extension.run("DrawFaceLandmarks", **given, **DRAWING)
    expected = draw_reenactment(landmarks(face()), DRIVER, SIZE)
    assert torch.equal(drawings, expected.driving.movedim(1, -1))
    assert torch.equal(source, expected.source.movedim(1, -1))
    assert drawings.shape == (FRAMES, SIZE, SIZE, 3) and drawings.any() and report == expected.note


def test_drawing_refuses(extension: Extension) -> None:
    good = landmarks(face())
    message = extension.refusal("DrawFaceLandmarks", source_landmarks=good, **DRAWING)
    assert "driving_landmarks" in message
    message = extension.refusal("DrawFaceLandmarks", driving_landmarks=good, **DRAWING)
    assert "source_landmarks" in message
    nobody = landmarks(None, None)
    lost = landmarks(face() | {"landmarks_3d": torch.full((478, 3), float("nan"))})
    strange = {"frames": 3, "image_size": "large"}
    for given in ({}, {"frames": []}, nobody, lost, strange, landmarks(torch.zeros(4))):
        extension.refusal("DrawFaceLandmarks", source_landmarks=good, driving_landmarks=given, **DRAWING)
    if not mediapipe.available():
        image = torch.zeros(1, SIZE, SIZE, 3)
        message = extension.refusal(
            "DrawFaceLandmarks", source_landmarks=good, driving_video=image, **DRAWING
        )
        assert "MediaPipe" in message


def test_the_whole_way(extension: Extension, core: AniFaceDiff) -> None:
    """From a checkpoint and landmarks to a video, with no face parameters anywhere."""
    parts = {
        name: getattr(core, name).state_dict()
        for name in ("unet", "motion", "reference", "pose_encoder", "image_encoder")
    }
    parts["vae"] = randomize(AutoEncoder(), 1).state_dict()
    name = "aniportrait.safetensors"
    save_checkpoint(extension.base / "models" / "anifacediff" / name, parts, NARROW, head="")
    model, vae, clip_vision, reference_net, pose_encoder, *_ = extension.run("Loader", checkpoint=name)
    drawings, *_ = extension.run(
        "DrawFaceLandmarks", source_landmarks=landmarks(face()), driving_landmarks=DRIVER, **DRAWING
    )
    (pose,) = extension.run("PoseEncode", pose_encoder=pose_encoder, normals=drawings)
    networks = {"reference_net": reference_net, "vae": vae, "clip_vision": clip_vision}
    (reference,) = extension.run(
        "ReferenceNetEncode", **networks, source_image=torch.rand(1, SIZE, SIZE, 3), size=SIZE
    )
    (latent,) = extension.run(
        "Sampler",
        model=model,
        reference=reference,
        pose=pose,
        seed=0,
        steps=2,
        cfg=3.5,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        window=4,
        overlap=2,
        shared_noise=0.0,
    )
    assert latent["samples"].shape == (FRAMES, 4, 8, 8) and latent["samples"].isfinite().all()
