"""The training forward of the paper's network, as CUDA graphs want it."""

from __future__ import annotations

import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from anifacediff_core.network.attention import AttentionInputs, project_reference
from anifacediff_core.network.encoders import encode_pose
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.unet import run_unet


class GraphableForward(nn.Module):
    """The training forward: static in its shapes and free of synchronization, so that CUDA graphs capture it.

    Rows are the frames of all sources, source-major: R = S * frames. Conditional rows see source and
    expression; the others learn the unconditional half of guidance: they attend to themselves only, with a
    zero image embedding and no expression. All rows get the pose. Each condition can also be dropped alone.

    Args:
        conditional_rows: how many rows are conditional, the first ones; a multiple of frames.
        reference_rows: the first rows, a multiple of frames, attend to the ReferenceNet's features; all
            conditional rows when left out.
    """

    def __init__(self, model: AniFaceDiff, conditional_rows: int, reference_rows: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.conditional_rows = conditional_rows
        self.reference_rows = conditional_rows if reference_rows is None else reference_rows

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
        """The prediction (R, C, h, w), v or epsilon by the network's config.

        Args:
            noisy_latents: (R, C, h, w).
            timesteps: (R,).
            source_latents: (S, C, h, w).
            image_pixels: (S, 3, i, i), CLIP-normalized.
            normals: (R, 3, H, W) in [0, 1].
            expression: (R, n_expression).
            expression_weight: (R, 1, 1), lambda of every row; 0 drops its expression.
            image_weight: (S, 1, 1), factors of the image embeddings; 0 drops one.
        """
        model, rows, sources = self.model, len(noisy_latents), len(source_latents)
        frames = rows // sources
        if frames * sources != rows or self.conditional_rows % frames or self.reference_rows % frames:
            raise ValueError(
                f"{rows} rows of {sources} sources with {self.conditional_rows} conditional rows and "
                f"{self.reference_rows} that see the reference: expected whole clips of equal length."
            )
        conditions = AttentionInputs()
        context = noisy_latents.new_zeros(rows, 1, model.config.cross_attention_dim)
        if self.conditional_rows:
            seen, referred = self.conditional_rows // frames, self.reference_rows // frames
            image = model.encode_image(image_pixels[:seen])
            if image_weight is not None:
                image = image * image_weight[:seen]
            features = model.encode_reference(source_latents[:referred], image[:referred]) if referred else {}
            tokens = model.encode_expression(expression[: self.conditional_rows])
            conditions = AttentionInputs(
                conditional_rows=self.conditional_rows,
                reference_rows=self.reference_rows,
                reference=project_reference(model.unet, features),
                expression=model.expression_adapter.keys_values(tokens),
                expression_weight=expression_weight[: self.conditional_rows],
            )
            context = repeat(image, "s t d -> (s f) t d", f=frames)
            context = F.pad(context, (0, 0, 0, 0, 0, rows - len(context)))
        return run_unet(
            model.unet,
            noisy_latents,
            timesteps,
            context,
            conditions=conditions,
            pose=encode_pose(model.pose_encoder, normals),
            motion=model.motion,
            frames=frames,
            checkpointing=model.gradient_checkpointing,
        )


class ForwardBySize(nn.Module):
    """One network on batches of two sizes, each with a number of rows and a recorded graph of its own."""

    def __init__(self, size: int, common: GraphableForward, large: GraphableForward) -> None:
        super().__init__()
        self.common, self.large, self.size = common, large, size

    def of(self, noisy_latents: Tensor) -> GraphableForward:
        """The forward of latents (rows, channels, h, w)."""
        return self.large if noisy_latents.shape[-1] > self.size else self.common

    def forward(self, noisy_latents: Tensor, *inputs: Tensor) -> Tensor:
        prediction: Tensor = self.of(noisy_latents)(noisy_latents, *inputs)
        return prediction
