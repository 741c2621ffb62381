"""Networks in ONNX files that users bring: one picture in, numbers out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anifacediff_core.claims import shown
from anifacediff_core.errors import InputError

from .onnx_graph import Refusal, require_plain

MEMORY = 2**30  # bytes that a network may take beside its weights
TOGETHER = 8  # pictures at a time
SECONDS = 30  # for a picture, on any machine
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


@dataclass(frozen=True)
class OnnxModel:
    """An open ONNX file with one input of pictures.

    Attributes:
        size: height and width that the file fixes, None where it leaves them free.
        outputs: names of the outputs.
    """

    name: str
    size: tuple[int, int] | None
    outputs: tuple[str, ...]
    _session: Any
    _channels_last: bool
    _one_by_one: bool

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> OnnxModel:
        """Open a file.

        Raises:
            InputError: onnxruntime is not installed, the file is missing or damaged, or takes no pictures.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"There is no file {path}: choose another one.")
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                f"{path.name} needs onnxruntime: install the extra with pip install '.[eval]'."
            ) from error
        try:
            require_plain(path)
        except Refusal as error:
            raise InputError(
                f"{path.name} {error}: expected a plain network in one file, export it as that."
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path.name} could not be opened as ONNX ({shown(error)}); is the file complete?"
            ) from error
        _limit_memory()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        wanted: list[Any] = []
        there = onnxruntime.get_available_providers()
        if torch.device(device).type == "cuda" and "CUDAExecutionProvider" in there:
            wanted = [("CUDAExecutionProvider", {"gpu_mem_limit": 4 * MEMORY})]
        try:
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[*wanted, "CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"],  # it would run parts of the graph, without limits
            )
        except Exception as error:  # onnxruntime's own classes have no common base
            raise InputError(
                f"{path.name} could not be opened as ONNX ({_reason(error)}); is the file complete?"
            ) from error
        inputs = session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if (
            len(inputs) != 1
            or len(shape) != 4
            or inputs[0].type not in TYPES
            or 3 not in (shape[1], shape[3])
        ):
            found = shown(", ".join(f"{item.name} {item.shape} {item.type}" for item in inputs[:3]), 200)
            raise InputError(
                f"{path.name} takes no pictures: expected one float input [batch, 3, height, width], "
                f"found {found or 'none'}; export it with the preprocessing left out."
            )
        last = shape[1] != 3
        sides = shape[1:3] if last else shape[2:4]
        fixed = all(isinstance(side, int) for side in sides)
        size = (int(sides[0]), int(sides[1])) if fixed else None
        outputs = tuple(item.name for item in session.get_outputs())
        return cls(path.name, size, outputs, session, last, shape[0] == 1)

    def __call__(self, pictures: Tensor, output: str | None = None) -> Tensor:
        """Run it.

        Args:
            pictures: (frames, 3, height, width), normalized as the network wants it.
            output: name of the output; the first by default.

        Returns:
            (frames, numbers) float32 on the CPU.

        Raises:
            InputError: there is no such output, the network refuses the pictures, or gives no numbers per
                picture.
        """
        output = output or self.outputs[0]
        if output not in self.outputs:
            choices = shown(", ".join(self.outputs), 200)
            raise InputError(f"{self.name} has no output {shown(output)}: choose from {choices}.")
        entry = self._session.get_inputs()[0]
        pixels = pictures.detach().cpu().numpy().astype(TYPES[entry.type])
        if self._channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        step = 1 if self._one_by_one else TOGETHER
        parts = [pixels[first : first + step] for first in range(0, len(pixels), step)]
        try:
            found = [self._run(output, {entry.name: np.ascontiguousarray(part)}, len(part)) for part in parts]
            numbers = np.concatenate([np.asarray(part, np.float32) for part in found])
        except InputError:
            raise
        except (TypeError, ValueError) as error:  # words, or one number for all
            raise InputError(
                f"{self.name} gives no rows of numbers as {shown(output)}: choose another output, or export "
                "it anew."
            ) from error
        except Exception as error:  # as above
            raise InputError(
                f"{self.name} could not read the pictures ({_reason(error)}); check its size."
            ) from error
        if len(numbers) != len(pictures):
            raise InputError(
                f"{self.name} gives {list(numbers.shape)} for {len(pictures)} pictures: expected a row each."
            )
        return torch.from_numpy(numbers.reshape(len(pictures), -1))

    def _run(self, output: str, entry: dict[str, np.ndarray], pictures: int) -> Any:
        """The output for a few pictures; the runtime looks at the time between two operators."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        clock = threading.Timer(SECONDS * pictures, setattr, (options, "terminate", True))
        clock.daemon = True
        clock.start()
        try:
            return self._session.run([output], entry, options)[0]
        except Exception as error:
            if options.terminate:
                raise InputError(
                    f"{self.name} took more than {SECONDS} seconds for a picture: choose a smaller network."
                ) from error
            raise
        finally:
            clock.cancel()


@cache
def _limit_memory() -> None:
    """Bound what all networks of this process take together; the runtime has it once for a process."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": MEMORY}))


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return shown(lines[0], 160)
