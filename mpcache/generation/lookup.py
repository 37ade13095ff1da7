"""Drafts from the text itself (prompt lookup, Saxena, 2023): what came after the last tokens when they came before.

A text that quotes its prompt, or itself, goes on as it did there. No model is asked, and nobody hears of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

LONGEST = 8
"""Last tokens that are looked for, at most."""


class PromptLookup:
    """A text of up to `room` tokens that grows. What a draft takes follows from `room` alone: its messages' times must
    not tell what was found, or how long the text is."""

    def __init__(self, prompt: Sequence[int], room: int) -> None:
        self._text = torch.full((LONGEST + room,), -1)  # beginning with what no token is
        self._end = LONGEST
        self.add(prompt)

    def add(self, tokens: Sequence[int]) -> None:
        self._text[self._end : self._end + len(tokens)] = torch.as_tensor(tokens)
        self._end += len(tokens)

    def draft(self, count: int) -> list[int]:
        """So many tokens: what came after the longest run of last tokens that was there before, of equals the latest;
        over and over, if less came after it. The last one again, if it never was there. Of a text of two or more."""
        end = self._end
        places = torch.arange(LONGEST, len(self._text))  # of runs' last tokens
        runs = self._text.unfold(0, LONGEST, 1)[1:].flip(-1)  # (places, LONGEST), the last token first
        same = (runs == self._text[end - LONGEST : end].flip(-1)).long().cumprod(-1).sum(-1)
        same = torch.where(places < end - 1, same, -1)
        found = int((same * len(places) + places).argmax()) + LONGEST
        ahead = torch.arange(count) % (end - 1 - found)
        drafted: list[int] = self._text[found + 1 + ahead].tolist()
        return drafted
