"""What the synthesizers say: words of no language for training, sentences for measuring."""

from __future__ import annotations

import random

# Languages whose letters are Latin; each has its own sounds and melody.
LANGUAGES = (
    "en-us", "en-us", "en-us", "en-gb-x-rp", "en-gb-scotland", "de", "fr", "es", "es-419", "it", "pt",
    "pt-br", "nl", "sv", "nb", "da", "fi", "pl", "cs", "hu", "ro", "tr", "id", "sw", "lt",
)  # fmt: skip
ONSETS = (
    *"bdfghjklmnprstvwz", *"bmpfvm", "br", "dr", "fl", "fr", "gl", "kl", "kr", "pl", "pr", "sh", "sk", "sl",
    "sm", "sp", "st", "tr", "ch", "th", "",
)  # fmt: skip
NUCLEI = (*"aeiou", *"aeiou", "ai", "au", "ea", "ee", "oo", "ou", "oi")
CODAS = ("", "", "", "", *"bdfgklmnprst", "m", "p", "mp", "nd", "ng", "nt", "sh", "st", "ft")
COMMON = [
    "a", "about", "after", "again", "all", "and", "are", "as", "at", "be", "because", "been", "before", "big",
    "but", "by", "can", "come", "could", "day", "do", "down", "even", "every", "find", "first", "for", "from",
    "get", "give", "go", "good", "great", "had", "have", "he", "her", "here", "him", "his", "home", "how",
    "if", "in", "into", "is", "it", "its", "just", "keep", "know", "last", "leave", "left", "let", "life",
    "little", "long", "look", "made", "make", "man", "many", "may", "maybe", "me", "mean", "men", "might",
    "more", "most", "move", "much", "must", "my", "name", "never", "new", "no", "not", "now", "of", "off",
    "old", "on", "one", "only", "open", "or", "other", "our", "out", "over", "own", "part", "people", "place",
    "point", "put", "right", "said", "same", "say", "see", "seem", "she", "show", "small", "so", "some",
    "something", "stop", "such", "take", "talk", "tell", "than", "that", "the", "their", "them", "then",
    "there", "these", "they", "thing", "think", "this", "those", "time", "to", "together", "turn", "two",
    "under", "up", "us", "use", "very", "voice", "want", "was", "water", "way", "we", "well", "were", "what",
    "when", "where", "which", "while", "who", "why", "will", "with", "word", "work", "world", "would", "year",
    "you", "young", "your",
]  # fmt: skip
# Heard by no network while it learned.
SENTENCES = (
    "Maybe Bob bought a pumpkin pie before breakfast.",
    "My mother put the lamp beside the broken window.",
    "Five brave farmers vanished from the foggy village.",
    "Please keep both hands above the table, Mister Palmer.",
    "She sells warm bread and butter in the morning.",
    "A bumblebee landed upon my father's empty cup.",
    "We hope to climb the mountain by the middle of May.",
    "The puppet moved its mouth, but nobody spoke.",
    "People remember names better than numbers, perhaps.",
    "Open the map, point at Rome, and imagine a boat.",
)


def random_text(dice: random.Random) -> str:
    """A sentence of common English words and of words that nobody knows, with pauses."""
    words = [dice.choice(COMMON) if dice.random() < 0.45 else _word(dice) for _ in range(dice.randint(5, 12))]
    for place in range(2, len(words) - 2):
        if dice.random() < 0.12:
            words[place] += dice.choice((",", ",", ".", ";"))
    return " ".join(words).capitalize() + dice.choice((".", ".", "?", "!"))


def _word(dice: random.Random) -> str:
    return "".join(
        dice.choice(ONSETS) + dice.choice(NUCLEI) + dice.choice(CODAS)
        for _ in range(dice.choice((1, 2, 2, 3)))
    )
