"""FaceParameters: the one value that travels between the head stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from ..claims import parse_json
from ..errors import InputError
from ..storage import atomic_write, write_tensors
from .parameters_json import from_json, to_json

POSE_JOINTS = ("global", "neck", "jaw", "left_eye", "right_eye")
POSE_SIZE = 3 * len(POSE_JOINTS)
FORMAT = "anifacediff-face-parameters"
TENSORS = ("shape", "expression", "pose", "camera", "valid")
OPTIONAL = ("confidence",)


@dataclass(frozen=True)
class FaceParameters:
    """Parameters of one head over a number of frames (paper 3.1: beta, psi, theta and the camera c).

    Attributes:
        shape: (frames, shape modes) float, beta.
        expression: (frames, expressions) float, psi.
        pose: (frames, 15) float, theta: axis-angle in radians of the joints in ``POSE_JOINTS``, x right,
            y up, z to the camera.
        camera: (frames, 3) float, ``[s, tx, ty]``, see :mod:`.camera`.
        valid: (frames,) bool, False where no face was found, or not for sure.
        head: name of the head model that beta and psi belong to.
        confidence: (frames,) float in [0, 1], how sure the reading of each frame is; None where nothing was
            read from pictures, or by something that does not tell.
    """

    shape: Tensor
    expression: Tensor
    pose: Tensor
    camera: Tensor
    valid: Tensor
    head: str
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        frames = self.shape.shape[0]
        expected = {"pose": (frames, POSE_SIZE), "camera": (frames, 3), "valid": (frames,)}
        expected |= {
            "shape": (frames, self.shape.shape[-1]),
            "expression": (frames, self.expression.shape[-1]),
        }
        expected |= {name: (frames,) for name in OPTIONAL if getattr(self, name) is not None}
        for name, size in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != size:
                raise InputError(
                    f"Face parameters: {name} has shape {list(found)} where {list(size)} is expected."
                )

    @classmethod
    def neutral(
        cls, frames: int, head: str, n_shape: int, n_expression: int, scale: float = 6.0
    ) -> FaceParameters:
        """A neutral, average head looking straight ahead, on the CPU."""
        camera = torch.tensor([scale, 0.0, 0.0]).expand(frames, 3).clone()
        return cls(
            shape=torch.zeros(frames, n_shape),
            expression=torch.zeros(frames, n_expression),
            pose=torch.zeros(frames, POSE_SIZE),
            camera=camera,
            valid=torch.ones(frames, dtype=torch.bool),
            head=head,
        )

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> FaceParameters:
        """A part of the frames; the frame axis always stays."""
        if isinstance(index, int):
            index = [index]
        if isinstance(index, (list, tuple, range)):
            index = torch.as_tensor(list(index), dtype=torch.long, device=self.shape.device)
        part: dict[str, Any] = {name: tensor[index] for name, tensor in self._tensors().items()}
        return replace(self, **part)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> FaceParameters:
        moved: dict[str, Any] = {
            name: tensor.to(device=device, dtype=dtype)
            for name, tensor in self._tensors().items()
            if name != "valid"
        }
        return replace(self, valid=self.valid.to(device=device), **moved)

    def expand(self, frames: int) -> FaceParameters:
        """Repeat a single frame."""
        if len(self) == frames:
            return self
        if len(self) != 1:
            raise InputError(f"Face parameters of {len(self)} frames cannot become {frames}: give one frame.")
        return self[[0] * frames]

    @staticmethod
    def concatenate(parts: Sequence[FaceParameters]) -> FaceParameters:
        """Join parts in time; all must belong to the same head. Beside others, parts without a confidence
        count as sure.
        """
        if not parts:
            raise InputError("There are no face parameters to join: give at least one.")
        for part in parts[1:]:
            parts[0].require_same_head(part, "the parts to join")
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS
        }
        if any(part.confidence is not None for part in parts):
            joined["confidence"] = torch.cat([part._known_confidence() for part in parts])
        return replace(parts[0], **joined)

    def interpolate(self, other: FaceParameters, weight: float | Tensor) -> FaceParameters:
        """Blend frame by frame: 0 gives self, 1 gives ``other``; rotations go along the shortest arc. A blend
        is as valid and as sure as the less valid and the less sure of the two.

        Args:
            weight: a number or (frames,).
        """
        from .rotation import slerp

        self.require_same_head(other, "the parameters to blend")
        weight = torch.as_tensor(weight, dtype=self.shape.dtype, device=self.shape.device).reshape(-1, 1)
        blended: dict[str, Any] = {
            name: torch.lerp(getattr(self, name), getattr(other, name), weight)
            for name in ("shape", "expression")
        }
        # Blending the scale in the logarithm zooms evenly; by x = s (x + t), s·t is what moves evenly.
        scale = torch.exp(torch.lerp(self.camera[:, :1].log(), other.camera[:, :1].log(), weight))
        shift = torch.lerp(
            self.camera[:, :1] * self.camera[:, 1:], other.camera[:, :1] * other.camera[:, 1:], weight
        )
        pose = slerp(
            self.pose.unflatten(1, (-1, 3)), other.pose.unflatten(1, (-1, 3)), weight[..., None]
        ).flatten(1)
        camera = torch.cat([scale, shift / scale], dim=1)
        return replace(self, **blended, pose=pose, camera=camera).no_surer_than(other)

    def no_surer_than(self, other: FaceParameters) -> FaceParameters:
        """The same frames, as valid and as sure as the less valid and the less sure of the two."""
        confidence = None
        if self.confidence is not None or other.confidence is not None:
            confidence = torch.minimum(self._known_confidence(), other._known_confidence())
        return replace(self, valid=self.valid & other.valid, confidence=confidence)

    def require_same_head(self, other: FaceParameters, what: str) -> None:
        sizes = [(each.shape.shape[1], each.expression.shape[1]) for each in (self, other)]
        if self.head == other.head and sizes[0] != sizes[1]:
            raise InputError(
                f"Mismatched heads: {what} have {sizes[0][0]} and {sizes[1][0]} shape, {sizes[0][1]} and "
                f"{sizes[1][1]} expression values; extract both with the same network."
            )
        if self.head != other.head:
            raise InputError(
                f"Mismatched heads: {what} belong to the heads '{self.head}' and '{other.head}'; "
                "extract both with the same head model."
            )

    def require_finite(self, what: str) -> FaceParameters:
        """Refuse NaN and infinity, naming the first bad frame."""
        for name, tensor in self._tensors().items():
            bad = ~torch.isfinite(tensor.unsqueeze(-1).flatten(1)).all(dim=1)
            if bad.any():
                frame = int(torch.nonzero(bad)[0])
                raise InputError(
                    f"{what} contains NaN or infinity in {name} at frame {frame}; "
                    "extract the parameters again."
                )
        return self

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write a file atomically: JSON where the name ends in .json, safetensors otherwise.

        Raises:
            InputError: there is NaN or infinity, which :meth:`load` would refuse.
        """
        path = Path(path)
        self.require_finite("The motion to save")
        if path.suffix.lower() != ".json":
            write_tensors(path, self._tensors(), self._header(metadata))
            return
        text = to_json(self._tensors(), {"format": FORMAT, "head": self.head, **(metadata or {})})
        with atomic_write(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def to_bytes(self, metadata: dict[str, str] | None = None) -> bytes:
        """The bytes of the file that :meth:`save` writes."""
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        return save_bytes(stored, self._header(metadata))

    @classmethod
    def load(cls, path: str | Path) -> FaceParameters:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        path = Path(path)
        what = f"'{path.name}'"
        try:
            if path.suffix.lower() == ".json":
                text = path.read_text(encoding="utf-8")
                return cls._of(*from_json(text, TENSORS, OPTIONAL), what)
            with safe_open(str(path), framework="pt") as file:
                names = set(file.keys())
                tensors = {name: file.get_tensor(name) for name in TENSORS + OPTIONAL if name in names}
                return cls._of(tensors, _header(file.metadata()), what)
        except (OSError, SafetensorError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{what} cannot be read as face parameters; the file is missing or damaged."
            ) from error

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> FaceParameters:
        """Read what :meth:`to_bytes` gave.

        Args:
            what: name of the data in messages.

        Raises:
            InputError: the data are damaged or something else.
        """
        try:
            tensors = load_bytes(data)
            header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return cls._of(tensors, _header(header.get("__metadata__")), what)
        except (SafetensorError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{what} cannot be read as face parameters; the data are damaged.") from error

    def _tensors(self) -> dict[str, Tensor]:
        everything = {name: getattr(self, name) for name in TENSORS + OPTIONAL}
        return {name: tensor for name, tensor in everything.items() if tensor is not None}

    def _known_confidence(self) -> Tensor:
        return torch.ones_like(self.shape[:, 0]) if self.confidence is None else self.confidence

    def _header(self, metadata: dict[str, str] | None) -> dict[str, str]:
        return {FORMAT: json.dumps({"format": FORMAT, "version": "1", "head": self.head, **(metadata or {})})}

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: Any, what: str) -> FaceParameters:
        known = isinstance(header, dict) and header.get("format") == FORMAT
        if not known or not set(TENSORS) <= tensors.keys():
            raise InputError(
                f"{what} holds no face parameters; choose a file written by Save Face Parameters."
            )
        try:
            parameters = {
                name: tensor.bool() if name == "valid" else tensor.float()
                for name, tensor in tensors.items()
                if name in TENSORS + OPTIONAL
            }
        except RuntimeError as error:  # of a type that PyTorch can store and not convert
            raise InputError(
                f"The face parameters in {what} are of no known type; save them again."
            ) from error
        if any(parameters[name].dim() != 2 for name in TENSORS[:-1]):
            raise InputError(f"The face parameters in {what} are not one row per frame; save them again.")
        found = cls(**parameters, head=str(header.get("head"))).require_finite(what)
        if not len(found):
            raise InputError(f"The face parameters in {what} are of no frame; save them again.")
        if found.confidence is not None and (found.confidence.clamp(0, 1) != found.confidence).any():
            raise InputError(f"The confidence in {what} is not from 0 to 1; save the parameters again.")
        return found


def _header(metadata: dict[str, str] | None) -> Any:
    """What a safetensors file says about its face parameters; None if it holds none."""
    return parse_json((metadata or {}).get(FORMAT, "null"))


assert {field.name for field in fields(FaceParameters)} == {*TENSORS, *OPTIONAL, "head"}
