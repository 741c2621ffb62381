"""DECA's deca_model.tar: of its three networks the coarse encoder, E_flame."""

from __future__ import annotations

from pathlib import Path

from anifacediff_core.capture.deca import DecaEncoder
from anifacediff_core.weights.fill import COUNTER, fill
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, take, weights_under
from anifacediff_core.weights.layout import module_layout
from anifacediff_core.weights.reading import open_tensors

FORMAT = "DECA"
PREFIX = "E_flame."
MARK = "encoder.conv1.weight"
REASONS = {
    r"E_detail\.": "encoder of wrinkles: not needed for pose and expression",
    r"D_detail\.": "decoder of wrinkles: not needed for pose and expression",
    r"(opt|optimizer|global_step|batch_size)": "only for training DECA",
}


def recognize(listing: Listing) -> Recognition | None:
    if PREFIX + MARK not in listing:
        return None
    layout = module_layout(DecaEncoder)
    counters = [name for name in layout if name.endswith(COUNTER)]
    deca = take(listing, layout, lambda name: PREFIX + name, format=FORMAT, absent=counters)
    left = leave(listing, {"deca": deca}, REASONS, own=r"E_flame\.", format=FORMAT)
    return Recognition(listing.path, FORMAT, {"deca": deca}, left, {"n_expression": 50})


def load_deca(path: str | Path) -> DecaEncoder:
    """Read ``deca_model.tar``, or the encoder alone in a file of any kind that can be read safely.

    Returns:
        the encoder in evaluation mode.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    with open_tensors(path) as file:
        marks = (MARK, "layers.2.weight")
        weights = weights_under(file, (PREFIX, "deca.", ""), marks, "DECA", "E_flame", "deca_model.tar")
    return fill(DecaEncoder(), weights, f"'{Path(path).name}'").eval().requires_grad_(False)
