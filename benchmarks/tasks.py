"""Quality tasks from our own generators: each makes, from a seed, questions about one document of so many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from mpcache.daysheet import sheet_of_tokens


@dataclass(frozen=True)
class Sample:
    """A question about a document, all as tokens. label: what the results are split by, such as a needle's depth."""

    document: Sequence[int]
    question: Sequence[int]
    answer: Sequence[int]
    label: str | None = None


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def day_sheet(tokenizer: Tokenizer, tokens: int, seed: int, questions: int = 4) -> list[Sample]:
    """Facts of a held-out day sheet, found by a person's name."""
    sheet = sheet_of_tokens(seed, "heldout", tokens, tokenizer)
    document = tokenizer.encode(sheet.text).ids
    return [Sample(document, _ids(tokenizer, q), _ids(tokenizer, a)) for q, a in sheet.questions[:questions]]
