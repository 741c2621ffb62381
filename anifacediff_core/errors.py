"""The one exception for refusals that a user can act on, and text of strangers in what people read."""

from __future__ import annotations

import errno
import re
import unicodedata

from safetensors import SafetensorError

LONGEST = 1000  # characters of a message; a sentence has at most some hundred
LONGEST_WORD = 180  # characters of a name in it

# What comes from outside of the program, anywhere: disks, files, memory.
FAULTS = (OSError, UnicodeError, RecursionError, MemoryError, EOFError, OverflowError, SafetensorError)

# What terminals and browsers obey instead of showing it: controls, what turns the direction of a text,
# separators of lines, and halves of surrogate pairs, which cannot be written at all.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of Persian letters and of emoji


def printable(text: object, longest: int | None = LONGEST) -> str:
    r"""A text of anybody's, such as a name in a file, as one line that does nothing but show itself.

    Ends of lines become spaces; what a terminal or a browser would obey is written as Python writes it,
    `\x1b` for the beginning of an escape sequence. Of a text longer than `longest`, and of very long names in
    it, the middle is left out.
    """
    line = str(text)
    if longest is not None:
        line = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda name: _cut(name[0], LONGEST_WORD), line)
        line = _cut(line, longest)
    if line.isprintable():  # almost always
        return line
    return "".join(
        repr(sign)[1:-1] if unicodedata.category(sign) in _OBEYED and sign not in _JOINERS else sign
        for sign in re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", line)
    )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}"


class InputError(ValueError):
    """One sentence: which input, what was wrong with it, what to do. Names in it may be a stranger's."""

    def __init__(self, sentence: object) -> None:
        super().__init__(printable(sentence))


def refusal_of(fault: BaseException, doing: str = "") -> InputError:
    """One of FAULTS as a sentence.

    Args:
        doing: what was not possible because of it, as the beginning of the sentence.
    """
    if isinstance(fault, InputError):
        return fault
    if is_full_disk(fault):
        why = "the disk is full: free some of it and run the same again"
    elif isinstance(fault, OSError):
        why = _system_says(fault)
    elif isinstance(fault, MemoryError):
        why = "there is not enough memory: use smaller pictures, shorter windows, or end other programs"
    elif isinstance(fault, RecursionError):
        why = "a file is nested more deeply than any real one: fetch or write it again"
    elif isinstance(fault, UnicodeError):
        why = f"a text or a name is not in UTF-8: save or name it anew ({fault})"
    else:
        reason = str(fault) or "it ends early"
        why = f"a file is damaged, or holds numbers of impossible size: fetch it again ({reason})"
    sentence = f"{doing}: {why}" if doing else why[0].upper() + why[1:]
    return InputError(f"{sentence.rstrip('.')}.")


def is_full_disk(error: BaseException) -> bool:
    """Also as safetensors' own writer reports it."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or (isinstance(error, SafetensorError) and "No space left" in str(error))


def _system_says(error: OSError) -> str:
    what = {
        errno.EROFS: "lies on a disk that cannot be written: choose another place",
        errno.EACCES: "may not be read or written: choose another place or change its permissions",
        errno.EPERM: "may not be read or written: choose another place or change its permissions",
        errno.ENAMETOOLONG: "has a name that is too long for the file system: choose a shorter one",
        errno.ENOTDIR: "lies below a file: choose a folder",
        errno.EEXIST: "is in the way: choose another name",
        errno.EISDIR: "is a folder: give a file",
        errno.ENOENT: "is not there: look at the name",
        errno.ELOOP: "is a link that leads in a circle: give the file itself",
    }.get(error.errno or 0)
    name = error.filename2 or error.filename
    if what is None:
        reason = error.strerror or str(error) or type(error).__name__
        what = f"cannot be read or written ({reason}): look whether the disk is well"
    return f"{'its place' if name is None else name} {what}"
