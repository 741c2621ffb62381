"""The network of the paper on diffusers: training forward, encoders and their assembly.

The UNets are ordinary diffusers models and hold all weights under their usual names. `run_unet` walks their
modules, so that the pose features enter after conv_in, the temporal modules run in their places without a
copy of the UNet, and the ReferenceNet ends early; with no condition it equals diffusers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anifacediff_core.network.attention import (
    Conditions,
    FeatureTap,
    install_processors,
    project_reference,
    transformer_block_names,
)
from anifacediff_core.network.conditioning import Conditioning
from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.encoders import (
    ExpressionAdapter,
    encode_pose,
    make_image_encoder,
    make_pose_encoder,
    pose_sample,
)
from anifacediff_core.network.temporal import MotionModules

Layer = nn.Module | None

PARTS = ("unet", "reference", "pose_encoder", "expression_adapter", "image_encoder", "motion")


def make_unet(config: NetworkConfig) -> UNet2DConditionModel:
    """A UNet2DConditionModel in the form of Stable Diffusion 1.5."""
    return UNet2DConditionModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention_levels
        ),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention_levels)
        ),
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        attention_head_dim=config.attention_heads,  # diffusers' old name: it is the number of heads
    )


def zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def initialize_from_scratch(unet: UNet2DConditionModel) -> None:
    """Zero the last layer of every residual branch and of the UNet, as latent diffusion models start."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            zero(module.conv2)
        elif isinstance(module, Transformer2DModel):
            zero(module.proj_out)
    zero(unet.conv_out)


def trim_reference(unet: UNet2DConditionModel) -> None:
    """Remove what follows the last recorded features: it could not influence anything."""
    name = transformer_block_names(unet)[-1]
    parent, index = name.rsplit(".", 1)
    unet.get_submodule(parent)[int(index)] = FeatureTap(unet.get_submodule(name), name)
    unet.get_submodule(parent.rsplit(".", 1)[0]).proj_out = nn.Identity()
    unet.conv_norm_out = unet.conv_act = unet.conv_out = nn.Identity()


def run_unet(
    unet: UNet2DConditionModel,
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    *,
    conditions: Conditions | None = None,
    pose: tuple[Tensor, ...] = (),
    motion: MotionModules | None = None,
    frames: int = 1,
    checkpointing: bool = False,
) -> Tensor:
    """One call of the UNet with the additions of the paper.

    Arguments:
        latents: (rows, 4, h, w); rows are clips * frames, clip-major.
        timesteps: (rows,).
        context: (rows, tokens, cross_attention_dim).
        conditions: what the attention processors need.
        pose: features to add: the first (rows, C, h, w) after conv_in, each further one to what leaves the
            next down block, after its skip connections.
        motion: temporal modules, run over each `frames` consecutive rows.
        checkpointing: recompute the layers in the backward pass instead of keeping their activations.

    Returns: (rows, 4, h, w).
    """
    kwargs = {"conditions": conditions or Conditions()}

    def layer(hidden: Tensor, resnet: Layer, attention: Layer, temporal: Layer) -> Tensor:
        assert resnet is not None
        hidden = resnet(hidden, embedding)
        if attention is not None:
            hidden = attention(hidden, context, cross_attention_kwargs=kwargs, return_dict=False)[0]
        if temporal is not None:
            hidden = temporal(hidden, num_frames=frames)
        return hidden

    run: Callable[..., Tensor] = layer
    if checkpointing and torch.is_grad_enabled():

        def run(*arguments: object) -> Tensor:
            return checkpoint(layer, *arguments, use_reentrant=False)

    embedding = unet.time_embedding(unet.time_proj(timesteps).to(latents.dtype))
    hidden = unet.conv_in(latents)
    if pose:
        hidden = hidden + pose[0]

    skips = [hidden]
    for index, block in enumerate(unet.down_blocks):
        for modules in zip(*layers_of(block, motion.down_blocks[index] if motion else None), strict=True):
            hidden = run(hidden, *modules)
            skips.append(hidden)
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
            skips.append(hidden)
        if len(pose) > index + 1:
            hidden = hidden + pose[index + 1]

    middle = unet.mid_block
    temporal = None if motion is None or motion.mid_block is None else motion.mid_block.motion_modules[0]
    hidden = run(hidden, middle.resnets[0], middle.attentions[0], temporal)
    hidden = middle.resnets[1](hidden, embedding)

    for index, block in enumerate(unet.up_blocks):
        for modules in zip(*layers_of(block, motion.up_blocks[index] if motion else None), strict=True):
            hidden = run(torch.cat([hidden, skips.pop()], 1), *modules)
        for upsampler in block.upsamplers or ():
            # The next skip tells the size: latents need not be a multiple of the UNet's whole downsampling.
            hidden = upsampler(hidden, skips[-1].shape[-2:])
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def layers_of(block: nn.Module, motion: nn.Module | None) -> tuple[Iterable[Layer], ...]:
    """Residual layers, spatial transformers and temporal modules of a UNet block, None where absent."""
    resnets = list(block.resnets)  # type: ignore[arg-type]
    absent: list[Layer] = [None] * len(resnets)
    attentions = getattr(block, "attentions", absent)
    return resnets, attentions, absent if motion is None else motion.motion_modules  # type: ignore[return-value]


class AniFaceDiff(nn.Module):
    """Denoising UNet, ReferenceNet, pose encoder, expression adapter, image encoder and temporal modules.

    Arguments:
        config: sizes.
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
        """CLIP-normalized pictures (sources, 3, i, i) → image embedding (sources, 1, cross_attention_dim)."""
        return self.image_encoder(pixels).image_embeds[:, None]

    def encode_reference(self, latents: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Run the ReferenceNet at t = 0.

        Arguments:
            latents: of the source pictures, (sources, 4, h, w), without noise.
            image: (sources, 1, cross_attention_dim).

        Returns: of each transformer block, in order, the tokens entering its self-attention
            (sources, tokens, C).
        """
        features: dict[str, Tensor] = {}
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        conditions = Conditions(record=features)
        run_unet(
            self.reference,
            latents,
            timesteps,
            image,
            conditions=conditions,
            checkpointing=self.gradient_checkpointing,
        )
        return features

    def encode_pose(self, pictures: Tensor, chunk: int = 16) -> tuple[Tensor, ...]:
        """Pictures (frames, 3 * pose inputs, H, W) in [0, 1], anywhere → pose features on the same device.

        Takes `chunk` frames at a time, so a long video's pictures never lie on the accelerator at once.

        Returns: features for `run_unet`, (frames, C, h, w) each.
        """
        weight = next(self.pose_encoder.parameters())
        sample = pose_sample(self.pose_encoder, pictures, chunk)
        statistics = None if sample is None else self.pose_encoder.measure(sample.to(weight))  # type: ignore[operator]
        chunks = [
            encode_pose(self.pose_encoder, part.to(weight), statistics) for part in pictures.split(chunk)
        ]
        return tuple(
            torch.cat([level.to(pictures.device) for level in levels]) for levels in zip(*chunks, strict=True)
        )

    def encode_expression(self, expression: Tensor) -> Tensor:
        """Expression (frames, n_expression) → tokens (frames, tokens, cross_attention_dim)."""
        return self.expression_adapter(expression)

    @torch.no_grad()
    def encode_conditioning(
        self,
        source_latent: Tensor,
        source_pixels: Tensor,
        normals: Tensor | Iterable[Tensor],
        expression: Tensor,
    ) -> Conditioning:
        """Everything that sampling needs, once per video.

        Arguments:
            source_latent: (clips, 4, h, w), mostly of a single clip.
            source_pixels: CLIP-normalized sources (clips, 3, i, i).
            normals: aligned normals (clips * frames, 3, H, W), or parts of them in order; the pose features
                stay on their device.
            expression: (clips * frames, n_expression); its tokens stay on their device.
        """
        weight = self.unet.conv_in.weight
        parts = [normals] if torch.is_tensor(normals) else normals
        image = self.encode_image(source_pixels.to(weight))
        return Conditioning(
            reference=self.encode_reference(source_latent.to(weight), image),
            context=image,
            pose=tuple(map(torch.cat, zip(*map(self.encode_pose, parts), strict=True))),
            expression=self.encode_expression(expression.to(weight)).to(expression.device),
        )

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        *,
        expression_scale: float,
        guided: bool,
        temporal: bool = True,
    ) -> Tensor:
        """Prediction for one window of one video, or of several clips.

        Arguments:
            latents: (clips * frames, 4, h, w).
            timesteps: (1,).
            conditioning: of these frames, on this device.
            expression_scale: λ of eq. 3.
            guided: whether to also predict without source and expression.
            temporal: run the temporal modules, if there are any.

        Returns: as `latents`, or with guidance (2 * clips * frames, 4, h, w): conditional rows come first.
        """
        rows, halves = len(latents), 1 + guided
        frames = rows // conditioning.clips
        conditions = Conditions(
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
        )

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        source_latents: Tensor,
        image_pixels: Tensor,
        normals: Tensor,
        expression: Tensor,
        conditional_rows: int,
        expression_weight: Tensor,
        reference_rows: int | None = None,
        image_weight: Tensor | None = None,
    ) -> Tensor:
        """Training forward; static in its shapes and free of synchronization, so that CUDA graphs capture it.

        Rows are the frames of all sources, source-major: R = S * frames. The first `conditional_rows` (a
        multiple of frames) see source and expression; the others learn the unconditional half of guidance:
        they attend to themselves only, with a zero image embedding and no expression. All rows get the pose.
        Each condition can be dropped alone as well.

        Arguments:
            noisy_latents: (R, 4, h, w).
            timesteps: (R,).
            source_latents: (S, 4, h, w).
            image_pixels: (S, 3, i, i), CLIP-normalized.
            normals: (R, 3, H, W) in [0, 1].
            expression: (R, n_expression).
            conditional_rows: see above.
            expression_weight: (R, 1, 1), λ of every row; 0 drops its expression.
            reference_rows: the first rows, a multiple of frames, attend to the ReferenceNet's features; all
                conditional rows when left out.
            image_weight: (S, 1, 1), factors of the image embeddings; 0 drops one.

        Returns: the prediction (R, 4, h, w), v or ε by the config.
        """
        rows, sources = len(noisy_latents), len(source_latents)
        frames = rows // sources
        reference_rows = conditional_rows if reference_rows is None else reference_rows
        if frames * sources != rows or conditional_rows % frames or reference_rows % frames:
            raise ValueError(
                f"{rows} rows of {sources} sources with {conditional_rows} conditional rows and "
                f"{reference_rows} that see the reference: expected whole clips of equal length."
            )
        conditions = Conditions()
        context = noisy_latents.new_zeros(rows, 1, self.config.cross_attention_dim)
        if conditional_rows:
            seen = conditional_rows // frames
            image = self.encode_image(image_pixels[:seen])
            if image_weight is not None:
                image = image * image_weight[:seen]
            referred = reference_rows // frames
            features = self.encode_reference(source_latents[:referred], image[:referred]) if referred else {}
            tokens = self.encode_expression(expression[:conditional_rows])
            conditions = Conditions(
                conditional_rows=conditional_rows,
                reference_rows=reference_rows,
                reference=project_reference(self.unet, features),
                expression=self.expression_adapter.keys_values(tokens),
                expression_weight=expression_weight[:conditional_rows],
            )
            context = append_zero_rows(repeat(image, "s t d -> (s f) t d", f=frames), rows)
        return run_unet(
            self.unet,
            noisy_latents,
            timesteps,
            context,
            conditions=conditions,
            pose=encode_pose(self.pose_encoder, normals),
            motion=self.motion,
            frames=frames,
            checkpointing=self.gradient_checkpointing,
        )


def append_zero_rows(context: Tensor, rows: int) -> Tensor:
    """Extend the context (conditional rows, tokens, dim) to `rows` by the unconditional embedding, zero."""
    missing = rows - len(context)
    return torch.cat([context, context.new_zeros(missing, *context.shape[1:])]) if missing else context


class FixedRows(nn.Module):
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
