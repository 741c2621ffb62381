"""Motion as material, in the host."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import TENSORS, FaceParameters
from anifacediff_core.motion.mix import combine, join, mix
from anifacediff_core.motion.parts import PARTS
from anifacediff_core.motion.plot import WIDTH
from anifacediff_core.motion.smoothing import smooth_motion
from anifacediff_core.sound import read_sound
from anifacediff_core.speech.motion import SpeechSettings, file_to_motion
from harness.extension import Extension
from harness.server import EXAMPLES

FRAMES = 20
GAINS: dict[str, Any] = dict.fromkeys(("head", *PARTS), 1.0)
EDIT = GAINS | {"motion": "absolute", "rest_frame": -1}
CHOICES = {f"{part}_from": "first" for part in ("head", "place", "mouth", "brows", "eyes", "gaze")}
RETIME: dict[str, Any] = {
    "fps": 25.0, "new_fps": 25.0, "speed": 1.0, "start": 0, "length": 0, "direction": "forward", "loop": 0
}  # fmt: skip
NODES = {
    "EditMotion": ("parameters", EDIT),
    "SmoothMotion": ("parameters", {"head": 0.3, "expression": 0.3}),
    "RetimeMotion": ("parameters", RETIME),
    "MotionPreview": ("parameters", {"head": "bundled"}),
    "CombineMotion": ("first", CHOICES | {"length": "first"}),
    "BlendMotion": ("first", {"mode": "mix", "weight": 0.5, "overlap": 4, "length": "first"}),
}


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def motion(head: HeadModel, seed: int, frames: int = FRAMES) -> FaceParameters:
    generator = torch.Generator().manual_seed(seed)
    params = head.neutral(frames)
    params.expression[:] = torch.rand(frames, head.n_expression, generator=generator)
    params.pose[:, 3:6] = 0.2 * torch.randn(frames, 3, generator=generator)
    params.camera[:, 0] += torch.rand(frames, generator=generator)
    return params


def same(first: FaceParameters, second: FaceParameters) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


def test_edit_motion(extension: Extension, head: HeadModel) -> None:
    driving, source = motion(head, 0), motion(head, 1, frames=2)
    edited, rest = extension.run("EditMotion", parameters=driving, **EDIT)
    assert torch.allclose(edited.expression, driving.expression) and 0 <= rest < FRAMES
    unseen = replace(source, valid=torch.tensor([False, True]))
    still = EDIT | dict.fromkeys(GAINS, 0.0)
    edited, _ = extension.run("EditMotion", parameters=driving, source=unseen, neutralize=0.5, **still)
    assert torch.allclose(edited.expression, 0.5 * source.expression[1].expand(FRAMES, -1))
    relative = EDIT | {"motion": "relative", "rest_frame": 3}
    edited, rest = extension.run("EditMotion", parameters=driving, source=source, **relative)
    assert rest == 3 and torch.allclose(edited.camera[3], source.camera[0])


def test_edit_motion_refuses(extension: Extension, head: HeadModel) -> None:
    driving = motion(head, 0)
    assert "rest frame 99" in extension.refusal(
        "EditMotion", parameters=driving, **(EDIT | {"rest_frame": 99})
    )
    nobody = replace(driving, valid=torch.zeros(FRAMES, dtype=torch.bool))
    assert "source" in extension.refusal("EditMotion", parameters=driving, source=nobody, **EDIT)
    flame = FaceParameters.neutral(FRAMES, "flame", 10, 6)
    extension.refusal("EditMotion", parameters=driving, source=flame, **EDIT)
    assert "brows" in extension.refusal("EditMotion", parameters=flame, **(EDIT | {"brows": 2.0}))


def test_combine_motion(extension: Extension, head: HeadModel) -> None:
    first, second = motion(head, 0), motion(head, 1)
    combined, frames = extension.run(
        "CombineMotion", first=first, second=second, **(CHOICES | {"mouth_from": "second", "length": "first"})
    )
    chosen = dict.fromkeys(("head", "place", *PARTS), False) | {"mouth": True, "jaw": True}
    assert same(combined, combine(first, second, head.expression_names, chosen)) and frames == FRAMES
    for length, expected in (("first", 20), ("shorter", 7), ("loop shorter", 20)):
        *_, frames = extension.run("CombineMotion", first=first, second=second[:7], length=length, **CHOICES)
        assert frames == expected


def test_blend_motion(extension: Extension, head: HeadModel) -> None:
    first, second = motion(head, 0), motion(head, 1)
    given = {"first": first, "second": second, "weight": 0.25, "overlap": 6, "length": "first"}
    mixed, frames = extension.run("BlendMotion", mode="mix", **given)
    assert same(mixed, mix(first, second, 0.25)) and frames == FRAMES
    joined, frames = extension.run("BlendMotion", mode="one after the other", **given)
    assert same(joined, join(first, second, 6)) and frames == 34
    assert "overlap" in extension.refusal(
        "BlendMotion", mode="one after the other", **(given | {"overlap": 21})
    )


def test_smooth_motion(extension: Extension, head: HeadModel) -> None:
    driving = motion(head, 0)
    (calm,) = extension.run("SmoothMotion", parameters=driving, head=0.3, expression=0.6)
    assert same(calm, smooth_motion(driving, head.expression_names, 0.3, 0.6))
    assert not torch.allclose(calm.pose[:, 3:6], driving.pose[:, 3:6], atol=0.01)


def test_retime_motion(extension: Extension, head: HeadModel) -> None:
    driving = motion(head, 0)

    def run(**changes: Any) -> tuple[FaceParameters, int, float]:
        return extension.run("RetimeMotion", parameters=driving, **(RETIME | changes))

    same_motion, frames, fps = run()
    assert same(same_motion, driving) and frames == FRAMES and fps == 25.0
    *_, frames, fps = run(new_fps=29.97)
    assert frames == 24 and fps == 30000 / 1001
    *_, frames, _ = run(start=4, length=10, direction="ping-pong", speed=2.0)
    assert frames == 9
    *_, frames, _ = run(loop=5)
    assert frames == 15
    assert "start" in extension.refusal("RetimeMotion", parameters=driving, **(RETIME | {"start": 20}))


def test_motion_preview(extension: Extension, head: HeadModel) -> None:
    driving = motion(head, 0)
    output = extension.output("MotionPreview", parameters=driving, head="bundled", before=driving[:5])
    (image,) = output.result
    assert image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3) and image.std() > 0.05
    assert output.ui.as_dict()["images"][0]["type"] == "temp"
    flame = FaceParameters.neutral(4, "flame", 10, 6)
    extension.refusal("MotionPreview", parameters=flame, head="bundled")
    extension.refusal("MotionPreview", parameters=driving, head="bundled", before=flame)


@pytest.mark.parametrize("node", NODES)
def test_unusable_motion_is_refused(extension: Extension, head: HeadModel, node: str) -> None:
    name, inputs = NODES[node]
    good = motion(head, 0)
    broken = replace(good, pose=good.pose * float("nan"))
    others = {"second": good} if name == "first" else {}
    for bad in (good[:0], broken, replace(good, camera=-good.camera)):
        assert name in extension.refusal(node, **{name: bad}, **others, **inputs)


def test_json(extension: Extension, head: HeadModel) -> None:
    driving = motion(head, 0)
    *_, name = extension.run(
        "SaveFaceParameters", parameters=driving, filename_prefix="motion/take", format="json"
    )
    assert name.endswith(".json")
    loaded, frames = extension.run("LoadFaceParameters", file=f"{name} [output]")
    assert same(loaded, driving) and frames == FRAMES
    *_, name = extension.run("SaveFaceParameters", parameters=driving, filename_prefix="motion/take")
    assert name.endswith(".safetensors")
    options = extension.classes["AniFaceDiffLoadFaceParameters"].define_schema().inputs[0].options
    assert {"motion/take_00001_.json [output]", f"{name} [output]"} <= set(options)
    (extension.base / "input" / "broken.json").write_text(json.dumps({"version": 1}))
    assert "broken.json" in extension.refusal("LoadFaceParameters", file="broken.json")


def test_load_live_link(extension: Extension) -> None:
    lines = ["Timecode,BlendShapeCount,EyeBlinkLeft,JawOpen,HeadYaw"]
    lines += [f"10:00:{f // 60:02}:{f % 60:02}.000,3,0.0,{f / 240},0.2" for f in range(241)]
    (extension.base / "input" / "take.csv").write_text("\n".join(lines))
    node = extension.classes["AniFaceDiffLoadLiveLink"]
    assert "take.csv" in node.define_schema().inputs[0].options
    assert node.validate_inputs("take.csv") is True and "none.csv" in node.validate_inputs("none.csv")
    params, frames, fps = extension.run("LoadLiveLink", file="take.csv", fps=29.97)
    assert (frames, fps) == (120, 30000 / 1001) and len(params) == 120
    flipped, *_ = extension.run("LoadLiveLink", file="take.csv", fps=30.0, timecode_fps="60", flip_yaw=True)
    assert len(flipped) == 121 and torch.allclose(flipped.pose[0, 3:6], -params.pose[0, 3:6])
    (extension.base / "input" / "other.csv").write_text("a,b\n1,2\n")
    assert "other.csv" in extension.refusal("LoadLiveLink", file="other.csv", fps=30.0)


def test_load_arkit_curves(extension: Extension, head: HeadModel) -> None:
    names = ["jawOpen", "eyeBlinkLeft"]
    curves = {"exportFps": 60, "facsNames": names, "weightMat": [[f / 240, 0.0] for f in range(121)]}
    path = extension.base / "input" / "speech.json"
    path.write_text(json.dumps(curves))
    node = extension.classes["AniFaceDiffLoadARKitCurves"]
    assert "speech.json" in node.define_schema().inputs[0].options
    assert node.validate_inputs("speech.json") is True and "none.csv" in node.validate_inputs("none.csv")
    params, frames, fps = extension.run("LoadARKitCurves", file="speech.json", fps=24.0)
    assert (frames, fps) == (49, 24.0) and len(params) == 49
    jaw = params.expression[:, head.expression_names.index("jawOpen")]
    assert float(jaw[-1]) == pytest.approx(0.5, abs=1e-4)
    assert len(extension.run("LoadARKitCurves", file="speech.json", fps=24.0, file_fps=30.0)[0]) == 97
    (extension.base / "input" / "nan.json").write_text(json.dumps(curves).replace("0.5,", "NaN,"))
    assert "nan.json" in extension.refusal("LoadARKitCurves", file="nan.json", fps=24.0)


SPEECH = {"fps": 24.0, "mouth": 1.0, "head": 1.0, "brows": 1.0, "blinks": 1.0, "seed": 0}


def test_speech_to_motion(extension: Extension, head: HeadModel) -> None:
    sound = read_sound(EXAMPLES / "speech.ogg", Fraction(0), 60.0)
    assert sound is not None
    audio = {"waveform": torch.from_numpy(sound[0])[None], "sample_rate": sound[1]}
    params, frames, fps = extension.run("SpeechToMotion", audio=audio, **SPEECH)
    expected = file_to_motion(EXAMPLES / "speech.ogg", head, Fraction(24), SpeechSettings())
    assert same(params, expected) and frames == len(params) and fps == 24.0
    mixed = CHOICES | {"mouth_from": "second", "length": "first"}
    combined, _ = extension.run("CombineMotion", first=motion(head, 0), second=params, **mixed)
    jaw = head.expression_names.index("jawOpen")
    assert torch.equal(combined.expression[:, jaw], params.expression[: len(combined), jaw])
    assert "audio" in extension.refusal("SpeechToMotion", audio=None, **SPEECH).lower()
    empty = {"waveform": torch.zeros(1, 1, 0), "sample_rate": 44100}
    extension.refusal("SpeechToMotion", audio=empty, **SPEECH)
