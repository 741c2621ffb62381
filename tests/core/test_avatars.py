"""The avatar studio: seeded, aligned with the normals, faithful to the identity, alive in the eyes."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from anifacediff_core.errors import InputError
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from anifacediff_core.lab.avatars.batch import Batch
from anifacediff_core.lab.avatars.identity import HAIR_STYLES, HATS, Identity
from anifacediff_core.lab.avatars.poses import PITCH, YAW, random_frames
from anifacediff_core.lab.avatars.studio import Studio

SIZE = 96


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def studio(head: HeadModel) -> Studio:
    return Studio(head)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(head: HeadModel, count: int, seed: int = 0) -> tuple[Identity, FaceParameters]:
    generator = seeded(seed)
    identity = Identity.random(count, generator, head)
    return identity, replace(random_frames(count, generator, head), shape=identity.shape)


def bare(identity: Identity) -> Identity:
    """The same avatars without hair, beard, hat and glasses."""
    none = torch.zeros_like(identity.hair.style)
    zero = torch.zeros_like(identity.shape[:, 0])
    return replace(
        identity,
        hair=replace(identity.hair, style=none + HAIR_STYLES.index("bald"), bun=zero),
        accessories=replace(identity.accessories, hat=none + HATS.index("none"), glasses=zero),
        face_hair=replace(identity.face_hair, beard=zero, mustache=zero, goatee=zero),
        light=replace(identity.light, outline=zero),
    )


def portrait(head: HeadModel, identity: Identity, **expression: float) -> FaceParameters:
    params = replace(head.neutral(len(identity)), shape=identity.shape)
    values = params.expression.clone()
    for name, value in expression.items():
        values[:, head.expression_names.index(name)] = value
    return look_along(replace(params, expression=values), head.expression_names)


def leaves(batch: Batch) -> list[Tensor]:
    values = [getattr(batch, field.name) for field in fields(batch)]  # type: ignore[arg-type]
    return [leaf for value in values for leaf in ([value] if isinstance(value, Tensor) else leaves(value))]


def test_same_seed_same_picture_other_seed_other_picture(head: HeadModel, studio: Studio) -> None:
    first, again, other = (studio.render(*draw(head, 2, seed), SIZE) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.02


def test_pictures_are_finite_colors(head: HeadModel, studio: Studio) -> None:
    pictures = studio.render(*draw(head, 4), SIZE)
    assert pictures.shape == (4, 3, SIZE, SIZE) and pictures.dtype == torch.float32
    assert torch.isfinite(pictures).all() and pictures.min() >= 0 and pictures.max() <= 1
    assert (pictures.flatten(1).std(dim=1) > 0.05).all()


def test_batch_equals_singles(head: HeadModel, studio: Studio) -> None:
    identity, params = draw(head, 3, seed=4)
    together = studio.render(identity, params, SIZE)
    alone = torch.cat([studio.render(identity[i], params[i], SIZE) for i in range(3)])
    # The reach of contact shadows is rounded to whole pixels for the batch's mean scale.
    assert (together - alone).abs().mean() < 3e-3


def test_head_is_where_the_normals_say(head: HeadModel, studio: Studio) -> None:
    identity, params = draw(head, 2, seed=5)
    identity = bare(identity)
    green = identity.skin.tone * 0 + torch.tensor([0.0, 1.0, 0.0])
    black = green * 0
    backdrop = replace(identity.backdrop, light=black, deep=black, accent=black)
    body = replace(identity.body, color=black, accent=black)
    skin = replace(identity.skin, tone=green, lips=green, eyeshadow=green)
    picture = studio.render(
        replace(identity, skin=skin, body=body, backdrop=backdrop), params, SIZE, supersample=1
    )
    covered = render_normals(head, params, SIZE).amax(dim=1) > 0
    rows = slice(0, SIZE * 6 // 10)  # above the collar
    shown = picture.amax(dim=1) > 0.03
    assert covered[:, rows].any()
    for silhouette in (lambda mask: mask.byte().argmax(2), lambda mask: mask.flip(2).byte().argmax(2)):
        differ = silhouette(shown[:, rows]) != silhouette(covered[:, rows])
        assert differ.float().mean() < 0.02, "but for a pixel whose middle lies on the edge"


def test_clothes_do_not_move_with_the_head(head: HeadModel, studio: Studio) -> None:
    identity, _ = draw(head, 1, seed=6)
    still = portrait(head, identity)
    pose = still.pose.clone()
    pose[:, 4] = 0.4
    first, second = (
        studio.render(bare(identity), params, SIZE) for params in (still, replace(still, pose=pose))
    )
    assert torch.allclose(first[:, :, -6:], second[:, :, -6:], atol=2e-2)
    assert (first - second)[:, :, : SIZE // 2].abs().mean() > 0.01


def test_gaze_moves_the_iris(head: HeadModel, studio: Studio) -> None:
    identity, _ = draw(head, 1, seed=7)
    identity = bare(identity)
    identity = replace(identity, eyes=replace(identity.eyes, iris=torch.zeros(1, 3)))
    camera = torch.tensor([[24.0, -0.0317, -0.0117]])  # on the left eye

    def dark_center(**gaze: float) -> float:
        picture = studio.render(identity, replace(portrait(head, identity, **gaze), camera=camera), SIZE)[
            0
        ].mean(0)
        middle = picture[SIZE * 2 // 5 : SIZE * 3 // 5]
        columns = ((middle < 0.2).float().sum(0) * torch.arange(SIZE)).sum() / (middle < 0.2).sum().clamp(
            min=1
        )
        return float(columns)

    assert dark_center(eyeLookOutLeft=1.0) > dark_center() + 3
    assert dark_center(eyeLookInLeft=1.0) < dark_center() - 3


def test_styles_differ(head: HeadModel, studio: Studio) -> None:
    identity, _ = draw(head, 1, seed=8)
    count = len(HAIR_STYLES)
    generator = seeded(9)
    drawn = Identity.random(400, generator, head)
    rows = torch.stack(
        [
            torch.nonzero((drawn.hair.style == style) & (drawn.accessories.hat == 0))[0, 0]
            for style in range(count)
        ]
    )
    same_face = replace(bare(identity).repeat_interleave(count), hair=drawn.hair[rows])
    pictures = studio.render(same_face, portrait(head, same_face), SIZE, supersample=1)
    distance = (pictures[:, None] - pictures[None]).abs().mean(dim=(2, 3, 4)) + torch.eye(count)
    assert distance.min() > 0.003


def test_identity_indexing(head: HeadModel) -> None:
    identity = Identity.random(5, seeded(3), head)
    assert len(identity) == 5 and len(identity[2]) == 1 and len(identity[-1]) == 1 and len(identity[1:4]) == 3
    repeated = identity[torch.tensor([4, 0])].repeat_interleave(2)
    for whole, part in zip(leaves(identity), leaves(repeated), strict=True):
        assert torch.equal(part, whole[[4, 4, 0, 0]])


def test_one_avatar_serves_all_frames_but_counts_must_fit(head: HeadModel, studio: Studio) -> None:
    identity, params = draw(head, 3)
    frames = replace(params, shape=identity[0].shape.expand(3, -1))
    assert len(studio.render(identity[0], frames, 32)) == 3
    with pytest.raises(InputError, match="2 avatars for 3 frames"):
        studio.render(identity[:2], params, 32)


def test_random_frames_cover_their_ranges(head: HeadModel) -> None:
    params = random_frames(2000, seeded(0), head)
    assert params.expression.min() >= 0 and params.expression.max() <= 1
    assert (params.shape == 0).all() and (params.pose[:, :3] == 0).all()
    turn = params.pose[:, 3:6].norm(dim=1)
    assert turn.max() < YAW + PITCH + 0.1 and turn.std() > 0.1
    used = (params.expression > 0.3).any(dim=0)
    unused = {name for name, seen in zip(head.expression_names, used.tolist(), strict=True) if not seen}
    assert not unused - {"mouthClose"}
