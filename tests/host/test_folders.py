"""Folders of MagicPortrait's and AniPortrait's files, as their READMEs fill them, in Load AniFaceDiff."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import make_image_encoder, make_pose_encoder
from anifacediff_core.network.temporal import MotionModules
from anifacediff_core.network.unet import make_unet
from anifacediff_core.weights.checkpoint import save_checkpoint
from harness import aniportrait, layouts, magicportrait
from harness.extension import Extension
from harness.weights import randomize

FRAMES, SIZE = 3, 64
SAMPLING: dict[str, Any] = {
    "seed": 0,
    "steps": 2,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
    "window": 2,
    "overlap": 1,
    "shared_noise": 0.0,
}
# Eight heads, which no file tells, and the CLIP of one head that its width stands for.
ANIPORTRAIT = replace(aniportrait.NARROW, image_heads=1)
MAGICPORTRAIT = magicportrait.NARROW


def weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in randomize(module, seed).state_dict().items()}


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)


def write_networks(folder: Path, config: NetworkConfig, motion: str) -> None:
    """What both projects have."""
    save(folder / "denoising_unet.pth", weights(make_unet(config), 1))
    save(folder / "reference_unet.pth", layouts.without_last_layers(weights(make_unet(config), 2)))
    save(folder / motion, layouts.animatediff(weights(MotionModules(config), 3)))


def write_aniportrait(folder: Path) -> None:
    write_networks(folder, ANIPORTRAIT, "motion_module.pth")
    guider = randomize(make_pose_encoder(ANIPORTRAIT), 4).state_dict()
    save(folder / "pose_guider.pth", layouts.pose_guider(guider, 2.0))
    save(folder / "image_encoder" / "pytorch_model.bin", weights(make_image_encoder(ANIPORTRAIT), 5))
    base = {name: torch.zeros_like(tensor) for name, tensor in make_unet(ANIPORTRAIT).state_dict().items()}
    save(folder / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.bin", base)
    save(folder / "wav2vec2-base-960h" / "pytorch_model.bin", {"wav2vec2.masked_spec_embed": torch.zeros(8)})
    torch.jit.script(nn.Linear(2, 2)).save(folder / "film_net_fp16.pt")
    (folder / "image_encoder" / "config.json").write_text("{}")


def write_magicportrait(folder: Path) -> None:
    write_networks(folder, MAGICPORTRAIT, "motion_module-47360.pth")
    guides: Any = randomize(make_pose_encoder(MAGICPORTRAIT), 4)
    for word, kind in {"depth": "depth", "normal": "normals", "render": "render"}.items():
        path = folder / f"guidance_encoder_{word}.pth"
        save(path, layouts.guidance_encoder(guides[kind].state_dict()))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd-vae-ft-mse, at full size in half precision: the host knows no smaller one."""
    folder = tmp_path_factory.mktemp("shared") / "sd-vae-ft-mse"
    network = AutoencoderKL(**layouts.vae_settings((128, 256, 512, 512)))
    half = {name: tensor.half() for name, tensor in weights(network, 7).items()}
    save(folder / "diffusion_pytorch_model.safetensors", half)
    save(folder / "diffusion_pytorch_model.bin", half)
    return folder


@pytest.fixture(scope="module")
def models(extension: Extension) -> Iterator[Path]:
    """The host's folder for our models; empty afterwards of what is made here."""
    folder = extension.base / "models" / "anifacediff"
    before = set(folder.iterdir())
    yield folder
    for entry in set(folder.iterdir()) - before:
        entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)


@pytest.fixture(scope="module")
def filled(models: Path, vae: Path) -> Path:
    write_aniportrait(models / "AniPortrait")
    write_magicportrait(models / "MagicPortrait")
    for name in ("AniPortrait", "MagicPortrait"):
        (models / name / "sd-vae-ft-mse").symlink_to(vae)  # as those do who have it elsewhere already
    return models


def names(extension: Extension) -> list[str]:
    found: list[str] = extension.classes["AniFaceDiffLoader"].INPUT_TYPES()["required"]["checkpoint"][1][
        "options"
    ]
    return found


def load(extension: Extension, name: str) -> dict[str, Any]:
    parts = ("model", "vae", "clip_vision", "reference_net", "pose_encoder", "face_capture")
    return dict(zip(parts, extension.run("Loader", checkpoint=name), strict=True))


def pictures(frames: int, seed: int) -> Tensor:
    return torch.rand(frames, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed))


def reenact(extension: Extension, loaded: dict[str, Any], kinds: tuple[str, ...], context: Any) -> Tensor:
    """Pictures of a video, by all nodes between Load AniFaceDiff and the stock VAE Decode."""
    drawn = {kind: pictures(FRAMES, seed) for seed, kind in enumerate(kinds)}
    (pose,) = extension.run("PoseEncode", pose_encoder=loaded["pose_encoder"], **drawn)
    networks = {name: loaded[name] for name in ("reference_net", "vae", "clip_vision")}
    source = {"source_image": pictures(1, 9), "size": SIZE, "context": context}
    (reference,) = extension.run("ReferenceNetEncode", **networks, **source)
    (latent,) = extension.run("Sampler", model=loaded["model"], reference=reference, pose=pose, **SAMPLING)
    assert latent["samples"].shape == (FRAMES, 4, SIZE // 8, SIZE // 8)
    decoded: Tensor = loaded["vae"].decode(latent["samples"])
    return decoded


def text() -> list:
    """As CLIP Text Encode gives it."""
    shape = (1, 77, MAGICPORTRAIT.cross_attention_dim)
    return [[torch.randn(shape, generator=torch.Generator().manual_seed(8)), {}]]


def test_folders_are_in_the_list(extension: Extension, filled: Path) -> None:
    (filled / "empty").mkdir()
    (filled / ".cache").mkdir()
    save(filled / ".cache" / "denoising_unet.pth", {"conv_in.weight": torch.zeros(1)})
    save(filled / "AniPortrait" / ".cache" / "denoising_unet.pth", {"conv_in.weight": torch.zeros(1)})
    listed = names(extension)
    assert listed[0] == "bundled"
    assert {"AniPortrait/", "MagicPortrait/"} <= set(listed)
    assert not [name for name in listed if "empty" in name or ".cache" in name]


@pytest.mark.parametrize(
    ("name", "kinds", "context"),
    [
        ("AniPortrait/", ("normals",), None),
        ("MagicPortrait/", ("depth", "normals", "render"), text()),
    ],
)
def test_from_a_folder_to_a_video(
    extension: Extension, filled: Path, name: str, kinds: tuple[str, ...], context: Any
) -> None:
    loaded = load(extension, name)
    assert loaded["face_capture"] is None and (loaded["clip_vision"] is None) == (context is not None)
    video = reenact(extension, loaded, kinds, context)
    assert video.shape == (FRAMES, SIZE, SIZE, 3) and torch.isfinite(video).all()
    # each frame by its own picture: neither pose nor time is lost on the way
    assert min((one - other).abs().amax() for one, other in pairwise(video)) > 1e-4


def test_the_projects_own_unet_is_taken(extension: Extension, filled: Path) -> None:
    """And not that of Stable Diffusion, which lies in the same folder."""
    model = load(extension, "AniPortrait/")["model"]
    expected = make_unet(ANIPORTRAIT)
    randomize(expected, 1)
    found = model.model.diffusion_model.input_blocks[0][0].weight
    assert torch.allclose(found.float(), expected.conv_in.weight, atol=1e-3)


@pytest.mark.parametrize(
    ("part", "file", "said"),
    [
        ("vae", "sd-vae-ft-mse", "no VAE"),
        ("clip_vision", "image_encoder", "no CLIP_VISION"),
        ("reference_net", "reference_unet.pth", "no ReferenceNet"),
    ],
)
def test_a_part_that_is_not_there_is_told_where_it_is_needed(
    extension: Extension, filled: Path, tmp_path: Path, part: str, file: str, said: str
) -> None:
    (filled / "AniPortrait" / file).rename(tmp_path / file)
    try:
        loaded = load(extension, "AniPortrait/")
    finally:
        (tmp_path / file).rename(filled / "AniPortrait" / file)
    assert loaded.pop(part) is None
    networks = {name: loaded.get(name) for name in ("reference_net", "vae", "clip_vision")}
    message = extension.refusal("ReferenceNetEncode", **networks, source_image=pictures(1, 0), size=SIZE)
    assert said in message


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "denoising_unet.pth").unlink(), "found motion, pose_encoder, reference"),
        (lambda folder: (folder / "guidance_encoder_normal.pth").unlink(), "none for normals"),
        (lambda folder: (folder / "motion_module-47360.pth").write_bytes(b"PK\3\4"), "motion_module-47360"),
        (lambda folder: (folder / "reference_unet.pth").write_text("<html>"), "saved web page"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    extension: Extension, models: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = models / "spoiled"
    write_magicportrait(folder)
    spoil(folder)
    try:
        assert said in extension.refusal("Loader", checkpoint="spoiled/")
    finally:
        shutil.rmtree(folder)


def test_a_folder_of_the_users_own_checkpoints(extension: Extension, models: Path) -> None:
    """Each by its own name; the folder as a whole is told to be ambiguous."""
    one_head = (1, 1, 1)
    config = replace(
        NetworkConfig.tiny(),
        block_out_channels=(32, 32, 32),
        attention_heads=one_head,
        motion_heads=one_head,
    )
    for name in ("first", "second"):
        unet = weights(make_unet(config), 0)
        (models / "mine").mkdir(exist_ok=True)
        save_checkpoint(models / "mine" / f"{name}.safetensors", {"unet": unet}, config, head="flame")
    assert {"mine/first.safetensors", "mine/second.safetensors"} <= set(names(extension))
    assert load(extension, "mine/first.safetensors")["model"] is not None
    message = extension.refusal("Loader", checkpoint="mine/")
    assert "first.safetensors and" in message and "second.safetensors" in message


@pytest.mark.parametrize(
    "name",
    ["../", "./", "/", "//", "/etc/", "a/../", "../secret/", "a/../AniPortrait/", "absent/"],
)
def test_no_name_leads_out(extension: Extension, filled: Path, name: str) -> None:
    write_magicportrait(extension.base / "models" / "secret")
    assert "There is no folder" in extension.refusal("Loader", checkpoint=name)
    shutil.rmtree(extension.base / "models" / "secret")
