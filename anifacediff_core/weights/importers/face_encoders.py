"""Encoders of FLAME's parameters: the coarse one of DECA's deca_model.tar, that of SMIRK's SMIRK_em1.pt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from anifacediff_core.capture.deca import DecaEncoder
from anifacediff_core.capture.smirk import SmirkEncoder
from anifacediff_core.errors import InputError
from anifacediff_core.weights.fill import COUNTER, fill
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, take
from anifacediff_core.weights.layout import module_layout
from anifacediff_core.weights.reading import open_tensors

Encoder = TypeVar("Encoder", bound=nn.Module)


@dataclass(frozen=True)
class EncoderFile(Generic[Encoder]):
    """A project's file with such an encoder.

    Attributes:
        name: what people call the project; in lower case, the part of a checkpoint.
        usual: name of its file.
        network: what the encoder is called there, and so the prefix of its tensors.
        marks: tensors that only this encoder has.
        reasons: why others of the file are left.
    """

    name: str
    make: Callable[[], Encoder]
    usual: str
    network: str
    marks: tuple[str, ...]
    reasons: dict[str, str]

    def recognize(self, listing: Listing) -> Recognition | None:
        prefix, part = f"{self.network}.", self.name.lower()
        if prefix + self.marks[0] not in listing:
            return None
        layout = module_layout(self.make)
        counters = [name for name in layout if name.endswith(COUNTER)]
        origins = {part: take(listing, layout, prefix.__add__, format=self.name, absent=counters)}
        left = leave(listing, origins, self.reasons, own=rf"{self.network}\.", format=self.name)
        return Recognition(listing.path, self.name, origins, left, {"n_expression": 50})

    def load(self, path: str | Path) -> Encoder:
        """The encoder in evaluation mode, from that file, or alone in one of any kind that is read safely.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        with open_tensors(path) as file:
            for prefix in (f"{self.network}.", f"{self.name.lower()}.", ""):
                if all(f"{prefix}{mark}" in file.infos for mark in self.marks):
                    own = [name for name in file.infos if name.startswith(prefix)]
                    weights = {name[len(prefix) :]: file.read(name) for name in own}
                    break
            else:
                raise InputError(
                    f"'{file.path.name}' is not {self.name}: expected the encoder {self.network}, found "
                    f"{min(file.infos, default='no tensor')}; choose {self.usual}."
                )
        return fill(self.make(), weights, f"'{Path(path).name}'").eval().requires_grad_(False)


DECA = EncoderFile(
    "DECA",
    DecaEncoder,
    "deca_model.tar",
    "E_flame",
    ("encoder.conv1.weight", "layers.2.weight"),
    {
        r"E_detail\.": "encoder of wrinkles: not needed for pose and expression",
        r"D_detail\.": "decoder of wrinkles: not needed for pose and expression",
        r"(opt|optimizer|global_step|batch_size)": "only for training DECA",
    },
)
SMIRK = EncoderFile(
    "SMIRK",
    SmirkEncoder,
    "SMIRK_em1.pt",
    "smirk_encoder",
    ("pose_encoder.encoder.conv_stem.weight",),
    {r"smirk_generator\.": "draws faces: only for training SMIRK"},
)
load_deca, load_smirk = DECA.load, SMIRK.load
