"""How fast the network is at its full size, in a real ComfyUI, on a GPU.

    COMFYUI_PATH=path/to/ComfyUI python benchmarks/full_size.py [--sizes 256 512] [--compile] [--json FILE]
                                                         [--cache 3 2]

Weights are random, in the shapes of Stable Diffusion 1.5 and AnimateDiff v2; every weight goes
through the same loaders, hooks and sampler as in the nodes. The floor is the time that the multiplications of
all steps, both halves of guidance, take at the rate of a large matrix product measured in the same run: at
its best, over 30 ms, and kept up for as long as the denoising takes.

A cache of deep features, of an interval and so many shallow blocks, is measured beside sampling without it:
how much faster it is, and how close the decoded pictures come to those without it (PSNR, in dB).

    ... --parity                        relative errors against the core's own network, in half precision
    ... --parity -- --fp32-unet         the same in full precision
    ... --memory-gib 8 -- --reserve-vram 71     as on a GPU of 8 GiB: of an H100's 79 GiB 71 are held back
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30


def load_package(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def load_host(comfyui: Path, arguments: Sequence[str]) -> SimpleNamespace:
    """The modules of `nodes/host` in a ComfyUI of this process, started with some of its own arguments."""
    sys.path.insert(0, str(comfyui))
    sys.argv = ["main.py", *arguments]
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    for name in ("utils.extra_config", "utils.install_util", "comfy.sd", "comfy.sample"):
        importlib.import_module(name)
    load_package("anifacediff_core", ROOT / "anifacediff_core")
    load_package("anifacediff_host", ROOT / "nodes" / "host")
    names = ("apply", "auxiliary", "cache", "compile", "model", "parts", "sampling", "vae")
    return SimpleNamespace(
        **{name: importlib.import_module(f"anifacediff_host.{name}") for name in names},
        utils=importlib.import_module("comfy.utils"),
        management=importlib.import_module("comfy.model_management"),
        version=importlib.import_module("comfyui_version").__version__,
    )


def random_weights(module: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights that keep activations near one, for a module on the meta device."""
    weights = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            weights[name] = torch.arange(tensor.numel(), device=device).view(tensor.shape)
        elif tensor.ndim < 2:
            weights[name] = torch.full(
                tensor.shape, float("norm" in name and name.endswith("weight")), device=device, dtype=dtype
            )
        else:
            scale = tensor[0].numel() ** -0.5
            weights[name] = torch.randn(tensor.shape, device=device, dtype=dtype) * scale
    return weights


class FullSize:
    """All networks with random weights, and what conditions a video of random content."""

    def __init__(self, host: SimpleNamespace, config: Any, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKL

        from anifacediff_core.network.model import AniFaceDiff

        self.host, self.config, self.dtype = host, config, dtype
        device = host.management.get_torch_device()
        with torch.device("meta"):
            core = AniFaceDiff(config, motion=True)
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            )

        def weights(part: str) -> dict[str, Tensor]:
            return random_weights(vae if part == "vae" else getattr(core, part), device, dtype)

        self.model = host.model.load_model(weights("unet"), config, dtype)
        self.adapter = host.parts.load_expression_adapter(config, weights("expression_adapter"))
        self.motion = host.parts.load_motion(config, weights("motion"))
        self.reference = host.parts.load_reference(config, weights("reference"))
        self.pose_encoder = host.parts.load_pose_encoder(config, weights("pose_encoder"))
        self.vae = host.vae.load_vae(weights("vae"), config)

    def core(self) -> Any:
        """The core's own network with the same weights in the same memory; the image encoder is left out."""
        from anifacediff_core.network.model import AniFaceDiff

        with torch.device("meta"):
            core: Any = AniFaceDiff(self.config, motion=True)
        core.image_encoder = nn.Identity()
        held = self.model.model.diffusion_model.state_dict()
        names = self.host.utils.unet_to_diffusers(self.model.model.model_config.unet_config)
        unet = {name: held[place] for name, place in names.items() if place in held}
        core.unet.load_state_dict(unet, assign=True)
        for part, patcher in (
            (core.reference, self.reference),
            (core.pose_encoder, self.pose_encoder),
            (core.expression_adapter, self.adapter),
            (core.motion, self.motion),
        ):
            part.load_state_dict(self.host.auxiliary.unwrap(patcher).state_dict(), assign=True)
        return core

    def inputs(self, size: int, frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latent and embedding of a source, normals and expression of a video."""
        generator = torch.Generator().manual_seed(1)
        return (
            torch.randn(1, 4, size // 8, size // 8, generator=generator),
            torch.randn(1, 1, self.config.cross_attention_dim, generator=generator),
            torch.rand(frames, 3, size, size, generator=generator),
            torch.rand(frames, self.config.n_expression, generator=generator),
        )

    def conditioned(
        self, size: int, frames: int, compiled: bool, cache: Sequence[int] = ()
    ) -> tuple[Any, list, list]:
        """MODEL and conditionings of a video, made by the encoders; a cache has interval and blocks."""
        latent, embedding, normals, expression = self.inputs(size, frames)
        model = self.host.apply.attach_expression_adapter(self.model, self.adapter, 1.0)
        model = self.host.apply.apply_anifacediff(
            model,
            reference=self.host.parts.encode_reference(self.reference, latent, embedding),
            pose=self.host.parts.encode_pose(self.pose_encoder, normals),
            expression=expression,
            motion=self.motion,
            overlap=4,
        )
        if cache:
            model = self.host.cache.cache_deep_features(model, *cache)
        if compiled:
            model = self.host.compile.compile_model(model, replay=size < 512)
        return model, *self.host.apply.image_conditioning(embedding)


@torch.no_grad()
def parity(network: FullSize, size: int, frames: int) -> dict[str, float]:
    """Relative errors of the host's networks against the core's own, on the same weights and inputs."""
    from anifacediff_core.network.conditioning import VideoConditioning
    from anifacediff_core.sampling.pipeline import Pipeline

    host = network.host
    device, dtype = host.management.get_torch_device(), network.dtype
    core = network.core()
    latent, embedding, normals, expression = network.inputs(size, frames)
    pipeline = Pipeline(core, nn.Identity(), nn.Identity(), device, dtype)  # type: ignore[arg-type]
    reference = host.parts.encode_reference(network.reference, latent, embedding)
    pose = host.parts.encode_pose(network.pose_encoder, normals)
    expected = core.encode_reference((latent * 0.18215).to(device, dtype), embedding.to(device, dtype))
    errors = {
        "reference": max(relative_error(tokens, expected[name]) for name, tokens in reference.items()),
        "pose": relative_error(pose[0], core.encode_pose(normals)[0]),
    }
    conditioning = VideoConditioning(
        reference=reference,
        context=embedding,
        pose=pose,
        expression=core.encode_expression(expression.to(device, dtype)).cpu(),
    )
    model, positive, negative = network.conditioned(size, frames, compiled=False)
    for steps in (1, 8):
        settings: dict[str, Any] = {"seed": 0, "steps": steps, "cfg": 3.5, "window": 24, "overlap": 4}
        found = host.sampling.sample(model, positive, negative, **settings)["samples"] * 0.18215
        errors[f"{steps} steps"] = relative_error(found, pipeline.sample(conditioning, **settings))
    return errors


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).norm() / expected.norm())


def psnr(found: Tensor, expected: Tensor) -> float:
    return float(-10 * (found - expected).square().mean().log10())


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def matmul_rate(
    least: float = 0.0, dtype: torch.dtype = torch.float16, side: int = 8192, repeats: int = 20
) -> float:
    """Floating-point operations a second of a large matrix product, repeated for `least` seconds or more.

    A GPU at its limit of power lowers its clock within a second: the rate that it keeps up is lower than that
    of a few products.
    """
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    a @ b
    rounds, passed = 0, 0.0
    while rounds == 0 or passed < least:
        passed += seconds(lambda: [a @ b for _ in range(repeats)])
        rounds += 1
    return 2 * side**3 * repeats * rounds / passed


def step_flops(config: Any, size: int, frames: int) -> float:
    """Floating-point operations of one step with both halves of guidance, counted without computing them."""
    from anifacediff_core.network.conditioning import VideoConditioning
    from anifacediff_core.network.model import AniFaceDiff

    side, counter = size // 8, FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        core = AniFaceDiff(config, motion=True).eval()
        image = torch.zeros(1, 1, config.cross_attention_dim)
        conditioning = VideoConditioning(
            reference=core.encode_reference(torch.zeros(1, 4, side, side), image),
            context=image,
            pose=(torch.zeros(frames, config.block_out_channels[0], side, side),),
            expression=core.encode_expression(torch.zeros(frames, config.n_expression)),
        )
        with counter:
            core.predict(
                torch.zeros(frames, 4, side, side),
                torch.zeros(1),
                conditioning,
                expression_scale=1.0,
                guided=True,
            )
    return float(counter.get_total_flops())


def measure(
    network: FullSize,
    size: int,
    frames: int,
    steps: int,
    repeats: int,
    compiled: bool,
    cache: Sequence[int] = (),
) -> dict[str, float]:
    """Medians of one setting."""
    host, cuda = network.host, torch.cuda.is_available()
    model, positive, negative = network.conditioned(size, frames, compiled)

    def sample() -> dict:
        result: dict = host.sampling.sample(
            model, positive, negative, seed=0, steps=steps, cfg=3.5, window=24, overlap=4
        )
        return result

    first = seconds(sample)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rates, loops, videos = [], [], []
    for _ in range(repeats):
        rates.append(matmul_rate() if cuda else float("nan"))
        loops.append(seconds(lambda: videos.append(sample())))
    loop = sorted(loops)[repeats // 2]
    windows = -(-max(frames - 4, 1) // 20) if frames > 24 else 1
    kept = matmul_rate(least=loop) if cuda else float("nan")
    work = steps * windows * step_flops(network.config, size, min(frames, 24))
    result = {
        "size": size,
        "frames": frames,
        "compiled": int(compiled),
        "first run s": first,
        "denoising s": loop,
        "matmul TFLOP/s": max(rates) / 1e12,
        "share of the floor": work / max(rates) / loop,
        "kept up TFLOP/s": kept / 1e12,
        "share of what is kept up": work / kept / loop,
    }
    if cuda:
        result["peak GiB"] = torch.cuda.max_memory_allocated() / GIB
    latents = videos[-1]["samples"]
    if cache:
        model, positive, negative = network.conditioned(size, frames, compiled, cache)
        sample()
        cached = sorted(seconds(lambda: videos.append(sample())) for _ in range(repeats))[repeats // 2]
        result["cached s"], result["times as fast"] = cached, loop / cached
        pictures = [network.vae.decode(each).float().cpu() for each in (latents, videos[-1]["samples"])]
        result["cached dB"] = psnr(*pictures)
    network.vae.decode(latents[:8])
    result["VAE decode s"] = seconds(lambda: network.vae.decode(latents))
    return result


def profile(network: FullSize, size: int, compiled: bool) -> None:
    """Print where one run of three steps spends the GPU's time."""
    model, positive, negative = network.conditioned(size, 24, compiled)

    def sample() -> None:
        network.host.sampling.sample(
            model, positive, negative, seed=0, steps=3, cfg=3.5, window=24, overlap=4
        )

    sample()
    with torch.profiler.profile() as profiler:
        sample()
        synchronize()
    print(
        profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--frames", type=int, nargs="+", default=[24])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument(
        "--cache", type=int, nargs=2, default=(), metavar=("INTERVAL", "SHALLOW"), help="also with a cache"
    )
    parser.add_argument("--parity", action="store_true", help="compare with the core's own network, instead")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    parser.add_argument("--tiny", action="store_true", help="the bundled network's sizes, to try the script")
    parser.add_argument("--memory-gib", type=float, help="allow no more GPU memory than this")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("host", nargs="*", help="arguments for ComfyUI, after --")
    options = parser.parse_args()

    sys.path.append(str(ROOT))
    host = load_host(Path(os.environ["COMFYUI_PATH"]), options.host)
    from anifacediff_core.network.config import NetworkConfig

    if options.memory_gib:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_gib * GIB / total)
    config = NetworkConfig.tiny() if options.tiny else NetworkConfig.full()
    config = replace(config, motion_norm="frame")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, ComfyUI {host.version}, arguments {options.host}")
    exact = "--fp32-unet" in options.host or not torch.cuda.is_available()
    dtype = torch.float32 if exact else torch.float16
    figures = []
    with torch.no_grad():
        if options.parity:
            torch.backends.cudnn.allow_tf32 = False
            errors = parity(FullSize(host, config, dtype), options.sizes[0], options.frames[0])
            print(dtype, {name: f"{error:.1e}" for name, error in errors.items()})
            return
        network = FullSize(host, config, dtype)
        for size in options.sizes:
            for compiled in (False, True) if options.compile else (False,):
                if options.profile:
                    profile(network, size, compiled)
                    continue
                for frames in options.frames:
                    figures.append(
                        measure(
                            network, size, frames, options.steps, options.repeats, compiled, options.cache
                        )
                    )
                    print({name: round(value, 3) for name, value in figures[-1].items()}, flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
