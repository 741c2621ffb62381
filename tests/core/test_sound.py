"""No trouble with the sound costs the pictures."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from av.error import FFmpegError

from anifacediff_core.errors import InputError
from anifacediff_core.provenance.container import copy_declared
from anifacediff_core.sound import keep_sound
from anifacediff_core.video import VideoWriter, join_videos, probe, read_frames
from harness.videos import steady, write_driver

DAMAGED = FFmpegError(errno.EINVAL, "damaged")


class Full(FFmpegError, OSError):
    pass


class Writes:
    """Fails in some ways of writing."""

    def __init__(self, *fails: tuple[bool, bool], error: Exception = DAMAGED) -> None:
        self.fails, self.error = fails, error
        self.tried: list[tuple[bool, bool]] = []

    def __call__(self, sound: Path | None, copied: bool) -> str:
        self.tried.append((sound is not None, copied))
        if self.tried[-1] in self.fails:
            raise self.error
        return "written"


COPIED, ENCODED, WITHOUT = (True, True), (True, False), (False, True)


@pytest.mark.parametrize("error", [DAMAGED, ValueError("no such codec"), InputError("No sound.")])
@pytest.mark.parametrize("tried", [[COPIED], [COPIED, ENCODED], [COPIED, ENCODED, WITHOUT]])
def test_copied_or_encoded_or_left_out(tried: list[tuple[bool, bool]], error: Exception) -> None:
    writes, said = Writes(*tried[:-1], error=error), []
    assert keep_sound(writes, "a/sound.mp3", said.append) == "written"
    assert writes.tried == tried
    told = str(error).removesuffix(".")
    expected = (
        [f"The sound of sound.mp3 cannot be kept and is left out ({told})."] if WITHOUT in tried else []
    )
    assert said == expected


def test_what_has_no_sound_is_written_once() -> None:
    writes, said = Writes(), []
    assert keep_sound(writes, None, said.append) == "written"
    assert writes.tried == [WITHOUT] and said == []


def test_what_the_sound_is_not_to_blame_for_is_raised() -> None:
    writes, said = Writes(COPIED, ENCODED, WITHOUT), []
    with pytest.raises(FFmpegError):
        keep_sound(writes, "sound.mp3", said.append)
    assert said == [], "it is not the sound"
    with pytest.raises(OSError, match="full"):
        keep_sound(Writes(COPIED, error=Full(errno.ENOSPC, "full")), "sound.mp3", said.append)


@pytest.mark.parametrize("copied", [True, False])
def test_sound_of_an_unknown_codec_is_left_out(tmp_path: Path, copied: bool) -> None:
    given, out, said = tmp_path / "given.mp4", tmp_path / "out.mp4", []
    write_driver(given, steady(12), 0.4)
    given.write_bytes(given.read_bytes().replace(b"mp4a", b"new!").replace(b"esds", b"free"))
    if copied:
        copy_declared(given, out, say=said.append)
    else:
        with VideoWriter(tmp_path / "part.mp4", Fraction(30)) as part:
            part.write(torch.rand(12, 3, 32, 32))

        def join(sound: Path | None, copied: bool) -> int:
            return join_videos([part.path], out, part.rate, (), sound, copied)

        assert keep_sound(join, given, said.append) == 12
    assert len(list(read_frames(out))) == 12 and not probe(out).has_audio
    assert said == [
        "The sound of given.mp4 cannot be kept and is left out (The codec of the sound is unknown)."
    ]


def test_a_library_that_would_damage_the_copy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = tmp_path / "given.mp4", tmp_path / "out.mp4"
    write_driver(given, steady(3), 0.1)
    monkeypatch.setattr(av, "__version__", "14.2.0")
    with pytest.raises(InputError, match="^PyAV 14.2.0 damages .*[.]$"):
        copy_declared(given, out, say=pytest.fail)
    assert list(tmp_path.iterdir()) == [given]
