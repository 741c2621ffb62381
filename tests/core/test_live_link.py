"""Recordings of the Live Link Face app."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from anifacediff_core.capture.live_link import load_live_link
from anifacediff_core.errors import InputError
from anifacediff_core.head import rotation
from anifacediff_core.head.model import HeadModel

ANGLES = [f"{part}{angle}" for part in ("Head", "LeftEye", "RightEye") for angle in ("Yaw", "Pitch", "Roll")]
Values = dict[str, float]


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


@pytest.fixture
def write(head: HeadModel, tmp_path: Path) -> Callable[..., Path]:
    names = [name[0].upper() + name[1:] for name in head.expression_names] + ANGLES

    def recording(lines: Iterable[tuple[str, Values]], columns: list[str] = names, start: str = "") -> Path:
        text = [start + ",".join(["Timecode", "BlendShapeCount", *columns])]
        for timecode, values in lines:
            text.append(f"{timecode},{len(columns)}," + ",".join(f"{values.get(n, 0):.10f}" for n in columns))
        path = tmp_path / "take.csv"
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        return path

    return recording


def timecode(frame: float, rate: int, hours: int = 0) -> str:
    """As the app writes it, with three decimals of the frame."""
    second, part = divmod(frame, rate)
    minutes, seconds = divmod(int(second), 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}:{part:06.3f}"


def jaw(path: Path, head: HeadModel, rate: Fraction = Fraction(30), **options: int) -> torch.Tensor:
    return load_live_link(path, head, rate, **options).expression[:, head.expression_names.index("jawOpen")]


def ramp(frames: Iterable[float], rate: int = 60, seconds: float = 4.0, hours: int = 0) -> list:
    """Lines at these frame numbers, whose jaw opens evenly with the time."""
    return [(timecode(frame, rate, hours), {"JawOpen": frame / rate / seconds}) for frame in frames]


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30), Fraction(30000, 1001), Fraction(60)])
def test_frames_lie_where_the_timecode_says(head: HeadModel, write: Callable, rate: Fraction) -> None:
    path = write(ramp(range(241)))
    steps: list[tuple[int, int]] = []
    found = load_live_link(path, head, rate, progress=lambda *step: steps.append(step)).expression
    found = found[:, head.expression_names.index("jawOpen")]
    assert steps[-1] == (len(found), len(found)) and len(steps) > 1
    assert len(found) == int(4 * rate) + 1
    torch.testing.assert_close(found, torch.arange(len(found)) / float(rate) / 4, atol=1e-5, rtol=0)


def test_missing_and_repeated_lines_change_nothing(head: HeadModel, write: Callable) -> None:
    frames = [frame for frame in range(241) if frame % 7 and frame not in (50, 51, 52)] + [241]
    repeated = sorted([*frames, *frames[10:20], 0])
    repeated[100:100] = frames[20:80]
    expected = torch.arange(121) / 30 / 4
    torch.testing.assert_close(jaw(write(ramp(repeated)), head), expected, atol=1e-5, rtol=0)
    # every second number, as the app writes when it records 30 frames a second
    torch.testing.assert_close(jaw(write(ramp(range(0, 241, 2))), head), expected, atol=1e-5, rtol=0)


def test_gaps_are_told(head: HeadModel, write: Callable) -> None:
    params = load_live_link(write(ramp([*range(60), *range(120, 241)])), head, Fraction(60))
    assert params.valid[:60].all() and not params.valid[61:119].any() and params.valid[120:].all()


def test_midnight(head: HeadModel, write: Callable) -> None:
    before = [(f"23:59:{58 + f // 60}:{f % 60:02}.000", {"JawOpen": f / 240}) for f in range(120)]
    after = [(timecode(f, 60), {"JawOpen": (f + 120) / 240}) for f in range(121)]
    torch.testing.assert_close(jaw(write(before + after), head), torch.arange(121) / 120, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [24, 25, 30, 60])
def test_the_timecodes_rate_is_told_from_it(head: HeadModel, write: Callable, rate: int) -> None:
    assert len(jaw(write(ramp(range(4 * rate + 1), rate)), head)) == 121
    drop = [(code.replace(":", ";"), values) for code, values in ramp(range(4 * rate + 1), rate)]
    assert len(jaw(write(drop), head)) == 121
    short = ramp(range(12), rate)
    assert len(jaw(write(short), head, Fraction(60))) == 12, "60 is the app's own"
    assert len(jaw(write(short), head, Fraction(rate), timecode_rate=rate)) == 12


@pytest.mark.parametrize(("rate", "told"), [(60, 24), (100, 0)])
def test_more_frames_than_a_second_has(head: HeadModel, write: Callable, rate: int, told: int) -> None:
    with pytest.raises(InputError, match=f"up to frame {rate - 1}, too many"):
        load_live_link(write(ramp(range(4 * rate + 1), rate)), head, timecode_rate=told)


def test_names_of_any_order_and_number(head: HeadModel, write: Callable) -> None:
    columns = ["JawOpen", "TongueOut", "EyeBlinkLeft", "NewInLaterReleases"]
    path = write([("00:00:00:00", {"TongueOut": 0.25, "EyeBlinkLeft": 1.5})], columns, start="\ufeff")
    params = load_live_link(path, head)
    names = head.expression_names
    assert len(params) == 1 and params.expression[0, names.index("tongueOut")] == 0.25
    assert params.expression[0, names.index("eyeBlinkLeft")] == 1, "no coefficient is above 1"
    assert params.head == head.name and not params.shape.any()
    assert torch.equal(params.camera, head.neutral(1).camera)


@pytest.mark.parametrize(
    ("name", "axis", "sign"), [("HeadYaw", 1, -1), ("HeadPitch", 0, 1), ("HeadRoll", 2, -1)]
)
def test_the_head_turns(head: HeadModel, write: Callable, name: str, axis: int, sign: int) -> None:
    path = write([("00:00:00:00.000", {name: 0.3})])
    neck = load_live_link(path, head).pose[0, 3:6]
    assert neck[axis] == pytest.approx(sign * 0.3, abs=1e-4) and neck.norm() == pytest.approx(0.3, abs=1e-4)
    flip = tuple(angle == name for angle in ("HeadYaw", "HeadPitch", "HeadRoll"))
    assert load_live_link(path, head, flip=flip).pose[0, 3 + axis] == pytest.approx(-sign * 0.3, abs=1e-4)


def test_the_eyes_agree_with_the_recordings_own_angles(head: HeadModel, write: Callable) -> None:
    """In recordings an eye that looks to the subject's left has a negative yaw, and one that looks down a
    positive pitch: what is said of the head's signs must hold for them too.
    """
    path = write([("00:00:00:00.000", {"EyeLookOutLeft": 0.5, "EyeLookInRight": 0.5, "EyeLookDownLeft": 0.5,
                                       "EyeLookDownRight": 0.5})])  # fmt: skip
    yaw, pitch, _ = rotation.to_euler(load_live_link(path, head).pose[0, 9:12])
    recorded_yaw, recorded_pitch = -0.3, 0.28
    turned = write([("00:00:00:00.000", {"HeadYaw": recorded_yaw, "HeadPitch": recorded_pitch})])
    head_yaw, head_pitch, _ = rotation.to_euler(load_live_link(turned, head).pose[0, 3:6])
    assert yaw * head_yaw > 0 and pitch * head_pitch > 0


def test_lines_without_values_are_left_out(head: HeadModel, write: Callable) -> None:
    path = write(ramp(range(241)))
    lines = path.read_text().splitlines()
    lines[20] = lines[20].split(",")[0] + ",0"
    lines[30] = lines[30].replace("0.0", "nan", 1)
    lines[31] = lines[31].replace("0.0000000000", "?", 1)
    path.write_text("\n".join([*lines, ""]))
    torch.testing.assert_close(jaw(path, head), torch.arange(121) / 120, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b,c\n1,2,3\n",
        "Timecode,BlendShapeCount,JawOpen\n00:00:00:00,1,0.5\n",
        "Timecode,BlendShapeCount,JawOpen,EyeBlinkLeft\n",
        "Timecode,BlendShapeCount,JawOpen,EyeBlinkLeft\n00:00:00:00,0\n",
        "Timecode,BlendShapeCount,JawOpen,EyeBlinkLeft\nnow,2,0.5,0.5\n",
        "Timecode,BlendShapeCount,JawOpen,EyeBlinkLeft\n00:00:00,2,0.5,0.5\n",
        "Timecode,BlendShapeCount,JawOpen,EyeBlinkLeft\n00:nan:00:00,2,0.5,0.5\n",
        "Timecode,BlendShapeCount,JawOpen,EyeBlinkLeft\n00:00:00:00,2,0.5,0.5\n09:00:00:00,2,0.5,0.5\n",
        '"' + "x" * 200000,
    ],
)
def test_other_files_are_refused(head: HeadModel, tmp_path: Path, text: str) -> None:
    path = tmp_path / "take.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"take\.csv"):
        load_live_link(path, head)


def test_missing_and_binary_files_are_refused(head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "take.csv"
    for content in (None, b"\xff\xfe\x00\x01", b"Timecode\0,"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"take\.csv"):
            load_live_link(path, head)
