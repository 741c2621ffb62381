"""A stream from an input to an output without a window: files, devices, addresses, coefficients, pipes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from anifacediff_core.capture.extract import crop_portrait, extract_parameters
from anifacediff_core.capture.live_link_stream import LiveLinkReader, LiveLinkSocket, PacketSocket
from anifacediff_core.capture.osc import OscReader, OscSocket
from anifacediff_core.device import pick_dtype
from anifacediff_core.display import Display
from anifacediff_core.errors import InputError
from anifacediff_core.head.model import HeadModel
from anifacediff_core.head.parameters import FaceParameters
from anifacediff_core.media import VIDEO_FORMATS, require_affordable, video_stream
from anifacediff_core.provenance.container import copy_declared
from anifacediff_core.provenance.mark import LEAST_SIDE, mark
from anifacediff_core.sampling.pace import Clock, Meter, Newest
from anifacediff_core.sampling.pipeline import Pipeline
from anifacediff_core.sampling.stream import Stream
from anifacediff_core.sound import keep_sound
from anifacediff_core.storage import atomic_write
from anifacediff_core.video import (
    VideoWriter,
    frame_pace,
    join_videos,
    probe,
    read_frames,
    read_image,
    to_pixels,
    to_tensor,
)
from anifacediff_core.weights.checkpoint import load_checkpoint
from anifacediff_core.weights.faces import load_face_models

from .options import Speed

Driver: TypeAlias = Tensor | FaceParameters  # a frame (3, height, width), or parameters (1)
SCHEMES = ("http", "https", "rtsp", "rtmp", "tcp")
CAMERAS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}  # FFmpeg's names of what reads them
PATIENCE = 0.25  # seconds after which a thread that waits looks whether it is to stop
LONGEST_PAUSE = 10.0  # seconds without a frame that the result shows as such
REPORT_EVERY = 1.0  # seconds


class Input(Protocol):
    """Where drivers come from.

    Attributes:
        rate: frames a second of the result.
        live: whether it goes on whether one keeps up with it or not.
        sound: the file whose sound belongs to it.
    """

    rate: Fraction
    live: bool
    sound: Path | None

    def drivers(self, stop: Event) -> Iterator[tuple[float, Driver]]:
        """What drives, and when it is to be shown, in seconds from the first on."""
        ...


@dataclass
class FileInput:
    """A video file, by its own times."""

    path: Path
    live: bool = False

    def __post_init__(self) -> None:
        self.rate, self._times = frame_pace(self.path)
        self.sound = self.path if probe(self.path).has_audio else None

    def drivers(self, stop: Event) -> Iterator[tuple[float, Driver]]:
        for number, frame in enumerate(read_frames(self.path)):
            yield self._times[number] if number < len(self._times) else float(number / self.rate), frame


@dataclass
class CameraInput:
    """A camera, or an address that the user names, read by FFmpeg."""

    address: str
    rate: Fraction
    live: bool = True
    sound: Path | None = None

    def drivers(self, stop: Event) -> Iterator[tuple[float, Driver]]:
        import av
        from av.error import FFmpegError

        scheme = self.address.partition("://")[0]
        given: dict[str, Any] = {"format": CAMERAS.get(sys.platform)}
        if scheme in SCHEMES:
            allowed = {"protocol_whitelist": "http,https,tcp,tls,udp,rtp,rtsp,rtmp"}
            given = {"container_options": {**allowed, "format_whitelist": ",".join(("rtsp", *VIDEO_FORMATS))}}
        try:
            with av.open(self.address, timeout=10.0, metadata_errors="replace", **given) as container:
                stream, display = video_stream(container), None
                if stream is None or stream.codec_context is None:
                    raise InputError(f"{self.address} has no video that can be read.")
                require_affordable(self.address, stream.width, stream.height)
                begun = time.monotonic()
                for frame in container.decode(stream):
                    display = display or Display.of(stream, frame)
                    yield time.monotonic() - begun, to_tensor(display.pixels(frame))
                    if stop.is_set():
                        return
        except (FFmpegError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.address} could not be read ({error}): name a video file, a camera such as "
                f"/dev/video0, an address of {', '.join(SCHEMES)}, or udp://:11111 for Live Link Face, or osc://:39539."
            ) from error


@dataclass
class PacketInput:
    """Packets of coefficients: of Live Link Face, or by OSC."""

    link: PacketSocket
    rate: Fraction
    live: bool = True
    sound: Path | None = None

    def drivers(self, stop: Event) -> Iterator[tuple[float, Driver]]:
        begun = None
        with closing(self.link):
            while not stop.is_set():
                params = self.link.receive(PATIENCE)
                if params is not None:
                    begun = time.monotonic() if begun is None else begun
                    yield time.monotonic() - begun, params


def open_input(address: str, head: HeadModel, rate: Fraction) -> Input:
    """What an input's name means: a file that is there, udp:// for Live Link Face, osc:// for OSC, or a
    camera or address.

    Args:
        rate: frames a second of the result, where the input is no file.
    """
    if Path(address).is_file():
        return FileInput(Path(address))
    if address.startswith("udp://"):
        return PacketInput(LiveLinkSocket(address, LiveLinkReader(head)), rate)
    if address.startswith("osc://"):
        return PacketInput(OscSocket(address, OscReader(head)), rate)
    if "://" in address and address.partition("://")[0] not in SCHEMES:
        raise InputError(f"{address} is no address of a known kind: give {', '.join(SCHEMES)}, udp or osc.")
    return CameraInput(address, rate)


# ---- outputs


class Output(Protocol):
    def show(self, image: Tensor, time: float) -> None:
        """Take the picture (3, size, size) that is shown from that time on, in seconds from the first."""
        ...


class VideoOutput:
    """A video of constant rate: a picture stays until the next one's time, so that dropped frames neither
    shorten it nor move its sound.
    """

    def __init__(self, writer: VideoWriter) -> None:
        self.writer = writer
        self._last: Tensor | None = None
        self._cut = 0.0

    def show(self, image: Tensor, time: float) -> None:
        written = self.writer.frames
        self._cut += max(0.0, time - self._cut - float(written / self.writer.rate) - LONGEST_PAUSE)
        number = round((time - self._cut) * self.writer.rate)
        for _ in range(number - written):
            self.writer.write((image if self._last is None else self._last)[None])
        if number >= written:
            self.writer.write(image[None])
        self._last = image


class PipeOutput:
    """YUV4MPEG2, which every player and encoder reads from a pipe: a picture as soon as it is there."""

    def __init__(self, file: Any, rate: Fraction) -> None:
        self.file, self.rate, self._begun = file, rate, False

    def show(self, image: Tensor, time: float) -> None:
        from av import VideoFrame

        if not self._begun:
            height, width = image.shape[-2:]
            rate = f"F{self.rate.numerator}:{self.rate.denominator}"
            self.file.write(f"YUV4MPEG2 W{width} H{height} {rate} Ip A1:1 C420jpeg\n".encode())
            self._begun = True
        pixels = VideoFrame.from_ndarray(np.ascontiguousarray(to_pixels(image)), format="rgb24")
        planes = pixels.reformat(format="yuv420p").to_ndarray()
        self.file.write(b"FRAME\n" + planes.tobytes())
        self.file.flush()


class DeviceOutput:
    """A virtual camera, such as v4l2loopback makes: other programs see the pictures as a webcam's."""

    def __init__(self, path: str, rate: Fraction) -> None:
        import av

        self.path, self.rate, self.shown = path, rate, 0
        self._container: Any = av.open(path, "w", format="v4l2")
        self._stream: Any = None

    def show(self, image: Tensor, time: float) -> None:
        """See `Output.show`.

        Raises:
            InputError: it is no such device.
        """
        from av import VideoFrame
        from av.error import FFmpegError

        if self._stream is None:
            self._stream = self._container.add_stream("rawvideo", rate=self.rate)
            self._stream.height, self._stream.width = image.shape[-2:]
            self._stream.pix_fmt = "yuv420p"
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(to_pixels(image)), format="rgb24")
        frame.pts, frame.time_base = self.shown, 1 / self.rate
        try:
            self._container.mux(self._stream.encode(frame))
        except FFmpegError as error:
            raise InputError(
                f"{self.path} is no virtual camera that can be written ({error}): make one with "
                "v4l2loopback, or name an mp4, or - for a pipe."
            ) from error
        self.shown += 1

    def close(self) -> None:
        self._container.close()


# ---- from one to the other


@dataclass(frozen=True)
class Live:
    """A stream with its input and what to do on the way.

    Attributes:
        marked: put the invisible mark into every picture.
        say: called with sentences for people.
        report: called with a line of figures, about every second and at the end.
        stop: ends the stream, from any thread.
    """

    stream: Stream
    input: Input
    marked: bool
    say: Callable[[str], None]
    report: Callable[[str], None]
    stop: Event
    clock: Clock = time.monotonic

    def write(self, path: Path, realtime: bool) -> int:
        """Write an mp4, which appears when it is whole, with the sound of the input; it ends where the input
        does, even if that fails.

        Returns:
            its number of frames.

        Raises:
            InputError: not a single frame came.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            pictures, whole = Path(folder, "pictures.mp4"), Path(folder, "video.mp4")
            with suppress(_Nothing), VideoWriter(pictures, self.input.rate) as writer:
                try:
                    self.run(VideoOutput(writer), realtime)
                except InputError as error:  # a camera that was unplugged
                    if not writer.frames:
                        raise
                    self.say(f"What came before this is kept: {error}")
                if not writer.frames:
                    raise _Nothing
            if not pictures.is_file():
                raise InputError("No frame came in, so there is nothing to write: check the input.")

            def join(sound: Path | None, copied: bool) -> int:
                return join_videos([pictures], whole, writer.rate, (), sound, copied)

            frames = keep_sound(join, self.input.sound, self.say)
            if self.marked:
                copy_declared(whole, path, say=self.say)
            else:
                with atomic_write(path) as temporary:
                    whole.replace(temporary)
        return frames

    def run(self, output: Output, realtime: bool) -> None:
        """Show a picture for every driver, or, in real time, for the newest one whenever there is time."""
        meter, dropped, said = Meter(self.clock), 0, self.clock()
        with ExitStack() as stack:
            stack.callback(lambda: self.report(meter.describe(dropped)))
            for came, when, driver, dropped in self._paced(realtime or self.input.live, stack):
                image = self.draw(driver)
                try:
                    output.show(image, when)
                except BrokenPipeError:  # whoever read it has had enough
                    self.stop.set()
                meter.show(came)
                if self.clock() - said >= REPORT_EVERY:
                    said = self.clock()
                    self.report(meter.describe(dropped))
                if self.stop.is_set():
                    return

    def draw(self, driver: Driver) -> Tensor:
        """The picture for a driver, marked if it is to be."""
        given = isinstance(driver, FaceParameters)
        image = self.stream.follow(driver) if given else self.stream(driver)  # type: ignore[arg-type]
        fits = self.marked and image.shape[-1] >= LEAST_SIDE
        return mark(image[None])[0] if fits else image

    def _paced(self, realtime: bool, stack: ExitStack) -> Iterator[tuple[float, float, Driver, int]]:
        """Drivers: when they came and are to be shown, they themselves, how many were dropped so far."""
        if not realtime:
            for when, driver in self.input.drivers(self.stop):
                yield self.clock(), when, driver, 0
            return
        newest: Newest[tuple[float, Driver]] = Newest(self.clock)
        failures: list[BaseException] = []
        reader = Thread(target=self._read, args=(newest, failures), daemon=True)
        stack.callback(reader.join, 2 * PATIENCE)
        stack.callback(self.stop.set)
        reader.start()
        while not self.stop.is_set() and not newest.closed:
            taken = newest.take(PATIENCE)
            if taken is not None:
                when, driver = taken.item
                yield taken.time, when, driver, newest.dropped
        if failures and not self.stop.is_set():
            raise failures[0]

    def _read(self, newest: Newest[tuple[float, Driver]], failures: list[BaseException]) -> None:
        """Hand over what comes: of a file at its times, as if it were a camera."""
        begun = self.clock()
        try:
            for when, driver in self.input.drivers(self.stop):
                if not self.input.live:
                    self.stop.wait(max(0.0, begun + when - self.clock()))
                if self.stop.is_set():
                    return
                newest.put((when, driver))
        except Exception as error:  # told by the thread that waits for it
            failures.append(error)
        finally:
            newest.close()


class _Nothing(Exception):
    """Nothing was written: the unfinished file goes."""


@contextmanager
def stopped_by_interrupt() -> Iterator[Event]:
    """An event that the first Ctrl-C sets; the second interrupts as ever."""
    stop = Event()

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def load_stream(
    source: Path,
    checkpoint: Path,
    device: torch.device,
    size: int,
    faces: dict[str, Path],
    speed: Speed = Speed(),  # noqa: B008 - it is frozen
    **settings: Any,
) -> tuple[Stream, Tensor, str]:
    """A stream of a source picture, its portrait (1, 3, size, size), and what is to be said about it.

    Args:
        faces, settings: of `load_face_models` and of `Stream`.
        speed: precision, and whether to compile.
    """
    opened = load_checkpoint(checkpoint)
    models = load_face_models(opened, **faces, device=device)
    pipeline = Pipeline.from_checkpoint(opened, device, pick_dtype(speed.precision, device), models.head)
    if speed.compiled:
        pipeline.compile(speed.replay)
    step = pipeline.model.config.downsampling
    if size % step:
        raise InputError(f"The size of the result is {size}: give a multiple of {step}.")
    image = read_image(source)
    found = extract_parameters(image, models, what="the source picture")
    portrait = crop_portrait(image, found.square, size)
    return Stream(pipeline, models, portrait, found.parameters, **settings), portrait, found.note
