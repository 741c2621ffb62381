"""The hyper-parameters of the whole network as data; they travel in the checkpoint's header."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

CHOICES = {
    "prediction_type": ("v_prediction", "epsilon"),
    "beta_schedule": ("scaled_linear", "linear"),
    "motion_norm": ("clip", "frame"),
    "pose_encoder": ("convolution", "attention", "multiscale"),
    "context": ("image", "text"),
}
# The least and the most of every number, several times what any network of this kind has.
RANGES = {
    "block_out_channels": (1, 8192),
    "layers_per_block": (1, 16),
    "attention_heads": (1, 256),
    "cross_attention_dim": (1, 8192),
    "norm_num_groups": (1, 256),
    "latent_channels": (1, 128),
    "motion_heads": (1, 256),
    "motion_max_frames": (1, 4096),
    "pose_channels": (1, 8192),
    "image_size": (1, 4096),
    "image_patch": (1, 512),
    "image_hidden": (1, 8192),
    "image_layers": (1, 128),
    "image_heads": (1, 256),
    "image_intermediate": (1, 65536),
    "n_expression": (1, 4096),
    "expression_tokens": (1, 1024),
    "expression_hidden": (1, 65536),
    "scaling_factor": (1e-6, 1e6),
}
MOST_ENTRIES = 16  # levels, or images of a pose encoder
LONGEST_NAME = 100  # characters


# Names of headers and experiment files, and ours.
OLD_NAMES = {"prediction": "prediction_type", "latent_scale": "scaling_factor"}
# What the modules raise when they are built of sizes that do not go together.
UNBUILDABLE = (ValueError, LookupError, ArithmeticError, TypeError, RuntimeError, AssertionError)


class ConfigError(InputError):
    """Numbers of which no network can be built."""


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a header or an experiment file under our names."""
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build the network; the defaults are those of Stable Diffusion 1.5.

    Args:
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
            one per image, summed; "multiscale" is AniPortrait's, whose features enter at five places.
        pose_inputs: names of the images that the pose encoder reads, in the order of their channels.
        pose_channels: channels of the pose encoder; each further entry halves the resolution.
        context: what the cross-attention reads: "image", CLIP's embedding of the source, with zero as its
            unconditional counterpart; or "text", one fixed text for both halves of guidance.
        image_*: the CLIP vision transformer; its projection has `cross_attention_dim` channels.
        n_expression: length of the expression vector.
        expression_tokens, expression_hidden: shape of the expression adapter's MLP.
        prediction_type: what the UNet predicts, "v_prediction" or "epsilon".
        zero_terminal_snr: whether the last time step is pure noise.
        beta_schedule: diffusers' name of how beta grows from 0.00085 to 0.012.
        scaling_factor: factor from autoencoder output to UNet latents.
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

    prediction_type: str = "v_prediction"
    zero_terminal_snr: bool = True
    beta_schedule: str = "scaled_linear"
    scaling_factor: float = 0.18215

    profile: str = "anifacediff"

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            _require_kind(name, getattr(self, name), default)
        levels = len(self.block_out_channels)
        for name in ("attention_levels", "attention_heads", "motion_heads"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(
                    f"Network config: {name} has {len(getattr(self, name))} entries, "
                    f"expected one for each of the {levels} levels."
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"Network config: {name} is {getattr(self, name)!r}, expected {' or '.join(choices)}."
                )

    @classmethod
    def tiny(cls) -> NetworkConfig:
        """The bundled model: the same architecture with three narrow levels, for 256² images."""
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
            scaling_factor=1.0,
        )

    @classmethod
    def full(cls) -> NetworkConfig:
        """Stable Diffusion 1.5, CLIP ViT-L/14, AnimateDiff's v2 motion modules, DECA's 50 expressions."""
        return cls()

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.pose_channels) - 1)

    def to_json(self) -> dict[str, Any]:
        """As a header has it, under the names that headers have always had."""
        stored = {now: former for former, now in OLD_NAMES.items()}
        return {stored.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkConfig:
        """Inverse of `to_json`. Keys that are missing take their defaults; unknown keys are refused.

        Raises:
            ConfigError: there are unknown keys, or no network can have these values.
        """
        named, values = len(values), current_names(values)
        if len(values) < named:
            raise ConfigError("Network config: an entry stands there under two names, give it once.")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known, key=str)
        if unknown:
            raise ConfigError(
                f"Network config: unknown entries {shown(', '.join(map(str, unknown)))}; "
                "the file was written by a newer version, please update."
            )
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        config = cls(**tuples)
        config._require_divisible()
        return config

    def _require_divisible(self) -> None:
        """Refuse channels that can't be shared out among groups and heads."""
        shared = [("image_hidden", self.image_hidden, "image_heads", self.image_heads)]
        for level, channels in enumerate(self.block_out_channels):
            shared.append(("block_out_channels", channels, "norm_num_groups", self.norm_num_groups))
            shared.append(("block_out_channels", channels, "motion_heads", self.motion_heads[level]))
            if self.attention_levels[level]:
                heads = self.attention_heads[level]
                shared.append(("block_out_channels", channels, "attention_heads", heads))
        for name, channels, among, count in shared:
            if channels % count:
                raise ConfigError(
                    f"Network config: {name} {channels} is no multiple of {among} {count}, as it has to be."
                )


_DEFAULTS = {field.name: field.default for field in fields(NetworkConfig)}


def _require_kind(name: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the default's, or outside of its range."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple) or not 1 <= len(value) <= MOST_ENTRIES:
            raise ConfigError(
                f"Network config: {name} is {shown(value)}, expected a list of 1 to {MOST_ENTRIES} entries."
            )
        for part in value:
            _require_kind(name, part, default[0])
        return
    kind = type(default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ConfigError(f"Network config: {name} is {shown(value)}, expected {_KINDS[kind]}.")
    least, most = RANGES.get(name, (-math.inf, math.inf))
    if kind in (int, float) and not least <= value <= most:
        raise ConfigError(f"Network config: {name} is {shown(value)}, expected {least} to {most}.")
    if kind is str and not (value.isprintable() and len(value) <= LONGEST_NAME):
        raise ConfigError(f"Network config: {name} is {shown(value)}, expected a name.")


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
