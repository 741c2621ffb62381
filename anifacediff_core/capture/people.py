"""All the people of a picture: who is where, who stands in front of whom, and their portraits back in it.

People are numbered from left to right, from 1 on, as :class:`.tracker.Tracker` counts them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..head.parameters import FaceParameters
from ..progress import Progress
from .detector import Detection, face_square
from .extract import Models, extract_parameters, prepare
from .paste import FEATHER, paste_back
from .search import search
from .tracker import Tracker

# Of a head, in face squares: half its width, and how much higher than wide it is with its hair.
HEAD, UPRIGHT = 0.55, 1.15
SOFT = 0.12  # width of the edge between two people, in face squares


@dataclass(frozen=True)
class Person:
    """One face of a picture.

    Attributes:
        number: from the left, the first is 1.
        parameters: (1), camera of the portrait square.
        square: (3,) left, top, side of the portrait square, as fractions of the picture's longer side.
        face: (3,) the face square in the same form, see :func:`.detector.face_square`: the larger it is, the
            nearer is the person.
    """

    number: int
    parameters: FaceParameters
    square: Tensor
    face: Tensor


def find_people(
    image: Tensor,
    models: Models,
    faces: Sequence[Detection] | None = None,
    progress: Progress | None = None,
) -> list[Person]:
    """Read everybody in a picture, from left to right, the small ones of a group as well.

    Args:
        image: (1, 1 to 4, height, width) in [0, 1].
        faces: where they are, if that is known already.

    Raises:
        InputError: nobody is there.
    """
    if faces is None:
        pixels = prepare(image, "the picture").to(models.head.template.device)
        faces = search(pixels, models)
    if not faces:
        raise Tracker().no_face_error("the picture")
    people = []
    for number, face in enumerate(sorted(faces, key=lambda face: face.center[0]), 1):
        read = extract_parameters(
            image, models, "portrait", faces=[[face]], what=f"the picture's face {number}"
        )
        inner = face_square(models.head, read.parameters)[0].cpu()
        corner, side = read.square[:2], read.square[2:]
        within = torch.cat([corner + inner[:2] * side, inner[2:] * side])
        people.append(Person(number, read.parameters, read.square, within))
        if progress is not None:
            progress(number, len(faces))
    return people


def from_back_to_front(people: Collection[Person]) -> list[Person]:
    """In the order in which they are painted: the largest face is the nearest."""
    return sorted(people, key=lambda person: float(person.face[2]))


def shown_areas(
    people: Collection[Person], driven: Collection[int], height: int, width: int
) -> dict[int, Tensor]:
    """Where the portrait of each driven person may show, so that no portrait covers another one's face.

    That is on the person's own head, and beside it where that head is nearer than anybody else's, in units of
    their sizes; and never on a nearer head that stays as it is.

    Args:
        driven: numbers of those who get a portrait; the others stay as they are.
        height, width: of the picture in pixels.

    Returns:
        masks (1, height, width) in [0, 1] by the person's number.
    """
    away = {person.number: _away(person, height, width) for person in people}
    side = {person.number: float(person.face[2]) for person in people}
    areas = {}
    for number in driven:
        others = [away[other] for other in away if other != number]
        area = _head(away[number])
        if others:
            area = torch.maximum(area, _soft(torch.stack(others).amin(0) - away[number]))
        else:
            area = torch.ones_like(area)
        for other in away:
            if other not in driven and side[other] > side[number]:
                area = area * (1 - _head(away[other]))
        areas[number] = area[None]
    return areas


def _away(person: Person, height: int, width: int) -> Tensor:
    """How far each pixel is from the middle of a head, in face squares: (height, width)."""
    left, top, side = (float(value) for value in person.face)
    longer = max(height, width)
    x = (torch.arange(width) + 0.5) / longer - left - side / 2
    y = (torch.arange(height) + 0.5) / longer - top - side / 2
    return torch.hypot(x, (y / UPRIGHT)[:, None]) / side


def _head(away: Tensor) -> Tensor:
    return _soft(HEAD - away)


def _soft(inside: Tensor) -> Tensor:
    return (0.5 + inside / SOFT).clamp(0, 1)


def paste_people(
    people: Collection[Person],
    portraits: Mapping[int, Tensor],
    image: Tensor,
    areas: Mapping[int, Tensor],
    *,
    feather: float = FEATHER,
    shape: str = "ellipse",
    colors: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Put portrait videos into the picture, from back to front.

    Args:
        portraits: (frames, 3, size, size) in [0, 1] by the person's number, all of as many frames.
        image: (1, 1 to 4, height, width) in [0, 1] that the people were found in.
        areas: of :func:`shown_areas`.
        feather, shape: see :func:`.paste.paste_back`.
        colors: by number the correction of :func:`.paste.measure_colors`.

    Returns:
        (frames, 3, height, width), equal to the picture bit by bit where nobody is driven.
    """
    for person in from_back_to_front(people):
        if person.number in portraits:
            image, _ = paste_back(
                portraits[person.number],
                image,
                person.square,
                feather=feather,
                shape=shape,
                colors=None if colors is None else colors[person.number],
                mask=areas[person.number],
            )
    return image
