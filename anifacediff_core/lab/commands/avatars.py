"""The commands `avatars gallery`, `clips` and `data`. What they need is imported when they run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anifacediff_core.device import pick_device
from anifacediff_core.progress import Progress

from ..options import PICTURE, add_command, add_device, bar, file_name, positive, rate

if TYPE_CHECKING:
    import torch


def add_avatars(commands: Any) -> Any:
    """Returns the group, for kinds that other packages add to it."""
    group = commands.add_parser(
        "avatars", help="render avatars", description="Render avatars with the studio."
    )
    kinds = group.add_subparsers(title="kinds", required=True, metavar="kind")

    gallery = add_kind(
        kinds, "gallery", avatar_gallery, "a sheet of different avatars", "png or jpg", file_name(*PICTURE)
    )
    gallery.add_argument("--rows", type=positive, default=4)
    gallery.add_argument("--columns", type=positive, default=6)
    clips = add_kind(
        kinds, "clips", avatar_clips, "videos of moving avatars", "folder for mp4 files and their parameters"
    )
    clips.add_argument("--count", type=positive, default=2, help="number of clips")
    clips.add_argument("--frames", type=positive, default=48, help="frames of each")
    clips.add_argument("--fps", type=rate, default=Fraction(24), help="frame rate")
    data = add_kind(
        kinds, "data", avatar_data, "pictures, normals and parameters of random avatars", "folder"
    )
    data.add_argument("--count", type=positive, default=16, help="number of avatars")
    data.add_argument("--frames", type=positive, default=4, help="pictures of each")
    return kinds


def add_kind(
    kinds: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    text: str,
    out: str,
    path: Callable[[str], Path] = Path,
) -> argparse.ArgumentParser:
    """A command of the group with the options that all of them have.

    Args:
        out, path: help and type of the option --out.
    """
    parser = add_command(kinds, name, run, text)
    parser.add_argument("--out", type=path, required=True, help=out)
    parser.add_argument("--size", type=positive, default=256, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of identities and motion")
    add_device(parser)
    return parser


def avatar_gallery(options: argparse.Namespace) -> None:
    import torch
    from einops import rearrange

    from anifacediff_core.video import write_image

    from ..avatars.poses import random_frames

    studio, head, identities, generator = _studio(options, options.rows * options.columns)
    params = random_frames(len(identities), generator, head)
    pictures = torch.cat(list(_render(studio, identities, params, options.size, bar("avatars"))))
    write_image(options.out, rearrange(pictures, "(y x) c h w -> c (y h) (x w)", x=options.columns))


def avatar_clips(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from anifacediff_core.video import VideoWriter

    from ..avatars.tracks import random_tracks

    studio, head, identities, generator = _studio(options, options.count)
    tracks = random_tracks(options.count, options.frames, float(options.fps), generator, head)
    for clip in range(options.count):
        identity = identities[clip].repeat_interleave(options.frames)
        params = tracks[clip * options.frames : (clip + 1) * options.frames]
        params = replace(params, shape=identity.shape)
        with VideoWriter(options.out / f"clip_{clip:04d}.mp4", options.fps) as video:
            for pictures in _render(studio, identity, params, options.size, bar(f"clip {clip + 1}")):
                video.write(pictures)
        params.to("cpu").save(options.out / f"clip_{clip:04d}.safetensors")


def avatar_data(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from anifacediff_core.head.render import render_normals as draw
    from anifacediff_core.video import write_image

    from ..avatars.poses import random_frames

    studio, head, identities, generator = _studio(options, options.count)
    identities = identities.repeat_interleave(options.frames)
    params = replace(random_frames(len(identities), generator, head), shape=identities.shape)
    normals = draw(head, params, options.size, progress=bar("normals"))
    index = 0
    for pictures in _render(studio, identities, params, options.size, bar("avatars")):
        for picture in pictures:
            name = f"{index // options.frames:05d}_{index % options.frames:02d}"
            write_image(options.out / f"{name}.png", picture)
            write_image(options.out / f"{name}_normals.png", normals[index])
            index += 1
    params.to("cpu").save(options.out / "parameters.safetensors")
    names = {"head": head.name, "expression": head.expression_names, "frames_per_avatar": options.frames}
    (options.out / "data.json").write_text(json.dumps(names, indent=1))


def _studio(options: argparse.Namespace, count: int) -> tuple[Any, Any, Any, torch.Generator]:
    import torch

    from anifacediff_core.head.model import HeadModel

    from ..avatars.identity import Identity
    from ..avatars.studio import Studio

    head = HeadModel.bundled().to(pick_device(options.device))
    generator = torch.Generator().manual_seed(options.seed)
    identities = Identity.random(count, generator, head)
    return Studio(head), head, identities, generator


def _render(
    studio: Any, identities: Any, params: Any, size: int, progress: Progress
) -> Iterator[torch.Tensor]:
    """Pictures in batches, on the CPU."""
    from dataclasses import replace

    params = replace(params, shape=identities.shape.to(params.shape))
    for start in range(0, len(params), 8):
        part = slice(start, start + 8)
        yield studio.render(identities[part], params[part], size=size).cpu()
        progress(min(start + 8, len(params)), len(params))
