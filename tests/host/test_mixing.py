"""What artists do with a MODEL in ComfyUI, done with ours, by the host's own nodes; see docs/mixing.md.

Random weights at the bundled topology with widths of 32 to 128; latents of 8×8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from test_native import relative_error
from test_parity import Twin, applied, call_core, call_host, load_half, make_twin, noise_for, run_host
from torch import Tensor, nn

from harness.stock import extra, run_node
from harness.weights import randomize

EQUAL = 1e-4  # relative error in fp32 where two ways must come to the same
FRAMES = 4
WHOLE, WINDOWS = {"window": 4, "overlap": 1}, {"window": 3, "overlap": 2}
CFG = 2.5

Change = Callable[[Any], Any]  # what a node does to a MODEL


@pytest.fixture(scope="module")
def twin(host: SimpleNamespace) -> Twin:
    return make_twin(host, "widening", FRAMES)


def change_by(file: str, name: str, **inputs: Any) -> Change:
    def change(model: Any) -> Any:
        return run_node(extra(file, name), model=model, **inputs)[0]

    return change


def input_error(match: str) -> Any:
    from anifacediff_core.errors import InputError

    return pytest.raises(InputError, match=match)


def layers_of(model: Any) -> list[int]:
    unet = model.model.diffusion_model
    return [len(layers) for layers in (*unet.input_blocks, unet.middle_block, *unet.output_blocks)]


# --- Nodes that take a MODEL and give a MODEL ----------------------------------------------------

DOWNSCALE = {
    "block_number": 2,
    "downscale_factor": 2.0,
    "start_percent": 0.0,
    "end_percent": 0.9,
    "downscale_method": "bicubic",
    "upscale_method": "bicubic",
}
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
HYPERTILE = {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}
CHANGES: dict[str, Change] = {
    "FreeU": change_by("freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": change_by("freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "RescaleCFG": change_by("model_advanced", "RescaleCFG", multiplier=0.7),
    "v, no zsnr": change_by("model_advanced", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    "eps": change_by("model_advanced", "ModelSamplingDiscrete", sampling="eps", zsnr=False),
    "eps, zsnr": change_by("model_advanced", "ModelSamplingDiscrete", sampling="eps", zsnr=True),
    "lcm": change_by("model_advanced", "ModelSamplingDiscrete", sampling="lcm", zsnr=False),
    "Deep Shrink": change_by(
        "model_downscale", "PatchModelAddDownscale", **DOWNSCALE, downscale_after_skip=True
    ),
    "Deep Shrink before skip": change_by(
        "model_downscale", "PatchModelAddDownscale", **DOWNSCALE, downscale_after_skip=False
    ),
    "PAG": change_by("pag", "PerturbedAttentionGuidance", scale=3.0),
    "ToMe": change_by("tomesd", "TomePatchModel", ratio=0.5),
    "LazyCache": change_by("easycache", "LazyCacheNode", **CACHE),
    "TCFG": change_by("tcfg", "TCFG"),
    "Mahiro": change_by("mahiro", "Mahiro"),
    "APG": change_by("apg", "APG", eta=1.0, norm_threshold=5.0, momentum=0.1),
    "CFGNorm": change_by("cfg", "CFGNorm", strength=1.0),
    "CFGZeroStar": change_by("cfg", "CFGZeroStar"),
    "FreSca": change_by("fresca", "FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=2),
}
WHOLE_ONLY = {
    "SAG": change_by("sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "EasyCache": change_by("easycache", "EasyCacheNode", **CACHE),
}


def in_orders(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, change: Change, windows: dict, steps: int,
    cfg: float = CFG,
) -> list[Tensor]:  # fmt: skip
    """Latents without the change, with it before AniFaceDiff, and behind it."""
    plain, *conds = applied(host, twin, **windows)
    before, *_ = applied(host, twin, model=change(twin.model), **windows)
    results = []
    for model in (plain, before, change(plain)):
        torch.manual_seed(0)  # some draw numbers
        results.append(run_host(comfy, model, *conds, noise_for(twin, FRAMES), steps, cfg))
    return results


@pytest.mark.parametrize("windows", [WHOLE, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("name", CHANGES)
def test_both_orders(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, name: str, windows: dict[str, int]
) -> None:
    """Before or behind AniFaceDiff, a node does the same, and something."""
    steps = 4 if "Cache" in name else 2
    plain, before, behind = in_orders(comfy, host, twin, CHANGES[name], windows, steps)
    assert before.isfinite().all()
    assert relative_error(behind, before) < 1e-6
    assert relative_error(before, plain) > 1e-3


@pytest.mark.parametrize(("name", "told"), [("SAG", "Self-Attention Guidance"), ("EasyCache", "LazyCache")])
def test_nodes_for_the_whole_video(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, name: str, told: str
) -> None:
    """What would mix up windows works without them and is refused with them."""
    change = WHOLE_ONLY[name]
    cfg = 1.0 if name == "EasyCache" else CFG  # EasyCache of 0.3.64 fails with guidance on any MODEL
    plain, before, behind = in_orders(comfy, host, twin, change, WHOLE, 4, cfg)
    assert relative_error(behind, before) < 1e-6
    assert relative_error(before, plain) > 1e-3
    model, *conds = applied(host, twin, **WINDOWS)
    with input_error(f"{told}.*window to all {FRAMES} frames"):
        run_host(comfy, change(model), *conds, noise_for(twin, FRAMES), 1, CFG)


@pytest.mark.parametrize("order", ["before", "behind"])
def test_hypertile_is_refused(comfy: ModuleType, host: SimpleNamespace, twin: Twin, order: str) -> None:
    change = change_by("hypertile", "HyperTile", **HYPERTILE)
    model, *conds = applied(host, twin, model=change(twin.model) if order == "before" else None)
    model = model if order == "before" else change(model)
    layers = layers_of(model)
    with input_error("HyperTile"):
        run_host(comfy, model, *conds, noise_for(twin, FRAMES), 1, CFG)
    assert layers_of(model) == layers


def test_prediction_and_schedule_of_model_sampling_discrete(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin
) -> None:
    """The node makes of any MODEL what a checkpoint of that prediction would be."""
    weights, config = twin.core.unet.state_dict(), twin.core.config
    for prediction, zsnr in (("v_prediction", True), ("v_prediction", False), ("epsilon", False)):
        native = host.model.load_model(
            weights, replace(config, prediction_type=prediction, zero_terminal_snr=zsnr)
        )
        sampling = {"v_prediction": "v_prediction", "epsilon": "eps"}[prediction]
        change = change_by("model_advanced", "ModelSamplingDiscrete", sampling=sampling, zsnr=zsnr)
        found, expected = (
            run_host(comfy, *applied(host, twin, model=model), noise_for(twin, FRAMES), 2, CFG)
            for model in (change(twin.model), native)
        )
        assert torch.equal(found, expected)


# --- Samplers ------------------------------------------------------------------------------------

RUN = {"seed": 5, "steps": 3, "cfg": CFG, "scheduler": "simple"}


def latent(frames: int = FRAMES, value: float = 0.0) -> dict[str, Tensor]:
    return {"samples": torch.full((frames, 4, 8, 8), value)}


def k_sampler(nodes: ModuleType, model: Any, conds: list, **changes: Any) -> Tensor:
    inputs = {"sampler_name": "euler", "latent_image": latent(), "denoise": 1.0, **RUN, **changes}
    (result,) = run_node(nodes.KSampler, model=model, positive=conds[0], negative=conds[1], **inputs)
    return result["samples"]


def k_sampler_advanced(nodes: ModuleType, model: Any, conds: list, **changes: Any) -> dict:
    inputs = {
        "add_noise": "enable",
        "noise_seed": RUN["seed"],
        "steps": RUN["steps"],
        "cfg": CFG,
        "sampler_name": "euler",
        "scheduler": "simple",
        "latent_image": latent(),
        "start_at_step": 0,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    } | changes
    (result,) = run_node(nodes.KSamplerAdvanced, model=model, positive=conds[0], negative=conds[1], **inputs)
    return result


def custom_sampler(
    model: Any,
    conds: list,
    sampler: str = "euler",
    cfg: float = CFG,
    denoise: float = 1.0,
    value: float = 0.0,
) -> Tensor:
    """SamplerCustomAdvanced with the nodes that people put before it."""

    def of(name: str, **inputs: Any) -> Any:
        return run_node(extra("custom_sampler", name), **inputs)[0]

    sigmas = of("BasicScheduler", model=model, scheduler="simple", steps=RUN["steps"], denoise=denoise)
    guider = (
        of("BasicGuider", model=model, conditioning=conds[0])
        if cfg == 1
        else of("CFGGuider", model=model, positive=conds[0], negative=conds[1], cfg=cfg)
    )
    result = of(
        "SamplerCustomAdvanced",
        noise=of("RandomNoise", noise_seed=RUN["seed"]),
        guider=guider,
        sampler=of("KSamplerSelect", sampler_name=sampler),
        sigmas=sigmas,
        latent_image=latent(value=value),
    )
    return result["samples"]


@pytest.mark.parametrize(
    ("sampler", "windows"), [("euler", WINDOWS), ("euler", WHOLE), ("dpmpp_2m", WHOLE), ("lcm", WHOLE)]
)
def test_stock_samplers_agree(
    host: SimpleNamespace, nodes: ModuleType, twin: Twin, sampler: str, windows: dict[str, int]
) -> None:
    """KSampler, KSamplerAdvanced, SamplerCustomAdvanced and ours: one video."""
    model, *conds = applied(host, twin, **windows)
    expected = k_sampler(nodes, model, conds, sampler_name=sampler)
    advanced = k_sampler_advanced(nodes, model, conds, sampler_name=sampler)["samples"]
    assert expected.isfinite().all() and torch.equal(advanced, expected)
    assert torch.equal(custom_sampler(model, conds, sampler), expected)
    unguided = k_sampler(nodes, model, conds, sampler_name=sampler, cfg=1.0)
    assert torch.equal(custom_sampler(model, conds, sampler, cfg=1.0), unguided)
    assert relative_error(unguided, expected) > 1e-3


def test_our_sampler_is_a_stock_one_with_its_own_noise(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin
) -> None:
    from anifacediff_core.sampling.windows import initial_noise

    model, *conds = applied(host, twin, **WINDOWS)
    ours = host.sampling.sample(model, *conds, seed=5, steps=3, cfg=CFG, shared_noise=0.5, **WINDOWS)
    noise = initial_noise(FRAMES, 4, 8, 8, 5, 0.5)
    assert torch.equal(ours["samples"] * 0.18215, run_host(comfy, model, *conds, noise, 3, CFG))


def test_sampling_in_two_parts(host: SimpleNamespace, nodes: ModuleType, twin: Twin) -> None:
    """KSamplerAdvanced up to a step with the noise left over, and another one from there."""
    model, *conds = applied(host, twin, **WINDOWS)
    expected = k_sampler_advanced(nodes, model, conds)["samples"]
    half = k_sampler_advanced(nodes, model, conds, end_at_step=2, return_with_leftover_noise="enable")
    found = k_sampler_advanced(nodes, model, conds, latent_image=half, start_at_step=2, add_noise="disable")[
        "samples"
    ]
    assert relative_error(half["samples"], expected) > 1e-2
    assert relative_error(found, expected) < EQUAL


def test_denoise_below_one(host: SimpleNamespace, nodes: ModuleType, twin: Twin) -> None:
    model, *conds = applied(host, twin, **WINDOWS)
    found = k_sampler(nodes, model, conds, latent_image=latent(value=1.0), denoise=0.5)
    assert torch.equal(custom_sampler(model, conds, denoise=0.5, value=1.0), found)
    from_elsewhere = k_sampler(nodes, model, conds, latent_image=latent(value=3.0), denoise=0.5)
    assert relative_error(from_elsewhere, found) > 1e-2
    little = k_sampler(nodes, model, conds, latent_image=latent(value=100.0), denoise=0.01)
    assert relative_error(little, latent(value=100.0)["samples"]) < 0.1


@pytest.mark.parametrize("windows", [WHOLE, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("frames", [FRAMES - 1, FRAMES + 1])
def test_latent_of_another_length_is_refused(
    host: SimpleNamespace, nodes: ModuleType, twin: Twin, frames: int, windows: dict[str, int]
) -> None:
    model, *conds = applied(host, twin, **windows)
    with input_error(f"latent has {frames} frames but the conditioning has {FRAMES}"):
        k_sampler(nodes, model, conds, latent_image=latent(frames))


# --- Context windows of the host's own node ------------------------------------------------------


def context_node(**changes: Any) -> Change:
    inputs = {
        "context_length": 3,
        "context_overlap": 2,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "dim": 0,
    } | changes
    cls = extra("context_windows", "ContextWindowsManualNode")
    if "freenoise" in {entry.id for entry in cls.define_schema().inputs}:
        inputs |= {"freenoise": False, "cond_retain_index_list": "", "split_conds_to_windows": False}
    return lambda model: run_node(cls, model=model, **inputs)[0]


@pytest.mark.parametrize(
    ("schedule", "fuse"),
    [
        ("standard_static", "pyramid"),
        ("standard_uniform", "relative"),
        ("looped_uniform", "flat"),
        ("batched", "flat"),
    ],
)
def test_context_windows_of_the_host(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, schedule: str, fuse: str
) -> None:
    """Behind Apply AniFaceDiff its windows hold, each with the frames' own conditioning."""
    model, *conds = applied(host, twin, **WHOLE)
    seen = []

    def record(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        options = next(value for value in (*args, *kwargs.values()) if isinstance(value, dict))
        seen.append(tuple(options["context_window"].index_list))
        return executor(*args, **kwargs)

    changed = context_node(context_schedule=schedule, fuse_method=fuse)(model)
    changed.add_wrapper("apply_model", record)
    found = run_host(comfy, changed, *conds, noise_for(twin, FRAMES), 1, CFG)
    assert found.isfinite().all()
    handler = changed.model_options["context_handler"]
    laid = {tuple(window) for window in handler.context_schedule.func(FRAMES, handler, {})}
    assert set(seen) == laid and {index for window in laid for index in window} == set(range(FRAMES))
    assert relative_error(found, run_host(comfy, model, *conds, noise_for(twin, FRAMES), 1, CFG)) > 1e-3


def test_context_windows_of_the_host_are_fused_as_it_says(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin
) -> None:
    """Flat ones are the mean of what each window is by itself."""
    model, *conds = applied(host, twin, **WHOLE)
    outputs = []

    def record(executor: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        outputs.append(executor(*args, **kwargs))
        return outputs[-1]

    flat, pyramid = (context_node(fuse_method=fuse)(model) for fuse in ("flat", "pyramid"))
    flat.add_wrapper("calc_cond_batch", record)
    found = call_host(comfy, flat, *conds, noise_for(twin, FRAMES), 1.0)
    first, second = (output[0] for output in outputs)
    expected = torch.cat([first[:1], (first[1:] + second[:-1]) / 2, second[-1:]])
    assert relative_error(found, expected) < EQUAL
    other = call_host(comfy, pyramid, *conds, noise_for(twin, FRAMES), 1.0)
    assert relative_error(other, found) > 1e-3


def test_impossible_context_windows_are_refused(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    model, *conds = applied(host, twin, **WHOLE)
    with input_error("set dim to 0"):
        run_host(comfy, context_node(dim=2)(model), *conds, noise_for(twin, FRAMES), 1, CFG)
    frames = 34
    long = make_twin(host, "widening", frames)
    model, *conds = applied(host, long, window=32, overlap=1)
    with input_error("windows of 33 frames are longer .* use 32 at most"):
        run_host(comfy, context_node(context_length=33)(model), *conds, noise_for(twin, frames), 1, 1.0)


# --- ControlNet ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def control_net(comfy: ModuleType, twin: Twin) -> Any:
    """A ControlNet of the UNet's widths; the host's loader would take such a narrow one for no ControlNet."""
    import comfy.cldm.cldm
    import comfy.ops

    config = dict(twin.model.model.model_config.unet_config)
    del config["out_channels"]
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast)
    randomize(network, 31)
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))


HINTS = torch.rand(FRAMES, 64, 64, 3, generator=torch.Generator().manual_seed(32))


def controlled(nodes: ModuleType, conds: list, control_net: Any, strength: float, hints: Tensor) -> tuple:
    return run_node(
        nodes.ControlNetApplyAdvanced,
        positive=conds[0],
        negative=conds[1],
        control_net=control_net,
        image=hints,
        strength=strength,
        start_percent=0.0,
        end_percent=1.0,
    )


@contextmanager
def controlled_core(twin: Twin, network: nn.Module, strength: float) -> Iterator[None]:
    """The core's UNet with the ControlNet's residuals on its skip connections and its middle."""
    unet, residuals = twin.core.unet, []

    def predict(_: nn.Module, args: tuple) -> None:
        rows = len(args[0])
        context = twin.conditioning.context.expand(FRAMES, -1, -1)
        context = torch.cat([context, torch.zeros_like(context)])[:rows]
        hints = HINTS.movedim(-1, 1).repeat(rows // FRAMES, 1, 1, 1)
        output = network(x=args[0], hint=hints, timesteps=torch.full((rows,), 500.0), context=context)
        residuals[:] = [*output["output"], output["middle"][0]]

    def add(_: nn.Module, __: tuple, hidden: Tensor) -> Tensor:
        return hidden + strength * residuals.pop()

    def add_to_skip(_: nn.Module, args: tuple) -> tuple:
        residual = strength * residuals.pop()
        hidden = args[0].clone()
        hidden[:, -residual.shape[1] :] += residual
        return hidden, *args[1:]

    with ExitStack() as hooks:
        handles = [
            unet.conv_in.register_forward_pre_hook(predict),
            unet.mid_block.resnets[-1].register_forward_hook(add),
            *(
                resnet.register_forward_pre_hook(add_to_skip)
                for block in unet.up_blocks
                for resnet in block.resnets
            ),
        ]
        for handle in handles:
            hooks.callback(handle.remove)
        yield
    assert not residuals


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_control_net(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, control_net: Any, strength: float
) -> None:
    model, *conds = applied(host, twin, **WHOLE)
    positive, negative = controlled(nodes, conds, control_net, strength, HINTS)
    found = call_host(comfy, model, positive, negative, noise_for(twin, FRAMES), CFG)
    with controlled_core(twin, control_net.control_model, strength):
        expected = call_core(twin, noise_for(twin, FRAMES), CFG)
    assert relative_error(found, expected) < EQUAL
    without = call_host(comfy, model, *conds, noise_for(twin, FRAMES), CFG)
    if strength == 0:
        assert torch.equal(found, without)
    else:
        assert relative_error(found, without) > 1e-2


def test_control_net_in_windows(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, control_net: Any
) -> None:
    """Every window as if it were the whole video, with the hints of its frames, blended."""
    from anifacediff_core.sampling.windows import context_windows, fuse_weights

    model, *conds = applied(host, twin, **WINDOWS)
    noise = noise_for(twin, FRAMES)
    found = call_host(comfy, model, *controlled(nodes, conds, control_net, 1.0, HINTS), noise, CFG)
    length, overlap = WINDOWS["window"], WINDOWS["overlap"]
    weights = fuse_weights(length, overlap).view(-1, 1, 1, 1)
    expected, total = torch.zeros_like(found), torch.zeros(FRAMES, 1, 1, 1)
    for frames in context_windows(FRAMES, length, overlap):
        part = replace(
            twin,
            conditioning=twin.conditioning.window(frames, torch.device("cpu"), torch.float32),
            expression=twin.expression[frames],
        )
        model, *conds = applied(host, part, **WHOLE)
        hinted = controlled(nodes, conds, control_net, 1.0, HINTS[frames])
        expected[frames] += weights * call_host(comfy, model, *hinted, noise[frames], CFG)
        total[frames] += weights
    assert relative_error(found, expected / total) < EQUAL


def test_hints_for_all_frames_and_several_control_nets(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, control_net: Any
) -> None:
    model, *conds = applied(host, twin, **WINDOWS)
    still = HINTS[:1]
    repeated = controlled(nodes, conds, control_net, 1.0, still.expand(FRAMES, -1, -1, -1))
    expected = call_host(comfy, model, *repeated, noise_for(twin, FRAMES), CFG)
    single = controlled(nodes, conds, control_net, 1.0, still)
    twice = controlled(nodes, controlled(nodes, conds, control_net, 0.5, still), control_net, 0.5, still)
    for positive, negative in (single, twice):
        found = call_host(comfy, model, positive, negative, noise_for(twin, FRAMES), CFG)
        assert relative_error(found, expected) < EQUAL


# --- Compilation ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_model_in_windows(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchCompileModel but for its backend, which needs a compiler: one graph for all windows, no breaks."""
    import comfy.ldm.modules.attention as attention
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # what the host takes on a GPU; its choice for the CPU reads the free memory from a file
    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(attention, name, attention.attention_pytorch)
    model, *conds = applied(host, twin, **WINDOWS)
    layers, noise = layers_of(model), noise_for(twin, FRAMES)
    expected = run_host(comfy, model, *conds, noise, 2, CFG)
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = run_host(comfy, compiled, *conds, noise, 2, CFG)
    counters = torch._dynamo.utils.counters
    assert relative_error(found, expected) < EQUAL
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
    assert layers_of(model) == layers
    assert torch.equal(run_host(comfy, model, *conds, noise, 2, CFG), expected)


# --- Previews, cancelling, several graphs --------------------------------------------------------


def test_previews(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step shows a picture, made of the latents as they are at that step."""
    from comfy.cli_args import LatentPreviewMethod, args

    shown = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    comfy.utils.set_progress_bar_global_hook(lambda *values, **_: shown.append(values[:3]))
    model, *conds = applied(host, twin, **WINDOWS)
    k_sampler(nodes, model, conds)
    assert [(done, total) for done, total, _ in shown] == [(1, 3), (2, 3), (3, 3)]
    pictures = [preview[1] for *_, preview in shown]
    assert all(isinstance(picture, Image.Image) and picture.size == (8, 8) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_cancelling_between_steps(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops at the next call of the UNet; the MODEL is as before and samples as before."""
    model, *conds = applied(host, twin, **WINDOWS)
    before, layers = k_sampler(nodes, model, conds), layers_of(model)
    done = []

    def cancel(value: int, *_: Any, **__: Any) -> None:
        done.append(value)
        if len(done) == 1:
            nodes.interrupt_processing()

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            k_sampler(nodes, model, conds)
    assert done == [1]
    assert layers_of(model) == layers
    assert torch.equal(k_sampler(nodes, model, conds), before)


@pytest.mark.parametrize("between", ["nothing", "unloaded"])
def test_models_in_turn(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, between: str
) -> None:
    """Two graphs with models of their own, one video on a shared MODEL, and that MODEL bare: each as ever."""
    other = make_twin(host, "tiny", FRAMES)
    runs = [applied(host, twin, **WHOLE), applied(host, other, **WINDOWS)]
    runs += [(twin.model, *runs[0][1:]), applied(host, twin, ("image", "pose"), **WINDOWS)]
    keys = list(twin.model.model.state_dict())

    def sample_all(order: list[int]) -> dict[int, Tensor]:
        results = {}
        for number in order:
            model, *conds = runs[number]
            results[number] = k_sampler(nodes, model, conds, steps=2)
            if between == "unloaded":
                comfy.model_management.unload_all_models()
        return results

    first, second = sample_all([0, 1, 2, 3]), sample_all([3, 1, 2, 0])
    assert all(torch.equal(first[number], second[number]) for number in first)
    assert relative_error(first[0], first[2]) > 1e-3 and relative_error(first[0], first[3]) > 1e-3
    assert list(twin.model.model.state_dict()) == keys


def test_bare_model_stays_bare(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin
) -> None:
    """A MODEL beside which an applied clone lives samples as one that never had such a clone."""
    fresh = host.model.load_model(twin.core.unet.state_dict(), twin.core.config)
    model, *conds = applied(host, twin, **WINDOWS)
    k_sampler(nodes, model, conds, steps=1)
    found, expected = (k_sampler(nodes, bare, conds, steps=2) for bare in (twin.model, fresh))
    assert torch.equal(found, expected)
    assert not twin.model.patches and not twin.model.wrappers.get("apply_model")
    assert "context_handler" not in twin.model.model_options
    assert twin.model.model_options == fresh.model_options


# --- Weights -------------------------------------------------------------------------------------


@pytest.fixture
def lora(twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a LoRA on the self-attention's keys."""
    import folder_paths

    generator = torch.Generator().manual_seed(41)
    weights = {}
    for name, layer in twin.core.unet.named_modules():
        if name.endswith("attn1.to_k"):
            key = "lora_unet_" + name.replace(".", "_")
            weights[f"{key}.lora_up.weight"] = torch.randn(layer.out_features, 2, generator=generator)
            weights[f"{key}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=generator)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    safetensors.torch.save_file(weights, tmp_path / "keys.safetensors")
    return "keys.safetensors"


def hooked(nodes: ModuleType, conds: list, lora: str, *keyframes: tuple[float, float]) -> list:
    """Conditioning with a LoRA that is scheduled by (strength, start) over the run."""
    (hooks,) = run_node(extra("hooks", "CreateHookLoraModelOnly"), lora_name=lora, strength_model=1.0)
    frames = None
    for strength, start in keyframes:
        create = extra("hooks", "CreateHookKeyframe")
        (frames,) = run_node(create, strength_mult=strength, start_percent=start, prev_hook_kf=frames)
    (hooks,) = run_node(extra("hooks", "SetHookKeyframes"), hooks=hooks, hook_kf=frames)
    set_properties = extra("hooks", "ConditioningSetProperties")
    return [
        run_node(set_properties, cond_NEW=cond, strength=1.0, set_cond_area="default", hooks=hooks)[0]
        for cond in conds
    ]


def test_scheduled_lora(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, lora: str
) -> None:
    """As a hook on the conditioning: a constant one is the LoRA, a scheduled one the LoRA for some steps."""
    model, *conds = applied(host, twin, **WINDOWS)
    (patched,) = run_node(nodes.LoraLoaderModelOnly, model=model, lora_name=lora, strength_model=1.0)
    options = {"sampler_name": "euler", "steps": 2}
    without, with_lora = (k_sampler(nodes, each, conds, **options) for each in (model, patched))
    assert relative_error(with_lora, without) > 1e-2
    constant = k_sampler(nodes, model, hooked(nodes, conds, lora, (1.0, 0.0)), **options)
    assert relative_error(constant, with_lora) < EQUAL

    scheduled = k_sampler(nodes, model, hooked(nodes, conds, lora, (1.0, 0.0), (0.0, 0.4)), **options)
    half = k_sampler_advanced(
        nodes, patched, conds, steps=2, end_at_step=1, return_with_leftover_noise="enable"
    )
    expected = k_sampler_advanced(
        nodes, model, conds, steps=2, latent_image=half, start_at_step=1, add_noise="disable"
    )
    assert relative_error(scheduled, expected["samples"]) < EQUAL
    assert relative_error(scheduled, constant) > 1e-3
    assert torch.equal(k_sampler(nodes, model, conds, **options), without)


def test_partial_loading_with_a_lora_behind(
    comfy: ModuleType, host: SimpleNamespace, nodes: ModuleType, twin: Twin, lora: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Short of memory, with a LoRA loaded behind Apply AniFaceDiff, in windows."""
    model, *conds = applied(host, twin, **WINDOWS)
    (patched,) = run_node(nodes.LoraLoaderModelOnly, model=model, lora_name=lora, strength_model=1.0)
    expected = run_host(comfy, patched, *conds, noise_for(twin, FRAMES), 2, CFG)
    comfy.model_management.unload_all_models()
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", load_half)
        found = run_host(comfy, patched, *conds, noise_for(twin, FRAMES), 2, CFG)
        assert patched.model.model_lowvram and patched.model.lowvram_patch_counter > 0
    for patcher in (patched, twin.motion, twin.adapter):
        patcher.detach()
    assert relative_error(found, expected) < EQUAL


@pytest.mark.parametrize("with_lora", [False, True])
def test_saving_a_model(
    host: SimpleNamespace, nodes: ModuleType, twin: Twin, lora: str, tmp_path: Path, with_lora: bool
) -> None:
    """What ModelSave writes is the UNet alone, with the LoRA in it, and loads as one."""
    model, *conds = applied(host, twin, **WHOLE)
    k_sampler(nodes, model, conds, steps=1)
    if with_lora:
        (model,) = run_node(nodes.LoraLoaderModelOnly, model=model, lora_name=lora, strength_model=1.0)
    save = extra("model_merging", "ModelSave")()
    save.output_dir = str(tmp_path)
    save.save(model, "saved")
    saved = safetensors.torch.load_file(tmp_path / "saved_00001_.safetensors")
    prefix = "model.diffusion_model."
    weights = {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}
    assert set(saved) - {prefix + name for name in weights} <= {"v_pred", "ztsnr"}
    bare = host.model.load_model(twin.core.unet.state_dict(), twin.core.config)
    expected = bare.model.diffusion_model.state_dict()
    assert weights.keys() == expected.keys()
    changed = {name for name in weights if not torch.equal(weights[name], expected[name])}
    assert all(name.endswith("attn1.to_k.weight") for name in changed) and bool(changed) == with_lora
