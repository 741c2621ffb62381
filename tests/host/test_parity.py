"""The host's own UNet with AniFaceDiff attached, against the reference implementation on diffusers.

The bundled weights, and random ones at their topology and at a narrow copy of Stable Diffusion 1.5's;
latents of 8×8.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_native import configs, relative_error
from torch import Tensor, nn

from harness.weights import randomize

ONE_CALL = 1e-4  # relative error in fp32; 1e-6 to 6e-5 measured, by the order in which threads add up
WHOLE_RUN = 1e-3  # from σ = 4519 to 0, over random weights that amplify every rounding; 1e-5 to 1e-4 measured
BUNDLED = Path(__file__).resolve().parents[2] / "anifacediff_core" / "assets" / "demo.safetensors"
CONDITIONS = ("image", "reference", "pose", "expression", "motion")


@dataclass
class Twin:
    """One set of weights and one video's conditioning, on both sides."""

    core: Any
    model: Any  # the host's bare MODEL
    adapter: Any
    motion: Any
    conditioning: Any
    expression: Tensor


def make_core(name: str) -> Any:
    """The network with its bundled weights, or with random ones at another topology."""
    from anifacediff_core.network.model import AniFaceDiff
    from anifacediff_core.weights.checkpoint import load_checkpoint, load_network

    if name == "bundled":
        return load_network(load_checkpoint(BUNDLED)).eval()
    return randomize(AniFaceDiff(configs()[name], motion=True), 10).eval()


def make_twin(host: SimpleNamespace, name: str, frames: int) -> Twin:
    core = make_core(name)
    config = core.config
    generator = torch.Generator().manual_seed(11)
    expression = torch.rand(frames, config.n_expression, generator=generator)
    conditioning = core.encode_conditioning(
        torch.randn(1, config.latent_channels, 8, 8, generator=generator),
        torch.randn(1, 3, config.image_size, config.image_size, generator=generator),
        torch.rand(frames, 3, 64, 64, generator=generator),
        expression,
    )
    return Twin(
        core,
        host.model.load_model(core.unet.state_dict(), config),
        host.parts.load_expression_adapter(config, core.expression_adapter.state_dict()),
        host.parts.load_motion(config, core.motion.state_dict()),
        conditioning,
        expression,
    )


@pytest.fixture(scope="module", params=["bundled", "deep", "narrow"])
def twin(request: pytest.FixtureRequest, host: SimpleNamespace) -> Twin:
    return make_twin(host, request.param, frames=24)


@pytest.fixture(scope="module")
def tiny(host: SimpleNamespace) -> Twin:
    return make_twin(host, "tiny", frames=40)


@pytest.fixture(scope="module")
def long(host: SimpleNamespace) -> Twin:
    return make_twin(host, "bundled", frames=40)


def applied(
    host: SimpleNamespace,
    twin: Twin,
    conditions: tuple[str, ...] = CONDITIONS,
    weight: float = 1.0,
    frames: int | None = None,
    model: Any = None,
    **windows: int,
) -> tuple[Any, list, list]:
    """The MODEL with some of the conditions, and its positive and negative conditioning."""
    model = twin.model if model is None else model
    if "expression" in conditions:
        model = host.apply.attach_expression_adapter(model, twin.adapter, weight)
    model = host.apply.apply_anifacediff(
        model,
        reference=twin.conditioning.reference if "reference" in conditions else None,
        pose=tuple(level[:frames] for level in twin.conditioning.pose) if "pose" in conditions else (),
        expression=twin.expression[:frames],
        motion=twin.motion if "motion" in conditions else None,
        **windows,
    )
    image = twin.conditioning.context
    return model, *host.apply.image_conditioning(image if "image" in conditions else torch.zeros_like(image))


def run_host(
    comfy: ModuleType, model: Any, positive: list, negative: list, noise: Tensor, steps: int, cfg: float
) -> Tensor:
    """UNet latents as the stock KSampler makes them."""
    latents = torch.zeros_like(noise)
    samples = comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, negative, latents, seed=0
    )
    return samples * 0.18215


def call_host(
    comfy: ModuleType, model: Any, positive: list, negative: list, noise: Tensor, cfg: float
) -> Tensor:
    """The same clean latents by the host: one step of Euler's method from that σ to 0."""
    sigmas = torch.tensor([model.get_model_object("model_sampling").sigmas[500], 0.0])
    samples = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        positive,
        negative,
        torch.zeros_like(noise),
    )
    return samples * 0.18215


@contextmanager
def on_core(twin: Twin, frames: int, conditions: tuple[str, ...] = CONDITIONS) -> Iterator[tuple[Any, Any]]:
    """The headless pipeline and the conditioning of the first frames, with some of the conditions."""
    from anifacediff_core.network.autoencoder import AutoEncoder
    from anifacediff_core.sampling.pipeline import Pipeline

    given = twin.conditioning.window(range(frames), torch.device("cpu"), torch.float32)
    given = replace(
        given,
        context=given.context if "image" in conditions else torch.zeros_like(given.context),
        reference=given.reference if "reference" in conditions else {},
        pose=given.pose if "pose" in conditions else (),
    )
    motion = twin.core.motion
    twin.core.motion = motion if "motion" in conditions else None
    try:
        yield Pipeline(twin.core, AutoEncoder(), nn.Identity()), given
    finally:
        twin.core.motion = motion


def run_core(twin: Twin, noise: Tensor | None, steps: int, cfg: float, **options: float) -> Tensor:
    """UNet latents as the headless pipeline makes them."""
    frames = len(twin.conditioning if noise is None else noise)
    with on_core(twin, frames) as (pipeline, given):
        return pipeline.sample(given, steps=steps, cfg=cfg, noise=noise, **options)


def call_core(
    twin: Twin, noise: Tensor, cfg: float, conditions: tuple[str, ...] = CONDITIONS, weight: float = 1.0
) -> Tensor:
    """The clean latents that one call of the core's UNet tells, at σ of time step 500."""
    from anifacediff_core.sampling.schedule import NoiseSchedule

    with on_core(twin, len(noise), conditions) as (pipeline, given):
        schedule = NoiseSchedule.of(pipeline.model.config)
        sigma = schedule.sigmas[500]
        latents = noise * sigma
        prediction = twin.core.predict(
            schedule.scale_model_input(latents, sigma),
            torch.tensor([500]),
            given,
            expression_scale=weight if "expression" in conditions else 0.0,
            guided=cfg != 1,
        )
        if cfg != 1:
            conditional, unconditional = prediction.chunk(2)
            prediction = unconditional + cfg * (conditional - unconditional)
        return schedule.pred_original_sample(prediction, latents, sigma)


def noise_for(twin: Twin, frames: int, seed: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, twin.core.config.latent_channels, 8, 8, generator=generator)


@pytest.mark.parametrize(("steps", "cfg"), [(1, 1.0), (2, 1.0), (4, 1.0), (4, 2.5)])
def test_whole_run(comfy: ModuleType, host: SimpleNamespace, twin: Twin, steps: int, cfg: float) -> None:
    noise = noise_for(twin, 24)
    found = run_host(comfy, *applied(host, twin), noise, steps, cfg)
    assert relative_error(found, run_core(twin, noise, steps, cfg)) < WHOLE_RUN


@pytest.mark.parametrize(("cfg", "halves"), [(1.0, 1), (2.5, 2)])
def test_without_guidance_only_the_conditional_half_is_computed(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, cfg: float, halves: int
) -> None:
    model, *conds = applied(host, twin)
    rows: list[int] = []
    networks = (model.model.diffusion_model.input_blocks[0][0], twin.core.unet.conv_in)
    hooks = [
        network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        for network in networks
    ]
    try:
        run_host(comfy, model, *conds, noise_for(twin, 24), 2, cfg)
        run_core(twin, noise_for(twin, 24), 2, cfg)
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(rows) == 2 * 2 * halves * 24  # steps of both, the halves perhaps one after the other


@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("conditions", [CONDITIONS, (), *((name,) for name in CONDITIONS), *(
    tuple(other for other in CONDITIONS if other != name) for name in CONDITIONS
)], ids="+".join)  # fmt: skip
def test_one_call(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, conditions: tuple[str, ...], cfg: float
) -> None:
    noise = noise_for(twin, 3)
    found = call_host(comfy, *applied(host, twin, conditions, frames=3), noise, cfg)
    assert relative_error(found, call_core(twin, noise, cfg, conditions)) < ONE_CALL
    if conditions != CONDITIONS:
        # what is left out does something at all
        assert relative_error(found, call_core(twin, noise, cfg)) > 1e-3


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each module gives while the block runs, under its key."""
    outputs: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[key] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(key)) for key, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("conditions", [CONDITIONS, ()], ids=["all", "none"])
def test_every_block(
    comfy: ModuleType, host: SimpleNamespace, twin: Twin, conditions: tuple[str, ...]
) -> None:
    """Every residual block, spatial transformer and temporal module, in place, both halves of guidance."""
    model, positive, negative = applied(host, twin, conditions, frames=3)
    unet = model.model.diffusion_model
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    modules = {
        kind: {
            diffusers.removesuffix(ending): unet.get_submodule(place.removesuffix(host_ending))
            for diffusers, place in names.items()
            if diffusers.endswith(ending) and place.endswith(host_ending)
        }
        for kind, ending, host_ending in (
            ("residual", ".time_emb_proj.weight", ".emb_layers.1.weight"),
            ("spatial", ".proj_in.weight", ".proj_in.weight"),
        )
    }
    blocks = len(twin.core.block_names)
    assert len(modules["spatial"]) == blocks and len(modules["residual"]) > blocks
    on_host = modules["residual"] | modules["spatial"]
    on_core = {name: twin.core.unet.get_submodule(name) for name in on_host}
    if "motion" in conditions:
        temporal = {name: m for name, m in twin.core.motion.named_modules() if hasattr(m, "proj_out")}
        on_core |= temporal
        on_host |= {name: host.auxiliary.unwrap(twin.motion).get_submodule(name) for name in temporal}
    noise = noise_for(twin, 3)
    with recorded(on_host) as found:
        call_host(comfy, model, positive, negative, noise, 2.5)
    with recorded(on_core) as expected:
        call_core(twin, noise, 2.5, conditions)
    assert set(found) == set(expected) == set(on_core)
    for name, output in expected.items():
        conditional, unconditional = output.chunk(2)  # the host has them the other way round
        assert relative_error(found[name], torch.cat([unconditional, conditional])) < ONE_CALL, name


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_expression_weight(comfy: ModuleType, host: SimpleNamespace, twin: Twin, weight: float) -> None:
    noise = noise_for(twin, 24)
    found = call_host(comfy, *applied(host, twin, weight=weight), noise, 2.5)
    assert relative_error(found, call_core(twin, noise, 2.5, weight=weight)) < ONE_CALL
    assert relative_error(found, call_core(twin, noise, 2.5, weight=1.0)) > 1e-3


@pytest.mark.parametrize(("length", "overlap"), [(16, 4), (24, 6), (32, 0)])
def test_windows(comfy: ModuleType, host: SimpleNamespace, long: Twin, length: int, overlap: int) -> None:
    noise = noise_for(long, 40)
    windows = {"window": length, "overlap": overlap}
    found = run_host(comfy, *applied(host, long, **windows), noise, 2, 2.5)
    assert relative_error(found, run_core(long, noise, 2, 2.5, **windows)) < WHOLE_RUN
    assert relative_error(found, run_core(long, noise, 2, 2.5, window=20, overlap=2)) > 2e-3


@contextmanager
def changed_weights(module: nn.Module, changes: dict[str, Tensor]) -> Iterator[None]:
    kept = {name: module.get_parameter(name).clone() for name in changes}
    try:
        for name, change in changes.items():
            module.get_parameter(name).add_(change)
        yield
    finally:
        for name, weight in kept.items():
            module.get_parameter(name).copy_(weight)


def make_lora(unet: nn.Module, strength: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA on every projection of the attention in kohya's naming, and the changes that it means."""
    generator = torch.Generator().manual_seed(13)
    lora, changes = {}, {}
    for name, layer in unet.named_modules():
        if not name.endswith(("to_q", "to_k", "to_v")):
            continue
        down = torch.randn(2, layer.in_features, generator=generator) / layer.in_features**0.5
        up = torch.randn(layer.out_features, 2, generator=generator) * 0.3
        key = "lora_unet_" + name.replace(".", "_")
        lora |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        changes[f"{name}.weight"] = strength * up @ down
    return lora, changes


def test_lora(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    """A LoRA of the stock loader acts on the reference's keys and values as well."""
    lora, changes = make_lora(twin.core.unet, 0.7)
    noise = noise_for(twin, 24)
    before = call_host(comfy, *applied(host, twin), noise, 2.5)
    patched, _ = comfy.sd.load_lora_for_models(twin.model, None, lora, 0.7, 0)
    assert len(patched.patches) == len(changes)
    first = call_host(comfy, *applied(host, twin, model=patched), noise, 2.5)
    model, positive, negative = applied(host, twin)
    last = call_host(
        comfy, comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0)[0], positive, negative, noise, 2.5
    )
    with changed_weights(twin.core.unet, changes):
        expected = call_core(twin, noise, 2.5)
    assert relative_error(first, expected) < ONE_CALL
    assert relative_error(last, expected) < ONE_CALL
    assert relative_error(first, before) > 1e-3


def test_partial_loading(comfy: ModuleType, host: SimpleNamespace, twin: Twin) -> None:
    """With half of every network left behind and a LoRA to patch on the way, as on a card short of memory."""
    lora, changes = make_lora(twin.core.unet, 0.7)
    patched, _ = comfy.sd.load_lora_for_models(twin.model, None, lora, 0.7, 0)
    model, positive, negative = applied(host, twin, model=patched)
    comfy.model_management.unload_all_models()
    noise = noise_for(twin, 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", load_half)
        found = call_host(comfy, model, positive, negative, noise, 2.5)
        assert model.model.model_lowvram and model.model.lowvram_patch_counter > 0
        assert twin.motion.model.model_lowvram and twin.adapter.model.model_lowvram
    for patcher in (model, twin.motion, twin.adapter):
        patcher.detach()
    with changed_weights(twin.core.unet, changes):
        assert relative_error(found, call_core(twin, noise, 2.5)) < ONE_CALL


def load_half(models: list[Any], **_: Any) -> None:
    """What the host does when memory is short, which a test on the CPU can't make it."""
    for patcher in models:
        patcher.model_patches_to(patcher.load_device)
        patcher.patch_model(device_to=patcher.load_device, lowvram_model_memory=patcher.model_size() // 2)


def test_half_precision(comfy: ModuleType, host: SimpleNamespace, tiny: Twin) -> None:
    """Everything computes in the UNet's precision, whatever its own weights are stored in."""
    model = host.model.load_model(tiny.core.unet.state_dict(), configs()["tiny"], dtype=torch.bfloat16)
    model.model.manual_cast_dtype = None  # the host would compute in fp32 on the CPU
    model, *conds = applied(host, tiny, model=model, frames=3)
    seen = set()
    unet = model.model.diffusion_model
    hooks = [
        module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        for module in (*unet.modules(), *tiny.motion.model.modules(), *tiny.adapter.model.modules())
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm))
    ]
    noise = noise_for(tiny, 3)
    found = call_host(comfy, model, *conds, noise, 2.5)
    for hook in hooks:
        hook.remove()
    assert seen == {torch.bfloat16}
    assert relative_error(found, call_core(tiny, noise, 2.5)) < 0.1


def test_model_before_stays_as_it_was(comfy: ModuleType, host: SimpleNamespace, tiny: Twin) -> None:
    noise = noise_for(tiny, 3)
    positive, negative = host.apply.image_conditioning(tiny.conditioning.context)
    keys = list(tiny.model.model.state_dict())
    before = run_host(comfy, tiny.model, positive, negative, noise, 2, 2.5)
    model, *conds = applied(host, tiny, frames=3)
    between = run_host(comfy, model, *conds, noise, 2, 2.5)
    copy = run_host(comfy, model.clone(), *conds, noise, 2, 2.5)
    after = run_host(comfy, tiny.model, positive, negative, noise, 2, 2.5)
    assert torch.equal(before, after)
    assert torch.equal(between, copy)
    assert not torch.equal(before, between)
    assert list(tiny.model.model.state_dict()) == keys
