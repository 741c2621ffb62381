"""Previews have the colors of the video, also where the latents are not Stable Diffusion's."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from anifacediff_core.video import read_image
from harness.extension import Extension
from harness.server import EXAMPLES


@pytest.fixture(scope="module")
def bundled(extension: Extension) -> dict[str, object]:
    return dict(zip(("model", "vae"), extension.run("Loader", checkpoint="bundled")[:2], strict=True))


def test_a_preview_looks_like_its_picture(comfy: ModuleType, bundled: dict) -> None:
    import latent_preview

    picture = read_image(EXAMPLES / "scene.jpg")[..., 120:376, 380:636].movedim(1, -1)
    model, latents = bundled["model"].model, bundled["vae"].encode(picture)
    previewer = latent_preview.Latent2RGBPreviewer(
        model.latent_format.latent_rgb_factors, model.latent_format.latent_rgb_factors_bias
    )
    shown = previewer.decode_latent_to_preview(model.latent_format.process_in(latents))
    shown = torch.from_numpy(np.asarray(shown)).float().div(255).movedim(-1, 0)[None]
    truth = torch.nn.functional.interpolate(picture.movedim(-1, 1), shown.shape[-2:], mode="area")
    assert (shown - truth).abs().mean() < 0.06


def test_the_hosts_own_models_keep_their_colors(comfy: ModuleType, bundled: dict) -> None:
    own = comfy.latent_formats.SD15()
    assert (
        own.taesd_decoder_name
        and own.latent_rgb_factors != bundled["model"].model.latent_format.latent_rgb_factors
    )
