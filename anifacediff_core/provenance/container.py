"""Words in a video file that say it is synthetic: the container's own fields, and XMP for programs that sort
media by the IPTC's digital source type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from ..errors import InputError
from ..storage import replacing

STATEMENT = "Synthetic media: a face reenactment made with AniFaceDiff."
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
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


def copy_declared(source: Path, target: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Copy a video into an mp4 that says what it is. Pictures and sound go over packet by packet, with their
    exact times.

    Arguments:
        metadata: more fields, as the workflow.

    Raises:
        InputError: not a video, or one that mp4 cannot hold.
    """
    import av
    from av.error import FFmpegError

    words = {"comment": STATEMENT, "description": STATEMENT, "digitalsourcetype": SOURCE_TYPE}
    try:
        with (
            replacing(target) as temporary,
            av.open(str(source)) as given,
            open(temporary, "wb") as file,
        ):
            options = {"movflags": "use_metadata_tags"}
            with av.open(file, "w", format="mp4", options=options) as written:
                kept = {name: value for name, value in given.metadata.items() if name not in OF_CONTAINER}
                written.metadata.update({**kept, **(metadata or {}), **words})
                streams = {}
                for stream in (*given.streams.video, *given.streams.audio):
                    streams[stream] = written.add_stream_from_template(stream)
                    streams[stream].time_base = stream.time_base
                for packet in given.demux(list(streams)):
                    if packet.dts is not None:
                        packet.stream = streams[packet.stream]
                        written.mux(packet)
            file.seek(0, 2)
            file.write(_box(XMP.encode()))
    except (FFmpegError, ValueError) as error:
        raise InputError(
            f"The video cannot be copied into an mp4 ({error}): take its frames with Get Video Components "
            "and make a new one of them."
        ) from error


def _box(content: bytes) -> bytes:
    """An mp4 box of a type that a UUID names."""
    return (24 + len(content)).to_bytes(4, "big") + b"uuid" + XMP_BOX.bytes + content
