"""The one exception for refusals that a user can act on, and text of strangers in what people read."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 1000  # characters of a message; a sentence has at most some hundred

# What terminals and browsers obey instead of showing it: controls, what turns the direction of a text, separators
# of lines, and halves of surrogate pairs, which cannot be written at all.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of Persian letters and of emoji


def printable(text: object, longest: int | None = LONGEST) -> str:
    r"""A text of anybody's, such as a name in a file, as one line that does nothing but show itself.

    Ends of lines become spaces; what a terminal or a browser would obey is written as Python writes it, `\x1b`
    for the beginning of an escape sequence. Of a text longer than `longest` the middle is left out.
    """
    line = str(text)
    if longest is not None and len(line) > longest:
        line = f"{line[: longest // 2]} … {line[-longest // 2 :]}"
    if line.isprintable():  # almost always
        return line
    return "".join(
        repr(sign)[1:-1] if unicodedata.category(sign) in _OBEYED and sign not in _JOINERS else sign
        for sign in re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", line)
    )


class InputError(ValueError):
    """One sentence: which input, what was wrong with it, what to do. Names in it may be a stranger's."""

    def __init__(self, sentence: object) -> None:
        super().__init__(printable(sentence))
