"""Which device networks run on, and how precisely; chosen when a command starts, never at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import torch

# What a processor has to have to compute in a half precision by itself, by torch's names.
NATIVE = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        InputError: it is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"The device {name} is not there; use cpu or auto.") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of a name; "auto" is float16 on a GPU of NVIDIA or AMD, else float32.

    Raises:
        InputError: the processor has no such arithmetic, and would compute it by way of float32, more slowly.
    """
    import torch

    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if device.type == "cpu" and name in NATIVE:
        # older releases of torch don't know
        has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        if not any(has.get(feature) for feature in NATIVE[name]):
            raise InputError(f"This processor can't compute in {name} by itself: use float32 or auto.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
