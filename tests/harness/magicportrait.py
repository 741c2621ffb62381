"""MagicPortrait's own code, run on our weights: the measure for our profile of that name.

Its code is not part of this project. `MAGICPORTRAIT_PATH` names a checkout of
github.com/weimengting/MagicPortrait; this writes the numbers that the tests compare with where there is none:

    cd tests && MAGICPORTRAIT_PATH=… python -m harness.magicportrait
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from anifacediff_core.network.attention import install_processors
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.guidance import GuidanceEncoders, make_guidance_encoder
from anifacediff_core.network.temporal import MotionModules
from anifacediff_core.network.unet import make_unet, trim_reference
from harness.magicportrait_head import Face, draw, on_path
from harness.weights import randomize

GOLDEN = Path(__file__).parents[1] / "core" / "magicportrait.safetensors"
STEPS, CFG, TIMESTEP = 4, 3.5, 499
TEXT_TOKENS = 77

FULL = NetworkConfig(
    motion_norm="frame",
    pose_encoder="attention",
    pose_inputs=("depth", "normals", "render"),
    context="text",
    beta_schedule="linear",
    profile="magicportrait",
)
NARROW = replace(
    FULL,
    block_out_channels=(32, 64, 64, 64),
    cross_attention_dim=48,
    pose_channels=(8, 32, 32, 64),
    image_size=32,
    image_hidden=32,
    image_layers=1,
    image_heads=2,
    image_intermediate=32,
)


@dataclass(frozen=True)
class Networks:
    """Our networks, with random weights."""

    config: NetworkConfig
    unet: Any
    reference: Any
    motion: MotionModules
    guidance: GuidanceEncoders

    @classmethod
    def random(cls, config: NetworkConfig) -> Networks:
        unet, reference = make_unet(config), make_unet(config)
        trim_reference(reference)
        networks = (unet, reference, MotionModules(config), make_guidance_encoder(config))
        for seed, network in enumerate(networks):
            randomize(network, seed).eval().requires_grad_(False)
        for network in (unet, reference):
            install_processors(network)
        return cls(config, *networks)


@dataclass(frozen=True)
class Inputs:
    """What one call is about: a source and the frames of a driving video.

    Args:
        pictures: depth, normals and render of every frame (frames, 9, H, W), whole 8-bit values in [0, 1].
        source: the source picture (1, 3, H, W), whole 8-bit values in [0, 1].
        text: embedding of the fixed text (1, tokens, dim).
        noise: (frames, 4, h, w).
    """

    pictures: Tensor
    source: Tensor
    text: Tensor
    noise: Tensor

    @classmethod
    def random(cls, config: NetworkConfig, frames: int, size: int) -> Inputs:
        generator = torch.Generator().manual_seed(100)

        def picture(*shape: int) -> Tensor:
            return torch.randint(0, 256, shape, generator=generator) / 255

        return cls(
            pictures=picture(frames, 9, size, size),
            source=picture(1, 3, size, size),
            text=torch.randn(1, TEXT_TOKENS, config.cross_attention_dim, generator=generator),
            noise=torch.randn(frames, 4, size // 8, size // 8, generator=generator),
        )


def random_vae() -> AutoencoderKL:
    """A tiny autoencoder with SD1.5's number of levels."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    return randomize(vae, 10).eval().requires_grad_(False)


class Theirs:
    """MagicPortrait's networks with the weights of ours, and its pipeline."""

    def __init__(self, ours: Networks) -> None:
        config = self.config = ours.config
        with on_path():
            unet_3d = importlib.import_module("models.unet_3d")
            unet_2d = importlib.import_module("models.unet_2d_condition")
            guidance = importlib.import_module("models.guidance_encoder")
            self.control = importlib.import_module("models.mutual_self_attention").ReferenceAttentionControl
            self.pipeline = importlib.import_module("pipelines.pipeline_aggregation")
        sizes: dict[str, Any] = {
            "block_out_channels": config.block_out_channels,
            "cross_attention_dim": config.cross_attention_dim,
        }
        with torch.device("meta"):  # the weights are shared with ours
            self._build(unet_3d, unet_2d, guidance, sizes)
        self._take_weights(ours)

    def _build(self, unet_3d: Any, unet_2d: Any, guidance: Any, sizes: dict[str, Any]) -> None:
        self.unet = unet_3d.UNet3DConditionModel(
            **sizes,
            use_inflated_groupnorm=True,
            unet_use_cross_frame_attention=False,
            unet_use_temporal_attention=False,
            use_motion_module=True,
            motion_module_mid_block=True,
            motion_module_type="Vanilla",
            motion_module_kwargs={
                "num_attention_heads": 8,
                "num_transformer_block": 1,
                "attention_block_types": ["Temporal_Self", "Temporal_Self"],
                "temporal_position_encoding": True,
                "temporal_position_encoding_max_len": 32,
                "temporal_attention_dim_div": 1,
            },
        ).eval()
        self.reference = unet_2d.UNet2DConditionModel(**sizes).eval()
        self.guidance = {
            kind: guidance.GuidanceEncoder(
                self.config.block_out_channels[0], block_out_channels=self.config.pose_channels
            ).eval()
            for kind in self.config.pose_inputs
        }

    def _take_weights(self, ours: Networks) -> None:
        motion = {
            their_name: tensor
            for name, tensor in ours.motion.state_dict().items()
            for their_name in motion_names(name)
        }
        take(self.unet, ours.unet.state_dict() | motion)
        dead = take(self.reference, ours.reference.state_dict())
        last = "up_blocks.3.attentions.2."
        assert all(name.startswith(last) for name in dead)
        for kind, encoder in self.guidance.items():
            state = ours.guidance[kind].state_dict()
            dead = take(encoder, {name.replace("attention.", "attentions.5."): state[name] for name in state})
            assert all(name.startswith(("attentions.", "guidance_attention.")) for name in dead)

    def save(self, folder: Path) -> None:
        """The weights as they are given out."""
        state = self.unet.state_dict()
        motion = {name: tensor for name, tensor in state.items() if ".motion_modules." in name}
        files = {"denoising_unet": {name: state[name] for name in state if name not in motion}}
        files |= {"motion_module-47360": motion, "reference_unet": self.reference.state_dict()}
        files |= {
            f"guidance_encoder_{'normal' if kind == 'normals' else kind}": encoder.state_dict()
            for kind, encoder in self.guidance.items()
        }
        for name, tensors in files.items():
            torch.save(tensors, folder / f"{name}.pth")

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        """(frames, C, h, w)."""
        pictures = rearrange(inputs.pictures, "f (k c) h w -> k 1 c f h w", c=3)
        parts = [encoder(part) for encoder, part in zip(self.guidance.values(), pictures, strict=True)]
        return rearrange(torch.stack(parts).sum(0), "1 c f h w -> f c h w")

    @torch.no_grad()
    def predict(self, inputs: Inputs, latent: Tensor, timestep: int) -> Tensor:
        """One call of the denoising UNet: (2 * frames, 4, h, w), unconditional rows first."""
        writer = self.control(
            self.reference, do_classifier_free_guidance=True, mode="write", fusion_blocks="full"
        )
        reader = self.control(self.unet, do_classifier_free_guidance=True, mode="read", fusion_blocks="full")
        text = inputs.text.expand(2, -1, -1)
        self.reference(
            latent.repeat(2, 1, 1, 1), torch.zeros((), dtype=torch.long), encoder_hidden_states=text
        )
        reader.update(writer)
        video, features = (
            rearrange(x, "f c h w -> 1 c f h w").repeat(2, 1, 1, 1, 1)
            for x in (inputs.noise, self.features(inputs))
        )
        prediction = self.unet(video, timestep, encoder_hidden_states=text, guidance_fea=features).sample
        reader.clear(), writer.clear()
        return rearrange(prediction, "b c f h w -> (b f) c h w")

    @torch.no_grad()
    def sample(self, inputs: Inputs, vae: AutoencoderKL, terminal: float = 0.0) -> Tensor:
        """The latents that its pipeline ends with, (frames, 4, h, w).

        Args:
            terminal: ᾱ of the last time step, which is 0 with zero terminal SNR.
        """
        pipeline = self.pipeline.MultiGuidance2LongVideoPipeline(
            vae=vae,
            reference_unet=self.reference,
            denoising_unet=self.unet,
            guidance_encoder_depth=self.guidance["depth"],
            guidance_encoder_normal=self.guidance["normals"],
            guidance_encoder_render=self.guidance["render"],
            scheduler=DDIMScheduler(
                num_train_timesteps=1000,
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="linear",
                steps_offset=1,
                clip_sample=False,
                rescale_betas_zero_snr=True,
                timestep_spacing="trailing",
                prediction_type="v_prediction",
            ),
        )
        pipeline.scheduler.alphas_cumprod[-1] = terminal
        pipeline.set_progress_bar_config(disable=True)
        noise = rearrange(inputs.noise, "f c h w -> 1 c f h w")
        pipeline.prepare_latents = lambda *_, **__: noise
        pictures = rearrange(inputs.pictures, "f (k c) h w -> k f h w c", c=3)
        group = {
            kind: [to_pil(frame) for frame in part]
            for kind, part in zip(("depth", "normal", "render"), pictures)
        }
        steps: list[Tensor] = []
        height, width = inputs.source.shape[-2:]
        pipeline(
            to_pil(inputs.source[0].movedim(0, -1)),
            inputs.text,
            group,
            width,
            height,
            len(inputs.noise),
            num_inference_steps=STEPS,
            guidance_scale=CFG,
            callback=lambda _, __, latents: steps.append(latents[0].movedim(1, 0).clone()),
        )
        return steps[-1]


def take(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Give a module without memory its weights; those that are missing become zero, and are named."""
    missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    assert not unexpected
    for name in missing:
        parent, _, leaf = name.rpartition(".")
        empty = torch.zeros(module.get_parameter(name).shape)
        setattr(module.get_submodule(parent), leaf, nn.Parameter(empty, requires_grad=False))
    return missing


def to_pil(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().numpy().astype(np.uint8))


def motion_names(name: str) -> list[str]:
    """AnimateDiff's names of one of our temporal modules' tensors; ours keeps the positions once."""
    name = name.replace(".motion_modules.", ".motion_modules|", 1)
    head, rest = name.split("|")
    index, rest = rest.split(".", 1)
    for old, new in (
        (".attn1.", ".attention_blocks.0."),
        (".attn2.", ".attention_blocks.1."),
        (".norm1.", ".norms.0."),
        (".norm2.", ".norms.1."),
        (".norm3.", ".ff_norm."),
    ):
        rest = rest.replace(old, new)
    full = f"{head}.{index}.temporal_transformer.{rest}"
    if full.endswith("pos_embed.pe"):
        return [full.replace("pos_embed.pe", f"attention_blocks.{i}.pos_encoder.pe") for i in (0, 1)]
    return [full]


def main() -> None:
    inputs, vae = Inputs.random(NARROW, frames=2, size=128), random_vae()
    theirs = Theirs(Networks.random(NARROW))
    latent = vae.encode(inputs.source * 2 - 1).latent_dist.mean * NARROW.scaling_factor
    with TemporaryDirectory() as folder:
        pictures = draw(Face.random(), Path(folder))
    results = {
        "features": theirs.features(inputs),
        "prediction": theirs.predict(inputs, latent, TIMESTEP),
        "latents": theirs.sample(inputs, vae),
        "pictures": pictures,
    }
    origin = {"origin": "computed by the code of MagicPortrait on seeded random weights and inputs"}
    save_file({name: result.contiguous() for name, result in results.items()}, GOLDEN, origin)


if __name__ == "__main__":
    main()
