"""No trouble with the sound costs the pictures."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from av.error import FFmpegError

from anifacediff_core.errors import InputError
from anifacediff_core.sound import keep_sound

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
    expected = [f"The sound of sound.mp3 is damaged and left out ({told})."] if WITHOUT in tried else []
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
