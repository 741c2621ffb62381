"""The host's MODEL, VAE, CLIP_VISION and managed networks, and how they behave in the host's hands."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from harness.weights import randomize


def configs() -> dict:
    from anifacediff_core.network.config import NetworkConfig

    tiny = NetworkConfig.tiny()
    # Stable Diffusion 1.5's levels and layers, only narrow
    narrow = replace(
        tiny,
        block_out_channels=(32, 64, 64, 64),
        attention_levels=(True, True, True, False),
        layers_per_block=2,
        attention_heads=(8, 8, 8, 8),
        motion_heads=(8, 8, 8, 8),
    )
    # latents of more channels than Stable Diffusion's
    deep = replace(tiny, latent_channels=16)
    # the bundled levels and layers with the widths that FreeU knows
    widening = replace(
        tiny, block_out_channels=(32, 64, 128), attention_heads=(2, 2, 2), motion_heads=(2, 2, 2)
    )
    return {"tiny": tiny, "narrow": narrow, "deep": deep, "widening": widening}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(params=["deep", "narrow"])
def config(request: pytest.FixtureRequest, host: SimpleNamespace):
    return configs()[request.param]


@pytest.fixture
def unet(config) -> nn.Module:
    from anifacediff_core.network.unet import make_unet

    return randomize(make_unet(config), 0).eval()


def test_model_equals_diffusers(host: SimpleNamespace, config, unet: nn.Module) -> None:
    model = host.model.load_model(unet.state_dict(), config)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, config.latent_channels, 8, 8, generator=generator)
    context = torch.randn(3, 2, config.cross_attention_dim, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    found = model.model.diffusion_model(latents, timesteps, context)
    expected = unet(latents, timesteps, context).sample
    assert relative_error(found, expected) < 1e-5


def test_every_weight_arrives(
    host: SimpleNamespace, config, unet: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    from anifacediff_core.network.attention import transformer_block_names

    with caplog.at_level(logging.WARNING):
        model = host.model.load_model(unet.state_dict(), config)
    assert not caplog.records
    assert len(model.model.diffusion_model.state_dict()) == len(unet.state_dict())
    attending = host.places.attending(host.places.find_places(model))
    assert [place.transformer_name for place in attending] == transformer_block_names(unet)


def test_full_size_is_stable_diffusion(host: SimpleNamespace) -> None:
    """Every weight of Stable Diffusion 1.5 has its place, in the topology that the host itself detects."""
    import comfy.model_detection
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from anifacediff_core.network.config import NetworkConfig
    from anifacediff_core.network.unet import make_unet

    with torch.device("meta"):
        weights = make_unet(NetworkConfig.full()).state_dict()
    found = host.model.unet_config(weights)
    detected = comfy.model_detection.unet_config_from_diffusers_unet(weights, torch.float32)
    shared = found.keys() & detected.keys()
    assert len(shared) > 10
    assert {name: found[name] for name in shared} == {name: detected[name] for name in shared}
    unet = UNetModel(**found, num_heads=8, device="meta")
    shapes = {name: weight.shape for name, weight in unet.state_dict().items()}
    renamed = host.model.to_host_names(weights, found)
    assert {name: weight.shape for name, weight in renamed.items()} == shapes
    assert len(weights) == 686


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_prediction_is_native(host: SimpleNamespace, comfy: ModuleType, prediction: str) -> None:
    from anifacediff_core.network.unet import make_unet

    config = replace(
        configs()["tiny"], prediction_type=prediction, zero_terminal_snr=prediction == "v_prediction"
    )
    model = host.model.load_model(make_unet(config).state_dict(), config)
    sampling = model.get_model_object("model_sampling")
    kind = comfy.model_sampling.V_PREDICTION if prediction == "v_prediction" else comfy.model_sampling.EPS
    assert isinstance(sampling, kind)
    assert float(sampling.sigma_max) == pytest.approx(
        4518.8 if prediction == "v_prediction" else 14.61, rel=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(host: SimpleNamespace, unet: nn.Module, config, dtype: torch.dtype) -> None:
    weights = {name: weight.half() for name, weight in unet.state_dict().items()}
    model = host.model.load_model(weights, config, dtype=dtype)
    assert model.model_dtype() == dtype
    assert {weight.dtype for weight in model.model.diffusion_model.state_dict().values()} == {dtype}


@pytest.mark.parametrize("damage", ["missing", "unknown", "misshapen", "foreign"])
def test_damaged_unet_is_refused(host: SimpleNamespace, damage: str) -> None:
    from anifacediff_core.errors import InputError
    from anifacediff_core.network.unet import make_unet

    config = configs()["tiny"]
    weights = make_unet(config).state_dict()
    if damage == "missing":
        del weights["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    elif damage == "unknown":
        weights["mid_block.attentions.7.norm.weight"] = torch.zeros(1)
    elif damage == "misshapen":
        weights["time_embedding.linear_2.weight"] = torch.zeros(3, 3)
    else:
        weights = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)}
    with pytest.raises(InputError):
        host.model.load_model(weights, config)


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("widths", [(64, 64, 64, 64), (64, 64, 48, 32)])
def test_vae_equals_autoencoder(host: SimpleNamespace, widths: tuple[int, ...], channels: int) -> None:
    from anifacediff_core.lab.training.autoencoder import confine
    from anifacediff_core.network.autoencoder import AutoEncoder

    autoencoder = randomize(AutoEncoder(channels), 2).eval()
    confine(autoencoder.decoder, widths)
    vae = host.vae.load_vae(autoencoder.state_dict(), configs()["tiny"])
    images = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    latents = autoencoder.encode(images.movedim(-1, 1))
    assert vae.latent_channels == channels
    assert relative_error(vae.encode(images) * 0.18215, latents) < 1e-5
    decoded = autoencoder.decode(latents).clamp(0, 1).movedim(1, -1)
    assert relative_error(vae.decode(latents / 0.18215), decoded) < 1e-5
    assert vae.first_stage_model.taesd_decoder[-1].in_channels == widths[-1], "zeros cost no time"


def test_clip_vision_equals_transformers(host: SimpleNamespace) -> None:
    from anifacediff_core.network.encoders import clip_preprocess, make_image_encoder

    config = configs()["tiny"]
    # the host keeps such encoders in half precision, as checkpoints do
    encoder = randomize(make_image_encoder(config), 4).eval().half().float()
    clip_vision = host.clip_vision.load_clip_vision(encoder.state_dict(), config)
    image = torch.rand(1, 60, 48, 3, generator=torch.Generator().manual_seed(5))
    found = host.clip_vision.image_embedding(clip_vision, image)
    expected = encoder(clip_preprocess(image.movedim(-1, 1), config.image_size)).image_embeds
    assert found.shape == (1, config.cross_attention_dim)
    assert relative_error(found, expected) < 1e-5


def test_parts_survive_partial_loading(
    comfy: ModuleType, host: SimpleNamespace, config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference features and pose features stay the same when the host loads only some layers.

    They are loaded as the host loads networks of its own, which newer releases do by another patcher.
    """
    from anifacediff_core.network.model import AniFaceDiff

    own = type("Own", (comfy.model_patcher.ModelPatcher,), {})
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", own, raising=False)

    core = randomize(AniFaceDiff(config), 6).eval()
    reference = host.parts.load_reference(config, core.reference.state_dict())
    pose_encoder = host.parts.load_pose_encoder(config, core.pose_encoder.state_dict())
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(1, config.latent_channels, 8, 8, generator=generator)
    embedding = torch.randn(1, 1, config.cross_attention_dim, generator=generator)
    normals = torch.rand(3, 3, 64, 64, generator=generator)
    expected = core.encode_reference(latents, embedding)
    for patcher in (reference, pose_encoder):
        assert isinstance(patcher, own)
        patcher.patch_model(device_to=patcher.load_device, lowvram_model_memory=patcher.model_size() // 2)
        assert patcher.model.model_lowvram
    found = host.parts.encode_reference(reference, latents / 0.18215, embedding)
    assert list(found) == list(expected)
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-5
    pose = host.parts.encode_pose(pose_encoder, normals, chunk=2)
    assert relative_error(pose[0], core.encode_pose(normals)[0]) < 1e-5


def test_host_layers_leave_nothing_behind(host: SimpleNamespace) -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match="Loose"):
        host.auxiliary.use_host_layers(nn.Sequential(nn.Linear(2, 2), Loose()))


def test_folders(host: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    from anifacediff_core.errors import InputError

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    # what extra_model_paths.yaml does, before extensions load
    folder_paths.add_model_folder_path("anifacediff", str(tmp_path))
    host.folders.register_folders()
    host.folders.register_folders()
    (tmp_path / "mine.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    assert host.folders.file_names("anifacediff", bundled=True) == ["bundled", "mine.safetensors"]
    assert host.folders.file_path("anifacediff", "mine.safetensors") == tmp_path / "mine.safetensors"
    assert host.folders.file_path("anifacediff", "bundled", "x.safetensors").parent.name == "assets"
    with pytest.raises(InputError):
        host.folders.file_path("anifacediff", "other.safetensors")
    # a workflow from elsewhere names no file outside the model folders
    outside = tmp_path.parent / f"{tmp_path.name}.safetensors"
    outside.touch()
    for name in (f"../{outside.name}", f"folder/../../{outside.name}", str(outside), "", "."):
        with pytest.raises(InputError, match="There is no file"):
            host.folders.file_path("anifacediff", name)
