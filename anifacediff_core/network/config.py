"""The hyper-parameters of the whole network as data; they travel in the checkpoint's header."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from anifacediff_core.errors import InputError

CHOICES = {
    "prediction": ("v_prediction", "epsilon"),
    "beta_schedule": ("scaled_linear", "linear"),
    "motion_norm": ("clip", "frame"),
    "pose_encoder": ("convolution", "attention", "multiscale"),
    "context": ("image", "text"),
}


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build the network; the defaults are those of Stable Diffusion 1.5.

    Arguments:
        block_out_channels: channels of each UNet level, finest first; integer multiples of the first.
        attention_levels: whether each level has spatial transformers.
        layers_per_block: residual layers per level going down (one more going up).
        attention_heads: number of heads of each level.
        cross_attention_dim: channels of the context: image embedding and expression tokens.
        motion_heads: number of heads of the temporal module of each level.
        motion_max_frames: longest window that the temporal modules have positions for.
        motion_mid_block: whether there is a temporal module in the middle block.
        motion_norm: whether a temporal module normalizes over all frames of a window, "clip" as in diffusers,
            or each frame by itself, "frame" as in AnimateDiff and the Animate-Anyone family.
        pose_encoder: "convolution" is ControlNet's small encoder; "attention" is Champ's and MagicPortrait's,
            one per picture, summed; "multiscale" is AniPortrait's, whose features enter at five places.
        pose_inputs: names of the pictures that the pose encoder reads, in the order of their channels.
        pose_channels: channels of the pose encoder; each further entry halves the resolution.
        context: what the cross-attention reads: "image", CLIP's embedding of the source, with zero as its
            unconditional counterpart; or "text", one fixed text for both halves of guidance.
        image_*: the CLIP vision transformer; its projection has `cross_attention_dim` channels.
        n_expression: length of the expression vector.
        expression_tokens, expression_hidden: shape of the expression adapter's MLP.
        prediction: what the UNet predicts, "v_prediction" or "epsilon".
        zero_terminal_snr: whether the last time step is pure noise.
        beta_schedule: diffusers' name of how β grows from 0.00085 to 0.012.
        latent_scale: factor from autoencoder output to UNet latents.
        profile: the method that the weights were made for.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    attention_heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    latent_channels: int = 4

    motion_heads: tuple[int, ...] = (8, 8, 8, 8)
    motion_max_frames: int = 32
    motion_mid_block: bool = True
    motion_norm: str = "clip"

    pose_encoder: str = "convolution"
    pose_inputs: tuple[str, ...] = ("normals",)
    pose_channels: tuple[int, ...] = (16, 32, 96, 256)

    context: str = "image"
    image_size: int = 224
    image_patch: int = 14
    image_hidden: int = 1024
    image_layers: int = 24
    image_heads: int = 16
    image_intermediate: int = 4096
    image_activation: str = "quick_gelu"

    n_expression: int = 50
    expression_tokens: int = 4
    expression_hidden: int = 768

    prediction: str = "v_prediction"
    zero_terminal_snr: bool = True
    beta_schedule: str = "scaled_linear"
    latent_scale: float = 0.18215

    profile: str = "anifacediff"

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name in ("attention_levels", "attention_heads", "motion_heads"):
            if len(getattr(self, name)) != levels:
                raise InputError(
                    f"Network config: {name} has {len(getattr(self, name))} entries, "
                    f"expected one for each of the {levels} levels."
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"Network config: {name} is {getattr(self, name)!r}, expected {' or '.join(choices)}."
                )

    @classmethod
    def tiny(cls) -> NetworkConfig:
        """The bundled model: the same architecture with three narrow levels, for 256² pictures."""
        return cls(
            block_out_channels=(96, 96, 96),
            attention_levels=(True, True, True),
            layers_per_block=1,
            attention_heads=(3, 3, 3),
            cross_attention_dim=128,
            motion_heads=(3, 3, 3),
            pose_channels=(16, 32, 64, 96),
            image_size=112,
            image_hidden=128,
            image_layers=3,
            image_heads=4,
            image_intermediate=512,
            n_expression=52,
            expression_hidden=192,
            latent_scale=1.0,
        )

    @classmethod
    def full(cls) -> NetworkConfig:
        """Stable Diffusion 1.5, CLIP ViT-L/14, AnimateDiff's v2 motion modules, DECA's 50 expressions."""
        return cls()

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.pose_channels) - 1)

    @property
    def latent_multiple(self) -> int:
        """Latent sides have to be a multiple of this."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkConfig:
        """Inverse of `to_json`. Keys that are missing take their defaults; unknown keys are refused."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"Network config: unknown entries {', '.join(unknown)}; "
                "the file was written by a newer version, please update."
            )
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**tuples)
