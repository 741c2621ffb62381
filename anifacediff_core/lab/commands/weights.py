"""The commands `inspect`, `convert` and `assemble`. What they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ..options import File, bar

Out = Annotated[Path, "safetensors file to write", {"names": ("-o", "--out")}]
Type = Annotated[Literal["float16", "bfloat16", "float32"], "type of the weights"]


def inspect(
    file: Annotated[Path, "weights of any format, or a folder of them"],
    /,
    all: Annotated[bool, "one line for each tensor as well"] = False,
) -> None:
    """Tell what a weight file is and what is in it."""
    from ..inspection import describe

    for line in describe(file, every=all):
        print(line)


def convert(
    file: Annotated[Path, "a weight file, or a folder with all files of a project"],
    /,
    out: Out,
    dtype: Type = "float16",
) -> None:
    """Write other projects' weights as an AniFaceDiff checkpoint, a FLAME file as a head."""
    import torch

    from ..assembly import convert as write

    print(write(file, out, dtype=getattr(torch, dtype), progress=bar("tensors")))


def assemble(
    *,
    unet: Annotated[
        File,
        "Stable Diffusion 1.5: one file, or diffusers' folder",
        {"names": ("--unet", "--checkpoint")},
    ] = None,
    motion: Annotated[File, "AnimateDiff's motion modules"] = None,
    image_encoder: Annotated[File, "CLIP ViT-L/14 with its projection"] = None,
    vae: Annotated[File, "an autoencoder in place of the one that comes with the UNet"] = None,
    reference: Annotated[File, "a ReferenceNet; a copy of the UNet when left out"] = None,
    pose_encoder: Annotated[File, "a pose encoder for normals; an untrained one when left out"] = None,
    expression_adapter: Annotated[
        File, "an IP-Adapter to begin keys and values with; untrained when left out"
    ] = None,
    init_from: Annotated[
        Path | None,
        "folder of MagicPortrait, Champ or Moore-AnimateAnyone, for what is not named otherwise",
        {"metavar": "FOLDER"},
    ] = None,
    head: Annotated[str, "whose expressions to read: flame, bundled, or a head's file"] = "flame",
    seed: Annotated[int, "of the untrained parts"] = 0,
    out: Out,
    dtype: Type = "float16",
) -> None:
    """Join public weights into a checkpoint from which training can start."""
    import torch

    from ..assembly import Ingredients
    from ..assembly import assemble as write

    ingredients = Ingredients(
        unet, motion, image_encoder, vae, reference, pose_encoder, expression_adapter, init_from
    )
    kind = getattr(torch, dtype)
    print(write(ingredients, out, head=head, dtype=kind, seed=seed, progress=bar("tensors")))
