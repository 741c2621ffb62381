"""What reads faces: a checkpoint's own networks with the bundled head, or DECA and SMIRK with FLAME."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from anifacediff_core.capture.detector import PortraitDetector
from anifacediff_core.capture.extract import CaptureModels, Models
from anifacediff_core.capture.flame import FlameModels
from anifacediff_core.capture.locate import FacesAtHand
from anifacediff_core.errors import InputError
from anifacediff_core.head.flame import EXPRESSIONS, NAME, SHAPES
from anifacediff_core.head.model import FORMAT, HeadModel
from anifacediff_core.weights.checkpoint import Checkpoint, bundled_checkpoint, load_checkpoint
from anifacediff_core.weights.importers.face_encoders import load_deca, load_smirk
from anifacediff_core.weights.importers.flame import load_flame
from anifacediff_core.weights.reading import open_tensors

DETECTOR, ENCODER = "face_detector", "face_encoder"


def load_face_models(
    checkpoint: Checkpoint,
    deca: str | Path | None = None,
    smirk: str | Path | None = None,
    flame: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Models:
    """Everything that `capture` needs, in evaluation mode.

    Args:
        checkpoint: without `flame`, its face detector and face encoder are taken.
        deca, smirk: encoders of FLAME's parameters, at least one of them beside `flame`.
        flame: the head, in a file of any format that `load_head` reads.

    Raises:
        InputError: a file is missing, damaged or something else, or the files don't belong together.
    """
    if (flame is None) != (deca is None and smirk is None):
        raise InputError("DECA and SMIRK need FLAME and FLAME needs one of them; name both files.")
    models: Models | None
    if flame is None:
        models = own_face_models(checkpoint, HeadModel.bundled())
        if models is None:
            raise InputError(
                f"{checkpoint.path.name} has no networks that read faces for the bundled head; give the "
                "files of DECA and FLAME, or use the bundled checkpoint."
            )
    else:
        head = load_head(flame)
        if (head.name, head.n_shape, head.n_expression) != (NAME, SHAPES, EXPRESSIONS):
            raise InputError(
                f"'{Path(flame).name}' is the head '{head.name}', not FLAME; choose FLAME's file, "
                "generic_model.pkl."
            )
        models = FlameModels(
            face_finder(checkpoint),
            head,
            None if deca is None else load_deca(deca),
            None if smirk is None else load_smirk(smirk),
        )
    return models.to(torch.device(device))


def own_face_models(checkpoint: Checkpoint, head: HeadModel) -> CaptureModels | None:
    """A checkpoint's own networks, on the head's device; None where it has none for this head."""
    if checkpoint.head != head.name or not {DETECTOR, ENCODER} <= set(checkpoint.parts):
        return None
    return CaptureModels.from_weights(checkpoint.part(DETECTOR), checkpoint.part(ENCODER), head)


def face_finder(checkpoint: Checkpoint) -> FacesAtHand:
    """The best face detector that is installed, or else the checkpoint's, or else the bundled one."""
    if DETECTOR not in checkpoint.parts:
        checkpoint = load_checkpoint(bundled_checkpoint())
    return FacesAtHand(PortraitDetector.from_weights(checkpoint.part(DETECTOR)))


def load_head(path: str | Path) -> HeadModel:
    """Read a head file of ours, or one of FLAME's as they are given out.

    Raises:
        InputError: the file is missing, damaged or hostile, or it is no head.
    """
    ours = Path(path).suffix == ".safetensors"
    if ours:  # or it has FLAME's fields
        with suppress(InputError), open_tensors(path) as file:
            ours = FORMAT in file.metadata or "v_template" not in file.infos
    return HeadModel.load(path) if ours else load_flame(path)
