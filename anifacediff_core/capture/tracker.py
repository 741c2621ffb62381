"""From faces found picture by picture to one face over a video: following, gaps, smoothing, the portrait
square.

Squares are (left, top, side) as fractions of the picture's longer side, from its top left corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..head.parameters import FaceParameters
from ..motion.smoothing import smooth_motion
from .detector import Detection, choose
from .look import unlike

PATIENCE = 12  # frames without the face before a new one is taken for it
FOR_GOOD = 72  # frames without it before one is taken that was beside it
STEADINESS = 0.75  # share of the last crop in the next one
REACH = 0.8  # a face moves less than this share of its square from frame to frame
FORESIGHT = 6  # frames that a movement is thought to go on while nobody sees it
SAME_LOOK, LOOK_WEIGHT = 0.15, 4.0  # looks that differ less are the same; what the rest weighs
ALIKE, CHANGED = 0.25, 0.5  # looks of one person at other times, and in another light
MISTAKEN = 0.15  # looks of two people that fit this much better the other way round show a mistake
CHOICES = ("number", "largest", "nearest")
# The portrait square against the face square, as in the avatars that the networks are trained on.
MARGIN, PORTRAIT_LIFT = 0.25, 0.12
# A square picture whose face square is this large, on average, is a portrait already.
PORTRAIT_RANGE = (0.45, 1.25)


@dataclass
class Track:
    """One of the people in a video, whether followed or not.

    Attributes:
        face: where it was seen last.
        look: its usual look, see :mod:`.look`.
        velocity: of its center and of the logarithm of its side, per frame.
        missing: frames since then.
    """

    face: Detection
    look: Tensor | None
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    missing: int = 0

    def cost(self, face: Detection, crowded: bool) -> float:
        """How unlikely a face of the next picture is this person: by its place and its size, and its look
        where there are others; somebody alone may stand in another light.
        """
        ahead = min(self.missing + 1, FORESIGHT)
        (x, y), (u, v) = face.center, self.face.center
        dx, dy, grown = (ahead * speed for speed in self.velocity)
        side = self.face.square[2]
        # Whoever turned around is where it was: the nearer of both places counts.
        away = min(math.hypot(x - u - dx, y - v - dy), 0.1 * side + math.hypot(x - u, y - v)) / side
        size = math.log(face.square[2] / side)
        strange = max(unlike(self.look, face.look) - SAME_LOOK, 0.0)
        return away + min(abs(size), abs(size - grown)) + LOOK_WEIGHT * strange * crowded

    @property
    def reach(self) -> float:
        """What it may cost: the longer a face was away, the farther it may come back."""
        return REACH * (1 + 0.5 * self.missing)

    def seen(self, face: Detection, alone: bool) -> None:
        """Go on with a face of the next picture; only one that stands `alone` shows its look and movement."""
        (x, y), (u, v) = face.center, self.face.center
        change = x - u, y - v, math.log(face.square[2] / self.face.square[2])
        first, second, third = (
            0.5 * (old + new / (self.missing + 1)) for old, new in zip(self.velocity, change, strict=True)
        )
        if alone:
            self.velocity = first, second, third
        if alone and face.look is not None:
            known = face.look if self.look is None else self.look
            self.look = torch.lerp(known, face.look, 1.0 if unlike(known, face.look) > CHANGED else 0.1)
        self.face, self.missing = face, 0


@dataclass
class Tracker:
    """Follows one face, picture by picture, and knows those beside it: none of them is taken for it.

    Attributes:
        face: 0 for the most prominent face, 1 for the first from the left, and so on.
        choice: how the face is chosen: by its "number", as above, or the "largest", or the one "nearest" to a
            place; the number counts for nothing then.
        place: x and y of that place as shares of the picture's width and height.
        crowded: number of pictures so far in which there was more than one face.
        most: greatest number of faces in a picture.
    """

    face: int = 0
    choice: str = "number"
    place: tuple[float, float] = (0.5, 0.5)
    crowded: int = 0
    most: int = 0
    _followed: Track | None = None
    _others: list[Track] = field(default_factory=list)
    _crop: tuple[float, float, float] | None = None

    @property
    def last(self) -> Detection | None:
        """The face where it was seen last; None before it is found and long after it is lost."""
        track = self._followed
        return track.face if track is not None and track.missing <= PATIENCE else None

    def follow(self, faces: list[Detection], width: float, height: float) -> Detection | None:
        """The followed face among those of the next picture, or None.

        Args:
            faces: of the picture, in any order.
            width, height: extent of the picture as fractions of its longer side.
        """
        self.crowded += len(faces) > 1
        self.most = max(self.most, len(faces))
        taken = self._assigned(faces)
        found = taken.get(0) if self._followed is not None else None
        if found is None and self.last is None:
            found = self._chosen(faces, taken, width, height)
        rest = [face for face in faces if face is not found]
        if found is not None:
            if self._followed is None:
                self._followed = Track(found, found.look)
            self._followed.seen(found, all(_apart(found, face) for face in rest))
        elif self._followed is not None:
            self._followed.missing += 1
            if self._followed.missing == PATIENCE + 1:
                self._crop = None
        self._remember(rest, taken)
        return found

    def _assigned(self, faces: list[Detection]) -> dict[int, Detection]:
        """The faces by the numbers of the tracks that they belong to, the followed one being 0: the likeliest
        pairs first, so that a face that is another's is nobody else's.
        """
        tracks = dict(enumerate(self._others, 1))
        if self._followed is not None:
            tracks[0] = self._followed
        crowded = len(faces) > 1 or bool(self._others)
        pairs = [
            (track.cost(face, crowded), number, face) for number, track in tracks.items() for face in faces
        ]
        taken: dict[int, Detection] = {}
        for cost, number, face in sorted(pairs, key=lambda pair: pair[:2]):
            known = number in taken or any(face is other for other in taken.values())
            if not known and cost < tracks[number].reach and not (number == 0 and self.last is None):
                taken[number] = face
        for number in list(taken):
            if (
                0 in taken
                and number
                and self._are_mistaken(tracks[0], tracks[number], taken[0], taken[number])
            ):
                taken[0], taken[number] = taken[number], taken[0]
        return taken

    @staticmethod
    def _are_mistaken(first: Track, second: Track, one: Detection, other: Detection) -> bool:
        """Whether two people, apart again, look as if they had been taken for each other."""
        if first.look is None or second.look is None or not _apart(one, other):
            return False
        straight = unlike(first.look, one.look) + unlike(second.look, other.look)
        return unlike(first.look, other.look) + unlike(second.look, one.look) < straight - MISTAKEN

    def _chosen(
        self, faces: list[Detection], taken: dict[int, Detection], width: float, height: float
    ) -> Detection | None:
        """The face to follow from now on. Once one was lost: it again, by its look, or somebody new; those
        who were beside it only when it is gone for good.
        """
        lost = self._followed
        if lost is None:
            return self._first(faces, width, height)
        known = [face for number, face in taken.items() if number]
        seen = [face for face in faces if face.look is not None and lost.look is not None]
        back = [face for face in seen if unlike(lost.look, face.look) < ALIKE]
        new = [face for face in faces if not any(face is other for other in known)]
        usable = [face for face in back if any(face is other for other in new)] or new
        if lost.missing > FOR_GOOD:
            usable = usable or faces
        found = choose(usable, width, height) if usable and usable != faces else None
        found = found or (self._first(faces, width, height) if usable else None)
        if found is not None:
            self._followed = None
        return found

    def _remember(self, rest: list[Detection], taken: dict[int, Detection]) -> None:
        """Go on with everybody else, begin with those who are new, forget who is long gone."""
        known = []
        for number, track in enumerate(self._others, 1):
            face = taken.get(number)
            if face is None or all(face is not other for other in rest):
                track.missing += 1
            else:
                track.seen(face, self._stands_alone(face, rest))
                known.append(face)
        self._others = [track for track in self._others if track.missing <= FOR_GOOD]
        if self._followed is None or self._followed.missing > 0:
            return  # whoever comes up now may be the followed one
        new = [face for face in rest if all(face is not other for other in known)]
        self._others += [Track(face, face.look) for face in new if self._stands_alone(face, rest)]

    def _stands_alone(self, face: Detection, rest: list[Detection]) -> bool:
        beside = [other for other in rest if other is not face]
        return all(_apart(face, other) for other in [*beside, *([self.last] if self.last else [])])

    def crop(self, square: tuple[float, float, float]) -> tuple[float, float, float]:
        """A steadied square for the encoder. It may lag: the camera is counted back from the very same
        square.
        """
        if self._crop is not None:
            moved = max(abs(new - old) for new, old in zip(square, self._crop, strict=True)) / square[2]
            keep = STEADINESS * max(1 - moved / 0.3, 0.0)
            left, top, side = (
                keep * old + (1 - keep) * new for new, old in zip(square, self._crop, strict=True)
            )
            square = (left, top, side)
        self._crop = square
        return square

    @property
    def wants_small(self) -> bool:
        """Whether the chosen face may be a small one beside large ones."""
        return self.choice == "nearest" or (self.choice == "number" and self.face > 0)

    def describe(self) -> list[str]:
        """A sentence about several faces, if there are any."""
        if not self.crowded:
            return []
        number = f"number {self.face} from the left" if self.face else "the most prominent one"
        near = "the one nearest to {:g}, {:g}".format(*self.place)
        taken = {"number": number, "largest": "the largest one", "nearest": near}
        return [f"There are up to {self.most} faces; {taken[self.choice]} is followed."]

    def no_face_error(self, what: str) -> InputError:
        """What to say when the face was in none of the pictures."""
        which = "no face was found"
        if self.choice == "number" and self.face and self.most:
            which = f"face number {self.face} from the left was not found among up to {self.most}"
        return InputError(
            f"In {what} {which}; use pictures that show a face from the front, large and well lit."
        )

    def _first(self, faces: list[Detection], width: float, height: float) -> Detection | None:
        if not faces:
            return None
        if self.choice == "largest":
            return max(faces, key=lambda face: face.square[2])
        if self.choice == "nearest":
            place = self.place[0] * width, self.place[1] * height
            return min(faces, key=lambda face: math.dist(face.center, place))
        if self.face == 0:
            return choose(faces, width, height)
        ordered = sorted(faces, key=lambda face: face.center[0])
        return ordered[self.face - 1] if self.face <= len(ordered) else None


def _apart(first: Detection, second: Detection) -> bool:
    """Whether two faces do not cover each other."""
    return math.dist(first.center, second.center) > 0.6 * (first.square[2] + second.square[2]) / 2


def fill_gaps(values: Tensor, valid: Tensor) -> Tensor:
    """Values (frames, quantities), invalid frames interpolated between neighbors or held at the ends."""
    known = torch.nonzero(valid).squeeze(1)
    if len(known) == len(values):
        return values
    frames = torch.arange(len(values), device=values.device)
    after = torch.searchsorted(known, frames).clamp(max=len(known) - 1)
    before = (torch.searchsorted(known, frames, right=True) - 1).clamp(min=0)
    start, end = known[before], known[after]
    weight = ((frames - start) / (end - start).clamp(min=1)).clamp(0, 1)[:, None].to(values)
    return torch.lerp(values[start], values[end], weight)


def smooth_parameters(params: FaceParameters, names: list[str], amount: float) -> FaceParameters:
    """Fill gaps in parameters read frame by frame, then calm their tremble, see :func:`.smooth_motion`.

    The shape does not change in a video and becomes its mean.

    Args:
        params: frames in order, ``valid`` telling which were seen.
        names: ARKit's, of the expressions; empty for a head like FLAME.
        amount: 0 leaves every reading as it is, 1 is strong.
    """
    valid = params.valid
    values: dict[str, Any] = {
        name: fill_gaps(getattr(params, name), valid) for name in ("expression", "pose", "camera", "shape")
    }
    filled = replace(params, **values)
    if amount <= 0 or len(params) < 2:
        return filled
    shape = params.shape[valid].mean(0, keepdim=True).expand_as(params.shape)
    return replace(smooth_motion(filled, names, amount, amount), shape=shape.contiguous())


def portrait_square(
    faces: Tensor, valid: Tensor, width: float, height: float, mode: str = "auto", margin: float = MARGIN
) -> Tensor:
    """One square for a whole clip that holds the head in all frames.

    Args:
        faces: (frames, 3) face squares, see :func:`.detector.face_square`.
        valid: (frames,) bool; the others do not count.
        width, height: extent of the picture as fractions of its longer side.
        mode: "whole" is the whole picture, made square at its right or bottom; "portrait" the square around
            the head; "auto" the whole picture when it is square and its face as large as in a portrait.
        margin: room around the face square, as a share of its side.

    Returns:
        (3,): left, top, side.
    """
    whole = faces.new_tensor([0.0, 0.0, 1.0])
    seen = faces[valid]
    side = seen[:, 2].median()
    portrait = min(width, height) > 0.98 and PORTRAIT_RANGE[0] < float(side) < PORTRAIT_RANGE[1]
    if mode == "whole" or (mode == "auto" and portrait):
        return whole
    low = seen[:, :2].quantile(0.02, dim=0)
    high = (seen[:, :2] + seen[:, 2:]).quantile(0.98, dim=0)
    wanted = torch.maximum((1 + margin) * seen[:, 2].quantile(0.9), (high - low).amax() * 1.1)
    # Rather a little tighter than beyond the picture, if the face still fits well.
    least, limit = float((high - low).amax()) * 1.1, min(width, height)
    size = min(float(wanted), max(limit, least))
    center_x, center_y = ((low + high) / 2).tolist()
    left, top = center_x - size / 2, center_y - PORTRAIT_LIFT * size - size / 2
    top = max(top, float(high[1]) - 0.97 * size)  # room for hair, but not at the cost of the chin
    return faces.new_tensor([pushed_inside(left, size, width), pushed_inside(top, size, height), size])


def pushed_inside(start: float, size: float, extent: float) -> float:
    """Move an interval into the picture; centered where it does not fit."""
    if size >= extent:
        return (extent - size) / 2
    return min(max(start, 0.0), extent - size)
