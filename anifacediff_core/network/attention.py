"""The paper's two additions to the attention of a diffusers UNet, as stateless attention processors.

What changes from call to call travels in one `AttentionInputs` through diffusers' `cross_attention_kwargs`.
Rows are the batch of the UNet: rows = sources * frames, source-major, conditional rows first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn

KeysValues = dict[str, tuple[Tensor, Tensor]]  # of each transformer block, by name


def transformer_block_names(unet: UNet2DConditionModel) -> list[str]:
    """Names of all transformer blocks in the order in which the UNet runs them: down, middle, up."""
    stages = [*(f"down_blocks.{i}" for i in range(len(unet.down_blocks))), "mid_block"]
    stages += [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    return [
        f"{stage}.{name}"
        for stage in stages
        for name, module in unet.get_submodule(stage).named_modules()
        if isinstance(module, (BasicTransformerBlock, FeatureRecorder))
    ]


def install_processors(unet: UNet2DConditionModel) -> None:
    """Give every transformer block of `unet` the processors of this module."""
    for name in transformer_block_names(unet):
        block = unet.get_submodule(name)
        if isinstance(block, BasicTransformerBlock):
            block.attn1.set_processor(SpatialAttention(name))
            block.attn2.set_processor(ContextAttention(name))


def project_reference(unet: UNet2DConditionModel, features: dict[str, Tensor]) -> KeysValues:
    """Keys and values of the reference features, by the denoising UNet's own projections.

    Args:
        features: of each transformer block, the ReferenceNet's tokens (sources, tokens, channels).
    """
    projected = {}
    for name, tokens in features.items():
        attention = unet.get_submodule(name).attn1
        projected[name] = (attention.to_k(tokens), attention.to_v(tokens))
    return projected


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention over (rows, tokens, channels)."""
    query, key, value = (rearrange(x, "r n (h c) -> r h n c", h=heads) for x in (query, key, value))
    return rearrange(F.scaled_dot_product_attention(query, key, value), "r h n c -> r n (h c)")


@dataclass(frozen=True)
class AttentionInputs:
    """What the processors need during one call of the UNet.

    Args:
        conditional_rows: the first rows, which see reference and expression; the others see neither.
        reference: keys and values (sources, tokens, channels) by block; each source serves
            conditional_rows / sources consecutive rows.
        expression: keys and values (conditional rows, tokens, channels) by block.
        expression_weight: lambda of eq. 3, a number or (conditional rows, 1, 1).
        record: when given, every block writes the tokens that enter its self-attention here by its name.
        reference_rows: how many of the conditional rows see the reference, if not all: the first ones.
    """

    conditional_rows: int = 0
    reference: KeysValues = field(default_factory=dict)
    expression: KeysValues = field(default_factory=dict)
    expression_weight: Tensor | float = 1.0
    record: dict[str, Tensor] | None = None
    reference_rows: int | None = None


@dataclass(frozen=True)
class SpatialAttention:
    """Self-attention whose conditional rows also attend to the reference tokens (section 3.2)."""

    name: str

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        conditions: AttentionInputs | None = None,
    ) -> Tensor:
        conditions = conditions or AttentionInputs()
        if conditions.record is not None:
            conditions.record[self.name] = hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        rows = conditions.conditional_rows
        if conditions.reference_rows is not None:
            rows = conditions.reference_rows
        if self.name not in conditions.reference or not rows:
            return attn.to_out[0](attend(query, key, value, attn.heads))

        reference_key, reference_value = conditions.reference[self.name]
        frames = rows // reference_key.shape[0]
        reference_key = repeat(reference_key, "s n c -> (s f) n c", f=frames)
        reference_value = repeat(reference_value, "s n c -> (s f) n c", f=frames)
        attended = attend(
            query[:rows],
            torch.cat([key[:rows], reference_key], 1),
            torch.cat([value[:rows], reference_value], 1),
            attn.heads,
        )
        if rows < len(query):
            attended = torch.cat([attended, attend(query[rows:], key[rows:], value[rows:], attn.heads)])
        return attn.to_out[0](attended)


@dataclass(frozen=True)
class ContextAttention:
    """Cross-attention to the image embedding plus lambda times attention to the expression tokens (eq. 3)."""

    name: str

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        conditions: AttentionInputs | None = None,
    ) -> Tensor:
        conditions = conditions or AttentionInputs()
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if context.shape[1] == 1:
            # A softmax over one token is one: the attention is that token's value at every position.
            attended = attn.to_v(context)
        else:
            attended = attend(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads)

        rows = conditions.conditional_rows
        if self.name in conditions.expression and rows:
            key, value = conditions.expression[self.name]
            expression = attend(attn.to_q(hidden_states[:rows]), key, value, attn.heads)
            expression = attended[:rows] + conditions.expression_weight * expression
            others = attended[rows:].expand(-1, hidden_states.shape[1], -1)
            attended = torch.cat([expression, others]) if len(others) else expression
        return attn.to_out[0](attended)


class FeatureRecorder(nn.Module):
    """Stands in for the ReferenceNet's last transformer block and records its normalized input."""

    def __init__(self, block: BasicTransformerBlock, name: str) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.name = name

    def forward(self, hidden_states: Tensor, cross_attention_kwargs: dict, **_: object) -> Tensor:
        record = cross_attention_kwargs["conditions"].record
        if record is not None:
            record[self.name] = self.norm1(hidden_states)
        return hidden_states
