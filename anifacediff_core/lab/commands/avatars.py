"""The commands `avatars gallery`, `clips`, `data` and `shards`. What they need is imported when they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from anifacediff_core.device import pick_device
from anifacediff_core.progress import Progress

from ..options import Device, Picture, Positive, Rate, Style, bar
from ..scale import Scale

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rendering:
    """The options that all of these commands have."""

    size: Annotated[Positive, "side in pixels"] = 256
    seed: Annotated[int, "of identities and motion"] = 0
    device: Device = "auto"

    def begin(self, count: int) -> tuple[Any, Any, Any, torch.Generator]:
        """Studio, head, so many identities, and what the motion is drawn with."""
        import torch

        from anifacediff_core.head.model import HeadModel

        from ..avatars.identity import Identity
        from ..avatars.studio import Studio

        head = HeadModel.bundled().to(pick_device(self.device))
        generator = torch.Generator().manual_seed(self.seed)
        identities = Identity.random(count, generator, head)
        return Studio(head), head, identities, generator


def gallery(
    out: Annotated[Picture, "png or jpg"],
    rendering: Rendering,
    rows: Annotated[Positive, "of the sheet"] = 4,
    columns: Annotated[Positive, "of the sheet"] = 6,
    variety: Annotated[float, "share of the avatars that look unlike the others, as in training"] = 0.0,
    style: Annotated[Style, "of the pictures, of each avatar another one of the family"] = "plain",
) -> None:
    """A sheet of different avatars."""
    import torch
    from einops import rearrange

    from anifacediff_core.video import write_image

    from ..avatars.poses import random_frames
    from ..avatars.styles import stylize
    from ..avatars.variety import wander, widen

    studio, head, identities, generator = rendering.begin(rows * columns)
    params = random_frames(len(identities), generator, head)
    if variety:
        identities = widen(identities, variety, generator, head)
        params = replace(wander(params, 1, variety, generator, head), shape=identities.shape)
    pictures = torch.cat(list(_render(studio, identities, params, rendering.size, bar("avatars"))))
    own = torch.Generator(pictures.device).manual_seed(rendering.seed)
    pictures = stylize(pictures[:, None], style, own)[:, 0]
    write_image(out, rearrange(pictures, "(y x) c h w -> c (y h) (x w)", x=columns))


def clips(
    out: Annotated[Path, "folder for mp4 files and their parameters"],
    rendering: Rendering,
    count: Annotated[Positive, "number of clips"] = 2,
    frames: Annotated[Positive, "frames of each"] = 48,
    fps: Annotated[Rate, "frame rate"] = Fraction(24),
) -> None:
    """Videos of moving avatars."""
    from anifacediff_core.video import VideoWriter

    from ..avatars.tracks import random_tracks

    studio, head, identities, generator = rendering.begin(count)
    tracks = random_tracks(count, frames, float(fps), generator, head)
    for clip in range(count):
        identity = identities[clip].repeat_interleave(frames)
        params = replace(tracks[clip * frames : (clip + 1) * frames], shape=identity.shape)
        with VideoWriter(out / f"clip_{clip:04d}.mp4", fps) as video:
            for pictures in _render(studio, identity, params, rendering.size, bar(f"clip {clip + 1}")):
                video.write(pictures)
        params.to("cpu").save(out / f"clip_{clip:04d}.safetensors")


def data(
    out: Annotated[Path, "folder"],
    rendering: Rendering,
    count: Annotated[Positive, "number of avatars"] = 16,
    frames: Annotated[Positive, "pictures of each"] = 4,
) -> None:
    """Pictures, normals and parameters of random avatars."""
    from anifacediff_core.head.render import render_normals as draw
    from anifacediff_core.video import write_image

    from ..avatars.poses import random_frames

    studio, head, identities, generator = rendering.begin(count)
    identities = identities.repeat_interleave(frames)
    params = replace(random_frames(len(identities), generator, head), shape=identities.shape)
    normals = draw(head, params, rendering.size, progress=bar("normals"))
    index = 0
    for pictures in _render(studio, identities, params, rendering.size, bar("avatars")):
        for picture in pictures:
            name = f"{index // frames:05d}_{index % frames:02d}"
            write_image(out / f"{name}.png", picture)
            write_image(out / f"{name}_normals.png", normals[index])
            index += 1
    params.to("cpu").save(out / "parameters.safetensors")
    names = {"head": head.name, "expression": head.expression_names, "frames_per_avatar": frames}
    (out / "data.json").write_text(json.dumps(names, indent=1))


def shards(
    out: Annotated[Path, "folder for the shards"],
    rendering: Rendering,
    count: Annotated[Positive, "number of avatars"],
    frames: Annotated[Positive, "frames of each"] = 96,
    fps: Annotated[Rate, "frame rate; 1 gives frames that differ"] = Fraction(24),
    normals: Annotated[bool, "store normals, too"] = False,
    *,
    scale: Scale,
) -> None:
    """Shards of moving avatars, for training."""
    from ..training.avatar_shards import AvatarShardsConfig, prepare_avatars

    config = AvatarShardsConfig(count, frames, str(fps), rendering.size, seed=rendering.seed, normals=normals)
    made = prepare_avatars(out, config, rendering.device, scale, progress=bar("chunks"))
    print(f"{out}: {made} shards.")


def _render(
    studio: Any, identities: Any, params: Any, size: int, progress: Progress
) -> Iterator[torch.Tensor]:
    """Pictures in batches, on the CPU."""
    params = replace(params, shape=identities.shape.to(params.shape))
    for start in range(0, len(params), 8):
        part = slice(start, start + 8)
        yield studio.render(identities[part], params[part], size=size).cpu()
        progress(min(start + 8, len(params)), len(params))
