"""A hint for a word that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or all of them."""
    words = list(known)
    close = difflib.get_close_matches(word, words, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words)}"
