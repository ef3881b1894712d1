"""What was probably meant by a word that names nothing."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str]) -> str:
    """The name that is most like `word`, whatever its capitals; empty where none is like it.

    >>> nearest("8b", ["4B", "8B"]), nearest("sycophany", ["honesty", "sycophancy"])
    ('8B', 'sycophancy')
    >>> nearest("sloth", ["honesty", "sycophancy"])
    ''
    """
    by_small = {name.casefold(): name for name in names}
    found = get_close_matches(word.casefold(), by_small, n=1, cutoff=0.6)
    return by_small[found[0]] if found else ""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A question to end a message with, or nothing.

    >>> did_you_mean("sycophany", ["honesty", "sycophancy"])
    "; did you mean 'sycophancy'?"
    """
    name = nearest(word, names)
    return f"; did you mean {name!r}?" if name else ""
