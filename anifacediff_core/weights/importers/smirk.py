"""SMIRK's SMIRK_em1.pt: of its two networks the encoder."""

from __future__ import annotations

from pathlib import Path

from anifacediff_core.capture.smirk import SmirkEncoder
from anifacediff_core.weights.fill import COUNTER, fill
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, take, weights_under
from anifacediff_core.weights.layout import module_layout
from anifacediff_core.weights.reading import open_tensors

FORMAT = "SMIRK"
PREFIX = "smirk_encoder."
MARK = "pose_encoder.encoder.conv_stem.weight"
REASONS = {r"smirk_generator\.": "draws faces: only for training SMIRK"}


def recognize(listing: Listing) -> Recognition | None:
    if PREFIX + MARK not in listing:
        return None
    layout = module_layout(SmirkEncoder)
    counters = [name for name in layout if name.endswith(COUNTER)]
    smirk = take(listing, layout, lambda name: PREFIX + name, format=FORMAT, absent=counters)
    left = leave(listing, {"smirk": smirk}, REASONS, own=r"smirk_encoder\.", format=FORMAT)
    return Recognition(listing.path, FORMAT, {"smirk": smirk}, left, {"n_expression": 50})


def load_smirk(path: str | Path) -> SmirkEncoder:
    """Read ``SMIRK_em1.pt``, or the encoder alone in a file of any kind that can be read safely.

    Returns:
        the encoder in evaluation mode.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    with open_tensors(path) as file:
        prefixes = (PREFIX, "smirk.", "")
        weights = weights_under(file, prefixes, (MARK,), "SMIRK", "smirk_encoder", "SMIRK_em1.pt")
    return fill(SmirkEncoder(), weights, f"'{Path(path).name}'").eval().requires_grad_(False)
