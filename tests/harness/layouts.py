"""Names of weights in other projects' files, counted out by hand: the importers' must agree with them.

Every function takes weights (or shapes) by diffusers' or transformers' names and gives them the other names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from anifacediff_core.errors import InputError
from anifacediff_core.weights.reading import TensorInfo

Named = dict[str, Any]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


class Listed:
    """A weight file of any size that is only a list; a tensor is made up when it is read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], name: str = "weights.pth") -> None:
        self.path = Path(name)
        self.infos = {key: TensorInfo(tuple(shape), torch.float16) for key, shape in shapes.items()}
        self.metadata: dict[str, str] = {}
        self.ignored: list[str] = []
        self.kind = "torch"
        self.reads: list[str] = []

    def read(self, name: str) -> Tensor:
        """Filled with the number of the tensor in the file."""
        if name not in self.infos:
            raise InputError(f"no {name}")
        self.reads.append(name)
        return torch.full(self.infos[name].shape, list(self.infos).index(name), dtype=torch.float32)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def on_meta(make: type[nn.Module], *arguments: object, **settings: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(make(*arguments, **settings))


def unet_shapes(**settings: object) -> dict[str, tuple[int, ...]]:
    """Stable Diffusion 1.5's UNet by diffusers' own defaults for it."""
    return on_meta(UNet2DConditionModel, **{"cross_attention_dim": 768, **settings})


def motion_shapes(**settings: object) -> dict[str, tuple[int, ...]]:
    return on_meta(MotionAdapter, **settings)


def vae_shapes() -> dict[str, tuple[int, ...]]:
    return on_meta(AutoencoderKL, **vae_settings((128, 256, 512, 512)))


def vae_settings(channels: tuple[int, ...]) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "layers_per_block": 2,
        "latent_channels": 4,
    }


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """ViT-L/14."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    return on_meta(CLIPVisionModelWithProjection, config)


def renamed(weights: Named, prefixes: dict[str, str]) -> Named:
    """Each name with its longest known beginning replaced."""
    result = {}
    for name, value in weights.items():
        beginning = max((p for p in prefixes if f"{name}.".startswith(f"{p}.")), key=len)
        result[prefixes[beginning] + name[len(beginning) :]] = value
    return result


def latent_diffusion_unet(weights: Named, attends: tuple[bool, ...] = (True, True, True, False)) -> Named:
    """The blocks in the order in which latent diffusion lists them."""
    table = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }

    def resnet(ours: str, theirs: str) -> None:
        table.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in RESNET.items()})

    resnet("mid_block.resnets.0", "middle_block.0")
    resnet("mid_block.resnets.1", "middle_block.2")
    block, levels = 1, len(attends)
    for level in range(levels):
        for layer in range(2):
            resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            table[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for level in range(levels):
        for layer in range(3):
            resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            table[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            if layer == 2 and level < levels - 1:
                place = 2 if attends[levels - 1 - level] else 1
                table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{block}.{place}.conv"
            block += 1
    return renamed(weights, table)


def latent_diffusion_vae(weights: Named, levels: int = 4) -> Named:
    """With the attention's linear layers as 1×1 convolutions, as latent diffusion has them."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        table |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.conv_out": f"{side}.conv_out",
        }
        ours, theirs = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        for a, b in {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }.items():
            table[f"{ours}.{a}"] = f"{theirs}.{b}"
        places = [(f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}") for i in range(2)]
        for level in range(levels):
            if side == "encoder":
                ours, theirs = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
                table[f"{ours}.downsamplers.0"] = f"{theirs}.downsample"
                places += [(f"{ours}.resnets.{i}", f"{theirs}.block.{i}") for i in range(2)]
            else:
                ours, theirs = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
                table[f"{ours}.upsamplers.0"] = f"{theirs}.upsample"
                places += [(f"{ours}.resnets.{i}", f"{theirs}.block.{i}") for i in range(3)]
        for ours, theirs in places:
            table |= {f"{ours}.{a}": f"{theirs}.{a}" for a in ("norm1", "conv1", "norm2", "conv2")}
            table[f"{ours}.conv_shortcut"] = f"{theirs}.nin_shortcut"
    result = renamed(weights, table)
    attention = re.compile(r".*\.attn_1\.(q|k|v|proj_out)\.weight")
    return {name: _as_conv(value) if attention.match(name) else value for name, value in result.items()}


def old_diffusers_vae(weights: Named) -> Named:
    table = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {
        re.sub(
            r"attentions\.0\.(to_[qkv]|to_out\.0)\.", lambda m: f"attentions.0.{table[m[1]]}.", name
        ): value
        for name, value in weights.items()
    }


def _as_conv(value: Any) -> Any:
    return value[..., None, None] if torch.is_tensor(value) else (*value, 1, 1)


def animatediff(weights: Named, *, tables: bool = True) -> Named:
    """With a position table in each of a block's two attentions, or none."""
    inside = {
        "attn1": "attention_blocks.0",
        "attn2": "attention_blocks.1",
        "norm1": "norms.0",
        "norm2": "norms.1",
        "norm3": "ff_norm",
    }
    result = {}
    for name, value in weights.items():
        module, rest = re.fullmatch(r"(.*motion_modules\.\d+)\.(.*)", name).groups()  # type: ignore[union-attr]
        base = f"{module}.temporal_transformer."
        block = re.fullmatch(r"transformer_blocks\.0\.([^.]+)\.(.*)", rest)
        if block is None:
            result[base + rest] = value
        elif block[1] == "pos_embed":
            for attention in (0, 1) if tables else ():
                result[f"{base}transformer_blocks.0.attention_blocks.{attention}.pos_encoder.pe"] = value
        else:
            result[f"{base}transformer_blocks.0.{inside.get(block[1], block[1])}.{block[2]}"] = value
    return result


def openclip(weights: Named) -> Named:
    """Tensors, not shapes."""
    table = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding": "visual.conv1",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    result: Named = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            block = f"visual.transformer.resblocks.{match[1]}"
            if part := re.fullmatch(r"self_attn\.([qkv])_proj", match[2]):
                fused.setdefault(f"{block}.attn.in_proj_{match[3]}", {})[part[1]] = value
                continue
            inner = {
                "self_attn.out_proj": "attn.out_proj",
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }[match[2]]
            result[f"{block}.{inner}.{match[3]}"] = value
        elif name == "visual_projection.weight":
            result["visual.proj"] = value.T.contiguous()
        else:
            result |= renamed({name: value}, table)
    return result | {name: torch.cat([of["q"], of["k"], of["v"]]) for name, of in fused.items()}


def guidance_encoder(weights: Named) -> Named:
    """One picture's encoder, with the transformers that are never run."""
    result = {}
    for name, value in weights.items():
        if name.startswith("attention."):
            rest = name.removeprefix("attention.")
            result[f"attentions.5.{rest}"] = value
            result[f"guidance_attention.{rest}"] = _other(value)
            for index in range(5):
                result[f"attentions.{index}.{rest}"] = _other(value)
        else:
            result[name] = value
    return result


def _other(value: Any) -> Any:
    return value + 1 if torch.is_tensor(value) else value


def pose_guider(weights: Named, scale: float) -> Named:
    """AniPortrait's from a folded one: normalizations with averages, and the factor of the projection."""
    result: Named = {"scale": torch.tensor([scale])}
    for name, value in weights.items():
        if re.match(r"conv_layers(_\d)?\.", name) and value.ndim == 4 and value.shape[1:] == (1, 1, 1):
            module = name.removesuffix(".weight")
            result[name] = value.flatten()
            result[f"{module}.running_mean"] = torch.zeros(len(value))
            result[f"{module}.running_var"] = torch.ones(len(value))
            result[f"{module}.num_batches_tracked"] = torch.tensor(7)
        else:
            result[name] = value / scale if name.startswith("final_proj.") else value
    return result


def fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `pose_guider.pth` to those of `LandmarkGuider`.

    The statistics that training has averaged are left out, nothing reads them: `*.running_mean`,
    `*.running_var` and `*.num_batches_tracked`.
    """
    folded = {}
    for name, tensor in weights.items():
        if name == "scale" or name.endswith((".running_mean", ".running_var", ".num_batches_tracked")):
            continue
        if name.startswith("final_proj.") and "scale" in weights:
            tensor = tensor * weights["scale"].to(tensor)
        if name.startswith("conv_layers") and name.endswith(".weight") and tensor.ndim == 1:
            tensor = tensor[:, None, None, None]
        folded[name] = tensor
    return folded


def without_last_layers(weights: Named) -> Named:
    """The Animate-Anyone family's reference_unet.pth."""
    return {
        name: value for name, value in weights.items() if not name.startswith(("conv_norm_out", "conv_out"))
    }
