"""Networks in ONNX files that users bring: one picture in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

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
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors come as exceptions
        wanted = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
        there = onnxruntime.get_available_providers()
        providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in there]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's own classes have no common base
            reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "no reason given"
            raise InputError(
                f"{path.name} could not be opened as ONNX ({reason}); is the file complete?"
            ) from error
        inputs = session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if (
            len(inputs) != 1
            or len(shape) != 4
            or inputs[0].type not in TYPES
            or 3 not in (shape[1], shape[3])
        ):
            found = ", ".join(f"{item.name} {item.shape} {item.type}" for item in inputs)
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
            raise InputError(f"{self.name} has no output {output}: choose from {', '.join(self.outputs)}.")
        entry = self._session.get_inputs()[0]
        pixels = pictures.detach().cpu().numpy().astype(TYPES[entry.type])
        if self._channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        parts = np.split(pixels, len(pixels)) if self._one_by_one else [pixels]
        try:
            found = [self._session.run([output], {entry.name: np.ascontiguousarray(p)})[0] for p in parts]
            numbers = np.concatenate([np.asarray(part, np.float32) for part in found])
        except (TypeError, ValueError) as error:  # words, or one number for all
            raise InputError(
                f"{self.name} gives no rows of numbers as {output}: choose another output, or export it anew."
            ) from error
        except Exception as error:  # as above
            reason = str(error).strip().splitlines()[0][:160]
            raise InputError(
                f"{self.name} could not read the pictures ({reason}); check its size."
            ) from error
        if len(numbers) != len(pictures):
            raise InputError(
                f"{self.name} gives {list(numbers.shape)} for {len(pictures)} pictures: expected a row each."
            )
        return torch.from_numpy(numbers.reshape(len(pictures), -1))
