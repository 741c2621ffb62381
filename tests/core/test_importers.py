"""Public checkpoint formats: recognized by their tensors, all of them accounted for, and turned into ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from anifacediff_core.capture.deca import DecaEncoder
from anifacediff_core.capture.smirk import SmirkEncoder
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.lab.assembly import Ingredients, assemble, convert, file_digest
from anifacediff_core.lab.checkpoint_stream import write_tensor_stream
from anifacediff_core.lab.cli import main
from anifacediff_core.network import landmark_guider
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import make_image_encoder, make_pose_encoder
from anifacediff_core.network.guidance import GuidanceEncoders
from anifacediff_core.network.landmark_guider import LandmarkGuider
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.temporal import MotionModules
from anifacediff_core.network.unet import make_unet
from anifacediff_core.weights.checkpoint import load_checkpoint, load_network
from anifacediff_core.weights.importers import Recognition, Unrecognized, recognize, recognize_file
from anifacediff_core.weights.sources import open_checkpoint, open_folder
from harness import flame, layouts
from harness.layouts import Listed
from harness.weights import randomize

Shapes = dict[str, tuple[int, ...]]

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "anifacediff_core" / "assets"
SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_levels": (True, True, True, False),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
}
NARROW = NetworkConfig(
    block_out_channels=(32, 64, 64, 64),
    cross_attention_dim=48,
    pose_channels=(8, 32, 32, 64),
    image_size=28,
    image_hidden=128,
    image_layers=2,
    image_heads=2,
    image_intermediate=64,
    motion_max_frames=24,
    motion_norm="frame",
)


# ---- full-size files, as lists


def whole_stable_diffusion() -> Shapes:
    unet = layouts.latent_diffusion_unet(layouts.unet_shapes())
    vae = layouts.latent_diffusion_vae(layouts.vae_shapes())
    text = "cond_stage_model.transformer.text_model"
    return {
        **{f"model.diffusion_model.{name}": shape for name, shape in unet.items()},
        **{f"first_stage_model.{name}": shape for name, shape in vae.items()},
        f"{text}.embeddings.token_embedding.weight": (49408, 768),
        f"{text}.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
        "model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3),
        "model_ema.decay": (),
        "alphas_cumprod": (1000,),
        "betas": (1000,),
        "posterior_variance": (1000,),
    }


def wrapped(shapes: Shapes, wrapper: str) -> Shapes:
    return {wrapper + name: shape for name, shape in shapes.items()}


def animatediff(frames: int, middle: bool, *, tables: bool = True) -> Shapes:
    shapes = layouts.motion_shapes(motion_max_seq_length=frames, use_motion_mid_block=middle)
    return layouts.animatediff(shapes, tables=tables)


def guidance() -> Shapes:
    shapes = layouts.on_meta(GuidanceEncoders, ("x",), 320, (16, 32, 96, 256))
    return layouts.guidance_encoder({name.removeprefix("x."): shape for name, shape in shapes.items()})


def aniportrait() -> Shapes:
    with torch.device("meta"):
        weights = layouts.pose_guider(LandmarkGuider().state_dict(), 2.0)
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def ip_adapter() -> Shapes:
    """Numbered like the attention processors of diffusers' UNet."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    shapes: Shapes = {
        "image_proj.proj.weight": (3072, 1024),
        "image_proj.norm.weight": (768,),
    }
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            channels = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for kind in ("to_k_ip", "to_v_ip"):
                shapes[f"ip_adapter.{number}.{kind}.weight"] = (channels, 768)
    return shapes


def deca() -> Shapes:
    return {
        **wrapped(layouts.on_meta(DecaEncoder), "E_flame."),
        "E_detail.encoder.conv1.weight": (64, 3, 7, 7),
        "D_detail.l1.0.weight": (8192, 181),
    }


def smirk() -> Shapes:
    return {
        **wrapped(layouts.on_meta(SmirkEncoder), "smirk_encoder."),
        "smirk_generator.down.0.weight": (32, 6, 7, 7),
    }


def flame_fields() -> Shapes:
    return {
        "v_template": (5023, 3),
        "shapedirs": (5023, 3, 400),
        "posedirs": (5023, 3, 36),
        "J_regressor": (5, 5023),
        "weights": (5023, 5),
        "kintree_table": (2, 5),
        "f": (9976, 3),
        "J": (5, 3),
    }


MOTION = {"motion_norm": "frame", "block_out_channels": (320, 640, 1280, 1280)}
CLIP = {"image_hidden": 1024, "image_layers": 24, "image_heads": 16, "image_size": 224, "image_patch": 14}
# Shapes, the parts with their numbers of tensors, the number of tensors left, and some of what they tell.
FORMATS: dict[str, tuple[Callable[[], Shapes], dict[str, int], int, dict[str, Any]]] = {
    "stable diffusion": (
        whole_stable_diffusion,
        {"unet": 686, "vae": 248},
        7,
        SD15 | {"scaling_factor": 0.18215},
    ),
    "latent diffusion unet": (
        lambda: wrapped(layouts.latent_diffusion_unet(layouts.unet_shapes()), "diffusion_model."),
        {"unet": 686},
        0,
        SD15,
    ),
    "diffusers unet": (layouts.unet_shapes, {"unet": 686}, 0, SD15),
    "reference unet": (
        lambda: layouts.without_last_layers(layouts.unet_shapes()),
        {"reference": 662},
        20,
        SD15,
    ),
    "unet with motion": (
        lambda: layouts.unet_shapes() | animatediff(32, True),
        {"unet": 686, "motion": 567},
        0,
        SD15 | {"motion_max_frames": 32, "motion_mid_block": True},
    ),
    "animatediff v1": (
        lambda: wrapped(animatediff(24, False), "state_dict.module."),
        {"motion": 540},
        0,
        MOTION | {"motion_max_frames": 24, "motion_mid_block": False},
    ),
    "animatediff v2": (
        lambda: animatediff(32, True),
        {"motion": 567},
        0,
        MOTION | {"motion_max_frames": 32, "motion_mid_block": True},
    ),
    "animatediff v3": (
        lambda: wrapped(animatediff(32, False), "module."),
        {"motion": 540},
        0,
        MOTION | {"motion_max_frames": 32, "motion_mid_block": False},
    ),
    "animatediff without tables": (
        lambda: animatediff(32, True, tables=False),
        {"motion": 567},
        0,
        MOTION | {"motion_max_frames": 32, "motion_mid_block": True},
    ),
    "diffusers motion adapter": (
        layouts.motion_shapes,
        {"motion": 567},
        0,
        MOTION | {"motion_mid_block": True},
    ),
    "latent diffusion vae": (
        lambda: layouts.latent_diffusion_vae(layouts.vae_shapes()) | {"loss.logvar": ()},
        {"vae": 248},
        1,
        {"scaling_factor": 0.18215},
    ),
    "diffusers vae": (layouts.vae_shapes, {"vae": 248}, 0, {"scaling_factor": 0.18215}),
    "old diffusers vae": (lambda: layouts.old_diffusers_vae(layouts.vae_shapes()), {"vae": 248}, 0, {}),
    "clip vision": (
        lambda: layouts.clip_shapes() | {"vision_model.embeddings.position_ids": (1, 257)},
        {"image_encoder": 392},
        1,
        CLIP,
    ),
    "whole clip": (
        lambda: (
            layouts.clip_shapes()
            | {"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768), "logit_scale": ()}
        ),
        {"image_encoder": 392},
        2,
        CLIP,
    ),
    "pose guider": (
        lambda: layouts.on_meta(lambda: make_pose_encoder(NetworkConfig())),
        {"pose_encoder": 16},
        0,
        {"pose_encoder": "convolution", "pose_channels": (16, 32, 96, 256)},
    ),
    "guidance encoder": (
        guidance,
        {"pose_encoder": 35},
        114,
        {"pose_encoder": "attention", "pose_inputs": ("normals",), "pose_channels": (16, 32, 96, 256)},
    ),
    "aniportrait pose guider": (
        aniportrait,
        {"pose_encoder": 138},
        45,
        {"pose_encoder": "multiscale", "pose_inputs": ("landmarks",)},
    ),
    "ip-adapter": (ip_adapter, {"expression_adapter": 32}, 2, {}),
    "deca": (deca, {"deca": 322}, 2, {"n_expression": 50}),
    "smirk": (smirk, {"smirk": 762}, 1, {"n_expression": 50}),
    "flame": (flame_fields, {"head": 9}, 1, {}),
}


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest) -> tuple[str, Listed, Recognition]:
    file = Listed(FORMATS[request.param][0]())
    return request.param, file, recognize(file)


def test_full_size_files_are_recognized_and_accounted_for(case: tuple[str, Listed, Recognition]) -> None:
    name, file, found = case
    _, parts, left, config = FORMATS[name]
    assert {part: len(found.infos(part)) for part in found.parts} == parts
    assert {field: found.config[field] for field in config} == config
    assert set(found.used) | set(found.left) == set(file.infos) and not set(found.used) & set(found.left)
    assert len(found.left) == left and all(found.left.values())


def test_shapes_come_out_as_promised(case: tuple[str, Listed, Recognition]) -> None:
    """The first and the last tensor of each part, read from the list."""
    name, file, found = case
    for part, origins in found.origins.items():
        for ours in (next(iter(origins)), list(origins)[-1]) if name != "flame" else ():
            tensor = origins[ours].read(file)
            assert tuple(tensor.shape) == found.infos(part)[ours].shape
            assert tensor.is_contiguous()


def test_a_missing_or_misshapen_tensor_is_named(case: tuple[str, Listed, Recognition]) -> None:
    name, file, found = case
    shapes = {key: info.shape for key, info in file.infos.items()}
    optional = ("pos_encoder.pe", "pos_embed.pe", "num_batches_tracked")
    required = [key for key in found.used if not key.endswith(optional)]
    victim = required[len(required) // 2]
    if name != "flame":  # without one of its fields it is not FLAME at all
        with pytest.raises(InputError, match=r"expected .*, found"):
            recognize(Listed({key: shape for key, shape in shapes.items() if key != victim}))
    with pytest.raises(InputError, match=r"expected .*\[.*\], found \[.*\]"):
        recognize(Listed(shapes | {required[-1]: (*shapes[required[-1]], 7)}))


def test_the_refusal_says_what_was_expected_and_found() -> None:
    inpainting = layouts.unet_shapes(in_channels=9)
    with pytest.raises(
        InputError, match=r"expected conv_in\.weight \[320, 4, 3, 3\], found \[320, 9, 3, 3\]"
    ):
        recognize(Listed(inpainting))
    with pytest.raises(InputError, match=r"expected visual_projection\.weight \[768, 1024\], found none"):
        recognize(Listed({n: s for n, s in layouts.clip_shapes().items() if n != "visual_projection.weight"}))
    with pytest.raises(InputError, match=r"expected no down_blocks\.0\.attentions\.2\.norm\.weight, found"):
        recognize(Listed(layouts.unet_shapes() | {"down_blocks.0.attentions.2.norm.weight": (320,)}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)},
            "a LoRA: .*LoRA loaders",
        ),
        ({"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 320)}, "a LoRA"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"),
        (
            {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4)},
            "a ControlNet",
        ),
        ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "a Flux model"),
        ({"conditioner.embedders.0.transformer.x": (1,), "model.diffusion_model.x": (1,)}, "Diffusion XL"),
        ({"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048)}, "Diffusion XL"),
        ({"cond_stage_model.model.positional_embedding": (77, 1024)}, "Stable Diffusion 2"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}, "a text encoder"),
        ({"vision_model.vision_model.embeddings.class_embedding": (1024,)}, "safety checker"),
        ({"audio_encoder.encoder.layers.0.attention.k_proj.weight": (768, 768)}, "a network for sound"),
        (
            {"something.weight": (3,)},
            r"of no known kind: expected .*, found 1 tensors, the first is something",
        ),
    ],
)
def test_other_files_get_a_helpful_refusal(names: Shapes, message: str) -> None:
    with pytest.raises(Unrecognized, match=message):
        recognize(Listed(names))


def test_a_files_name_tells_only_which_picture_a_guidance_encoder_reads() -> None:
    shapes = guidance()
    for name, kind in (
        ("guidance_encoder_depth.pth", "depth"),
        ("guidance_encoder_normal-10.pth", "normals"),
        ("guidance_encoder_render.pth", "render"),
        ("anything.pth", "normals"),
    ):
        found = recognize(Listed(shapes, name))
        assert found.config["pose_inputs"] == (kind,)
        assert all(ours.startswith(f"{kind}.") for ours in found.origins["pose_encoder"])
    assert recognize(Listed(layouts.unet_shapes(), "guidance_encoder_depth.pth")).parts == ("unet",)


def test_ip_adapter_goes_to_the_right_blocks() -> None:
    """Its numbers count down, up, middle; ours down, middle, up."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        ours = AniFaceDiff(NetworkConfig()).block_names
    file = Listed(ip_adapter())
    origins = recognize(file).origins["expression_adapter"]
    processors = list(unet.attn_processors)
    for index, block in enumerate(ours):
        number = processors.index(f"{block}.attn2.processor")
        assert origins[f"to_k.{index}.weight"].name == f"ip_adapter.{number}.to_k_ip.weight"
        assert origins[f"to_v.{index}.weight"].name == f"ip_adapter.{number}.to_v_ip.weight"


def test_smirk_has_timms_names() -> None:
    timm = pytest.importorskip("timm")
    theirs = {}
    for branch, model in (("pose", "small"), ("shape", "large"), ("expression", "large")):
        name = f"tf_mobilenetv3_{model}_minimal_100"
        backbone = timm.create_model(name, pretrained=False, features_only=True)
        theirs |= wrapped(layouts.shapes_of(backbone), f"smirk_encoder.{branch}_encoder.encoder.")
    theirs |= {name: shape for name, shape in smirk().items() if "_layers." in name}
    found = recognize(Listed(theirs))
    assert not found.left and len(found.used) == len(theirs)


# ---- narrow files, with numbers


def random_state(module: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in randomize(module, seed).state_dict().items()}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return randomize(make_unet(NARROW), 1).eval()


@pytest.fixture(scope="module")
def motion() -> dict[str, Tensor]:
    return random_state(
        MotionAdapter(
            block_out_channels=NARROW.block_out_channels,
            motion_num_attention_heads=8,
            motion_max_seq_length=NARROW.motion_max_frames,
        ),
        2,
    )


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return randomize(AutoencoderKL(**layouts.vae_settings((32, 32)), norm_num_groups=32), 3).eval()


@pytest.fixture(scope="module")
def clip() -> CLIPVisionModelWithProjection:
    return randomize(make_image_encoder(NARROW), 4).eval()


@pytest.fixture(scope="module")
def guides() -> GuidanceEncoders:
    return randomize(GuidanceEncoders(("depth", "normals", "render"), 32, NARROW.pose_channels), 5)


def under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def save(path: Path, weights: dict[str, Tensor], **beside: object) -> Path:
    """As the ending has it; a training's other values beside the weights in a .ckpt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save({"state_dict": weights, **beside} if beside else weights, path)
    return path


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_single_file_gives_the_same_network(
    ending: str, unet: UNet2DConditionModel, vae: AutoencoderKL, tmp_path: Path
) -> None:
    weights = under(layouts.latent_diffusion_unet(unet.state_dict()), "model.diffusion_model.")
    weights |= under(layouts.latent_diffusion_vae(vae.state_dict(), levels=2), "first_stage_model.")
    weights["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = torch.ones(4)
    path = save(tmp_path / f"sd15{ending}", weights, **({"global_step": 840000} if ending == ".ckpt" else {}))
    convert(path, tmp_path / "out.safetensors", dtype=torch.float32)
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    assert checkpoint.parts == ("unet", "vae")
    assert checkpoint.config.block_out_channels == NARROW.block_out_channels
    made = make_unet(checkpoint.config).eval()
    checkpoint.load_into(made, "unet")
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 48)
    with torch.no_grad():
        assert torch.equal(made(latents, 7, context).sample, unet(latents, 7, context).sample)
        decoder = AutoencoderKL(**layouts.vae_settings((32, 32)))
        checkpoint.load_into(decoder, "vae")
        assert torch.equal(decoder.decode(latents).sample, vae.decode(latents).sample)


@pytest.mark.parametrize("old", [False, True])
def test_vae_in_diffusers_names(old: bool, vae: AutoencoderKL, tmp_path: Path) -> None:
    weights = layouts.old_diffusers_vae(vae.state_dict()) if old else vae.state_dict()
    found = recognize_file(save(tmp_path / "vae.safetensors", weights))
    equal(dict(found.tensors("vae")), vae.state_dict())


def test_motion_modules_keep_their_numbers(motion: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "mm.ckpt", under(layouts.animatediff(motion), "module."), epoch=3)
    found = recognize_file(path)
    assert found.config["motion_max_frames"] == 24
    equal(dict(found.tensors("motion")), motion)
    modules = MotionModules(NARROW)
    modules.load_state_dict(dict(found.tensors("motion")))


def test_position_tables_are_computed_where_missing(motion: dict[str, Tensor], tmp_path: Path) -> None:
    bare = layouts.animatediff(motion, tables=False)
    found = dict(recognize_file(save(tmp_path / "mm.safetensors", bare)).tensors("motion"))
    name = "up_blocks.1.motion_modules.2.transformer_blocks.0.pos_embed.pe"
    assert found[name].shape == (1, 32, 64)
    torch.testing.assert_close(found[name][:, :24], motion[name])


def test_different_position_tables_in_one_block_are_refused(
    motion: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = layouts.animatediff(motion)
    block = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0"
    name = f"{block}.attention_blocks.1.pos_encoder.pe"
    weights[name] = weights[name] + 1
    found = recognize_file(save(tmp_path / "mm.safetensors", {n: t.clone() for n, t in weights.items()}))
    with pytest.raises(InputError, match="expected .*attention_blocks.1.pos_encoder.pe equal to"):
        dict(found.tensors("motion"))


@pytest.mark.parametrize("theirs", [dict, layouts.openclip])
def test_image_encoder_gives_the_same_embedding(
    theirs: Callable[[Any], Any], clip: CLIPVisionModelWithProjection, tmp_path: Path
) -> None:
    path = save(tmp_path / "clip.safetensors", theirs(clip.state_dict()))
    convert(path, tmp_path / "out.safetensors", dtype=torch.float32)
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    made = make_image_encoder(checkpoint.config).eval()
    checkpoint.load_into(made, "image_encoder")
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(made(pixels).image_embeds, clip(pixels).image_embeds)


@pytest.fixture
def small_guider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention is 1408 wide at every width of the UNet."""
    monkeypatch.setattr(landmark_guider, "HEADS", 2)
    monkeypatch.setattr(landmark_guider, "HEAD_DIM", 8)


@pytest.mark.usefixtures("small_guider")
def test_aniportraits_pose_guider_is_folded(tmp_path: Path) -> None:
    """Against the network's own reading of that file."""
    weights = layouts.pose_guider(random_state(LandmarkGuider(NARROW.block_out_channels)), 2.0)
    found = recognize_file(save(tmp_path / "pose_guider.pth", weights))
    equal(dict(found.tensors("pose_encoder")), layouts.fold(weights))


def test_flame_becomes_a_head(tmp_path: Path) -> None:
    fields = flame.make_fields()
    flame.write_pickle(tmp_path / "generic_model.pkl", fields)
    found = recognize_file(tmp_path / "generic_model.pkl")
    assert found.format == "FLAME" and found.left == {"J": "joints of the average head: they are regressed"}
    out = tmp_path / "head.safetensors"
    assert main(["convert", str(tmp_path / "generic_model.pkl"), "-o", str(out)]) == 0
    made = HeadModel.load(out)
    assert made.name == "flame" and made.header["sha256"] == file_digest(tmp_path / "generic_model.pkl")
    expected = torch.from_numpy(fields["shapedirs"][..., 300:350])
    assert torch.equal(made.expression_basis, expected)
    again = recognize_file(out)
    assert {name: info.shape for name, info in again.infos("head").items()} == {
        name: info.shape for name, info in found.infos("head").items()
    }


def test_our_own_files_are_known() -> None:
    demo = recognize_file(ASSETS / "demo.safetensors")
    assert {"unet", "motion", "vae"} <= set(demo.parts) and demo.head == "anifacediff-head-1"
    assert demo.config["block_out_channels"] == [96, 96, 96] and not demo.left
    assert recognize_file(ASSETS / "head.safetensors").head == "anifacediff-head-1"


def test_sizes_of_no_network_are_refused() -> None:
    moore = layouts.on_meta(lambda: make_pose_encoder(NetworkConfig()))
    with pytest.raises(InputError, match=r"does not fit its kind \(pose encoders\)"):
        recognize(Listed(moore | {"blocks.1.weight": ()}))
    unet = layouts.latent_diffusion_unet(layouts.unet_shapes())
    with pytest.raises(InputError, match=r"does not fit its kind \(stable diffusion\)"):
        recognize(Listed(unet | {"input_blocks.1.0.in_layers.2.weight": (33, 320, 3, 3)}))


@pytest.mark.parametrize("header", ["{", "[]", "{}"])
def test_a_damaged_header_of_a_head_is_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"template": torch.zeros(3)}, path, metadata={"anifacediff-head": header})
    with pytest.raises(InputError, match=r"head.safetensors has a damaged header"):
        recognize_file(path)


# ---- folders, as the projects' instructions have them


@pytest.fixture(scope="module")
def family(
    unet: UNet2DConditionModel,
    motion: dict[str, Tensor],
    vae: AutoencoderKL,
    clip: CLIPVisionModelWithProjection,
) -> Callable[[Path, str], Path]:
    """Writes what all projects of the family have in common; the project's own files lie in `own`."""

    def write(folder: Path, own: str) -> Path:
        save(folder / own / "denoising_unet.pth", unet.state_dict())
        reference = {name: tensor + 1 for name, tensor in unet.state_dict().items()}
        save(folder / own / "reference_unet.pth", layouts.without_last_layers(reference))
        save(folder / own / "motion_module.pth", layouts.animatediff(motion))
        save(folder / "image_encoder" / "pytorch_model.bin", clip.state_dict())
        save(folder / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", vae.state_dict())
        save(folder / "sd-vae-ft-mse" / "diffusion_pytorch_model.safetensors", vae.state_dict())
        base = {name: tensor * 0 for name, tensor in unet.state_dict().items()}
        save(folder / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.bin", base)
        (folder / "image_encoder" / "config.json").write_text("{}")
        return folder

    return write


def write_guides(folder: Path, guides: GuidanceEncoders, names: dict[str, str]) -> None:
    for name, kind in names.items():
        weights = layouts.guidance_encoder(guides[kind].state_dict())
        save(folder / f"guidance_encoder_{name}.pth", weights)


def test_magicportrait_folder(
    family: Callable[[Path, str], Path],
    guides: GuidanceEncoders,
    unet: UNet2DConditionModel,
    motion: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    folder = family(tmp_path / "MagicPortrait", ".")
    (folder / "motion_module.pth").rename(folder / "motion_module-47360.pth")
    write_guides(folder, guides, {"render": "render", "normal": "normals", "depth": "depth"})
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    assert checkpoint.path == folder and checkpoint.head == "flame"
    assert checkpoint.parts == ("unet", "reference", "pose_encoder", "image_encoder", "motion", "vae")
    assert (config.profile, config.context, config.pose_encoder) == ("magicportrait", "text", "attention")
    assert config.pose_inputs == ("depth", "normals", "render")
    assert (config.beta_schedule, config.motion_norm, config.motion_max_frames) == ("linear", "frame", 24)
    assert (config.prediction_type, config.zero_terminal_snr) == ("v_prediction", True)
    equal(checkpoint.part("unet"), unet.state_dict())  # not the base model's
    equal(checkpoint.part("motion"), motion)
    network = AniFaceDiff(config, motion=True)
    for part in ("unet", "reference", "pose_encoder", "image_encoder", "motion"):
        checkpoint.load_into(getattr(network, part), part)
    equal(network.pose_encoder.state_dict(), guides.state_dict())
    assert checkpoint.part("unet", torch.float16)["conv_in.weight"].dtype == torch.float16
    with pytest.raises(InputError, match="has no expression_adapter: expected that part, found unet"):
        checkpoint.part("expression_adapter")


def test_champ_folder(family: Callable[[Path, str], Path], guides: GuidanceEncoders, tmp_path: Path) -> None:
    family(tmp_path, "champ")
    names = {"depth": "depth", "dwpose": "render", "normal": "normals", "semantic_map": "depth"}
    write_guides(tmp_path / "champ", guides, names)
    config = open_checkpoint(tmp_path).config
    assert (config.profile, config.context) == ("champ", "image")
    assert config.pose_inputs == ("depth", "normals", "semantic_map", "skeleton")


@pytest.mark.usefixtures("small_guider")
def test_aniportrait_and_moore_folders(family: Callable[[Path, str], Path], tmp_path: Path) -> None:
    folder = family(tmp_path / "aniportrait", ".")
    guider = LandmarkGuider(NARROW.block_out_channels)
    save(folder / "pose_guider.pth", layouts.pose_guider(random_state(guider), 2.0))
    save(folder / "audio2mesh.pt", {"audio_encoder.encoder.layers.0.attention.k_proj.weight": torch.ones(2)})
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "film_net_fp16.pt")
    save_hollow(folder / "ip-adapter_sd15.bin", ip_adapter())
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.profile == "aniportrait" and checkpoint.config.pose_inputs == ("landmarks",)
    assert checkpoint.folder.passed["film_net_fp16.pt"] == "a TorchScript program: it is never run"
    assert "a network for sound" in checkpoint.folder.passed["audio2mesh.pt"]
    assert "IP-Adapter" in checkpoint.folder.passed["ip-adapter_sd15.bin"]
    checkpoint.load_into(guider, "pose_encoder")

    folder = family(tmp_path / "moore", ".")
    encoder = make_pose_encoder(NARROW)
    save(folder / "pose_guider.pth", random_state(encoder))
    config = open_checkpoint(folder).config
    assert (config.profile, config.pose_encoder, config.context) == ("moore", "convolution", "image")


def test_what_a_folder_cannot_be(
    family: Callable[[Path, str], Path], guides: GuidanceEncoders, motion: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = family(tmp_path, ".")
    write_guides(folder, guides, {"render": "render", "depth": "depth"})
    with pytest.raises(InputError, match="expected those for depth, normals, render, found none for normals"):
        open_checkpoint(folder)
    write_guides(folder, guides, {"normal": "normals"})

    save(folder / "mm_sd_v15.ckpt", layouts.animatediff(motion))
    with pytest.raises(InputError, match="two files for motion: .*mm_sd_v15.ckpt and motion_module.pth"):
        open_checkpoint(folder)
    (folder / "mm_sd_v15.ckpt").unlink()

    denoising = (folder / "denoising_unet.pth").read_bytes()
    (folder / "denoising_unet.pth").write_bytes(denoising[:-1000])
    with pytest.raises(InputError, match="denoising_unet.pth is truncated or damaged"):
        open_checkpoint(folder)  # and not the base model in silence
    (folder / "denoising_unet.pth").write_bytes(denoising.replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(InputError, match="denoising_unet.pth is truncated or damaged"):
        open_checkpoint(folder)
    (folder / "denoising_unet.pth").write_bytes(denoising)

    wide = random_state(GuidanceEncoders(("normals",), 64, NARROW.pose_channels)["normals"])
    save(folder / "guidance_encoder_normal.pth", layouts.guidance_encoder(wide))
    with pytest.raises(InputError, match=r"does not fit denoising_unet.pth: expected .*\[32.*found \[64"):
        open_checkpoint(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="The folder empty has no denoising UNet"):
        open_checkpoint(empty)


def test_only_the_same_weights_are_taken_for_each_other(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    for name in ("unet.safetensors", "unet.fp16.safetensors", "unet.bin"):
        save(tmp_path / name, unet.state_dict())
    assert open_folder(tmp_path).folder.parts["unet"][0].path.name == "unet.safetensors"
    save(tmp_path / "unet.step2000.safetensors", unet.state_dict())
    with pytest.raises(InputError, match="two files for unet: .*unet.step2000.safetensors"):
        open_folder(tmp_path)


def test_a_part_alone_is_no_model(motion: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "mm.ckpt", layouts.animatediff(motion))
    with pytest.raises(InputError, match=r"only a part of a model \(AnimateDiff's temporal modules"):
        open_checkpoint(path)
    assert open_checkpoint(ASSETS / "demo.safetensors").config == NetworkConfig.tiny()
    with pytest.raises(InputError, match="There is no checkpoint"):
        open_checkpoint(tmp_path / "absent.safetensors")


def test_a_folder_converts_to_one_file(
    family: Callable[[Path, str], Path], guides: GuidanceEncoders, tmp_path: Path
) -> None:
    folder = family(tmp_path / "in", ".")
    write_guides(folder, guides, {"render": "render", "normal": "normals", "depth": "depth"})
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(folder), "-o", str(out), "--dtype", "float32"]) == 0
    opened, converted = open_checkpoint(folder), load_checkpoint(out)
    assert (converted.config, converted.head, converted.parts) == (opened.config, opened.head, opened.parts)
    for part in opened.parts:
        equal(converted.part(part), opened.part(part))
    entry = converted.provenance["converted"]["unet"][0]
    assert entry["file"] == "denoising_unet.pth" and entry["used"] == 684 and entry["left"] == 0
    assert entry["sha256"] == file_digest(folder / "denoising_unet.pth")


# ---- assembly


@pytest.fixture
def ingredients(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    motion: dict[str, Tensor],
    clip: CLIPVisionModelWithProjection,
    tmp_path: Path,
) -> Ingredients:
    weights = under(layouts.latent_diffusion_unet(unet.state_dict()), "model.diffusion_model.")
    weights |= under(layouts.latent_diffusion_vae(vae.state_dict(), levels=2), "first_stage_model.")
    return Ingredients(
        unet=save(tmp_path / "sd15.safetensors", weights),
        motion=save(tmp_path / "mm.ckpt", layouts.animatediff(motion)),
        image_encoder=save(tmp_path / "clip" / "model.safetensors", clip.state_dict()),
    )


def test_assembled_checkpoint_can_begin_a_training(ingredients: Ingredients, tmp_path: Path) -> None:
    out = tmp_path / "start.safetensors"
    assemble(ingredients, out, dtype=torch.float32)
    checkpoint = load_checkpoint(out)
    assert checkpoint.parts == (
        "unet", "reference", "pose_encoder", "expression_adapter", "image_encoder", "motion", "vae",
    )  # fmt: skip
    config = checkpoint.config
    assert (config.profile, config.context, config.pose_inputs) == ("anifacediff", "image", ("normals",))
    assert (config.motion_norm, config.n_expression, checkpoint.head) == ("frame", 50, "flame")
    network = load_network(checkpoint)
    unet, reference = network.unet.state_dict(), network.reference.state_dict()
    assert all(torch.equal(tensor, unet[name]) for name, tensor in reference.items())
    assert not network.pose_encoder.conv_out.weight.any()  # begins silent
    provenance = checkpoint.provenance["assembled"]
    assert provenance["motion"][0]["sha256"] == file_digest(tmp_path / "mm.ckpt")
    assert provenance["unet"][0] == provenance["unet"][0] | {
        "file": "sd15.safetensors",
        "used": 686 + 120 + 0,
    } or (provenance["unet"][0]["file"] == "sd15.safetensors")
    assert provenance["pose_encoder"] == [{"untrained": 0}]


def test_assembly_is_repeatable(ingredients: Ingredients, tmp_path: Path) -> None:
    for name in "ab":
        assemble(ingredients, tmp_path / f"{name}.safetensors", seed=5)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    equal(a, b)


def test_initializers_from_the_family(
    family: Callable[[Path, str], Path],
    guides: GuidanceEncoders,
    ingredients: Ingredients,
    tmp_path: Path,
) -> None:
    folder = family(tmp_path / "family", ".")
    write_guides(folder, guides, {"render": "render", "normal": "normals", "depth": "depth"})
    arguments = ["--init-from", str(folder), "-o", str(tmp_path / "out.safetensors"), "--dtype", "float32"]
    assert main(["assemble", *arguments, "--head", "bundled"]) == 0
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    config = checkpoint.config
    assert (config.profile, config.context, config.beta_schedule) == ("anifacediff", "image", "linear")
    assert (config.pose_encoder, config.pose_inputs) == ("attention", ("normals",))
    assert (config.n_expression, checkpoint.head) == (52, "anifacediff-head-1")
    network = load_network(checkpoint)
    equal(network.pose_encoder["normals"].state_dict(), guides["normals"].state_dict())
    reference = torch.load(folder / "reference_unet.pth", weights_only=True)
    assert torch.equal(network.reference.conv_in.weight, reference["conv_in.weight"])

    (folder / "motion_module.pth").unlink()
    out = tmp_path / "named.safetensors"
    assemble(replace(ingredients, init_from=folder, image_encoder=None), out, dtype=torch.float32)
    sources = load_checkpoint(out).provenance["assembled"]
    files = {part: entries[0].get("file") for part, entries in sources.items()}
    assert files == {
        "unet": "sd15.safetensors",  # what is named goes first
        "vae": "sd15.safetensors",
        "motion": "mm.ckpt",
        "reference": "reference_unet.pth",
        "pose_encoder": "guidance_encoder_normal.pth",
        "image_encoder": "pytorch_model.bin",
        "expression_adapter": None,
    }


def test_what_cannot_be_assembled(ingredients: Ingredients, guides: GuidanceEncoders, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="There is no motion: .*--motion"):
        assemble(replace(ingredients, motion=None), out)
    with pytest.raises(InputError, match="model.safetensors has no motion: expected that part, found CLIP"):
        assemble(replace(ingredients, motion=ingredients.image_encoder), out)
    write_guides(tmp_path, guides, {"depth": "depth"})
    with pytest.raises(InputError, match="reads depth: expected a pose encoder for normals"):
        assemble(replace(ingredients, pose_encoder=tmp_path / "guidance_encoder_depth.pth"), out)
    wide = random_state(MotionAdapter(block_out_channels=(64, 64, 64, 64)))
    path = save(tmp_path / "wide.safetensors", layouts.animatediff(wide, tables=False))
    with pytest.raises(
        InputError, match=r"wide.safetensors does not fit sd15.safetensors: expected motion\."
    ):
        assemble(replace(ingredients, motion=path), out)
    assert not out.exists()


# ---- commands and the stream


def test_inspect_says_what_a_file_is(
    motion: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "mm.ckpt", layouts.animatediff(motion) | {"extra": torch.ones(2)}, epoch=3)
    assert main(["inspect", str(path), "--all"]) == 0
    text = capsys.readouterr().out
    assert "mm.ckpt: AnimateDiff's temporal modules, layout of v2" in text
    assert "589 tensors: 589 float32" in text and "epoch" in text
    assert "motion_max_frames 24" in text and "1: no part of this network" in text
    name = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    assert f"state_dict.{name} [32, 32] float32 motion.down_blocks.0.motion_modules.0.proj_in.weight" in text
    save(path, {"lora_unet_x.lora_up.weight": torch.ones(2)})
    assert main(["inspect", str(path)]) == 0
    assert "mm.ckpt is a LoRA" in capsys.readouterr().out


def test_inspect_says_what_a_folder_is(
    family: Callable[[Path, str], Path],
    guides: GuidanceEncoders,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = family(tmp_path / "x", ".")
    write_guides(folder, guides, {"normal": "normals"})
    assert main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "a model of the profile champ" in text and "denoising_unet.pth" in text
    assert "its unet gives way to denoising_unet.pth" in text


def test_a_bad_file_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"PK\x03\x04 nothing")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "bad.ckpt"), "-o", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()


def test_streamed_file_is_an_ordinary_one(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(3, dtype=torch.float16),
        "count": torch.tensor(7),
        "wide": torch.randn(2, 5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "brain": torch.randn(4).bfloat16(),
    }
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    path = tmp_path / "out.safetensors"
    write_tensor_stream(path, layout, reversed(tensors.items()), {"format": "pt"})
    equal(load_file(path), tensors)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="lacks wide"):
        write_tensor_stream(path, layout, [item for item in tensors.items() if item[0] != "wide"])
    with pytest.raises(ValueError, match="half"):
        write_tensor_stream(path, layout, [("half", torch.zeros(4))])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_weights_beyond_the_type_are_refused(motion: dict[str, Tensor], tmp_path: Path) -> None:
    weights = layouts.animatediff(motion)
    weights["mid_block.motion_modules.0.temporal_transformer.norm.weight"] = torch.full((64,), 1e6)
    path, out = save(tmp_path / "mm.ckpt", weights), tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="NaN or infinity in motion.mid_block"):
        convert(path, out)
    assert not out.exists()
    convert(path, out, dtype=torch.bfloat16)
    assert (
        load_checkpoint(out).part("motion")["mid_block.motion_modules.0.norm.weight"].dtype == torch.bfloat16
    )


# ---- full size, on request: ANIFACEDIFF_FULL_SIZE=1 pytest tests/core/test_importers.py -k full_size

MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from anifacediff_core.lab.cli import main
code = main(sys.argv[2:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
sys.exit(code)
"""


def save_hollow(path: Path, shapes: Shapes) -> Path:
    """A file of full size without content: its zeros lie nowhere, on the disk neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    with torch.serialization.skip_data():
        torch.save(weights, path)
    return path


@pytest.mark.skipif(not os.environ.get("ANIFACEDIFF_FULL_SIZE"), reason="ANIFACEDIFF_FULL_SIZE is not set")
@pytest.mark.parametrize("command", ["convert", "assemble"])
def test_full_size_stays_under_four_gigabytes(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    if command == "convert":
        folder = tmp_path / "MagicPortrait"
        save_hollow(folder / "denoising_unet.pth", layouts.unet_shapes())
        save_hollow(folder / "reference_unet.pth", layouts.without_last_layers(layouts.unet_shapes()))
        save_hollow(folder / "motion_module.pth", animatediff(32, True, tables=False))
        for name in ("depth", "normal", "render"):
            save_hollow(folder / f"guidance_encoder_{name}.pth", guidance())
        save_hollow(folder / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", layouts.vae_shapes())
        files, arguments = [*folder.rglob("*.*")], [str(folder)]
    else:
        given = {
            "--checkpoint": save_hollow(tmp_path / "sd15.ckpt", whole_stable_diffusion()),
            "--motion": save_hollow(tmp_path / "mm.ckpt", animatediff(32, True, tables=False)),
            "--image-encoder": save_hollow(tmp_path / "clip.bin", layouts.clip_shapes()),
        }
        files, arguments = [*given.values()], [text for pair in given.items() for text in map(str, pair)]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(ROOT), command, *arguments, "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    peak = float(run.stdout.split("peak")[1])
    size = sum(file.stat().st_size for file in files if file.is_file()) / 2**30
    print(
        f"{command}: {size:.2f} GiB read, {out.stat().st_size / 2**30:.2f} GiB written, peak {peak:.2f} GiB"
    )
    assert peak < 4
    assert load_checkpoint(out).config.block_out_channels == (320, 640, 1280, 1280)
