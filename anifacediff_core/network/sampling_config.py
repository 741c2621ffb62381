"""How weights want to be sampled, as data; it travels in the checkpoint's header like `NetworkConfig`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from anifacediff_core.errors import InputError
from anifacediff_core.network.config import NetworkConfig

RANGES = {"steps": (1, 1000), "cfg": (0, 100)}
# Those that both samplers, the host's and the core's, hold equal; ComfyUI's names.
CHOICES = {"sampler": ("euler",), "scheduler": ("simple",)}
PREFIX = "Sampling: "

Config = TypeVar("Config", bound="SamplingConfig")


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample where nobody asks for anything else; the defaults are the bundled checkpoint's.

    Args:
        cfg: guidance; 1 is none and takes half the time.
        sampler, scheduler: ComfyUI's names of the algorithm and of how the noise falls.

    Raises:
        InputError: a value that no sampler takes.
    """

    steps: int = 1
    cfg: float = 1.0
    sampler: str = "euler"
    scheduler: str = "simple"

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value, whole = getattr(self, name), name == "steps"
            if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
                kind = "whole number" if whole else "number"
                raise InputError(
                    f"{PREFIX}{name} is {value!r:.80}, expected a {kind} from {least} to {most}."
                )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{PREFIX}{name} is {value!r:.80}, expected {' or '.join(choices)}.")

    @classmethod
    def of(cls, network: NetworkConfig) -> SamplingConfig:
        """For a checkpoint that does not say: one step is for the bundled sizes only."""
        return SamplingConfig() if network == NetworkConfig.tiny() else SamplingConfig(steps=25, cfg=3.5)

    def but(self: Config, **asked: Any) -> Config:
        """With what was asked for; None asks for nothing."""
        return replace(self, **{name: value for name, value in asked.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> SamplingConfig:
        """Inverse of `to_json`, for values from a file. Keys that are missing take their defaults.

        Raises:
            InputError: these are no such values, or some that only a newer version knows.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or not values.keys() <= set(known):
            raise InputError(f"{PREFIX}the entry is {values!r:.80}, expected some of {', '.join(known)}.")
        return cls(**values)
