"""Recordings of the Live Link Face app."""

from __future__ import annotations

import math
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
    with pytest.raises(InputError, match="within a second.*choose timecode_fps"):
        jaw(write(short), head)
    assert len(jaw(write(short), head, Fraction(rate), timecode_rate=rate)) == 12


def test_more_frames_than_a_second_has(head: HeadModel, write: Callable) -> None:
    with pytest.raises(InputError, match="up to frame 59, too many for 24"):
        load_live_link(write(ramp(range(241), 60)), head, timecode_rate=24)
    with pytest.raises(InputError, match="frame 99 in a second of 60"):
        load_live_link(write([*ramp(range(241), 60), ("00:00:02:99", {})]), head)


# ---- timecode of many hands: line `i` is made at i / fps seconds


def line_counter(i: int, fps: float) -> str:
    return f"00:00:{int(i / fps):02}:{int(i % fps + 1e-9):02}.{i % 1000:03}"


def thousandths(i: int, fps: float) -> str:
    ms = i / fps % 1 * 1000
    return f"00:00:{int(i / fps):02}:{int(ms * fps / 1000 + 1e-9):02}.{int(ms):03}"


def turned_over(i: int, fps: float) -> str:
    """Rounded frames, of which the last is written as the next second's first."""
    return f"00:00:{int(i / fps):02}:{round(i / fps % 1 * fps - 1e-6) % round(fps):02}"


def milliseconds(i: int, fps: float) -> str:
    return f"00:00:{int(i / fps):02}:{int(i / fps % 1 * 1000):02}"


def clock(i: int, fps: float) -> str:
    return f"00:00:{int(i / fps):02}.{int(i / fps % 1 * 1000):03}"


def wave(stamp: Callable[[int, float], str], fps: float, seconds: float) -> list:
    """Lines whose jaw opens and closes once a second, as in `opened`."""
    times = [i / fps for i in range(int(fps * seconds))]
    return [(stamp(i, fps), {"JawOpen": 0.5 - 0.5 * math.cos(2 * math.pi * t)}) for i, t in enumerate(times)]


def error(path: Path, head: HeadModel) -> float:
    found = load_live_link(path, head)
    expected = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(len(found)) / 30)
    away = found.expression[:, head.expression_names.index("jawOpen")] - expected
    return float(away[found.valid].square().mean().sqrt())


@pytest.mark.parametrize("stamp", [line_counter, thousandths, milliseconds, clock])
@pytest.mark.parametrize("fps", [12, 15, 20, 24, 25, 29.97, 30, 50, 60, 90, 120, 240])
@pytest.mark.parametrize("seconds", [1.5, 5])
def test_any_rate_is_told_from_all_lines(
    head: HeadModel, write: Callable, stamp: Callable, fps: float, seconds: float
) -> None:
    path = write(wave(stamp, fps, seconds))
    assert len(load_live_link(path, head)) == pytest.approx(30 * seconds, abs=4)
    assert error(path, head) < 0.03


@pytest.mark.parametrize("stamp", [line_counter, thousandths, turned_over, milliseconds, clock])
@pytest.mark.parametrize("fps", [12.5, 17.3, 33.3])
@pytest.mark.parametrize("seconds", [1.5, 5, 30])
def test_rates_that_are_no_whole_numbers(
    head: HeadModel, write: Callable, stamp: Callable, fps: float, seconds: float
) -> None:
    path = write(wave(stamp, fps, seconds))
    assert len(load_live_link(path, head)) == pytest.approx(30 * (int(fps * seconds) - 1) / fps, abs=1.5)
    assert error(path, head) < 0.03


def test_such_a_rate_in_the_middle_of_a_day(head: HeadModel, write: Callable) -> None:
    lines = [(f"11:59:5{int(i / 12.5 + 0.3)}:{int((i / 12.5 + 0.3) % 1 * 12.5):02}", {}) for i in range(110)]
    assert len(load_live_link(write(lines), head, Fraction(100))) == pytest.approx(109 * 8, abs=8)


def test_a_line_counter_is_no_part_of_a_frame(head: HeadModel, write: Callable) -> None:
    assert error(write(wave(line_counter, 15, 50)), head) < 0.03


def test_lines_in_any_order(head: HeadModel, write: Callable) -> None:
    lines = wave(line_counter, 15, 5)
    assert error(write([*lines[::2], *reversed(lines[1::2]), *lines[10:20]]), head) < 0.03


def test_pauses_are_filled_and_told(head: HeadModel, write: Callable) -> None:
    lines = wave(line_counter, 15, 9)
    path = write([*lines[:30], *lines[90:]])
    found = load_live_link(path, head)
    assert len(found) == 269 and not found.valid[62:178].any() and found.valid[182:].all()
    assert error(path, head) < 0.03


@pytest.mark.parametrize(("counted", "mark"), [(30, ";"), (30, ":"), (60, ";")])
def test_drop_frame_timecode_keeps_to_the_clock(
    head: HeadModel, write: Callable, counted: int, mark: str
) -> None:
    dropped = counted // 15
    lines = []
    for frame in range(counted * 130):
        number = frame + dropped * max(0, (frame - dropped) // (60 * counted - dropped))
        second, part = divmod(number, counted)
        opened = 0.5 - 0.5 * math.cos(2 * math.pi * frame * 1001 / 1000 / counted)
        lines.append((f"10:{second // 60:02}:{second % 60:02}{mark}{part:02}", {"JawOpen": opened}))
    path = write(lines)
    assert "10:01:00" in path.read_text() and f"10:01:00{mark}00" not in path.read_text()
    assert error(path, head) < 0.03


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_files_as_spreadsheets_save_them(
    head: HeadModel, write: Callable, encoding: str, separator: str
) -> None:
    path = write(wave(line_counter, 15, 3))
    lines = path.read_text().splitlines()
    if separator != ",":
        lines = [line.replace(",", separator).replace(".", ",") for line in lines]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes("\r\n".join([mark + lines[0], *lines[1:], ""]).encode(encoding))
    assert error(path, head) < 0.03


def test_decimal_commas_between_commas_are_told(head: HeadModel, write: Callable) -> None:
    path = write(wave(line_counter, 15, 3))
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *(line.replace(".", ",") for line in lines)]))
    with pytest.raises(InputError, match="points as decimal signs"):
        load_live_link(path, head)


@pytest.mark.parametrize("end", ["00:30:00:00", "03:59:59:00", "12:00:00:00", "23:00:00:00"])
def test_time_without_lines_is_not_believed(head: HeadModel, write: Callable, end: str) -> None:
    with pytest.raises(InputError, match="only 2 lines for .* cut the recording there"):
        load_live_link(write([("00:00:00:00", {}), (end, {})]), head, Fraction(240))


def test_the_same_timecode_in_all_lines_is_told(head: HeadModel, write: Callable) -> None:
    with pytest.raises(InputError, match="is the same in most lines, 5 times for 50"):
        load_live_link(write([(f"00:00:0{i // 10}:00", {"JawOpen": i / 50}) for i in range(50)]), head)


def test_messages_do_not_steer_a_terminal(head: HeadModel, write: Callable) -> None:
    with pytest.raises(InputError) as caught:
        load_live_link(write([("00:00:\x1b[2J\x07", {})]), head)
    assert str(caught.value).isprintable() and r"\x1b[2J" in str(caught.value)


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
