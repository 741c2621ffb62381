"""Videos in the form that the next program wants, each with words that say it is synthetic.

Frames are encoded one after the other; what grows with the video is the file alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import InputError
from ..progress import Progress
from ..sound import MOV, MP4, WEBM, Sound, SoundForm, keep_sound
from ..storage import atomic_write
from ..video import TICK, frame_pace, probe, read_pixels
from .animated import add_to_gif, add_to_webp, encode_gif
from .container import OF_FILE, STATEMENT, XMP, xmp_box

Say = Callable[[str], None]
CRF = 18
MOST_RATE = {"gif": 50, "webp": 1000}  # frames a second that the form can tell, and players show
BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}  # numbers of H.273; limited


@dataclass(frozen=True)
class Form:
    """What a video can be saved as.

    Attributes:
        suffix: of the file; empty for a folder of pictures.
        alpha: whether it can be transparent.
        sound: what its sound may be; None where it has none.
    """

    suffix: str
    alpha: bool
    sound: SoundForm | None = None


FORMS = {
    "mp4": Form(".mp4", False, MP4),
    "webm": Form(".webm", True, WEBM),
    "prores": Form(".mov", True, MOV),
    "gif": Form(".gif", True),
    "webp": Form(".webp", True),
    "png": Form("", True),
}


@dataclass(frozen=True)
class Footage:
    """A video to be saved.

    Attributes:
        frames: gives them from the first one on, each time it is called: (height, width, 3 or 4) uint8, RGB,
            or RGBA whose colors are not multiplied by alpha.
        count: how many there are.
        rate: frames a second; the mean where there are times.
        times: of every frame in seconds from the first, if they follow no constant rate.
        sound: file whose sound goes along, where the form has sound.
        metadata: more fields, as the workflow.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    count: int
    rate: Fraction
    times: Sequence[float] = ()
    sound: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def shown_at(self, number: int, unit: Fraction) -> int:
        """When a frame is shown, in such a unit of time; that behind the last one is where the video ends."""
        if not self.times:
            return round(number / self.rate / unit)
        if number < len(self.times):
            return round(self.times[number] / unit)
        return round((self.times[-1] + 1 / float(self.rate)) / unit)


def form_of(path: Path) -> str:
    """The form that a file's name asks for; a name without an ending is a folder of pictures.

    Raises:
        InputError: none does.
    """
    for name, form in FORMS.items():
        if path.suffix.lower() == form.suffix:
            return name
    known = ", ".join(form.suffix for form in FORMS.values() if form.suffix)
    end = f"end it in {known}, or in nothing for a folder of PNG"
    raise InputError(f"{path.name} is of no known form: {end}.")


def export(
    footage: Footage,
    out: Path,
    form: str,
    *,
    crf: int = CRF,
    declare: bool = True,
    say: Say = lambda text: None,
    progress: Progress | None = None,
) -> None:
    """Save a video. The file, or folder, appears when it is whole.

    Args:
        form: one of :data:`FORMS`.
        crf: compression of mp4 and webm, 0 to 63; webp has the quality 100 - crf, the others none.
        declare: whether it says that it is synthetic.
        say: called with a sentence when sound or frames had to be left out.

    Raises:
        InputError: the form cannot be transparent but a frame is, or there is no frame.
    """
    footage = _slower(footage, MOST_RATE.get(form), say)
    counted = _Counted(footage, progress, passes=2 if form == "gif" else 1, alpha=FORMS[form].alpha)
    words, xmp = (OF_FILE, XMP) if declare else ({}, "")
    if form == "png":
        _write_pictures(counted, out, words, xmp)
        return
    with atomic_write(out) as temporary:
        if form == "gif":
            encode_gif(counted.frames, partial(footage.shown_at, unit=Fraction(1, 100)), temporary)
            if declare:
                add_to_gif(Path(temporary), STATEMENT, xmp)
            return
        sound = footage.sound if FORMS[form].sound is not None else None
        fields = {**footage.metadata, **words}
        keep_sound(partial(_encode, counted, temporary, form, crf, fields), sound, say)
        if form == "webp":
            add_to_webp(Path(temporary), footage.metadata, xmp)
        elif declare and form != "webm":
            with open(temporary, "ab") as file:
                file.write(xmp_box())


def convert(
    video: Path, out: Path, *, declare: bool = True, say: Say, progress: Progress | None = None
) -> None:
    """Save a video file in the form that the name `out` asks for; see :func:`export`."""
    info, (rate, times) = probe(video), frame_pace(video)
    footage = Footage(
        partial(read_pixels, video), info.frames, rate, times, video if info.has_audio else None
    )
    export(footage, out, form_of(out), declare=declare, say=say, progress=progress)


def _slower(footage: Footage, most: int | None, say: Say) -> Footage:
    """Every n-th frame only, where there are more in a second than a form can tell."""
    step = 1 if most is None else ceil(footage.rate / most)
    if step == 1:
        return footage

    def some() -> Iterator[np.ndarray]:
        return (frame for number, frame in enumerate(footage.frames()) if number % step == 0)

    say(f"Every {step}. frame is kept, since this form shows at most {most} a second.")
    count = ceil(footage.count / step)
    return Footage(some, count, footage.rate / step, footage.times[::step], footage.sound, footage.metadata)


class _Counted:
    """Frames of a video that are looked at and counted on their way."""

    def __init__(self, footage: Footage, progress: Progress | None, passes: int, alpha: bool) -> None:
        self.footage, self.progress, self.alpha = footage, progress, alpha
        self.done, self.total = 0, passes * footage.count

    def frames(self) -> Iterator[np.ndarray]:
        for pixels in self.footage.frames():
            if pixels.shape[2] == 4 and not self.alpha:
                raise InputError(
                    "An mp4 cannot be transparent: choose webm, prores, gif, webp or png, or leave out the "
                    "mask."
                )
            yield pixels
            self.done = min(self.done + 1, self.total)
            if self.progress is not None:
                self.progress(self.done, self.total)
        if self.done == 0:
            raise InputError("The video has no frames: give one with at least one.")


def _write_pictures(counted: _Counted, out: Path, words: Mapping[str, str], xmp: str) -> None:
    """A folder of numbered PNG files, each with the words; the first one has the other fields, too."""
    if out.exists():
        raise InputError(f"{out} is there already: choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(counted.footage.count)))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pictures.") as beside:
        folder = Path(beside) / "whole"
        folder.mkdir()
        for number, pixels in enumerate(counted.frames(), 1):
            info = PngInfo()
            for name, value in {**(counted.footage.metadata if number == 1 else {}), **words}.items():
                info.add_text(name, value)
            if xmp:
                info.add_itxt("XML:com.adobe.xmp", xmp)
            Image.fromarray(pixels).save(folder / f"{number:0{digits}d}.png", pnginfo=info, compress_level=4)
        os.replace(folder, out)


def _encode(
    counted: _Counted,
    path: str,
    form: str,
    crf: int,
    fields: Mapping[str, str],
    sound: Path | None,
    copied: bool,
) -> None:
    """Pictures and sound into one container."""
    import av

    counted.done, footage = 0, counted.footage
    container = {"prores": "mov"}.get(form, form)
    options = {"webm": {}, "webp": {"loop": "0"}}.get(form, {"movflags": "use_metadata_tags"})
    heard = None if sound is None else Sound(sound, copied, form=FORMS[form].sound or MP4)
    unit = Fraction(1, 1000) if form == "webp" else TICK if footage.times else 1 / footage.rate
    try:
        with av.open(path, "w", format=container, options=options) as output:
            output.metadata.update(fields)
            stream: Any = None
            for number, pixels in enumerate(counted.frames()):
                if form != "webp":
                    even = (0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)
                    pixels = np.pad(pixels, even, mode="edge")
                if stream is None:
                    stream = _add_stream(output, form, crf, footage, pixels, unit)
                    if heard is not None:
                        heard.add_to(output)
                picture = _picture(pixels, stream.pix_fmt)
                picture.pts, picture.time_base = footage.shown_at(number, unit), unit
                output.mux(stream.encode(picture))
                if heard is not None:
                    heard.copy(float(footage.shown_at(number + 1, TICK) * TICK))
            output.mux(stream.encode())
    finally:
        if heard is not None:
            heard.close()


def _add_stream(
    output: Any, form: str, crf: int, footage: Footage, pixels: np.ndarray, unit: Fraction
) -> Any:
    """The encoder of a form, for frames of such a size, transparent ones if these are."""
    clear = pixels.shape[2] == 4
    codec, pix_fmt, options = {
        "mp4": ("libx264", "yuv420p", {"crf": str(min(crf, 51))}),
        "webm": (
            "libvpx-vp9",
            "yuva420p" if clear else "yuv420p",
            # frames that are not shown hold no alpha, so there may be none
            {
                "crf": str(crf),
                "b": "0",
                "row-mt": "1",
                "cpu-used": "3",
                "auto-alt-ref": "0" if clear else "1",
            },
        ),
        "prores": (
            "prores_ks",
            "yuva444p10le" if clear else "yuv444p10le",
            {"profile": "4444", "vendor": "apl0", "alpha_bits": "16" if clear else "0"},
        ),
        "webp": ("libwebp_anim", "bgra", {"quality": str(100 - crf)}),
    }[form]
    stream = output.add_stream(codec, rate=footage.rate.limit_denominator(1_000_000), options=options)
    stream.height, stream.width = pixels.shape[:2]
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = unit
    if form != "webp":
        for name, number in BT709.items():
            setattr(stream.codec_context, name, number)
    return stream


def _picture(pixels: np.ndarray, pix_fmt: str) -> Any:
    """A frame for an encoder."""
    from av import VideoFrame

    clear = pixels.shape[2] == 4
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgba" if clear else "rgb24")
    if not pix_fmt.startswith("yuv"):
        return frame.reformat(format=pix_fmt)
    return frame.reformat(
        format=pix_fmt, dst_colorspace=BT709["colorspace"], dst_color_range=BT709["color_range"]
    )
