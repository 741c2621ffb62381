"""One safetensors file with all parts of the model under prefixes and their configuration in its header.

The header's entry "anifacediff" is JSON: `version` of the format, `network` (the NetworkConfig), `head` (name
of the head model that the parts were trained on), `provenance` (how they came about; free form) and, where
the weights want to be sampled otherwise than others of their size, `sampling` (the SamplingConfig).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifacediff_core.claims import is_finite, parse_json, shown
from anifacediff_core.errors import InputError
from anifacediff_core.network.autoencoder import (
    AutoEncoder,
    StableAutoEncoder,
    make_autoencoder,
    trim,
)
from anifacediff_core.network.config import UNBUILDABLE, ConfigError, NetworkConfig
from anifacediff_core.network.model import PARTS as NETWORK_PARTS
from anifacediff_core.network.model import AniFaceDiff
from anifacediff_core.network.sampling_config import PREFIX, SamplingConfig
from anifacediff_core.storage import write_tensors
from anifacediff_core.weights.fill import misfits, shapes_of
from anifacediff_core.weights.reading import TensorInfo, open_tensors

VERSION = 1
HEADER = "anifacediff"
PARTS = (*NETWORK_PARTS, "vae", "face_encoder", "face_detector", "deca", "smirk")


def save_checkpoint(
    path: str | Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    config: NetworkConfig,
    *,
    head: str,
    provenance: dict[str, Any] | None = None,
    sampling: SamplingConfig | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint; a file that is there already stays whole until the new one is complete.

    Args:
        parts: state dict of each part, of those in `PARTS`.
        sampling: how the weights want to be sampled, if not as others of their size.
        dtype: floating-point weights are stored in this.
    """
    path = Path(path)
    tensors = {}
    require_known(parts)
    for part, weights in parts.items():
        for name, weight in weights.items():
            weight = weight.detach().cpu()
            stored = weight.to(dtype) if weight.is_floating_point() else weight
            require_finite(stored, f"{part}.{name}", path)
            tensors[f"{part}.{name}"] = stored.contiguous().clone()
    write_tensors(path, tensors, checkpoint_metadata(config, head, provenance, sampling))


def require_known(parts: Iterable[str]) -> None:
    for part in parts:
        if part not in PARTS:
            raise InputError(f"A checkpoint has no part {part!r}: expected some of {', '.join(PARTS)}.")


def checkpoint_metadata(
    config: NetworkConfig, head: str, provenance: dict[str, Any] | None, sampling: SamplingConfig | None
) -> dict[str, str]:
    header = {"version": VERSION, "network": config.to_json(), "head": head, "provenance": provenance or {}}
    if sampling is not None:
        header["sampling"] = sampling.to_json()
    return {HEADER: json.dumps(header), "format": "pt"}


def bundled_checkpoint() -> Path:
    """The weights that come with the package."""
    bundled = Path(__file__).parents[1] / "assets" / "demo.safetensors"
    if not bundled.is_file():
        raise InputError("This installation has no bundled checkpoint; name one with --checkpoint.")
    return bundled


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint's header; weights are read part by part when asked for."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}: choose another file.")
    with open_tensors(path) as file:
        kind, metadata, infos = file.kind, file.metadata, dict(file.infos)
    if kind != "safetensors":
        raise InputError(f"{path.name} is of another format ({kind}): expected a whole safetensors file.")
    if HEADER not in metadata:
        raise InputError(
            f"{path.name} is not an AniFaceDiff checkpoint: expected a header {HEADER!r}, found none; "
            f"its first tensor is {min(infos, default='missing')}."
        )
    header = read_header(path, metadata)
    found = {name.split(".", 1)[0] for name in infos}
    return Checkpoint(
        path=path,
        config=NetworkConfig.from_json(header["network"]),
        head=header["head"],
        parts=tuple(part for part in PARTS if part in found),
        provenance=header.get("provenance", {}),
        wish=sampling_of(path, header),
        infos=infos,
    )


def read_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """A checkpoint's header, with `version`, `network`, `head` and mostly `provenance`."""
    try:
        header = parse_json(metadata[HEADER])
        version, network, head = header["version"], header["network"], header["head"]
        made = header.get("provenance", {})
        if not (isinstance(network, dict) and isinstance(head, str) and isinstance(made, dict)):
            raise TypeError("a network, head or provenance of another form")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path.name} has a damaged header ({shown(error)}): expected version, network and head."
        ) from error
    if version != VERSION:
        raise InputError(f"{path.name} has version {shown(version)}, expected {VERSION}: update AniFaceDiff.")
    try:
        NetworkConfig.from_json(network)
    except ConfigError as error:
        reason = str(error).removeprefix("Network config: ").rstrip(".")
        raise InputError(
            f"{path.name} has a header that describes no network, {reason}; fetch it again."
        ) from error
    return header


def sampling_of(path: Path, header: Mapping[str, Any]) -> SamplingConfig | None:
    """How a header says that its weights want to be sampled, if it does."""
    if "sampling" not in header:
        return None
    try:
        return SamplingConfig.from_json(header["sampling"])
    except InputError as error:
        reason = str(error).removeprefix(PREFIX).rstrip(".")
        raise InputError(
            f"{path.name} has a header with sampling that nobody can do: {reason}; fetch it again or update "
            "AniFaceDiff."
        ) from error


def load_network(checkpoint: Checkpoint) -> AniFaceDiff:
    """The network with the checkpoint's weights, float32, on the CPU; with temporal modules if it has any."""
    try:
        outline = AniFaceDiff.outline(checkpoint.config, motion="motion" in checkpoint.parts)
    except UNBUILDABLE as error:
        raise InputError(
            f"{checkpoint.path.name} describes a network that cannot be built; fetch it again."
        ) from error
    parts = [part for part in NETWORK_PARTS if getattr(outline, part) is not None]
    for part in parts:  # before there is memory for what the header claims
        checkpoint.require_fit(getattr(outline, part), part)
    model = outline.without_values()
    for part in parts:
        checkpoint.load_into(getattr(model, part), part)
    return model.eval()


def load_autoencoder(checkpoint: Checkpoint) -> AutoEncoder | StableAutoEncoder:
    """The autoencoder that the checkpoint holds, float32, on the CPU.

    Raises:
        InputError: it holds none, or one of another kind.
    """
    shapes = checkpoint.shapes("vae")
    try:
        with torch.device("meta"):
            outline = make_autoencoder(shapes)
    except UNBUILDABLE as error:
        raise InputError(
            f"{checkpoint.path.name} has a vae of an unknown kind: expected Stable Diffusion's or a TAESD, "
            "choose another checkpoint."
        ) from error
    network = outline.network if isinstance(outline, StableAutoEncoder) else outline
    checkpoint.require_fit(network, "vae")
    autoencoder = outline.to_empty(device="cpu")
    network = autoencoder.network if isinstance(autoencoder, StableAutoEncoder) else autoencoder
    checkpoint.load_into(network, "vae")
    if isinstance(autoencoder, AutoEncoder):
        trim(autoencoder.decoder)
    return autoencoder.eval()


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Args:
        provenance: how the weights came about.
        wish: how they say that they want to be sampled; None where they don't.
        infos: shape and type of all tensors by their names in the file.
    """

    path: Path
    config: NetworkConfig
    head: str
    parts: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    wish: SamplingConfig | None = None
    infos: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sampling(self) -> SamplingConfig:
        """How to sample where nobody asks for anything else."""
        return self.wish or SamplingConfig.of(self.config)

    def part(self, name: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The state dict of one part, on the CPU, as stored or in `dtype`."""
        self._require(name)
        weights = {}
        for key, weight in self.tensors(name):
            cast = dtype is not None and weight.is_floating_point()
            weights[key] = weight.to(dtype) if cast else weight
        return weights

    def tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one part that is there, one at a time."""
        prefix = f"{name}."
        with open_tensors(self.path) as file:
            for key in filter(lambda key: key.startswith(prefix), list(file.infos)):
                if file.infos[key].dtype.is_complex:
                    raise InputError(f"{self.path.name} has complex numbers in its {name}: fetch it again.")
                yield key[len(prefix) :], file.read(key)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of one part that is there, which are known without reading them."""
        self._require(name)
        prefix = f"{name}."
        return {key[len(prefix) :]: info.shape for key, info in self.infos.items() if key.startswith(prefix)}

    def load_into(self, module: nn.Module, name: str) -> None:
        """Load one part into its module, in the module's own precision; names and shapes must agree."""
        self.require_fit(module, name)
        module.load_state_dict(self.part(name))

    def require_fit(self, module: nn.Module, name: str) -> None:
        """Refuse a part that has other names or shapes than its module, before any of it is read."""
        for misfit in misfits(shapes_of(module.state_dict()), self.shapes(name), f"{name}."):
            raise InputError(f"{self.path.name} does not fit: {misfit}.")

    def _require(self, name: str) -> None:
        if name not in self.parts:
            found = ", ".join(self.parts) or "nothing"
            raise InputError(f"{self.path.name} has no {name}: expected that part, found {found}.")


def require_finite(tensor: Tensor, name: str, path: Path) -> None:
    if not is_finite(tensor):
        raise InputError(f"{path.name} is damaged: expected finite weights, found NaN or infinity in {name}.")
