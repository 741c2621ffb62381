"""DECA's deca_model.tar: of its three networks the coarse encoder, E_flame."""

from __future__ import annotations

from anifacediff_core.capture.deca import COUNTER, PREFIX, DecaEncoder
from anifacediff_core.weights.importers.recognition import Listing, Recognition, leave, take
from anifacediff_core.weights.layout import module_layout

FORMAT = "DECA"
REASONS = {
    r"E_detail\.": "encoder of wrinkles: not needed for pose and expression",
    r"D_detail\.": "decoder of wrinkles: not needed for pose and expression",
    r"(opt|optimizer|global_step|batch_size)": "only for training DECA",
}


def recognize(listing: Listing) -> Recognition | None:
    if f"{PREFIX}encoder.conv1.weight" not in listing:
        return None
    layout = module_layout(DecaEncoder)
    counters = [name for name in layout if name.endswith(COUNTER)]
    deca = take(listing, layout, lambda name: PREFIX + name, format=FORMAT, absent=counters)
    left = leave(listing, {"deca": deca}, REASONS, own=r"E_flame\.", format=FORMAT)
    return Recognition(listing.path, FORMAT, {"deca": deca}, left, {"n_expression": 50})
