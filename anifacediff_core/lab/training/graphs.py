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


class ForwardBySize(nn.Module):
    """One network on batches of two sizes, each with a number of rows and a recorded graph of its own."""

    def __init__(self, size: int, common: GraphableForward, large: GraphableForward) -> None:
        super().__init__()
        self.common, self.large, self.size = common, large, size

    def of(self, noisy_latents: Tensor) -> GraphableForward:
        """The forward of latents (rows, 4, h, w)."""
        return self.large if noisy_latents.shape[-1] > self.size else self.common

    def forward(self, noisy_latents: Tensor, *inputs: Tensor) -> Tensor:
        prediction: Tensor = self.of(noisy_latents)(noisy_latents, *inputs)
        return prediction
