"""What a policy forgets: answers by cache policy, in the clear, on the tasks of tasks.py.

Where the question stands matters. `end`: the prompt is document and question, as in the paper; static eviction sees the
question's attention. The prompt's last token is then computed again, as a decode step on the evicted cache: the token
after a prefill comes from full attention whatever the policy, and would say nothing of it. `later`: the document alone
is the prompt, evicted before the question is known; the question's tokens are decode steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from mpcache.benchmarks.cases.tasks import Sample
from mpcache.generation.recorded import Recorded, greedy, log_likelihood, record
from mpcache.model.decoder import Decoder
from mpcache.policies import Policy, PolicySettings
from mpcache.protocols.backends.interface import KeyValues

PLACEMENTS = ("end", "later")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Outcome:
    """Of one sample. attended: the share of the tokens so far that the first answer's step attends to."""

    right: bool
    attended: float
    log_likelihood: float = 0.0
    tokens: int = 0


@dataclass
class Score:
    """Of many samples."""

    outcomes: list[Outcome] = field(default_factory=list)
    cells: dict[str, list[int]] = field(default_factory=dict)
    """By the sample's label (a needle's depth): right, asked."""

    def add(self, outcome: Outcome, label: str | None) -> None:
        self.outcomes.append(outcome)
        if label is not None:
            cell = self.cells.setdefault(label, [0, 0])
            cell[0] += outcome.right
            cell[1] += 1

    @property
    def right(self) -> int:
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def exact_match(self) -> float:
        return self.right / len(self.outcomes)

    @property
    def standard_error(self) -> float:
        """Of the exact match, by the add-two rule, which is not zero at 0 or 1."""
        asked = len(self.outcomes) + 4
        share = (self.right + 2) / asked
        return math.sqrt(share * (1 - share) / asked)

    @property
    def attended(self) -> float:
        return sum(outcome.attended for outcome in self.outcomes) / len(self.outcomes)

    @property
    def perplexity(self) -> float | None:
        """Of the answers' tokens; None where answers were generated."""
        tokens = sum(outcome.tokens for outcome in self.outcomes)
        return math.exp(-sum(o.log_likelihood for o in self.outcomes) / tokens) if tokens else None


@torch.no_grad()
def score(
    decoder: Decoder,
    documents: Iterable[Sequence[Sample]],
    policies: Mapping[Key, PolicySettings],
    placements: Sequence[str] = PLACEMENTS,
    on_document: Callable[[], None] = lambda: None,
) -> dict[tuple[Key, str], Score]:
    """All policies on the same documents: for each, samples that ask about one document.

    decoder: on the plain backend. A document's prefill is computed once, for all policies and questions.
    """
    scores = {(key, placement): Score() for key in policies for placement in placements}
    for samples in documents:
        document = record(decoder, samples[0].document)
        for placement in placements:
            prompts = [_prompt(decoder, document, sample, placement) for sample in samples]
            for key, policy in policies.items():
                kept = document.cache(decoder, policy) if placement == "later" else None
                for sample, prompt in zip(samples, prompts, strict=True):
                    cache = _copy(kept) if kept is not None else prompt.cache(decoder, policy, again=1)
                    outcome = _outcome(decoder, cache, sample, placement)
                    scores[key, placement].add(outcome, sample.label)
        on_document()
    return scores


def _prompt(decoder: Decoder, document: Recorded, sample: Sample, placement: str) -> Recorded:
    return record(decoder, sample.turns[0][0], document) if placement == "end" else document


def _outcome(decoder: Decoder, cache: Policy, sample: Sample, placement: str) -> Outcome:
    right, attended, likelihood, tokens = True, 0.0, 0.0, 0
    for i, (question, answer) in enumerate(sample.turns):
        asked = question[-1:] if i == 0 and placement == "end" else question
        for token in asked:
            seen = cache.attended() / (cache.past + 1)
            x = decoder.forward([token], 1, cache)
        attended = seen if i == 0 else attended
        if sample.scored == "likelihood":
            likelihood, tokens = likelihood + log_likelihood(decoder, cache, x, answer), tokens + len(answer)
        else:
            right = greedy(decoder, cache, x, len(answer)) == list(answer) and right
            if i + 1 < len(sample.turns):
                decoder.forward(answer[-1:], 1, cache)
    return Outcome(right, attended, likelihood, tokens)


def _copy(cache: Policy) -> Policy:
    """A cache that goes its own way; tensors are never changed in place, so they are shared."""
    other = copy.copy(cache)
    for name, value in vars(cache).items():
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
