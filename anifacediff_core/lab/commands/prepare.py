"""The commands that make shards: `prepare` and `avatars shards`. What they need is imported when they run."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..options import (
    add_checkpoint,
    add_command,
    add_device,
    add_face_files,
    bar,
    checkpoint_path,
    face_files,
    positive,
    rate,
)
from ..scale import add_scale, scale_of
from .avatars import add_kind


def add_prepare(commands: Any) -> None:
    parser = add_command(
        commands,
        "prepare",
        prepare,
        "turn videos of faces into shards for training; the same command goes on after an interruption",
    )
    parser.add_argument(
        "--videos", type=Path, required=True, help="folder with videos or folders of pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--size", type=positive, default=256, help="side of the pictures in pixels")
    parser.add_argument("--picture", choices=("jpg", "png"), default="jpg", help="how they are stored")
    parser.add_argument("--quality", type=positive, default=95, help="of JPEG")
    parser.add_argument("--normals", action="store_true", help="store normals, too, instead of drawing them")
    parser.add_argument(
        "--mode",
        choices=("auto", "portrait", "whole"),
        default="auto",
        help="cut out the portrait, take the whole picture, or decide by the size of the face",
    )
    parser.add_argument("--fps", type=rate, default=Fraction(25), help="of folders of pictures")
    parser.add_argument(
        "--identity",
        metavar="EXPRESSION",
        help="regular expression that finds the identity in a clip's path below the folder; by default "
        "VoxCeleb's names, then the folder that the clip is in, then its name",
    )
    parser.add_argument(
        "--shares", type=float, nargs=3, default=(0.9, 0.05, 0.05), metavar=("TRAIN", "VAL", "TEST"),
        help="how identities are divided",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-split-folders", action="store_true", help="divide also what lies in train, val and test"
    )
    parser.add_argument("--chunk", type=positive, default=16, help="clips that a worker takes at a time")
    add_face_files(parser, "for real people")
    add_checkpoint(parser)
    add_device(parser)
    add_scale(parser)


def add_avatar_shards(kinds: Any) -> None:
    """Add to the kinds of `avatars`."""
    shards = add_kind(
        kinds, "shards", avatar_shards, "shards of moving avatars, for training", "folder for the shards"
    )
    shards.add_argument("--count", type=positive, required=True, help="number of avatars")
    shards.add_argument("--frames", type=positive, default=96, help="frames of each")
    shards.add_argument(
        "--fps", type=rate, default=Fraction(24), help="frame rate; 1 gives frames that differ"
    )
    shards.add_argument("--normals", action="store_true", help="store normals, too")
    add_scale(shards)


# ---- commands


def prepare(options: argparse.Namespace) -> None:
    from ..training.clips import Recipe
    from ..training.prepare import Encoders, describe
    from ..training.prepare import prepare as write
    from ..training.shard_chunks import Shares

    encoders = Encoders(
        str(checkpoint_path(options).resolve()),
        **{name: str(path) for name, path in face_files(options).items()},
        device=options.device,
    )
    recipe = Recipe(
        size=options.size,
        picture=options.picture,
        quality=options.quality,
        normals=options.normals,
        mode=options.mode,
        fps=str(options.fps),
        identity=options.identity,
        split_folders=not options.ignore_split_folders,
        shares=Shares(*options.shares),
        chunk=options.chunk,
    )
    done = write(options.videos, options.out, encoders, recipe, scale_of(options), progress=bar("clips"))
    for line in describe(done, options.out):
        print(line)


def avatar_shards(options: argparse.Namespace) -> None:
    from ..training.avatar_shards import AvatarRecipe, prepare_avatars

    recipe = AvatarRecipe(
        count=options.count,
        frames=options.frames,
        fps=str(options.fps),
        size=options.size,
        seed=options.seed,
        normals=options.normals,
    )
    scale = scale_of(options)
    count = prepare_avatars(options.out, recipe, options.device, scale, progress=bar("chunks"))
    print(f"{options.out}: {count} shards.")
