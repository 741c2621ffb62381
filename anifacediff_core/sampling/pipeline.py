"""The method from source picture and face parameters to frames, without a host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.finite import require_finite
from anifacediff_core.head.alignment import align
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.network.autoencoder import AutoEncoder, StableAutoEncoder, fold_upsampling
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.encoders import clip_preprocess
from anifacediff_core.network.kernels import triton_works
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.sampling_config import SamplingConfig
from anifacediff_core.progress import Progress
from anifacediff_core.sampling.sampler import sample
from anifacediff_core.sampling.settings import CacheSettings, SamplingSettings
from anifacediff_core.sampling.windows import initial_noise
from anifacediff_core.weights.checkpoint import (
    Checkpoint,
    load_autoencoder,
    load_checkpoint,
    load_network,
)


class Pipeline:
    """Source picture and driving parameters -> video.

    Args:
        model: the network; without temporal modules it samples every frame for itself.
        autoencoder: between pictures and latents.
        head: the head model that draws the normals; the one that the network was trained on.
        device, dtype: where and in which precision the networks run. Latents stay in float32.
        sampling: how the weights want to be sampled; by default as others of their size.
    """

    def __init__(
        self,
        model: AniFaceDiff,
        autoencoder: AutoEncoder | StableAutoEncoder,
        head: HeadModel,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sampling: SamplingConfig | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        # channels_last is what convolutions and the token layout of attention share: fewer copies everywhere
        self.model = model.to(self.device, dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.autoencoder = autoencoder.to(self.device, dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.head = head.to(self.device)
        self.replays = False
        self.sampling = sampling or SamplingConfig.of(model.config)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path | Checkpoint,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        head: HeadModel | None = None,
    ) -> Pipeline:
        """Load everything from one file; `head` is the bundled one by default."""
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(checkpoint)
        head = head or HeadModel.bundled()
        if head.name != checkpoint.head:
            raise InputError(
                f"{checkpoint.path.name} was trained on the head {checkpoint.head!r}, found {head.name!r}: "
                "load that head model."
            )
        network, autoencoder = load_network(checkpoint), load_autoencoder(checkpoint)
        if torch.device(device).type == "cpu" and isinstance(autoencoder, AutoEncoder):
            fold_upsampling(autoencoder.decoder)
        return cls(network, autoencoder, head, device, dtype, checkpoint.sampling)

    def compile(self, replay: bool = False) -> None:
        """Let torch.compile make kernels of the network when it first runs, for each size and length once.

        Args:
            replay: record the kernels once and replay them (CUDA graphs): for small pictures, where starting
                kernels takes longer than running them.

        Raises:
            InputError: there is no GPU that Triton can build kernels for. On a CPU two minutes of compiling
                save 6 % at most.
        """
        if self.device.type != "cuda" or not triton_works(str(self.device)):
            raise InputError(
                "Compiling needs an NVIDIA GPU with Triton and a C compiler, which are not all here: leave "
                "it out, the video will be the same."
            )
        self.replays, mode = replay, "reduce-overhead" if replay else "default"
        self.model.predict = torch.compile(self.model.predict, mode=mode, dynamic=False)  # type: ignore[method-assign]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> UNet latents (N, 4, h, w)."""
        return self.autoencoder.encode(images.to(self.device, self.dtype)) * self.model.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """UNet latents (frames, 4, h, w) -> pictures (some, 3, H, W) float32 in [0, 1] on the CPU."""
        # a CPU is faster frame by frame: what lies between two layers then stays in its cache
        for part in latents.split(1 if self.device.type == "cpu" else 8):
            images = self.autoencoder.decode(
                part.to(self.device, self.dtype) / self.model.config.scaling_factor
            )
            yield require_finite(images.float()).clamp(0, 1).cpu()

    @torch.no_grad()
    def conditioning(
        self,
        source: Tensor,
        source_parameters: FaceParameters,
        driving_parameters: FaceParameters,
        *,
        chunk: int = 16,
        progress: Progress | None = None,
    ) -> VideoConditioning:
        """Align, draw the normals and run all encoders, `chunk` frames at a time.

        Args:
            source: portrait square (1, 3, size, size) in [0, 1]; the side a multiple of 8.
            source_parameters: one frame, or as many as the driver has.
        """
        size = source.shape[-1]
        if source.shape != (1, 3, size, size) or size % self.model.config.downsampling or not size:
            raise InputError(
                f"The source picture has shape {list(source.shape)}: "
                f"expected one RGB square with a side that is a multiple of {self.model.config.downsampling}."
            )
        if not torch.isfinite(source).all():
            raise InputError("The source picture has NaN or infinite values: load it again.")
        aligned = align(source_parameters, driving_parameters)

        def normals() -> Iterator[Tensor]:
            for start in range(0, len(aligned), chunk):
                yield render_normals(self.head, aligned[start : start + chunk], size)
                if progress is not None:
                    progress(min(start + chunk, len(aligned)), len(aligned))

        pixels = clip_preprocess(source.float(), self.model.config.image_size)
        return self.model.encode_conditioning(
            self.encode(source), pixels, normals(), aligned.expression.cpu()
        )

    @torch.no_grad()
    def sample(
        self,
        conditioning: VideoConditioning,
        *,
        steps: int | None = None,
        cfg: float | None = None,
        seed: int = SamplingSettings.seed,
        window: int = SamplingSettings.window,
        overlap: int = SamplingSettings.overlap,
        expression_scale: float = SamplingSettings.expression_scale,
        shared_noise: float = SamplingSettings.shared_noise,
        cache_interval: int = CacheSettings.cache_interval,
        cache_shallow: int = CacheSettings.cache_shallow,
        noise: Tensor | None = None,
        first: int = 0,
        previous_latents: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample the latents of all frames of `conditioning`.

        Args:
            steps: Euler steps at trailing time steps; by default as many as the weights want.
            cfg: guidance, unconditional + cfg * (conditional - unconditional); 1 leaves out the former. By
                default as the weights want it.
            window, overlap, expression_scale, cache_interval, cache_shallow, progress: see `sampler.sample`.
            noise: (frames, 4, h, w) instead of that from `seed`.
            first: number of the first frame within its video, for the noise.
            previous_latents: latents (some, 4, h, w) of the first frames sampled before, together with
                the frames before them; the result fades over from them, see `blend_previous`.

        Returns: (frames, 4, h, w) float32, on the CPU unless one window holds the video.
        """
        config, wanted = self.model.config, self.sampling.but(steps=steps, cfg=cfg)
        if self.model.motion is not None and window > config.motion_max_frames:
            raise InputError(
                f"Windows of {window} frames are longer than the {config.motion_max_frames} "
                "that the temporal modules know: reduce the window."
            )
        if noise is None:
            height, width = conditioning.pose[0].shape[-2:]
            channels = config.latent_channels
            noise = initial_noise(len(conditioning), channels, height, width, seed, shared_noise, first)
        return sample(
            self.model,
            conditioning,
            noise,
            steps=wanted.steps,
            cfg=wanted.cfg,
            window=window,
            overlap=overlap,
            expression_scale=expression_scale,
            cache_interval=cache_interval,
            cache_shallow=cache_shallow,
            first=first,
            previous_latents=previous_latents,
            device=self.device,
            dtype=self.dtype,
            progress=progress,
        )

    def reenact(
        self,
        source: Tensor,
        source_parameters: FaceParameters,
        driving_parameters: FaceParameters,
        *,
        progress: Progress | None = None,
        **sampling: float | int | Tensor | None,
    ) -> Iterator[Tensor]:
        """The whole method: see `conditioning` and `sample` for the arguments, `decode` for the result.

        `progress` counts sampling, which takes nearly all of the time.
        """
        conditioning = self.conditioning(source, source_parameters, driving_parameters)
        yield from self.decode(self.sample(conditioning, progress=progress, **sampling))  # type: ignore[arg-type]
