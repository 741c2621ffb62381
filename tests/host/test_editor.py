"""Expression Editor in the host: what is dialed is what Render Normals draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anifacediff_core.head import rotation
from anifacediff_core.head.gaze import look_along
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.head.render import render_normals
from harness.extension import Extension

SIZE = 64
SMILE = '{"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8}'


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture(scope="module")
def motion(head: HeadModel) -> FaceParameters:
    generator = torch.Generator().manual_seed(0)
    expression = torch.rand(3, head.n_expression, generator=generator) * 0.5
    pose = torch.zeros(3, 15)
    pose[:, 4] = torch.tensor([-0.3, 0.0, 0.3])
    shape = torch.randn(3, head.n_shape, generator=generator)
    params = replace(head.neutral(3), expression=expression, pose=pose, shape=shape)
    return look_along(params, head.expression_names)


def editor(
    extension: Extension, expression: str, apply: str = "add", **given: FaceParameters
) -> FaceParameters:
    (parameters,) = extension.run("ExpressionEditor", apply=apply, expression=expression, **given)
    return parameters


def test_alone_it_dials_the_neutral_head(extension: Extension, head: HeadModel) -> None:
    parameters = editor(extension, '{"jawOpen": 0.6, "eyeLookUpLeft": 0.5, "headYaw": 25}')
    expression = torch.zeros(1, head.n_expression)
    expression[0, head.expression_names.index("jawOpen")] = 0.6
    expression[0, head.expression_names.index("eyeLookUpLeft")] = 0.5
    pose = torch.zeros(1, 15)
    pose[0, 3:6] = rotation.from_euler(torch.tensor(25.0).deg2rad(), torch.zeros(()), torch.zeros(()))
    expected = look_along(replace(head.neutral(), expression=expression, pose=pose), head.expression_names)
    (drawn,) = extension.run("RenderNormals", parameters=parameters, size=SIZE, head="bundled")
    assert torch.allclose(drawn.movedim(-1, 1), render_normals(head, expected, SIZE), atol=1e-4)
    (at_rest,) = extension.run("RenderNormals", parameters=head.neutral(), size=SIZE, head="bundled")
    assert (drawn - at_rest).abs().mean() > 0.01


def test_the_first_frame_goes_to_the_page(extension: Extension, motion: FaceParameters) -> None:
    def sent(apply: str, **given: FaceParameters) -> list:
        return extension.output("ExpressionEditor", apply=apply, expression=SMILE, **given).ui["first_frame"]

    assert sent("add") == []
    (frame,) = sent("add", parameters=motion)
    for name in ("expression", "pose", "camera"):
        assert torch.allclose(torch.tensor(frame[name]), getattr(motion, name)[0])
    (frame,) = sent("replace", parameters=motion)
    assert not any(frame["expression"]) and not any(frame["pose"])


def test_add_keeps_the_motion_and_replace_does_not(
    extension: Extension, head: HeadModel, motion: FaceParameters
) -> None:
    smile = head.expression_names.index("mouthSmileLeft")
    added = editor(extension, SMILE, parameters=motion)
    assert torch.allclose(added.expression[:, smile], (motion.expression[:, smile] + 0.8).clamp(max=1))
    assert torch.equal(added.pose, motion.pose)
    replaced = editor(extension, SMILE, "replace", parameters=motion)
    assert replaced.expression.sum(dim=1).tolist() == pytest.approx([1.6] * 3)
    assert not replaced.pose.any()
    for edited in (added, replaced):
        assert len(edited) == 3
        assert torch.equal(edited.shape, motion.shape) and torch.equal(edited.camera, motion.camera)


def test_it_refuses_in_one_sentence(extension: Extension, motion: FaceParameters) -> None:
    for text in ("smile", '{"smile": 1}', '{"jawOpen": 7}', '{"jawOpen": NaN}'):
        extension.refusal("ExpressionEditor", apply="add", expression=text)
    flame = FaceParameters.neutral(2, "flame", 100, 50)
    message = extension.refusal("ExpressionEditor", apply="add", expression="{}", parameters=flame)
    assert "flame" in message
    extension.refusal("ExpressionEditor", apply="add", expression="{}", parameters=motion[:0])
    broken = replace(motion, pose=motion.pose * torch.nan)
    extension.refusal("ExpressionEditor", apply="add", expression="{}", parameters=broken)
