"""What we rely on in ComfyUI, by name: when a release changes it, these tests say what.

Symbols are collected from our sources. Calls are listed here, with the defaults that they inherit: what a
release adds there changes our results, even though nothing fails.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.weights import randomize

ROOT = Path(__file__).resolve().parents[2]
HOST = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "server",
}  # fmt: skip
API = "comfy_api.v0_0_2"  # what nodes/host/api.py passes on


# --- Symbols -------------------------------------------------------------------------------------


def host_names(tree: ast.Module) -> dict[str, str]:
    """What a file calls things of the host, and where they come from."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] in HOST]
            names |= {module.split(".")[0]: module.split(".")[0] for module in modules}
        elif isinstance(node, ast.ImportFrom):
            ours = node.level and (node.module or "").rpartition(".")[2] == "api"
            module = API if ours else node.module or ""
            if module.split(".")[0] in HOST:
                names |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
    return names


def used_symbols() -> set[str]:
    """Every dotted name of the host that a file in `nodes` uses."""
    found = set()
    for file in sorted((ROOT / "nodes").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = host_names(tree)
        found |= set(names.values()) - HOST
        for node in ast.walk(tree):
            parts: list[str] = []
            inner: ast.expr | None = node if isinstance(node, ast.Attribute) else None
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if parts and isinstance(inner, ast.Name) and inner.id in names:
                found.add(".".join([names[inner.id], *reversed(parts)]))
    # `a.b` is there when `a.b.c` is; the host's tables and instances are looked at where they are used
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def resolve(name: str) -> Any:
    """The thing of that dotted name; AttributeError says which part is missing."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AttributeError(f"no module {parts[0]}")


# Only newer releases have these, and we look before we use them.
NEWER = {"comfy.model_patcher.CoreModelPatcher"}


@pytest.mark.parametrize("name", sorted(used_symbols() - NEWER))
def test_the_host_has_the_symbol(comfy: ModuleType, name: str) -> None:
    try:
        resolve(name)
    except AttributeError as error:
        pytest.fail(f"ComfyUI has no {name} any more ({error})", pytrace=False)


def test_the_collection_finds_what_is_used() -> None:
    assert {
        "comfy.context_windows.IndexListContextHandler",
        "comfy.samplers.KSampler.SAMPLERS",
        "folder_paths.models_dir",
        f"{API}.io.Int.Input",
        "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE",
    } <= used_symbols()


# --- Calls ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """How we call something of the host.

    Args:
        positional: number of arguments by position, a method's own object among them.
        keywords: names of those by keyword.
        inherited: defaults of the parameters that we leave out, of all releases that we have seen.
    """

    name: str
    positional: int
    keywords: tuple[str, ...] = ()
    inherited: dict[str, Any] = field(default_factory=dict)

    def changes(self, signature: inspect.Signature) -> list[str]:
        """What is not as we know it, one line each."""
        try:
            bound = signature.bind(*range(self.positional), **dict.fromkeys(self.keywords))
        except TypeError as error:
            return [f"{self.name}{signature} can't be called as we do: {error}"]
        free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [
            f"{self.name} has {name}={parameter.default!r}, "
            + (f"which was {self.inherited[name]!r}" if name in self.inherited else "which we don't know")
            for name, parameter in signature.parameters.items()
            if name not in bound.arguments and parameter.kind not in free
            and (name not in self.inherited or not same(self.inherited[name], parameter.default))
        ]  # fmt: skip


def same(known: Any, found: Any) -> bool:
    return type(known) is type(found) and known == found


PATCHER = "comfy.model_patcher.ModelPatcher"
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
CALLS = [
    Call(
        "comfy.context_windows.IndexListContextHandler", 2, ("context_length", "context_overlap", "dim"),
        {
            "context_stride": 1, "closed_loop": False, "freenoise": False, "cond_retain_index_list": [],
            "split_conds_to_windows": False, "latent_retain_index_list": [],
            "causal_window_fix": True,  # WindowHandler switches it off
        },
    ),
    Call("comfy.context_windows.ContextSchedule", 2),
    Call("comfy.context_windows.ContextFuseMethod", 2),
    Call("comfy.context_windows.create_prepare_sampling_wrapper", 1),
    Call("comfy.context_windows.IndexListContextWindow.get_tensor", 3, ("dim",), {"retain_index_list": []}),
    Call(PATCHER, 1, ("load_device", "offload_device"), {"size": 0, "weight_inplace_update": False}),
    Call(
        f"{PATCHER}.clone", 1, (),
        {"disable_dynamic": False, "model_override": None, "force_deepcopy": False},
    ),
    Call(f"{PATCHER}.set_attachments", 3),
    Call(f"{PATCHER}.get_attachment", 2),
    Call(f"{PATCHER}.set_additional_models", 3),
    Call(f"{PATCHER}.set_model_attn1_replace", 4, (), {"transformer_index": None}),
    Call(f"{PATCHER}.set_model_attn2_replace", 4, (), {"transformer_index": None}),
    Call(f"{PATCHER}.set_model_input_block_patch", 2),
    Call(f"{PATCHER}.set_model_input_block_patch_after_skip", 2),
    Call(f"{PATCHER}.set_model_forward_timestep_embed_patch", 2),
    Call(f"{PATCHER}.set_model_sampler_post_cfg_function", 2, (), {"disable_cfg1_optimization": False}),
    Call(f"{PATCHER}.add_wrapper_with_key", 4),
    Call(f"{PATCHER}.remove_wrappers_with_key", 3),
    Call(f"{PATCHER}.add_callback_with_key", 4),
    Call(f"{PATCHER}.add_patches", 3, (), {"strength_model": 1.0}),
    Call(f"{PATCHER}.model_state_dict", 2),
    Call(f"{PATCHER}.get_model_object", 2),
    Call(
        "comfy.sample.sample", 9, ("denoise", "noise_mask", "callback", "disable_pbar", "seed"),
        {
            "disable_noise": False, "start_step": None, "last_step": None, "force_full_denoise": False,
            "sigmas": None,
        },
    ),
    Call(
        "comfy.sample.fix_empty_latent_channels", 2, (),
        {"downscale_ratio_spacial": None, "downscale_ratio_temporal": None},
    ),
    Call("latent_preview.get_previewer", 2),
    Call("latent_preview.LatentPreviewer.decode_latent_to_preview", 2),
    Call("comfy.utils.ProgressBar", 1, (), {"node_id": None}),
    Call("comfy.utils.ProgressBar.update_absolute", 4),
    Call("comfy.utils.unet_to_diffusers", 1),
    Call(
        "comfy.model_management.load_models_gpu", 1, (),
        {
            "memory_required": 0, "force_patch_weights": False, "minimum_memory_required": None,
            "force_full_load": False,
        },
    ),
    Call("comfy.model_management.unet_dtype", 0, ("device", "model_params"),
         {"supported_dtypes": DTYPES, "weight_dtype": None}),
    Call("comfy.model_management.unet_dtype", 0, ("model_params", "supported_dtypes", "weight_dtype"),
         {"device": None}),
    Call("comfy.model_management.unet_manual_cast", 2, (), {"supported_dtypes": DTYPES}),
    Call("comfy.model_management.unet_manual_cast", 3),
    Call("comfy.model_management.unet_offload_device", 0),
    Call("comfy.model_management.get_torch_device", 0),
    Call("comfy.model_management.throw_exception_if_processing_interrupted", 0),
    Call(
        "comfy.ops.pick_operations", 2, (),
        {
            "load_device": None, "disable_fast_fp8": False, "fp8_optimizations": False, "scaled_fp8": None,
            "model_config": None,
        },
    ),
    Call("comfy.supported_models.SD15", 1),
    Call("comfy.supported_models.SD15.set_inference_dtype", 3, (), {"device": None}),
    Call("comfy.supported_models.SD15.get_model", 3, (), {"device": None}),
    Call("comfy.model_base.BaseModel.load_model_weights", 3, (), {"assign": False}),
    Call("comfy.sd.VAE", 0, ("sd",), {"device": None, "config": None, "dtype": None, "metadata": None}),
    Call("comfy.sd.VAE", 0, ("sd", "dtype"), {"device": None, "config": None, "metadata": None}),
    Call("comfy.sd.VAE.throw_exception_if_invalid", 1),
    Call("comfy.clip_vision.ClipVisionModel", 1),
    Call("comfy.clip_vision.ClipVisionModel.load_sd", 2),
    Call("comfy.clip_vision.ClipVisionModel.encode_image", 2, (), {"crop": True}),
    Call("comfy.lora.load_lora", 2, ("log_missing",)),
    Call(
        "comfy.ldm.modules.attention.attention_pytorch", 4, ("attn_precision", "transformer_options"),
        {"mask": None, "skip_reshape": False, "skip_output_reshape": False},
    ),
    Call(
        "comfy_api.torch_helpers.set_torch_compile_wrapper", 1, ("backend", "mode", "dynamic"),
        {"options": None, "fullgraph": False, "keys": ["diffusion_model"]},
    ),
    Call("comfy_execution.utils.get_executing_context", 0),
    Call("folder_paths.add_model_folder_path", 2, (), {"is_default": False}),
    Call("folder_paths.get_filename_list", 1),
    Call("folder_paths.get_full_path", 2),
    Call("folder_paths.get_save_image_path", 2, (), {"image_width": 0, "image_height": 0}),
    Call("server.PromptServer.send_progress_text", 3, (), {"sid": None}),
    Call("server.PromptServer.send_sync", 4),  # test_live_sessions.py: app, routes, client_id
    Call(f"{API}.InputImpl.VideoFromFile", 1, (), {"start_time": 0, "duration": 0}),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.name} {' '.join(call.keywords)}".strip())
def test_the_host_is_called_as_before(comfy: ModuleType, call: Call) -> None:
    try:
        found = resolve(call.name)
    except AttributeError as error:
        pytest.fail(f"ComfyUI has no {call.name} any more ({error})", pytrace=False)
    changes = call.changes(inspect.signature(found))
    assert not changes, "\n".join(changes)


def test_auxiliary_networks_are_made_like_other_models(comfy: ModuleType) -> None:
    core = getattr(comfy.model_patcher, "CoreModelPatcher", None)
    if core is None:
        pytest.skip("this ComfyUI has one kind of ModelPatcher")
    call = next(call for call in CALLS if call.name == PATCHER)
    assert not call.changes(inspect.signature(core)) and issubclass(core, comfy.model_patcher.ModelPatcher)


def test_a_changed_signature_is_told() -> None:
    def now(a: int, b: int, stride: int = 2, fix: bool = True, *, known: None = None) -> None: ...

    call = Call("host.now", 2, (), {"stride": 1, "known": None})
    assert call.changes(inspect.signature(now)) == [
        "host.now has stride=2, which was 1",
        "host.now has fix=True, which we don't know",
    ]
    (refused,) = Call("host.now", 1, ("c",)).changes(inspect.signature(now))
    assert "can't be called as we do" in refused


# --- Classes that we derive from -----------------------------------------------------------------


def overridden(host: SimpleNamespace) -> Iterator[tuple[type, type, str]]:
    """(our class, the host's, method) for every method of the host's that ours replaces or adds to."""
    ours = {host.windows.WindowHandler, host.model._ModelConfig}
    for cls in ours:
        base = cls.__mro__[1]
        assert base.__module__.startswith("comfy.")
        for name, value in vars(cls).items():
            if inspect.isfunction(value) and not name.startswith("__"):
                yield cls, base, name


def test_overridden_methods_are_the_hosts(host: SimpleNamespace) -> None:
    changes = []
    for cls, base, name in overridden(host):
        if not hasattr(base, name):
            changes.append(f"{base.__name__} has no {name} any more, which {cls.__name__} overrides")
            continue
        free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        theirs = list(inspect.signature(getattr(base, name)).parameters)
        parameters = inspect.signature(getattr(cls, name)).parameters.values()
        named = [parameter.name for parameter in parameters if parameter.kind not in free]
        open_ended = any(parameter.kind in free for parameter in parameters)
        if theirs[: len(named)] != named or (len(theirs) > len(named) and not open_ended):
            changes.append(f"{base.__name__}.{name} takes {theirs}, {cls.__name__} expects {named}")
    assert not changes, "\n".join(changes)


# What a window handler of the host's keeps beside its functions, in all releases that we have seen.
HANDLER = {
    "context_length": 24, "context_overlap": 6, "context_stride": 1, "closed_loop": False, "dim": 0,
    "freenoise": False, "cond_retain_index_list": [], "split_conds_to_windows": False,
    "latent_retain_index_list": [], "causal_window_fix": False, "callbacks": {}, "_step": 0,
}  # fmt: skip


def test_window_handlers_have_no_other_settings(comfy: ModuleType, host: SimpleNamespace) -> None:
    def told(handler: Any) -> dict[str, Any]:
        settings = {name: value for name, value in vars(handler).items() if not hasattr(value, "func")}
        return {name: value for name, value in settings.items() if HANDLER.get(name, handler) != value}

    ours = host.windows.WindowHandler(24, 6)
    assert told(ours) == {}
    theirs = comfy.context_windows.IndexListContextHandler(
        ours.context_schedule, ours.fuse_method, context_length=24, context_overlap=6, dim=0
    )
    assert told(host.windows.WindowHandler.adopt(theirs)) == {}


# --- What hooks are given, and what objects hold --------------------------------------------------

OPTIONS = {"block", "cond_or_uncond", "n_heads", "attn_precision", "original_shape", "sample_sigmas"}
ATTRIBUTES = [
    "additional_models", "hook_patches", "load_device", "model_options", "object_patches", "patches",
    "patches_uuid", "weight_wrapper_patches", "model.diffusion_model.input_blocks",
    "model.diffusion_model.middle_block", "model.diffusion_model.output_blocks", "model.get_dtype",
    "model.latent_format.latent_rgb_factors", "model.latent_format.latent_rgb_factors_bias",
    "model.latent_format.taesd_decoder_name", "model.manual_cast_dtype", "model.model_config.unet_config",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(host: SimpleNamespace) -> Any:
    """A MODEL of random weights."""
    from test_native import configs

    from anifacediff_core.network.unet import make_unet

    config = configs()["tiny"]
    return host.model.load_model(randomize(make_unet(config), 1).state_dict(), config)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_model_has(model: Any, name: str) -> None:
    found = model
    for part in name.split("."):
        assert hasattr(found, part), f"ComfyUI's MODEL has no {name} any more"
        found = getattr(found, part)


def test_hooks_are_given_what_they_read(comfy: ModuleType, host: SimpleNamespace, model: Any) -> None:
    """Also which samples are conditional, and, in windows, which frames they are."""
    from comfy.patcher_extension import WrappersMP

    seen: dict[str, set[str]] = {}
    called: list[tuple[Any, ...]] = []

    def attend(q: Any, k: Any, v: Any, options: dict) -> Any:
        seen["attention"] = set(options)
        seen["window"] = set(dir(options.get("context_window")))
        return q

    def patch(hidden: Any, options: dict) -> Any:
        seen["input block"] = set(options)
        return hidden

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        called.append((executor.class_obj, len(args), kwargs.keys()))
        return executor(*args, **kwargs)

    patched = host.windows.use_windows(model, 3, 1)
    first = host.places.attending(host.places.find_places(model))[0]
    patched.set_model_attn1_replace(attend, *first.block)
    patched.set_model_input_block_patch(patch)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "contract", around)
    context = torch.zeros(1, 1, model.model.model_config.unet_config["context_dim"])
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    comfy.sample.sample(
        patched,
        noise,
        1,
        2.0,
        "euler",
        "simple",
        [[context, {}]],
        [[context, {}]],
        torch.zeros_like(noise),
        seed=0,
    )
    assert not OPTIONS - seen["attention"], OPTIONS - seen["attention"]
    assert not {"block", "cond_or_uncond"} - seen["input block"]
    assert "index_list" in seen["window"]
    base, count, keywords = called[0]
    assert base is model.model and (count >= 6 or "transformer_options" in keywords)
