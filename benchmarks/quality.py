"""Exact match of greedy answers by cache policy, in the clear: what a policy forgets.

Where the question stands matters. `end`: the prompt is document and question, as in the paper; static eviction sees the
question's attention. The prompt's last token is then computed again, as a decode step on the evicted cache: the token
after a prefill comes from full attention whatever the policy, and would say nothing of it. `later`: the document alone
is the prompt, evicted before the question is known; the question's tokens are decode steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.recorded import record
from benchmarks.tasks import Sample
from mpcache.decoder import Decoder
from mpcache.policies import Policy, PolicySettings
from protocols.backends.interface import KeyValues

PLACEMENTS = ("end", "later")


@dataclass
class Score:
    """What a policy got right. attended: the mean share of the tokens so far that the answer's step attends to."""

    right: int = 0
    asked: int = 0
    attended_sum: float = 0.0
    cells: dict[str, list[int]] = field(default_factory=dict)
    """By the sample's label (a needle's depth): right, asked."""

    def add(self, right: bool, attended: float, label: str | None) -> None:
        self.right += right
        self.asked += 1
        self.attended_sum += attended
        if label is not None:
            cell = self.cells.setdefault(label, [0, 0])
            cell[0] += right
            cell[1] += 1

    @property
    def exact_match(self) -> float:
        return self.right / self.asked

    @property
    def attended(self) -> float:
        return self.attended_sum / self.asked

    @property
    def standard_error(self) -> float:
        """Of the exact match, by the add-two rule, which is not zero at 0 or 1."""
        share = (self.right + 2) / (self.asked + 4)
        return math.sqrt(share * (1 - share) / (self.asked + 4))


@torch.no_grad()
def score(
    decoder: Decoder,
    documents: Iterable[Sequence[Sample]],
    policies: Sequence[PolicySettings],
    placements: Sequence[str] = PLACEMENTS,
    on_document: Callable[[], None] = lambda: None,
) -> dict[tuple[PolicySettings, str], Score]:
    """All policies on the same documents: for each, samples that ask about one document.

    decoder: on the plain backend. A document's prefill is computed once, for all policies and questions.
    """
    scores = {(policy, placement): Score() for policy in policies for placement in placements}
    for samples in documents:
        document = record(decoder, samples[0].document)
        for placement in placements:
            if placement == "end":
                prompts = [record(decoder, s.question, document) for s in samples]
            for policy in policies:
                kept = document.cache(decoder, policy) if placement == "later" else None
                for i, sample in enumerate(samples):
                    cache = _copy(kept) if kept is not None else prompts[i].cache(decoder, policy, again=1)
                    question = sample.question if kept is not None else sample.question[-1:]
                    answer, attended = greedy(decoder, cache, question, len(sample.answer))
                    scores[policy, placement].add(answer == list(sample.answer), attended, sample.label)
        on_document()
    return scores


def greedy(decoder: Decoder, cache: Policy, question: Sequence[int], tokens: int) -> tuple[list[int], float]:
    """(the tokens that follow the question, the share of the tokens so far that the first one's step attends to)."""
    for token in question:
        attended = cache.attended() / (cache.past + 1)
        x = decoder.forward([token], 1, cache)
    answer: list[int] = []
    while True:
        chosen = decoder.next_token(x)
        assert chosen is not None
        answer.append(chosen)
        if len(answer) == tokens:
            return answer, attended
        x = decoder.forward([chosen], 1, cache)


def _copy(cache: Policy) -> Policy:
    """A cache that goes its own way; tensors are never changed in place, so they are shared."""
    other = copy.copy(cache)
    for name, value in vars(cache).items():
        if name in ("settings", "config", "backend"):
            continue
        if isinstance(value, list):
            setattr(other, name, _copy_list(value))
    return other


def _copy_list(values: list[Any]) -> list[Any]:
    out: list[Any] = []
    for value in values:
        if isinstance(value, list):
            out.append(_copy_list(value))
        elif isinstance(value, torch.Tensor | KeyValues) or value is None:
            out.append(value)
        else:
            out.append(copy.copy(value))
    return out
