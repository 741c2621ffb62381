"""Save Video As in the host: masks, sound, what the front-end shows, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anifacediff_core.provenance.detect import detect
from anifacediff_core.provenance.export import FORMS
from anifacediff_core.provenance.label import Label, put_label
from anifacediff_core.video import numbered_pictures, probe, read_image, to_pixels, to_tensor
from harness.extension import Extension
from harness.server import EXAMPLES

SIDE, FRAMES = 256, 4
SETTINGS = {"fps": 29.97, "filename_prefix": "forms/a", "crf": 18, "mark": True}


@pytest.fixture(scope="module")
def image() -> Tensor:
    return read_image(EXAMPLES / "source.png").movedim(1, -1).repeat(FRAMES, 1, 1, 1)


def pictures(extension: Extension, name: str) -> Tensor:
    """The frames of a folder (frames, channels, height, width) in [0, 1]."""
    found = [Image.open(path) for path in numbered_pictures(extension.base / "output" / name)]
    return torch.stack([to_tensor(np.asarray(picture)) for picture in found])


@pytest.mark.parametrize("form", FORMS)
def test_every_form(extension: Extension, image: Tensor, form: str) -> None:
    sound = {"waveform": torch.rand(1, 2, 8000) - 0.5, "sample_rate": 44100}
    output = extension.output("SaveVideoAs", image=image, format=form, audio=sound, **SETTINGS)
    name, report = output.result
    path = extension.base / "output" / name
    assert path.suffix == FORMS[form].suffix and path.exists()
    assert report.startswith(f"{name}: {FRAMES} frames, 30000/1001 fps, without transparency")
    shown = output.ui.as_dict()
    if form == "prores":
        assert name in shown["text"][0]
    else:
        (entry,) = shown["images"]
        assert (extension.base / "output" / entry["subfolder"] / entry["filename"]).is_file()
    if FORMS[form].sound is not None:
        info = probe(path)
        assert info.has_audio and info.rate == pytest.approx(Fraction(30000, 1001), rel=1e-3)
    assert not list(path.parent.glob(".*")), "nothing else is left"


def test_a_mask_is_what_shows(extension: Extension, image: Tensor) -> None:
    mask = torch.zeros(1, SIDE // 2, SIDE // 2)  # of any size
    mask[:, :, : SIDE // 4] = 1
    name, report = extension.run(
        "SaveVideoAs", image=image, format="png", mask=mask, **SETTINGS | {"mark": False}
    )
    found = pictures(extension, name)
    assert found.shape == (FRAMES, 4, SIDE, SIDE) and "with transparency" in report
    assert (found[:, 3, :, : SIDE // 2 - 2] == 1).all() and (found[:, 3, :, SIDE // 2 + 2 :] == 0).all()
    assert torch.equal(found[:, :3], torch.stack([to_tensor(to_pixels(f)) for f in image.movedim(-1, 1)]))


def test_masks_of_every_frame_and_alpha_of_the_frames(extension: Extension, image: Tensor) -> None:
    masks = torch.linspace(0, 1, FRAMES)[:, None, None].expand(-1, SIDE, SIDE)
    given = {"format": "png", **SETTINGS, "mark": False}
    name, _ = extension.run("SaveVideoAs", image=image, mask=masks, **given)
    assert torch.allclose(pictures(extension, name)[:, 3], masks, atol=1 / 255)
    clear = torch.cat([image, masks[..., None]], dim=-1)
    name, _ = extension.run("SaveVideoAs", image=clear, **given)
    found = pictures(extension, name)
    assert torch.allclose(found[:, 3], masks, atol=1 / 255)
    assert (found[:, :3] - image.movedim(-1, 1)).abs().max() < 1 / 255, "colors stay behind alpha"


def test_the_mark_is_put_in_once_it_is_wanted(extension: Extension, image: Tensor) -> None:
    for wanted in (True, False):
        given = SETTINGS | {"mark": wanted}
        name, _ = extension.run("SaveVideoAs", image=image, format="png", **given)
        assert detect(pictures(extension, name).split(1)).found == wanted


def test_the_label_can_be_seen_where_all_is_transparent(extension: Extension, image: Tensor) -> None:
    given = {**SETTINGS, "format": "png", "mark": False, "mask": torch.zeros(1, 8, 8)}
    name, _ = extension.run("SaveVideoAs", image=image, label="AI GENERATED", **given)
    found = pictures(extension, name)
    clear = torch.cat([image.movedim(-1, 1), torch.zeros(FRAMES, 1, SIDE, SIDE)], dim=1)
    labeled = put_label(clear, Label("AI GENERATED"))
    assert (found - labeled).abs().max() < 1 / 255 and found[:, 3].max() == 1


def test_label_synthetic_video_is_the_librarys(extension: Extension, image: Tensor) -> None:
    words = {"words": "AI MODIFIED", "place": "top left", "size": 0.1}
    frames, label = image.movedim(-1, 1), Label("AI MODIFIED", "top left", 0.1)
    (found,) = extension.run("Label", image=image, seconds=0.0, **words)
    assert torch.equal(found.movedim(-1, 1), put_label(frames, label))
    (found,) = extension.run("Label", image=image, seconds=0.1, fps=20.0, **words)
    assert torch.equal(found.movedim(-1, 1), put_label(frames, label, 2))
    clear = torch.cat([image, torch.zeros_like(image[..., :1])], dim=-1)
    (found,) = extension.run("Label", image=clear, seconds=0.0, **words)
    assert found.shape == clear.shape and found[..., 3].max() == 1
    (found,) = extension.run("Label", image=image[..., :1], seconds=0.0, **words)
    assert found.shape == image.shape
    assert "size" in extension.refusal("Label", image=image, seconds=0.0, **words | {"size": 0.0})


def test_cancelling_leaves_nothing(
    comfy: ModuleType, extension: Extension, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(*_: Any, **__: Any) -> None:
        comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    for form in FORMS:
        given = SETTINGS | {"filename_prefix": f"cancelled/{form}"}
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            extension.run("SaveVideoAs", image=image, format=form, **given)
    assert not [path for path in Path(extension.base / "output" / "cancelled").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "mp4", "mask": torch.ones(1, 8, 8)}, "An mp4 cannot be transparent"),
        ({"mask": torch.ones(3, 8, 8)}, "There are 3 masks for 4 frames"),
        ({"mask": torch.full((1, 8, 8), float("nan"))}, "The mask has no pixels, or NaN"),
        ({"image": torch.ones(1, 64, 64, 3)}, "a mark needs at least 128"),
        ({"image": torch.ones(0, 64, 64, 3)}, "no frames"),
        ({"filename_prefix": "../outside"}, "outside"),
        ({"format": "avi"}, "format"),
    ],
)
def test_refusals(extension: Extension, image: Tensor, change: dict[str, Any], words: str) -> None:
    given = {"image": image, "format": "webm", **SETTINGS, **change}
    assert words in extension.refusal("SaveVideoAs", **given)
