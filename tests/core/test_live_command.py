"""The command `live` and what it stands on: pace, packets of Live Link Face, outputs, interrupts."""

from __future__ import annotations

import io
import math
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread

import av
import pytest
import torch
from torch import Tensor

from anifacediff_core.capture.live_link_stream import (
    COEFFICIENTS,
    VALUES,
    LiveLinkReader,
    LiveLinkSocket,
    read_packet,
)
from anifacediff_core.capture.osc import OscSocket
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.lab.cli import main
from anifacediff_core.lab.live import (
    LONGEST_PAUSE,
    CameraInput,
    DeviceOutput,
    FileInput,
    Live,
    PacketInput,
    PipeOutput,
    VideoOutput,
    open_input,
)
from anifacediff_core.provenance.container import STATEMENT
from anifacediff_core.provenance.detect import detect
from anifacediff_core.sampling.pace import Meter, Newest
from anifacediff_core.video import VideoWriter, probe, read_frames
from harness.extension import ROOT
from harness.videos import steady, write_driver

EXAMPLES = ROOT / "anifacediff_core" / "assets" / "examples"


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---- pace


def test_the_newest_frame_counts_and_older_ones_are_dropped() -> None:
    clock = Clock()
    newest: Newest[int] = Newest(clock)
    for frame in range(5):
        newest.put(frame)
        clock.now += 0.1
    taken = newest.take(0)
    assert taken is not None and (taken.item, taken.time) == (4, pytest.approx(100.4))
    assert newest.dropped == 4
    assert newest.take(0) is None
    newest.put(9)
    newest.close()
    assert not newest.closed  # what waits can still be taken
    assert newest.take(60).item == 9 and newest.closed
    assert newest.take(60) is None  # closed: nobody waits


def test_figures_by_the_clock() -> None:
    clock = Clock()
    meter = Meter(clock)
    assert meter.rate == 0 and meter.latency(0.5) == 0
    for frame in range(21):
        clock.now += 0.5
        meter.show(clock.now - (0.2 if frame else 1.0))
    assert meter.rate == pytest.approx(2.0)
    assert meter.latency(0.5) == pytest.approx(0.2)
    assert meter.latency(1.0) == pytest.approx(1.0)
    assert meter.describe(3) == "2.0 FPS, latency 200 ms (95 %: 200 ms), 3 frames dropped"


# ---- Live Link Face


def packet(coefficients: dict[str, float] | None = None, head: tuple[float, ...] = (0, 0, 0)) -> bytes:
    """As the app sends it; without coefficients, one of a lost face."""
    device, subject = b"$12345678-1234-1234-1234-123456789abc", "iPhone ü".encode()
    start = b"\x06" + struct.pack(">I", len(device)) + device + struct.pack(">I", len(subject)) + subject
    if coefficients is None:
        return start
    values = [coefficients.get(name, 0.0) for name in COEFFICIENTS]
    return start + struct.pack(f">IfIIB{VALUES}f", 7, 0.5, 60, 1, VALUES, *values, *head, *[0.0] * 6)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return HeadModel.bundled()


def test_packets_become_parameters(head: HeadModel) -> None:
    reader = LiveLinkReader(head)
    params = reader.read(packet({"jawOpen": 0.7, "eyeBlinkLeft": 1.0}, (0.3, 0.1, 0.0)))
    names = head.expression_names
    assert set(COEFFICIENTS) == set(names)
    assert params.expression[0, names.index("jawOpen")] == pytest.approx(0.7)
    assert params.expression[0, names.index("eyeBlinkLeft")] == 1 and params.valid.all()
    assert params.pose[0, 4] < -0.2 and params.pose[0, 3] > 0.05  # to the subject's right, and down
    assert torch.equal(params.camera, head.neutral(1).camera)
    assert not reader.read(packet(None)).valid.any()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05" + packet({})[1:],
        packet({})[:-1],
        packet({}) + b"\0",
        packet({"jawOpen": math.nan}),
        packet({"jawOpen": 1e9}),
        packet({})[:43] + b"\xff" * 4 + packet({})[47:],
        b"\x06" * 5000,
        b"\x06" + b"\xff" * 4,
    ],
    ids=["empty", "version", "short", "long", "nan", "huge", "subject", "5000 bytes", "endless"],
)
def test_other_packets_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_packet(data)


def test_malformed_packets_are_counted_and_only_this_computer_is_heard(head: HeadModel) -> None:
    link = LiveLinkSocket("udp://:0", LiveLinkReader(head))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        assert link._socket.getsockname()[0] == "127.0.0.1"
        for data in (b"hello", b"\x06" * 60000, packet({"jawOpen": 0.5})):
            sender.sendto(data, ("127.0.0.1", link.port))
        received = [link.receive(30) for _ in range(3)]
        assert received[:2] == [None, None] and link.malformed == 2
        assert isinstance(received[2], FaceParameters)
        with pytest.raises(InputError, match="listened at"):
            LiveLinkSocket(f"udp://127.0.0.1:{link.port}", LiveLinkReader(head))
    finally:
        sender.close()
        link.close()
    for address in ("udp://:99999", "udp://203.0.113.7:11111"):
        with pytest.raises(InputError, match="address"):
            LiveLinkSocket(address, LiveLinkReader(head))


# ---- inputs and outputs


def gray(level: float) -> Tensor:
    return torch.full((3, 32, 32), level)


def test_what_inputs_mean(tmp_path: Path, head: HeadModel) -> None:
    driver = tmp_path / "driver.mp4"
    write_driver(driver, steady(4), seconds=0.2)
    given = open_input(str(driver), head, Fraction(30))
    assert isinstance(given, FileInput) and not given.live and given.sound == driver
    listening = open_input("osc://:0", head, Fraction(30))
    assert isinstance(listening, PacketInput) and isinstance(listening.link, OscSocket)
    listening.link.close()
    assert isinstance(open_input("/dev/video0", head, Fraction(30)), CameraInput)
    assert isinstance(open_input("rtsp://camera/1", head, Fraction(30)), CameraInput)
    with pytest.raises(InputError, match="known kind"):
        open_input("concat://a|b", head, Fraction(30))
    with pytest.raises(InputError, match="could not be read"):
        next(open_input(str(tmp_path / "none.mp4"), head, Fraction(30)).drivers(Event()))


def test_what_is_no_virtual_camera_is_told(tmp_path: Path) -> None:
    camera = DeviceOutput(str(tmp_path / "video9"), Fraction(30))
    with pytest.raises(InputError, match="no virtual camera"):
        camera.show(gray(0.5), 0.0)
    camera.close()


def test_a_video_keeps_its_time_whatever_is_dropped(tmp_path: Path) -> None:
    """Frames 1 and 2 of 25 a second are dropped, a pause of an hour is cut."""
    with VideoWriter(tmp_path / "out.mp4", Fraction(25)) as writer:
        output = VideoOutput(writer)
        for level, time in ((0.2, 0.0), (0.5, 3 / 25), (0.8, 4 / 25), (0.9, 3600.0), (1.0, 3600 + 1 / 25)):
            output.show(gray(level), time)
    levels = [round(float(frame.mean()), 1) for frame in read_frames(tmp_path / "out.mp4")]
    assert levels[:5] == [0.2, 0.2, 0.2, 0.5, 0.8]
    assert levels[-2:] == [0.9, 1.0] and len(levels) == pytest.approx(5 + 25 * LONGEST_PAUSE, abs=2)


def test_a_pipe_is_read_as_a_video() -> None:
    file = io.BytesIO()
    output = PipeOutput(file, Fraction(30000, 1001))
    for level in (0.1, 0.6):
        output.show(gray(level), 0.0)
    file.seek(0)
    with av.open(file, format="yuv4mpegpipe") as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
        shown = [frame.to_ndarray(format="rgb24").mean() / 255 for frame in container.decode(video=0)]
    assert shown == pytest.approx([0.1, 0.6], abs=0.02)


class Still:
    """A stream that shows the driver's brightness; while it draws, the clock goes on."""

    def __init__(self, takes: Callable[[], None] = lambda: None) -> None:
        self.takes, self.drawn = takes, 0

    def __call__(self, frame: Tensor) -> Tensor:
        self.takes()
        self.drawn += 1
        return frame.mean((1, 2), keepdim=True).expand(3, 160, 160)


class Endless:
    """A camera that counts, for ever."""

    rate, live, sound = Fraction(25), True, None

    def drivers(self, stop: Event) -> Iterator[tuple[float, Tensor]]:
        number = 0
        while not stop.wait(0.001):
            yield number / 25, gray(0.5)
            number += 1


def live(
    stream: Still, given: object, stop: Event, marked: bool = True, said: list[str] | None = None
) -> Live:
    report = (said if said is not None else []).append
    return Live(stream, given, marked, print, report, stop)  # type: ignore[arg-type]


def test_every_frame_of_a_file_with_its_sound_and_the_mark(tmp_path: Path) -> None:
    driver, out = tmp_path / "driver.mp4", tmp_path / "out.mp4"
    write_driver(driver, steady(24), seconds=0.8)
    stream = Still()
    assert live(stream, FileInput(driver), Event()).write(out, realtime=False) == 24
    info = probe(out)
    assert (info.frames, stream.drawn, info.has_audio) == (24, 24, True)
    with av.open(str(out)) as container:
        assert container.metadata["comment"] == STATEMENT
    assert detect([torch.stack(list(read_frames(out)))]).identifier == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver.mp4", "out.mp4"]
    live(Still(), FileInput(driver), Event(), marked=False).write(out, realtime=False)
    with av.open(str(out)) as container:
        assert "comment" not in container.metadata


class Watched(FileInput):
    """A file, and whether all of it has come."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.all = Event()

    def drivers(self, stop: Event) -> Iterator[tuple[float, Tensor]]:
        yield from super().drivers(stop)  # type: ignore[misc]
        self.all.set()


def test_a_slow_stream_drops_frames_and_keeps_the_length(tmp_path: Path) -> None:
    """In real time of a file, whose frames all come while the first one is drawn."""
    driver, out = tmp_path / "driver.mp4", tmp_path / "out.mp4"
    write_driver(driver, steady(12), seconds=0.4)
    given = Watched(driver)
    stream = Still(lambda: None if stream.drawn else given.all.wait(300))
    said: list[str] = []
    running = live(stream, given, Event(), said=said)
    assert running.write(out, realtime=True) == 12
    assert stream.drawn <= 2 and probe(out).frames == 12 and probe(out).has_audio
    assert said[-1].endswith("10 frames dropped" if stream.drawn == 2 else "11 frames dropped")


def test_stopping_finishes_the_file(tmp_path: Path) -> None:
    stop = Event()
    stream = Still(lambda: stop.set() if stream.drawn == 5 else None)
    frames = live(stream, Endless(), stop).write(tmp_path / "out.mp4", realtime=False)
    assert stream.drawn == 6 and probe(tmp_path / "out.mp4").frames == frames


def test_no_frame_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(InputError, match="No frame came"):
        live(Still(), Endless(), stop).write(tmp_path / "out.mp4", realtime=True)
    assert not list(tmp_path.iterdir())


def test_what_fails_in_the_reader_is_told(tmp_path: Path) -> None:
    broken = CameraInput(str(tmp_path / "no_camera"), Fraction(25))
    with pytest.raises(InputError, match="could not be read"):
        live(Still(), broken, Event()).write(tmp_path / "out.mp4", realtime=True)


class Unplugged(Endless):
    def drivers(self, stop: Event) -> Iterator[tuple[float, Tensor]]:
        for number in range(3):
            yield number / 25, gray(0.5)
        raise InputError("The camera is gone: plug it in.")


def test_what_came_before_a_failure_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert live(Still(), Unplugged(), Event()).write(tmp_path / "out.mp4", realtime=True) >= 1
    assert "is kept: The camera is gone" in capsys.readouterr().out
    assert probe(tmp_path / "out.mp4").frames >= 1


# ---- the command


def test_the_command_refuses_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["live", "--source", str(EXAMPLES / "source.png"), "--input"]
    with pytest.raises(SystemExit):
        main([*given, str(EXAMPLES / "driving.mp4"), "--output", "out.avi"])
    assert "has to end in .mp4" in capsys.readouterr().err
    out = str(tmp_path / "out.mp4")
    assert main([*given, "nonsense://x", "--output", out, "--size", "64", "--device", "cpu"]) == 2
    assert "known kind" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example clip, cut short."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, Fraction(25)) as writer:
        for _, frame in zip(range(4), read_frames(EXAMPLES / "driving.mp4"), strict=False):
            writer.write(frame[None])
    return path


def test_a_pipe_has_nothing_but_pictures(clip: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    arguments = ["live", "--source", str(EXAMPLES / "source.png"), "--input", str(clip), "--output", "-"]
    assert main([*arguments, "--size", "64", "--device", "cpu"]) == 0
    written, said = capfdbinary.readouterr()
    header = b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg\n"
    assert written.startswith(header) and len(written) == len(header) + 4 * (6 + 64 * 64 * 3 // 2)
    assert b"A mark needs 128 pixels" in said and b"0 frames dropped" in said


def test_a_clip_from_end_to_end(clip: Path, tmp_path: Path) -> None:
    """To a marked video whose face moves."""
    out = tmp_path / "out.mp4"
    arguments = ["live", "--source", str(EXAMPLES / "source.png"), "--input", str(clip), "--output", str(out)]
    assert main([*arguments, "--size", "128", "--relative", "--device", "cpu"]) == 0
    shown = torch.stack(list(read_frames(out)))
    assert shown.shape == (4, 3, 128, 128)
    with av.open(str(out)) as container:
        assert container.metadata["comment"] == STATEMENT


def test_packets_drive_the_command_until_it_is_interrupted(tmp_path: Path) -> None:
    """Live Link Face's packets from a test, Ctrl-C: the file is whole."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "anifacediff_core", "live", "--source", str(EXAMPLES / "source.png")]
    command += ["--input", f"udp://:{port}", "--output", str(out), "--size", "64", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    sending = Event()

    def send() -> None:
        number = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not sending.wait(0.05):
                sender.sendto(packet({"jawOpen": number % 10 / 10}), ("127.0.0.1", port))
                sender.sendto(b"not a packet", ("127.0.0.1", port))
                number += 1

    sender = Thread(target=send)
    sender.start()
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("FPS" in line for line in lines)  # it runs
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(120) == 0
    finally:
        sending.set()
        sender.join()
        process.kill()
        process.wait()
    assert "frames dropped" in rest and "frames at 30" in rest and "none of Live Link Face's" in rest
    frames = list(read_frames(out))
    assert len(frames) == probe(out).frames > 1 and frames[0].shape == (3, 64, 64)
