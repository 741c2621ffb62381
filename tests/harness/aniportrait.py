"""AniPortrait's own code, run on our weights: the measure for our profile of that name.

Its code is not part of this project. `ANIPORTRAIT_PATH` names a checkout of
github.com/Zejun-Yang/AniPortrait; this writes the numbers that the tests compare with where there is none.
Its drawings need mediapipe==0.10.21, scipy and OpenCV.

    ANIPORTRAIT_PATH=… PYTHONPATH=.:tests python tests/harness/aniportrait.py
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models import embeddings
from diffusers.models.transformers import dual_transformer_2d
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from anifacediff_core.capture.geometry import FaceGeometry
from anifacediff_core.network.attention import install_processors
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.landmark_guider import LandmarkGuider
from anifacediff_core.network.temporal import MotionModules
from anifacediff_core.network.unet import make_unet, trim_reference
from anifacediff_core.sampling.schedule import TERMINAL_ALPHA
from harness.layouts import fold
from harness.magicportrait import motion_names, random_vae, take, to_pil
from harness.weights import randomize

GOLDEN = Path(__file__).parents[1] / "core" / "aniportrait.safetensors"
PATH = "ANIPORTRAIT_PATH"
STEPS, CFG, TIMESTEP = 4, 3.5, 499

FULL = NetworkConfig(
    motion_norm="frame",
    pose_encoder="multiscale",
    pose_inputs=("landmarks",),
    beta_schedule="linear",
    profile="aniportrait",
)
NARROW = replace(
    FULL,
    block_out_channels=(32, 64, 128, 128),
    cross_attention_dim=48,
    image_size=28,
    image_hidden=32,
    image_layers=2,
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
    guider: LandmarkGuider

    @classmethod
    def random(cls, config: NetworkConfig) -> Networks:
        unet, reference = make_unet(config), make_unet(config)
        trim_reference(reference)
        networks = (unet, reference, MotionModules(config))
        for seed, network in enumerate(networks):
            randomize(network, seed).eval().requires_grad_(False)
        for network in (unet, reference):
            install_processors(network)
        guider = LandmarkGuider(config.block_out_channels).eval().requires_grad_(False)
        guider.load_state_dict(fold(pose_guider_file(config)))
        return cls(config, *networks, guider)


def pose_guider_file(config: NetworkConfig) -> dict[str, Tensor]:
    """Random weights in the form of `pose_guider.pth`."""
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, Tensor] = {"scale": torch.tensor([2.0])}
    for name, tensor in randomize(LandmarkGuider(config.block_out_channels), 3).state_dict().items():
        weights[name] = tensor
        if tensor.ndim == 4 and tensor.shape[1:] == (1, 1, 1):  # normalization
            stem = name.removesuffix("weight")
            weights[name] = tensor.flatten()
            weights[stem + "running_mean"] = torch.randn(len(tensor), generator=generator)
            weights[stem + "running_var"] = torch.rand(len(tensor), generator=generator)
            weights[stem + "num_batches_tracked"] = torch.tensor(1000)
    return weights


@dataclass(frozen=True)
class Inputs:
    """What one call is about: a source and the frames of a driving video.

    Args:
        drawings: landmarks of every frame (frames, 3, H, W), whole 8-bit values in [0, 1].
        source_drawing, source: the source's landmarks, and its picture (1, 3, H, W), in the same values.
        embedding: of the source picture (1, dim).
        noise: (frames, 4, h, w).
    """

    drawings: Tensor
    source_drawing: Tensor
    source: Tensor
    embedding: Tensor
    noise: Tensor

    @classmethod
    def random(cls, config: NetworkConfig, frames: int, size: int) -> Inputs:
        generator = torch.Generator().manual_seed(100)

        def picture(count: int) -> Tensor:
            return torch.randint(0, 256, (count, 3, size, size), generator=generator) / 255

        return cls(
            drawings=picture(frames),
            source_drawing=picture(1),
            source=picture(1),
            embedding=torch.randn(1, config.cross_attention_dim, generator=generator),
            noise=torch.randn(frames, 4, size // 8, size // 8, generator=generator),
        )


def checkout() -> Path | None:
    return Path(os.environ[PATH]) if os.environ.get(PATH) else None


@contextmanager
def _on_path() -> Iterator[None]:
    """Its package is called `src`: known only while it is imported; with what diffusers has renamed."""
    path, before = str(checkout()), set(sys.modules)
    for name in ("PositionNet", "CaptionProjection"):  # it names them and never makes one
        if not hasattr(embeddings, name):
            setattr(embeddings, name, nn.Module)
    sys.modules.setdefault("diffusers.models.dual_transformer_2d", dual_transformer_2d)
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)
        for name in set(sys.modules) - before:
            if name == "src" or name.startswith("src."):
                del sys.modules[name]


class FixedEmbedding(nn.Module):
    """An image encoder that has one answer."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        self.dtype, self.device = embedding.dtype, embedding.device

    def forward(self, _: Tensor) -> SimpleNamespace:
        return SimpleNamespace(image_embeds=self.embedding)


class Theirs:
    """AniPortrait's networks with the weights of ours, and its pipeline."""

    def __init__(self, ours: Networks) -> None:
        self.config = ours.config
        with _on_path():
            unet_3d = importlib.import_module("src.models.unet_3d")
            unet_2d = importlib.import_module("src.models.unet_2d_condition")
            guider = importlib.import_module("src.models.pose_guider")
            self.control = importlib.import_module(
                "src.models.mutual_self_attention"
            ).ReferenceAttentionControl
            self.pipeline = importlib.import_module("src.pipelines.pipeline_pose2vid_long")
        # The reference's tokens pass through half precision there; at full precision the two can agree.
        self.control.update.__defaults__ = (torch.float32,)
        sizes: dict[str, Any] = {
            "block_out_channels": self.config.block_out_channels,
            "cross_attention_dim": self.config.cross_attention_dim,
        }
        with torch.device("meta"):  # the weights are shared with ours
            self.unet = _denoising_unet(unet_3d, sizes).eval()
            self.reference = unet_2d.UNet2DConditionModel(**sizes).eval()
        motion = {
            their_name: tensor
            for name, tensor in ours.motion.state_dict().items()
            for their_name in motion_names(name)
        }
        take(self.unet, ours.unet.state_dict() | motion)
        dead = take(self.reference, ours.reference.state_dict())
        assert all(
            name.startswith(("up_blocks.3.attentions.2.", "conv_norm_out", "conv_out")) for name in dead
        )
        # As its scripts make it, and they never call eval().
        self.guider = guider.PoseGuider(noise_latent_channels=self.config.block_out_channels[0], use_ca=True)
        self.guider.load_state_dict(pose_guider_file(self.config))

    @torch.no_grad()
    def features(self, inputs: Inputs) -> list[Tensor]:
        """Of all levels, (frames, C, h, w) each; pixels as the pipeline prepares them."""
        process = self.pipeline.VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=True)
        drawings = torch.cat([process.preprocess(picture) for picture in to_arrays(inputs.drawings)])
        source = process.preprocess(to_arrays(inputs.source_drawing)[0])
        levels = self.guider(rearrange(drawings, "f c h w -> 1 c f h w"), source)
        return [rearrange(level, "1 c f h w -> f c h w") for level in levels]

    @torch.no_grad()
    def predict(self, inputs: Inputs, latent: Tensor, timestep: int) -> Tensor:
        """One call of the denoising UNet: (2 * frames, 4, h, w), unconditional rows first."""
        writer, reader = (
            self.control(unet, do_classifier_free_guidance=True, mode=mode, fusion_blocks="full")
            for unet, mode in ((self.reference, "write"), (self.unet, "read"))
        )
        context = torch.stack([torch.zeros_like(inputs.embedding), inputs.embedding])
        self.reference(
            latent.repeat(2, 1, 1, 1), torch.zeros((), dtype=torch.long), encoder_hidden_states=context
        )
        reader.update(writer)
        video, *features = (
            rearrange(x, "f c h w -> 1 c f h w").repeat(2, 1, 1, 1, 1)
            for x in (inputs.noise, *self.features(inputs))
        )
        prediction = self.unet(video, timestep, context, pose_cond_fea=features, return_dict=False)[0]
        reader.clear(), writer.clear()
        return rearrange(prediction, "b c f h w -> (b f) c h w")

    def results(self, inputs: Inputs, latent: Tensor, vae: AutoencoderKL) -> dict[str, Tensor]:
        """All that the tests compare with."""
        levels = {f"features.{level}": tensor for level, tensor in enumerate(self.features(inputs))}
        return levels | {
            "prediction": self.predict(inputs, latent, TIMESTEP),
            "sampled": self.sample(inputs, vae),
            "sampled_finite": self.sample(inputs, vae, finite=True),
        }

    @torch.no_grad()
    def sample(self, inputs: Inputs, vae: AutoencoderKL, *, finite: bool = False) -> Tensor:
        """The latents that its pipeline ends with, (frames, 4, h, w).

        Args:
            finite: whether the highest noise level is finite, as in ComfyUI, or pure noise.
        """
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )
        if finite:
            scheduler.alphas_cumprod[-1] = TERMINAL_ALPHA
        pipeline = self.pipeline.Pose2VideoPipeline(
            vae=vae,
            image_encoder=FixedEmbedding(inputs.embedding),
            reference_unet=self.reference,
            denoising_unet=self.unet,
            pose_guider=self.guider,
            scheduler=scheduler,
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = rearrange(inputs.noise, "f c h w -> 1 c f h w")
        pipeline.prepare_latents = lambda *_, **__: noise
        steps: list[Tensor] = []
        height, width = inputs.source.shape[-2:]
        pipeline(
            to_pil(inputs.source[0].movedim(0, -1)),
            to_arrays(inputs.drawings),
            to_arrays(inputs.source_drawing)[0],
            width,
            height,
            len(inputs.noise),
            STEPS,
            CFG,
            callback=lambda _, __, latents: steps.append(latents[0].movedim(1, 0).clone()),
        )
        return steps[-1]


def random_motion(frames: int) -> tuple[FaceGeometry, FaceGeometry, int]:
    """A source's face, a driver's, and the driver's neutral frame; the faces are points on an egg."""
    generator = torch.Generator().manual_seed(200)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    egg = normal(1, 468, 3)
    egg = egg / egg.norm(dim=-1, keepdim=True) * torch.tensor([6.0, 8.0, 4.0])
    turn = torch.linalg.matrix_exp(torch.stack([a - a.T for a in 0.15 * normal(frames, 3, 3)]))
    place = torch.tensor([1.0, -2.0, -45.0]) + 2 * normal(frames, 3)
    middle = torch.tensor([[0.5, 1.0, -38.0]], dtype=torch.float64)
    source = FaceGeometry(egg * 1.1, torch.eye(3, dtype=torch.float64)[None], middle)
    return source, FaceGeometry(egg + 0.3 * normal(frames, 468, 3), turn, place), 2


def their_drawings(source: FaceGeometry, driving: FaceGeometry, neutral: int, size: int = 512) -> np.ndarray:
    """The drawings of its scripts/vid2vid.py, (frames, size, size, 3) uint8."""
    with _on_path():
        drawing = importlib.import_module("src.utils.draw_util")
        posing = importlib.import_module("src.utils.pose_util")
    matrices = np.tile(np.eye(4), (len(driving.place), 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = driving.turn.numpy(), driving.place.numpy()
    poses = np.array([np.concatenate(posing.matrix_to_euler_and_translation(matrix)) for matrix in matrices])
    poses[:, 3:] += source.place[0].numpy() - poses[0, 3:]
    smooth = posing.smooth_pose_seq(poses, window_size=3)
    matrices = np.array([posing.euler_and_translation_to_matrix(pose[:3], pose[3:]) for pose in smooth])
    surface = (driving.surface - driving.surface[neutral] + source.surface).numpy()
    points = posing.project_points_with_trans(surface, matrices, [size, size])
    visualizer = drawing.FaceMeshVisualizer(forehead_edge=False)
    return np.stack([visualizer.draw_landmarks((size, size), frame, normed=False) for frame in points])


def can_draw() -> bool:
    return all(importlib.util.find_spec(name) for name in ("mediapipe", "scipy", "cv2"))


def packed(drawings: np.ndarray) -> Tensor:
    """Drawings (frames, H, W, 3) one above the other as a PNG, (bytes,) uint8."""
    file = io.BytesIO()
    Image.fromarray(drawings.reshape(-1, *drawings.shape[2:])).save(file, "PNG", optimize=True)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def unpacked(drawings: Tensor) -> np.ndarray:
    """What was `packed`, of square drawings."""
    with Image.open(io.BytesIO(drawings.numpy().tobytes())) as picture:
        return np.asarray(picture).reshape(-1, picture.width, picture.width, 3)


def _denoising_unet(module: Any, sizes: dict[str, Any]) -> nn.Module:
    return module.UNet3DConditionModel(
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
    )


def to_arrays(pictures: Tensor) -> np.ndarray:
    """Pictures (frames, 3, H, W) in [0, 1] as OpenCV draws them, (frames, H, W, 3) uint8."""
    return (pictures * 255).round().to(torch.uint8).movedim(1, -1).numpy()


def main() -> None:
    inputs, vae = Inputs.random(NARROW, frames=2, size=128), random_vae()
    theirs = Theirs(Networks.random(NARROW))
    latent = vae.encode(inputs.source * 2 - 1).latent_dist.mean * NARROW.scaling_factor
    origin = {"origin": "computed by the code of AniPortrait on seeded random weights and inputs"}
    drawn = {"drawings": packed(their_drawings(*random_motion(frames=4)))}
    save_file(theirs.results(inputs, latent, vae) | drawn, GOLDEN, origin)


if __name__ == "__main__":
    main()
