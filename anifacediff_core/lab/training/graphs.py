"""The training forward as CUDA graphs want it."""

from __future__ import annotations

from torch import Tensor, nn

from anifacediff_core.network.model import AniFaceDiff


class GraphableForward(nn.Module):
    """The training forward with its numbers of rows fixed: tensors in and out, as graph capture wants it."""

    def __init__(self, model: AniFaceDiff, conditional_rows: int, reference_rows: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.conditional_rows, self.reference_rows = conditional_rows, reference_rows

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        source_latents: Tensor,
        image_pixels: Tensor,
        normals: Tensor,
        expression: Tensor,
        expression_weight: Tensor,
        image_weight: Tensor | None = None,
    ) -> Tensor:
        return self.model(
            noisy_latents,
            timesteps,
            source_latents,
            image_pixels,
            normals,
            expression,
            self.conditional_rows,
            expression_weight,
            self.reference_rows,
            image_weight,
        )
