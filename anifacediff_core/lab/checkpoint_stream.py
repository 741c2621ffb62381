"""Checkpoints of any size, written with one tensor in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifacediff_core.network.config import NetworkConfig
from anifacediff_core.network.sampling_config import SamplingConfig
from anifacediff_core.progress import Progress
from anifacediff_core.storage import atomic_write
from anifacediff_core.weights.checkpoint import checkpoint_metadata, require_finite, require_known
from anifacediff_core.weights.importers import Recognition
from anifacediff_core.weights.reading import TensorInfo
from anifacediff_core.weights.sources import part_infos

# Safetensors' names of the types.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorStream:
    """A part's tensors that need not be in memory together.

    Args:
        infos: shape and type of each by its name.
        read: yields each of them.
    """

    infos: Mapping[str, TensorInfo]
    read: Callable[[], Iterable[tuple[str, Tensor]]]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> TensorStream:
        """Tensors that are in memory."""
        infos = {name: TensorInfo(tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
        return cls(infos, lambda: weights.items())


def part_stream(part: str, found: tuple[Recognition, ...]) -> TensorStream:
    """A part as it is written into a checkpoint."""
    return TensorStream(
        part_infos(part, found),
        lambda: chain.from_iterable(recognition.tensors(part) for recognition in found),
    )


def stream_checkpoint(
    path: str | Path,
    parts: Mapping[str, TensorStream],
    config: NetworkConfig,
    *,
    head: str,
    provenance: dict[str, Any] | None = None,
    sampling: SamplingConfig | None = None,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> None:
    """`save_checkpoint` with one tensor in memory at a time, for weights of any size."""
    path = Path(path)
    require_known(parts)
    layout = {
        f"{part}.{name}": (info.shape, dtype if info.dtype.is_floating_point else info.dtype)
        for part, stream in parts.items()
        for name, info in stream.infos.items()
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        done = 0
        for part, stream in parts.items():
            for name, weight in stream.read():
                stored = weight.detach().to("cpu", layout[f"{part}.{name}"][1])
                require_finite(stored, f"{part}.{name}", path)
                yield f"{part}.{name}", stored
                done += 1
                if progress is not None:
                    progress(done, len(layout))

    write_tensor_stream(path, layout, tensors(), checkpoint_metadata(config, head, provenance, sampling))


def write_tensor_stream(
    path: Path,
    layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file of which only one tensor at a time is in memory; otherwise as `write_tensors`.

    Args:
        layout: shape and type of every tensor by its name: they make up the header, which comes first.
        tensors: all of these, in any order; each is converted to its type.

    Raises:
        ValueError: the tensors are not those of the layout.
    """
    # Wide types first, as safetensors itself does it: every tensor is then aligned to its own width.
    order = sorted(layout, key=lambda name: -layout[name][1].itemsize)
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offsets, end = {}, 0
    for name in order:
        shape, dtype = layout[name]
        offsets[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    missing = set(layout)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, tensor in tensors:
            if name not in missing or tuple(tensor.shape) != layout[name][0]:
                raise ValueError(f"{name} {tuple(tensor.shape)} is not what the layout of {path.name} says.")
            missing.remove(name)
            stored = tensor.detach().to("cpu", layout[name][1]).contiguous()
            file.seek(start + offsets[name])
            file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
        if missing:
            raise ValueError(f"{path.name} lacks {min(missing)}, which its layout has.")
