"""Words in a video file that say it is synthetic: the container's own fields, and XMP for programs that sort
media by the IPTC's digital source type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

from ..errors import InputError
from ..media import open_media
from ..sound import Sound, add_copy, fits_mp4, keep_sound, known_sounds
from ..storage import atomic_write
from ..video import probe

STATEMENT = "Synthetic media: a face reenactment made with AniFaceDiff."
# IPTC's digital source types: what is all made by networks, and what they put into a photograph or film.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
OF_FILE = {"comment": STATEMENT, "description": STATEMENT, "digitalsourcetype": SOURCE_TYPE}
OF_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder"}
XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="AniFaceDiff"
    Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}">
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{STATEMENT}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def copy_declared(
    source: Path,
    target: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    say: Callable[[str], None],
    source_type: str = SOURCE_TYPE,
) -> None:
    """Copy a video into an mp4 that says what it is. Pictures and sound go over packet by packet, with their
    exact times; sound that mp4 cannot hold is encoded, and left out if that fails.

    Args:
        metadata: more fields, as the workflow.
        say: called with a sentence when the sound had to be left out.
        source_type: `SOURCE_TYPE` or `COMPOSITE`.

    Raises:
        InputError: not a video, or one that mp4 cannot hold.
    """
    from av.error import FFmpegError

    fields = {**(metadata or {}), **OF_FILE, "digitalsourcetype": source_type}
    try:
        with atomic_write(target) as temporary:
            sound = source if probe(source).has_audio else None
            keep_sound(partial(_copy, source, temporary, fields), sound, say)
            with open(temporary, "ab") as file:
                file.write(xmp_box(source_type))
    except InputError:
        raise
    except (FFmpegError, ValueError) as error:
        raise InputError(
            f"The video cannot be copied into an mp4 ({error}): take its frames with Video Frames "
            "and make a new one of them."
        ) from error


def _copy(source: Path, target: str, fields: Mapping[str, str], sound: Path | None, copied: bool) -> None:
    import av

    with ExitStack() as stack:
        given = stack.enter_context(open_media(source))
        options = {"movflags": "use_metadata_tags"}
        written = stack.enter_context(av.open(target, "w", format="mp4", options=options))
        kept = {name: value for name, value in given.metadata.items() if name not in OF_CONTAINER}
        written.metadata.update({**kept, **fields})
        sounds = known_sounds(given) if sound else []
        copied = copied and all(map(fits_mp4, sounds))
        streams = {}
        for stream in (*given.streams.video, *(sounds if copied else ())):
            streams[stream] = add_copy(written, stream)
            streams[stream].time_base = stream.time_base
        encoded = None
        if sound and not copied:
            encoded = stack.enter_context(closing(Sound(sound, copied=False, start=Fraction(0))))
            encoded.add_to(written)
        for packet in _timed(given.demux(list(streams))):
            if encoded is not None:
                encoded.copy(float(packet.dts * packet.time_base))
            packet.stream = streams[packet.stream]
            written.mux(packet)
        if encoded is not None:
            encoded.copy(float("inf"))


def _timed(packets: Iterable[Any]) -> Iterator[Any]:
    """Give packets what mp4 needs and Matroska leaves out, or frames get lost: when the first ones are
    decoded, counted back from the first that tells it, and how long each is shown.
    """
    early: dict[Any, list[Any]] = defaultdict(list)
    steps: dict[Any, int] = {}
    for packet in packets:
        stream = packet.stream
        if packet.dts is None:
            early[stream] += [packet] if packet.size else []  # the end of a stream has none
            continue
        first = [*early.pop(stream, ()), packet]
        if stream not in steps:
            steps[stream] = _step(first)
        yield from _counted_back(first, packet.dts, steps[stream])
    for first in early.values():  # of a clip of a few frames none tells it
        yield from _counted_back(first, min(_shown(first), default=0), _step(first))


def _shown(packets: list[Any]) -> list[int]:
    return sorted(one.pts for one in packets if one.pts is not None)


def _step(packets: list[Any]) -> int:
    """How long one packet is shown, by the next one."""
    return max(min((later - before for before, later in pairwise(_shown(packets))), default=1), 1)


def _counted_back(packets: list[Any], decoded: int, step: int) -> Iterator[Any]:
    """Packets of which the last one is decoded at that time."""
    for back, one in enumerate(reversed(packets)):
        one.dts = decoded - back * step
        one.duration = one.duration or step
    yield from packets


def xmp_box(source_type: str = SOURCE_TYPE) -> bytes:
    """The XMP as an mp4 box of a type that a UUID names."""
    content = XMP.replace(SOURCE_TYPE, source_type).encode()
    return (24 + len(content)).to_bytes(4, "big") + b"uuid" + XMP_BOX.bytes + content
