"""SMIRK's SMIRK_em1.pt: of its two networks the encoder."""

from __future__ import annotations

from anifacediff_core.capture.deca import COUNTER
from anifacediff_core.capture.smirk import PREFIX, SmirkEncoder
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, take
from anifacediff_core.weights.layout import module_layout

FORMAT = "SMIRK"
REASONS = {r"smirk_generator\.": "draws faces: only for training SMIRK"}


def recognize(listing: Listing) -> Recognition | None:
    if f"{PREFIX}pose_encoder.encoder.conv_stem.weight" not in listing:
        return None
    layout = module_layout(SmirkEncoder)
    counters = [name for name in layout if name.endswith(COUNTER)]
    smirk = take(listing, layout, lambda name: PREFIX + name, format=FORMAT, absent=counters)
    left = leave(listing, {"smirk": smirk}, REASONS, own=r"smirk_encoder\.", format=FORMAT)
    return Recognition(listing.path, FORMAT, {"smirk": smirk}, left, {"n_expression": 50})
