"""Encoders and heads that users own: Load DECA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anifacediff_core.errors import InputError
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models

from .host.api import io
from .host.folders import BUNDLED, CHECKPOINTS, DECA, FLAME, file_names, file_path, head_names
from .loading import DEMO
from .sockets import FaceCaptureSocket, HeadSocket, make_schema

NONE = "none"


@dataclass(frozen=True)
class Source:
    """Where a file comes from and where it goes.

    Attributes:
        what: what it is, for people.
        file: its usual name.
        origin: who gives it out, and how.
        folder: below the host's models.
    """

    what: str
    file: str
    origin: str
    folder: str

    @property
    def missing(self) -> str:
        """The entry of the drop-down as long as there is no file."""
        return f"no file in models/{self.folder}"

    def get(self) -> str:
        return f"download {self.file} {self.origin} and put it into models/{self.folder}"


DECA_SOURCE = Source("DECA", "deca_model.tar", "from the DECA project's page (github.com/yfeng95/DECA)", DECA)
FLAME_SOURCE = Source("FLAME", "generic_model.pkl", "from flame.is.tue.mpg.de after registering there", FLAME)
SMIRK_SOURCE = Source(
    "SMIRK", "SMIRK_em1.pt", "from the SMIRK project's page (github.com/georgeretsi/smirk)", DECA
)


class LoadDECA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        encoders, heads = file_names(DECA), head_names()
        return make_schema(
            node_id="AniFaceDiffLoadDECA",
            stage="Models",
            display_name="Load DECA",
            description="Load the networks that read the faces of real people, and the head that they "
            "describe, from files that you own: DECA, FLAME and, if you like, SMIRK.",
            search_aliases=["flame", "smirk", "photograph", "real person"],
            inputs=[
                io.Combo.Input(
                    "deca",
                    options=[*(encoders or [DECA_SOURCE.missing]), NONE],
                    tooltip="deca_model.tar in models/deca. none: read everything with SMIRK, which tells no "
                    "texture and light.",
                ),
                io.Combo.Input(
                    "flame",
                    options=heads or [FLAME_SOURCE.missing],
                    tooltip="FLAME's generic_model.pkl in models/flame, or another release of FLAME. Use one "
                    "and the same in a workflow.",
                ),
                io.Combo.Input(
                    "smirk",
                    options=[NONE, *encoders],
                    default=NONE,
                    optional=True,
                    tooltip="SMIRK_em1.pt in models/deca. It reads expression and jaw better than DECA, "
                    "which then reads the rest.",
                ),
            ],
            outputs=[
                FaceCaptureSocket.Output(display_name="face_capture", tooltip="For DECA Extract."),
                HeadSocket.Output(display_name="head", tooltip="FLAME, for Render Normals."),
            ],
        )

    @classmethod
    def validate_inputs(cls, deca: str, flame: str, smirk: str = NONE) -> bool | str:
        try:
            _paths(deca, flame, smirk)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, deca: str, flame: str, smirk: str = NONE) -> io.NodeOutput:
        deca_path, flame_path, smirk_path = _paths(deca, flame, smirk)
        bundled = load_checkpoint(file_path(CHECKPOINTS, BUNDLED, bundled=DEMO))
        models = load_face_models(bundled, deca_path, smirk_path, flame_path)
        return io.NodeOutput(models, models.head)


def _paths(deca: str, flame: str, smirk: str) -> list[Path | None]:
    """The files of DECA, FLAME and SMIRK; None where none is wanted.

    Raises:
        InputError: one is missing, or there is neither DECA nor SMIRK.
    """
    if flame == NONE:
        raise InputError(f"There is no head: {FLAME_SOURCE.get()}.")
    if deca == smirk == NONE:
        raise InputError("There is no encoder: choose deca_model.tar as deca, or SMIRK_em1.pt as smirk.")
    chosen = ((DECA_SOURCE, deca), (FLAME_SOURCE, flame), (SMIRK_SOURCE, smirk))
    return [None if name == NONE else _path(source, name) for source, name in chosen]


def _path(source: Source, name: str) -> Path:
    try:
        return file_path(source.folder, name)
    except InputError as error:
        found = f"'{name}' is not there" if name != source.missing else "there is no file"
        raise InputError(f"{source.what} is missing, {found}: {source.get()}.") from error
