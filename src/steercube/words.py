"""Suggestions for misspelt names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str]) -> str:
    """The name most similar to `word`, ignoring case; empty if none is similar.

    >>> nearest("8b", ["4B", "8B"]), nearest("sycophany", ["honesty", "sycophancy"])
    ('8B', 'sycophancy')
    >>> nearest("sloth", ["honesty", "sycophancy"])
    ''
    """
    by_lowercase = {name.casefold(): name for name in names}
    matches = get_close_matches(word.casefold(), by_lowercase, n=1, cutoff=0.6)
    return by_lowercase[matches[0]] if matches else ""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Text to append to an error message: the nearest name as a question, or "".

    >>> did_you_mean("sycophany", ["honesty", "sycophancy"])
    "; did you mean 'sycophancy'?"
    """
    name = nearest(word, names)
    return f"; did you mean {name!r}?" if name else ""
