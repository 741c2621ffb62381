"""The sound of videos and sound files on its way into another file."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .errors import InputError
from .media import open_media, video_stream

MP4_AUDIO_CODECS = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
OPUS_RATES = (48000, 24000, 16000, 12000, 8000)
OLDEST_PYAV = 15
STEADY = 0.02  # seconds: a jump of the sound's time below that is none

Written = TypeVar("Written")


@dataclass(frozen=True)
class SoundForm:
    """What a container's sound may be.

    Attributes:
        copied: codecs that go over packet by packet.
        codec: what others are encoded as.
        rates: samples a second that this knows; any if there are none.
    """

    copied: frozenset[str]
    codec: str
    rates: tuple[int, ...] = ()

    def fits(self, stream: Any) -> bool:
        """Whether players find the sound of such a stream there."""
        codec = stream.codec_context.codec.canonical_name  # the decoder's own may be mp3float
        return codec in self.copied


MP4 = SoundForm(frozenset(MP4_AUDIO_CODECS), "aac", AAC_RATES)
MOV = SoundForm(frozenset({"aac", "mp3", "ac3", "alac"}), "pcm_s16le")
WEBM = SoundForm(frozenset({"opus", "vorbis"}), "libopus", OPUS_RATES)


def known_sounds(container: Any) -> list[Any]:
    """The streams of sound of a container that is read.

    Raises:
        InputError: there are some, but nobody knows their codecs.
    """
    sounds = container.streams.audio
    known = [stream for stream in sounds if stream.codec_context is not None]
    if sounds and not known:
        raise InputError("The codec of the sound is unknown.")
    return known


def fits_mp4(sound: Any) -> bool:
    """Whether players find the sound of such a stream in an mp4."""
    return MP4.fits(sound)


def add_copy(output: Any, stream: Any) -> Any:
    """A stream of an output container for another one's packets.

    Raises:
        InputError: PyAV is too old: before 15 it opens an encoder, whose header does not fit the packets.
    """
    import av

    if int(av.__version__.partition(".")[0]) < OLDEST_PYAV:
        raise InputError(
            f"PyAV {av.__version__} damages the videos that it copies: update it with "
            "pip install --upgrade av and run the same again."
        )
    return output.add_stream_from_template(stream)


def keep_sound(
    write: Callable[[Path | None, bool], Written], sound: str | Path | None, say: Callable[[str], None]
) -> Written:
    """Write a video with its sound: copied, or else encoded, or else without, since no trouble with the sound
    shall cost the pictures.

    Args:
        write: writes all of it, given where the sound is, and whether it is to be copied.
        sound: video or sound file; None where there is no sound.
        say: called with a sentence when the sound had to be left out.
    """
    from av.error import FFmpegError

    if sound is None:
        return write(None, True)
    path, reason = Path(sound), ""
    for copied in (True, False):
        try:
            return write(path, copied)
        except (FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reason = str(error).rstrip(".")
    written = write(None, True)
    say(f"The sound of {path.name} cannot be kept and is left out ({reason}).")
    return written


def read_sound(path: str | Path, start: Fraction, seconds: float) -> tuple[np.ndarray, int] | None:
    """The sound of a file as samples (channels, samples) in [-1, 1], and how many there are in a second; None
    where there is none.

    Args:
        start: where it begins, in seconds by the file's own clock; what comes later is preceded by silence.
        seconds: how long it is at most.

    Raises:
        InputError: it cannot be decoded.
    """
    import av
    from av.error import FFmpegError

    parts: list[np.ndarray] = []
    done, rate = 0, 0
    resampler = av.AudioResampler(format="fltp")
    try:
        with open_media(path, needs_video=False) as container:
            decoded = (frame for stream in known_sounds(container)[:1] for frame in container.decode(stream))
            for frame in chain.from_iterable(map(resampler.resample, decoded)):
                samples, rate = frame.to_ndarray(), rate or frame.sample_rate
                most = round(seconds * rate)
                place = done
                if frame.pts is not None and frame.time_base is not None:
                    place = round((frame.pts * frame.time_base - start) * rate)
                if not done or abs(place - done) > STEADY * rate:  # smaller ones are of rounded times
                    silent = min(max(place, done), most) - done
                    parts.append(np.zeros((len(samples), silent), np.float32))
                    samples = samples[:, max(done - place, 0) :]
                    done += silent
                parts.append(samples[:, : most - done])
                done += parts[-1].shape[1]
                if done >= most:
                    break
    except (FFmpegError, ValueError) as error:
        raise InputError(f"The sound of {Path(path).name} cannot be read ({error}).") from error
    return (np.concatenate(parts, axis=1), rate) if done else None


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """One channel (samples,) of float32 at another rate: `wanted` samples a second; none of hardly any."""
    import av

    if rate == wanted or not len(samples):
        return samples
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=wanted)
    parts = [part.to_ndarray()[0] for given in (frame, None) for part in resampler.resample(given)]
    return np.concatenate([samples[:0], *parts])


class Sound:
    """The sound of a file on its way into another one: copied packet by packet if that may hold it, else
    encoded.

    Args:
        copied: False encodes it in any case.
        start: when the new pictures begin, in seconds by the file's own clock; None is with its first
            picture, if it has any.
        form: of the file that it goes into.
    """

    def __init__(
        self, path: str | Path, copied: bool = True, start: Fraction | None = None, form: SoundForm = MP4
    ) -> None:
        self._container = open_media(path, needs_video=False)
        self._may_copy, self._form = copied, form
        self._target: Any = None
        video = video_stream(self._container)
        if start is None and video is not None and video.start_time:
            start = video.start_time * video.time_base
        self._start = start or Fraction(0)
        self._packets: Iterator[Any] = iter(())
        self._pending: Any = None

    def add_to(self, output: Any) -> None:
        """Give an output container a stream for the sound, if there is one."""
        self._target = output
        for stream in known_sounds(self._container)[:1]:
            copied = self._may_copy and self._form.fits(stream)
            self._packets = self._copied(stream) if copied else self._encoded(stream)

    def copy(self, until: float) -> None:
        """Hand over what comes before `until` seconds: packets of which more than half does."""
        while True:
            if self._pending is None:
                self._pending = next(self._packets, None)
            packet = self._pending
            if packet is None:
                return
            if packet.pts is not None:
                middle = packet.pts + Fraction(packet.duration or 0, 2)
                if float(middle * packet.time_base) > until:
                    return
            self._target.mux(packet)
            self._pending = None

    def close(self) -> None:
        self._container.close()

    def _copied(self, source: Any) -> Iterator[Any]:
        target = add_copy(self._target, source)

        def packets() -> Iterator[Any]:
            for packet in self._container.demux(source):
                if packet.dts is not None and self._shift(packet):
                    packet.stream = target
                    yield packet

        return packets()

    def _encoded(self, source: Any) -> Iterator[Any]:
        rate = source.codec_context.sample_rate
        known = min(self._form.rates or (rate,), key=lambda known: abs(known - rate))
        target = self._target.add_stream(self._form.codec, rate=known)
        target.codec_context.layout = "mono" if source.codec_context.layout.nb_channels == 1 else "stereo"

        def packets() -> Iterator[Any]:
            for frame in self._container.decode(source):
                if self._shift(frame):
                    if frame.pts is not None:  # in samples: other units may be as coarse as a frame
                        frame.pts = round(frame.pts * frame.time_base * frame.sample_rate)
                        frame.time_base = Fraction(1, frame.sample_rate)
                    yield from target.encode(frame)
            yield from target.encode()

        return packets()

    def _shift(self, piece: Any) -> bool:
        """Count a packet's or frame's time from the first picture; False if it is over by then."""
        if not self._start or piece.pts is None:
            return True
        ticks = round(self._start / piece.time_base)
        piece.pts -= ticks
        piece.dts = piece.dts if piece.dts is None else piece.dts - ticks
        return piece.pts + (getattr(piece, "duration", 0) or getattr(piece, "samples", 0)) > 0
