"""Styles: one look for all frames of a row, another for each row, motion kept."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from anifacediff_core.errors import InputError
from anifacediff_core.lab.avatars.styles import (
    FAMILIES,
    HELD_OUT,
    StyleShares,
    degrade,
    stylize,
    stylize_rows,
)

STYLED = [name for name in FAMILIES | HELD_OUT if name != "plain"]


def pictures(rows: int = 2, size: int = 64) -> torch.Tensor:
    """(rows, 2, 3, size, size): a smooth pattern, and in the second frame the same 8 pixels further right."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(1, 3, size // 8, size // 8 + 1, generator=generator)
    wide = torch.nn.functional.interpolate(wide, scale_factor=8, mode="bicubic").clamp(0, 1)
    frames = torch.stack([wide[..., 8:], wide[..., :-8]], dim=1)
    return frames.expand(rows, -1, -1, -1, -1).contiguous()


@pytest.mark.parametrize("family", STYLED)
def test_rows_differ_and_frames_of_a_row_do_not(family: str) -> None:
    images = pictures(rows=3)
    styled = stylize(images, family, torch.Generator().manual_seed(5))
    assert styled.shape == images.shape and torch.isfinite(styled).all()
    assert styled.amin() >= 0 and styled.amax() <= 1
    assert (styled - images).abs().mean() > 0.002
    assert (styled[0] - styled[1]).abs().max() > 0.01
    if family == "filtered":  # the spectrum is the whole frame's
        return
    inner = slice(16, -16)
    first = styled[:, 0, :, inner, 16:32]
    moved = styled[:, 1, :, inner, 24:40]
    assert torch.allclose(first, moved, atol=2e-3), "what moves keeps its look"


def test_nothing_is_trained_on_what_is_held_out() -> None:
    assert not set(HELD_OUT) & set(FAMILIES)
    assert {field.name for field in fields(StyleShares)} == set(FAMILIES)


def test_a_style_follows_from_the_seed() -> None:
    images = pictures()
    one, same, other = (
        stylize_rows(images, StyleShares(plain=0, convolved=1, drawn=1), torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_shares_say_how_often_a_family_occurs() -> None:
    images = pictures(rows=200, size=16)
    assert stylize_rows(images, StyleShares(), torch.Generator()) is images
    shares = StyleShares(plain=1, graded=1)
    styled = stylize_rows(images, shares, torch.Generator().manual_seed(1))
    kept = int((styled == images).flatten(1).all(1).sum())
    assert 70 <= kept <= 130
    with pytest.raises(InputError, match="shares of the styles"):
        StyleShares(plain=0)
    with pytest.raises(InputError, match="shares of the styles"):
        StyleShares(drawn=-1)


def test_degraded_sources_still_show_the_same() -> None:
    images = pictures(rows=8)[:, 0]
    worse = degrade(images, torch.Generator().manual_seed(2))
    assert worse.shape == images.shape and worse.amin() >= 0 and worse.amax() <= 1
    difference = (worse - images).abs().mean((1, 2, 3))
    assert difference.max() > 0.005 and difference.max() < 0.1
