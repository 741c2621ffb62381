"""The bundled examples: a source picture, a driving clip with sound, and a silent one of a head that turns,
of three different avatars.

And the source once more in a larger picture, to paste its portrait back into; and three more avatars in one
picture.

Made by ``python -m anifacediff_core.lab.avatars.examples --out anifacediff_core/assets/examples``, with the
sound of the clip that is there.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch

import anifacediff_core
from anifacediff_core.head import rotation
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.video import VideoWriter, write_image

from .identity import Identity
from .poses import SCALE, SHIFT_Y
from .studio import Studio
from .tracks import perform

SHIPPED = Path(anifacediff_core.__file__).parent / "assets" / "examples" / "driving.mp4"
SIZE, FRAMES, RATE = 256, 48, Fraction(24)
SOURCE = 116  # seeds chosen by eye
TALKING, TURNING = (118, 35686), (140, 332)  # avatar, performance
SUPERSAMPLE = 3
SCENE_WIDTH, SCENE_HEIGHT, SCENE_TOP = 768, 512, 120
SCENE_CAMERA = (2.4, 0.08, 0.05)
# Avatar, camera and turn of the head in the picture of a group, from back to front.
GROUP = (
    (200, (2.1, -0.25, 0.0), 0.12),
    (204, (2.2, 0.235, 0.0), -0.2),
    (215, (2.5, -0.01, 0.055), 0.0),
)
FRIENDLY = {
    "mouthSmileLeft": 0.62, "mouthSmileRight": 0.58, "mouthDimpleLeft": 0.2, "mouthDimpleRight": 0.2,
    "cheekSquintLeft": 0.35, "cheekSquintRight": 0.35, "browInnerUp": 0.25, "browOuterUpLeft": 0.15,
    "browOuterUpRight": 0.15,
}  # fmt: skip


def make_source(head: HeadModel, studio: Studio) -> torch.Tensor:
    """The friendly source avatar, looking at the camera: (3, size, size)."""
    return _take_picture(head, studio, torch.tensor([[SCALE, 0.0, sum(SHIFT_Y) / 2]]), SIZE)


def make_scene(head: HeadModel, studio: Studio) -> torch.Tensor:
    """The same avatar, smaller and to the right in a wide picture: (3, SCENE_HEIGHT, SCENE_WIDTH)."""
    picture = _take_picture(head, studio, torch.tensor([SCENE_CAMERA]), SCENE_WIDTH)
    return picture[:, SCENE_TOP : SCENE_TOP + SCENE_HEIGHT]


def make_group(head: HeadModel, studio: Studio) -> torch.Tensor:
    """Three avatars, the middle one in front of the others: (3, SCENE_HEIGHT, SCENE_WIDTH)."""
    avatars = [Identity.random(1, torch.Generator().manual_seed(seed), head) for seed, *_ in GROUP]
    behind = avatars[0].backdrop
    # what lies behind shows in how far two pictures before different grounds differ
    grounds = [
        replace(behind, light=shade, deep=shade, accent=shade)
        for shade in (torch.ones_like(behind.light), torch.zeros_like(behind.light))
    ]
    result = torch.zeros(3, SCENE_WIDTH, SCENE_WIDTH)
    for number, (identity, (_, camera, turn)) in enumerate(zip(avatars, GROUP, strict=True)):
        light, dark, whole = (
            _take_picture(
                head, studio, torch.tensor([camera]), SCENE_WIDTH, replace(identity, backdrop=ground), turn
            )
            for ground in (*grounds, behind)
        )
        empty = (light - dark).mean(0).div(float((light - dark).max())).clamp(0, 1)
        result = dark + empty * result if number else whole
    return result[:, SCENE_TOP : SCENE_TOP + SCENE_HEIGHT]


def _take_picture(
    head: HeadModel,
    studio: Studio,
    camera: torch.Tensor,
    size: int,
    identity: Identity | None = None,
    turn: float = 0.0,
) -> torch.Tensor:
    """A friendly avatar, by default that of the source; turned by so many radians to the side."""
    identity = identity or Identity.random(1, torch.Generator().manual_seed(SOURCE), head)
    neutral = FaceParameters.neutral(1, head.name, head.n_shape, head.n_expression)
    expression, pose = neutral.expression.clone(), neutral.pose.clone()
    for name, value in FRIENDLY.items():
        expression[:, head.expression_names.index(name)] = value
    pose[:, 3:6] = rotation.from_euler(torch.tensor([0.05 + turn]), torch.tensor([0.0]), torch.tensor([0.04]))
    params = replace(
        neutral,
        shape=identity.shape,
        expression=expression,
        pose=pose,
        camera=camera,
    )
    params = look_along(params, head.expression_names)
    return studio.render(identity, params, size, SUPERSAMPLE)[0]


def write_talking(path: Path, head: HeadModel, studio: Studio) -> None:
    """Two seconds of another avatar who talks, smiles, blinks, glances and turns the head, with the voice."""
    seed = TALKING[1]
    performance = perform(1, FRAMES, float(RATE), torch.Generator().manual_seed(seed), head, talking=1.0)
    with tempfile.TemporaryDirectory() as folder:  # since `path` may be the shipped clip itself
        sound = Path(shutil.copy(SHIPPED, folder))
        _write_video(path, performance.params, TALKING[0], head, studio, sound)


def write_turning(path: Path, head: HeadModel, studio: Studio) -> None:
    """Two seconds of a third avatar who looks around and turns the head to both sides, without a word."""
    generator = torch.Generator().manual_seed(TURNING[1])
    performance = perform(1, FRAMES, float(RATE), generator, head, talking=0.0)
    _write_video(path, performance.params, TURNING[0], head, studio)


def _write_video(
    path: Path, params: FaceParameters, seed: int, head: HeadModel, studio: Studio, sound: Path | None = None
) -> None:
    identity = Identity.random(1, torch.Generator().manual_seed(seed), head)
    params = replace(params, shape=identity.shape.expand(FRAMES, -1))
    with VideoWriter(path, RATE, audio_from=sound) as video:
        video.write(studio.render(identity, params, SIZE, SUPERSAMPLE))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m anifacediff_core.lab.avatars.examples", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for source.png, scene.jpg, group.jpg, driving.mp4 and turning.mp4",
    )
    folder = parser.parse_args().out
    head = HeadModel.bundled()
    studio = Studio(head)
    write_image(folder / "source.png", make_source(head, studio))
    write_image(folder / "scene.jpg", make_scene(head, studio))
    write_image(folder / "group.jpg", make_group(head, studio))
    write_talking(folder / "driving.mp4", head, studio)
    write_turning(folder / "turning.mp4", head, studio)


if __name__ == "__main__":
    main()
