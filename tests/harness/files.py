"""Small files in the form of those that users bring: checkpoints, DECA, FLAME, LoRA and so on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from anifacediff_core.capture.deca import CAMERA, EXPRESSION, POSE, SHAPE, TEXTURE, DecaEncoder
from anifacediff_core.capture.smirk import SmirkEncoder
from anifacediff_core.head import flame as flame_head
from anifacediff_core.network.autoencoder import AutoEncoder
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.weights.checkpoint import load_checkpoint, save_checkpoint

from . import aniportrait, flame, magicportrait
from .weights import randomize

BUNDLED = Path(flame_head.__file__).resolve().parents[1] / "assets" / "demo.safetensors"
RANK = 2
TEXT_WIDTH = 768


def write_all(models: Path) -> None:
    """One of each into the host's models folder, under the names that the shipped workflows have."""
    write_checkpoint(models / "anifacediff" / "full_size.safetensors")
    write_deca(models / "deca" / "deca_model.tar")
    flame.write_pickle(_made(models / "flame" / "generic_model.pkl"), flame.make_fields())
    write_smirk(models / "deca" / "SMIRK_em1.pt")
    write_magicportrait(models / "anifacediff" / "magicportrait.safetensors")
    write_aniportrait(models / "anifacediff" / "aniportrait.safetensors")
    write_text_encoder(models / "text_encoders" / "clip_l.safetensors")
    write_lora(models / "loras" / "your_lora.safetensors")
    write_control_lora(models / "controlnet" / "your_controlnet.safetensors")
    write_upscaler(models / "upscale_models" / "your_upscaler.safetensors")


def write_checkpoint(path: Path) -> None:
    """A checkpoint for FLAME, with random weights: full-size in everything but size."""
    one_head = {"attention_heads": (1, 1, 1), "motion_heads": (1, 1, 1)}
    config = replace(NetworkConfig.tiny(), block_out_channels=(32, 32, 32), n_expression=50, **one_head)
    network = randomize(AniFaceDiff(config, motion=True), 0)
    names = ("unet", "motion", "reference", "pose_encoder", "expression_adapter", "image_encoder")
    parts = {name: getattr(network, name).state_dict() for name in names}
    save_checkpoint(_made(path), {**parts, "vae": AutoEncoder().state_dict()}, config, head=flame_head.NAME)


def write_magicportrait(path: Path) -> None:
    """MagicPortrait's networks, narrow but for the text that they read."""
    config = replace(magicportrait.NARROW, cross_attention_dim=TEXT_WIDTH)
    networks = magicportrait.Networks.random(config)
    names = {"unet": "unet", "reference": "reference", "motion": "motion", "guidance": "pose_encoder"}
    parts = {part: getattr(networks, name).state_dict() for name, part in names.items()}
    save_checkpoint(_made(path), {**parts, "vae": AutoEncoder().state_dict()}, config, head=flame_head.NAME)


def write_aniportrait(path: Path) -> None:
    """AniPortrait's networks, narrow."""
    network = randomize(AniFaceDiff(aniportrait.NARROW, motion=True), 0)
    names = ("unet", "motion", "reference", "pose_encoder", "image_encoder")
    parts = {name: getattr(network, name).state_dict() for name in names}
    save_checkpoint(_made(path), {**parts, "vae": AutoEncoder().state_dict()}, aniportrait.NARROW, head="")


def write_text_encoder(path: Path) -> None:
    """CLIP ViT-L/14's text encoder at full size, since the host knows no smaller one, in half precision."""
    with torch.device("meta"):
        network = CLIPTextModel(CLIPTextConfig(hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH))
    weights = {}
    for name, value in network.state_dict().items():
        one = "norm" in name and name.endswith("weight")
        weights[name] = torch.full(value.shape, float(one), dtype=torch.half)
    for name in ("token", "position"):
        embedding = next(value for key, value in weights.items() if f"{name}_embedding" in key)
        embedding.copy_(torch.linspace(-1, 1, embedding.numel()).reshape(embedding.shape))
    known = {
        name if name.startswith("text_model.") else f"text_model.{name}": weights[name] for name in weights
    }
    save_file(known, _made(path))


def write_smirk(path: Path) -> None:
    torch.manual_seed(4)
    weights = SmirkEncoder().state_dict(prefix="smirk_encoder.")
    torch.save(weights, _made(path))


def write_deca(path: Path) -> None:
    """DECA's encoder in half precision; whatever it sees, it reads about the same head in the middle."""
    torch.manual_seed(0)
    encoder = DecaEncoder()
    with torch.no_grad():
        last = encoder.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(0.1)
        last.bias.zero_()
        camera = SHAPE + TEXTURE + EXPRESSION + POSE
        last.bias[camera : camera + CAMERA] = torch.tensor([8.0, 0.0, 0.02])
    torch.save({"E_flame": {name: value.half() for name, value in encoder.state_dict().items()}}, _made(path))


def write_lora(path: Path) -> None:
    """Kohya's naming, for every attention layer of the bundled UNet."""
    noise, weights = torch.Generator().manual_seed(1), {}
    for name, (outputs, inputs) in _attention_layers().items():
        key = "lora_unet_" + name.replace(".", "_")
        weights[f"{key}.lora_down.weight"] = torch.randn(RANK, inputs, generator=noise) / inputs**0.5
        weights[f"{key}.lora_up.weight"] = 0.5 * torch.randn(outputs, RANK, generator=noise)
        weights[f"{key}.alpha"] = torch.tensor(float(RANK))
    save_file(weights, _made(path))


def write_control_lora(path: Path) -> None:
    """A Control-LoRA, the host's one kind of ControlNet that takes width and depth from the MODEL."""
    config = NetworkConfig.tiny()
    width = config.block_out_channels[0]
    noise = torch.Generator().manual_seed(2)
    weights = {"lora_controlnet": torch.zeros(1)}

    def convolution(name: str, outputs: int, inputs: int, kernel: int) -> None:
        size = (outputs, inputs, kernel, kernel)
        weights[f"{name}.weight"] = torch.randn(size, generator=noise) / (inputs * kernel**2) ** 0.5
        weights[f"{name}.bias"] = torch.zeros(outputs)

    hint = (3, 16, 16, 32, 32, 96, 96, 256, width)
    for number, (inputs, outputs) in enumerate(pairwise(hint)):
        convolution(f"input_hint_block.{2 * number}", outputs, inputs, 3)
    levels = len(config.block_out_channels)
    for number in range(1 + levels * config.layers_per_block + levels - 1):
        convolution(f"zero_convs.{number}.0", width, width, 1)
    convolution("middle_block_out.0", width, width, 1)
    weights["time_embed.0.down"] = torch.randn(RANK, width, generator=noise) / width**0.5
    weights["time_embed.0.up"] = torch.zeros(4 * width, RANK)
    save_file(weights, _made(path))


def write_upscaler(path: Path, scale: int = 2, channels: int = 8) -> None:
    """Real-ESRGAN's compact network, nearly an enlargement by nearest neighbors."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, channels, 3), nn.PReLU(channels), nn.Conv2d(channels, 3 * scale**2, 3)]
    layers[2:2] = [nn.Conv2d(channels, channels, 3), nn.PReLU(channels)]
    body = nn.Sequential(*layers).state_dict(prefix="body.")
    save_file({name: 0.2 * value for name, value in body.items()}, _made(path))


def _attention_layers() -> dict[str, tuple[int, int]]:
    """Shapes of the linear layers of attention in the bundled UNet, in diffusers' naming."""
    unet: dict[str, Tensor] = load_checkpoint(BUNDLED).part("unet")
    wanted = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    shapes = {name: value.shape for name, value in unet.items() if name.endswith(wanted)}
    return {name.removesuffix(".weight"): (size[0], size[1]) for name, size in shapes.items()}


def _made(path: Path) -> Path:
    """The path, with its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
