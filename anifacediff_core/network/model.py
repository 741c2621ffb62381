"""The network of the paper on diffusers: its parts, what encodes the conditions, and the prediction."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from einops import repeat
from torch import Tensor, nn

from anifacediff_core.network.attention import (
    AttentionInputs,
    install_processors,
    project_reference,
    transformer_block_names,
)
from anifacediff_core.network.conditioning import VideoConditioning
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import (
    ExpressionAdapter,
    encode_pose,
    make_image_encoder,
    make_pose_encoder,
    pose_sample,
)
from anifacediff_core.network.temporal import MotionModules, TemporalMemory
from anifacediff_core.network.unet import (
    DeepFeatures,
    initialize_from_scratch,
    make_unet,
    run_unet,
    trim_reference,
)

PARTS = ("unet", "reference", "pose_encoder", "expression_adapter", "image_encoder", "motion")


class AniFaceDiff(nn.Module):
    """Denoising UNet, ReferenceNet, pose encoder, expression adapter, image encoder and temporal modules.

    Args:
        motion: whether to have temporal modules (stage 2 and inference on video).
    """

    def __init__(self, config: NetworkConfig, *, motion: bool = False) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.unet = make_unet(config)
        initialize_from_scratch(self.unet)
        install_processors(self.unet)
        self.block_names = transformer_block_names(self.unet)

        self.reference = make_unet(config)
        self.reference.load_state_dict(self.unet.state_dict())  # section 3.2: a copy of the backbone
        trim_reference(self.reference)
        install_processors(self.reference)

        self.pose_encoder = make_pose_encoder(config)
        channels = {name: self.unet.get_submodule(name).attn1.to_q.out_features for name in self.block_names}
        self.expression_adapter = ExpressionAdapter(config, channels)
        self.image_encoder = make_image_encoder(config)
        self.motion = MotionModules(config) if motion else None
        self.set_trainable(PARTS)

    @property
    def depth(self) -> int:
        """How many layers the UNet has on its way up, each with a skip connection from the way down."""
        return len(self.config.block_out_channels) * (self.config.layers_per_block + 1)

    @classmethod
    def outline(cls, config: NetworkConfig, *, motion: bool) -> AniFaceDiff:
        """Names and shapes alone, which take neither memory nor time; see `without_values`."""
        with torch.device("meta"):
            return cls(config, motion=motion)

    def without_values(self) -> AniFaceDiff:
        """An outline with memory for weights to be loaded: the values are whatever was in it."""
        model = self.to_empty(device="cpu")
        # The one thing that no file holds: the numbers of CLIP's places.
        places = model.image_encoder.vision_model.embeddings.position_ids
        places.copy_(torch.arange(places.numel()).view_as(places))
        return model

    def add_motion(self) -> None:
        """Insert untrained temporal modules, which do nothing yet: the start of stage 2."""
        self.motion = MotionModules(self.config).to(self.unet.device, self.unet.dtype)

    def set_trainable(self, parts: Iterable[str]) -> list[nn.Parameter]:
        """Make some of `PARTS` trainable, freeze the others, return the trainable parameters.

        Weights that cannot receive a gradient stay frozen always: those that only weigh the tokens of a
        context of one token, whose weight is one. So distributed training sees no unused parameters.
        """
        parts = tuple(parts)
        for name in PARTS:
            part = getattr(self, name)
            if part is not None:
                part.requires_grad_(name in parts)
        for name in self.block_names:
            self.unet.get_submodule(name).attn2.to_k.requires_grad_(False)
        for name in self.block_names[:-1]:
            block = self.reference.get_submodule(name)
            for module in (block.norm2, block.attn2.to_q, block.attn2.to_k):
                module.requires_grad_(False)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """CLIP-normalized images (sources, 3, i, i) -> embedding (sources, 1, cross_attention_dim)."""
        return self.image_encoder(pixels).image_embeds[:, None]

    def encode_reference(self, latents: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Run the ReferenceNet at t = 0.

        Args:
            latents: of the source images, (sources, 4, h, w), without noise.
            image: (sources, 1, cross_attention_dim).

        Returns: of each transformer block, in order, the tokens entering its self-attention
            (sources, tokens, C).
        """
        features: dict[str, Tensor] = {}
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        conditions = AttentionInputs(record=features)
        run_unet(
            self.reference,
            latents,
            timesteps,
            image,
            conditions=conditions,
            checkpointing=self.gradient_checkpointing,
        )
        return features

    def encode_pose(self, images: Tensor, chunk: int = 16) -> tuple[Tensor, ...]:
        """Images (frames, 3 * pose inputs, H, W) in [0, 1], anywhere -> pose features on the same device.

        Takes `chunk` frames at a time, so a long video's images never lie on the accelerator at once.

        Returns: features for `run_unet`, (frames, C, h, w) each.
        """
        weight = next(self.pose_encoder.parameters())
        sample = pose_sample(self.pose_encoder, images, chunk)
        statistics = None if sample is None else self.pose_encoder.measure(sample.to(weight))  # type: ignore[operator]
        chunks = [encode_pose(self.pose_encoder, part.to(weight), statistics) for part in images.split(chunk)]
        return tuple(
            torch.cat([level.to(images.device) for level in levels]) for levels in zip(*chunks, strict=True)
        )

    def encode_expression(self, expression: Tensor) -> Tensor:
        """Expression (frames, n_expression) -> tokens (frames, tokens, cross_attention_dim)."""
        return self.expression_adapter(expression)

    @torch.no_grad()
    def encode_conditioning(
        self,
        source_latent: Tensor,
        source_pixels: Tensor,
        normals: Tensor | Iterable[Tensor],
        expression: Tensor,
    ) -> VideoConditioning:
        """Everything that sampling needs, once per video.

        Args:
            source_latent: (clips, 4, h, w), mostly of a single clip.
            source_pixels: CLIP-normalized sources (clips, 3, i, i).
            normals: aligned normals (clips * frames, 3, H, W), or parts of them in order; the pose features
                stay on their device.
            expression: (clips * frames, n_expression); its tokens stay on their device.
        """
        weight = self.unet.conv_in.weight
        parts = [normals] if torch.is_tensor(normals) else normals
        image = self.encode_image(source_pixels.to(weight))
        return VideoConditioning(
            reference=self.encode_reference(source_latent.to(weight), image),
            context=image,
            pose=tuple(map(torch.cat, zip(*map(self.encode_pose, parts), strict=True))),
            expression=self.encode_expression(expression.to(weight)).to(expression.device),
        )

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: VideoConditioning,
        *,
        expression_scale: float,
        guided: bool,
        temporal: bool = True,
        memory: TemporalMemory | None = None,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """Prediction for one window of one video, or of several clips.

        Args:
            latents: (clips * frames, 4, h, w).
            timesteps: (1,).
            conditioning: of these frames, on this device.
            expression_scale: lambda of eq. 3.
            guided: whether to also predict without source and expression.
            temporal: run the temporal modules, if there are any.
            memory: what they keep from call to call, with one frame a clip.
            deep: what the UNet keeps of its deep layers from step to step.

        Returns: as `latents`, or with guidance (2 * clips * frames, 4, h, w): conditional rows come first.
        """
        rows, halves = len(latents), 1 + guided
        frames = rows // conditioning.clips
        conditions = AttentionInputs(
            conditional_rows=rows,
            reference=project_reference(self.unet, conditioning.reference),
            expression={}
            if conditioning.expression is None
            else self.expression_adapter.keys_values(conditioning.expression),
            expression_weight=expression_scale,
        )
        context = repeat(conditioning.context, "s t d -> (s f) t d", f=frames)
        if guided:
            unconditional = conditioning.unconditional
            other = torch.zeros_like(context) if unconditional is None else unconditional.expand_as(context)
            context = torch.cat([context, other])
        return run_unet(
            self.unet,
            repeat(latents, "f c h w -> (b f) c h w", b=halves),
            timesteps.expand(halves * rows),
            context,
            conditions=conditions,
            pose=tuple(repeat(level, "f c h w -> (b f) c h w", b=halves) for level in conditioning.pose),
            motion=self.motion if temporal else None,
            frames=frames,
            memory=memory,
            deep=deep,
        )
