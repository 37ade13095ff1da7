"""An answer's text while its tokens still come."""

from __future__ import annotations

from typing import Protocol


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: list[int], /) -> str: ...


class TextStream:
    """Tokens in, pieces of text out: each character once, when no later token can change it any more."""

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._given = ""
        self.tokens: list[int] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return self._tokenizer.decode(self.tokens)

    def add(self, token: int) -> str:
        """The text that this token completes: empty in the middle of a character."""
        self.tokens.append(token)
        text = self.text
        return "" if text.endswith("\ufffd") else self._give(text)

    def rest(self) -> str:
        """What was not given yet."""
        return self._give(self.text)

    def _give(self, text: str) -> str:
        piece, self._given = text[len(self._given) :], text
        return piece
