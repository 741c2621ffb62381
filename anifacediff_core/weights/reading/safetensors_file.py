"""safetensors files."""

from __future__ import annotations

from safetensors import SafetensorError, safe_open

from anifacediff_core.claims import parse_json
from anifacediff_core.errors import InputError

from .file import DTYPES, MAX_TENSORS, TensorFile, add_stored

_MAX_HEADER = 16 * 2**20  # bytes; a Stable Diffusion checkpoint has 150,000
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def open_safetensors(file: TensorFile) -> None:
    """Enter the tensors of a safetensors file.

    The library holds the header against the file. The tensors are read without it: its map for PyTorch would
    reserve memory for the whole file, its map for NumPy cannot give bfloat16 and fp8.
    """
    file.kind = "safetensors"
    length = int.from_bytes(file.source.read_bytes(0, 8), "little")
    if length > _MAX_HEADER:
        raise file.implausible(f"a safetensors header of at most {_MAX_HEADER} bytes", str(length))
    try:
        with safe_open(file.path, "numpy") as checked:
            file.metadata = dict(checked.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file.name} is truncated or damaged: expected a whole safetensors file, fetch it again."
        ) from error
    header = parse_json(file.source.read_bytes(8, length))
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise file.implausible(f"at most {MAX_TENSORS} tensors", "more")
    for name, entry in header.items():
        dtype = DTYPES.get(_NAMES.get(entry["dtype"], ""))
        if dtype is None:
            file.ignore(name)
            continue
        start, end = entry["data_offsets"]
        add_stored(
            file, name, file.source.part(8 + length + start, end - start), dtype, tuple(entry["shape"])
        )
