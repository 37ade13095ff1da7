"""Prefills that read a prompt without looking at all of it: designs to compare in plaintext before one is made private.

A block of the prompt's queries attends to the first tokens, to those just before it, to itself, and to what its design
adds: clusters that the block picks, out of all tokens or of those that were kept. How many tokens that are is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpcache.generation.request import FULL
from mpcache.model.decoder import Decoder
from mpcache.policies.full import Full
from mpcache.policies.reading import Reading
from mpcache.protocols.backends.interface import KeyValues, Value

SINKS = 4
RECENT = 64
"""Tokens before a block that it always sees."""
Tensor = torch.Tensor


@dataclass(frozen=True)
class Design:
    """picks: how a block compares clusters, by a name of SCORES, or none are picked. keeps: after each block the cache
    is cut down to the tokens that received most attention, of 'all' blocks or of the 'last', or none leaves it.
    by_head: each head picks and keeps for itself. whole: everything is attended to. cluster: its tokens.
    policy: what `prefill_budget` of a policy does: by largest score, in stripes.
    """

    picks: str = ""
    keeps: str = ""
    by_head: bool = False
    whole: bool = False
    cluster: int = 4
    policy: bool = False


DESIGNS = {
    "all pairs": Design(whole=True),
    "local": Design(),
    "pick by mean query": Design("mean"),
    "pick by extreme query": Design("extreme"),
    "pick by largest score": Design("largest"),
    "pick by largest score of each head": Design("largest", by_head=True),
    "pick by largest score of 8 queries' mean": Design("largest of groups"),
    "pick by largest score with heads summed": Design("largest of sums"),
    "pick by largest score of clusters of 8": Design("largest", cluster=8),
    "pick as policies do": Design(policy=True),
    "pick by attention": Design("attention"),
    "evict by all blocks": Design(keeps="all"),
    "evict by the last block": Design(keeps="last"),
    "evict by all blocks of each head": Design(keeps="all", by_head=True),
    "evict to four times the budget and pick by largest score": Design("largest", "all"),
}
WIDER = 4
"""Where clusters are picked of what is kept, so many times the budget is kept."""


def _mean(queries: Tensor, clusters: Tensor) -> Tensor:
    return torch.einsum("grmd,gnd->gn", queries, clusters)


def _extreme(queries: Tensor, clusters: Tensor) -> Tensor:
    """By 0.6 of the largest and 0.4 of the smallest of each channel, as MPCache has it of keys."""
    mixed = 0.6 * queries.amax(2) + 0.4 * queries.amin(2)
    return torch.einsum("grd,gnd->gn", mixed, clusters)


def _largest(queries: Tensor, clusters: Tensor) -> Tensor:
    return torch.einsum("grmd,gnd->grmn", queries, clusters).amax((1, 2))


def _means(queries: Tensor) -> Tensor:
    return torch.stack([group.mean(2) for group in queries.split(GROUP, 2)], 2)


def _grouped(queries: Tensor, clusters: Tensor) -> Tensor:
    """The largest score of the means of neighbouring queries."""
    return _largest(_means(queries), clusters)


def _summed(queries: Tensor, clusters: Tensor) -> Tensor:
    """The largest of the queries' scores, each summed over the heads: one choice for all."""
    scores = torch.einsum("grmd,gnd->mn", queries, clusters).amax(0)
    return scores.expand(len(queries), -1)


def _attention(queries: Tensor, clusters: Tensor) -> Tensor:
    """The probability that the queries would give the cluster, were all its keys their mean."""
    return torch.einsum("grmd,gnd->grmn", queries, clusters).softmax(-1).sum((1, 2))


GROUP = 8
"""Neighbouring queries whose mean stands for them."""
SCORES = {
    "mean": _mean,
    "extreme": _extreme,
    "largest": _largest,
    "largest of groups": _grouped,
    "largest of sums": _summed,
    "attention": _attention,
}
"""(queries (G, r, m, d), means of the clusters' keys (G, n, d)) to (G, n)."""


class Reader(Full):
    """The full cache, or what eviction left of it, after a prefill by a design. On the plain backend."""

    def read_by(self, design: Design, budget: int) -> Reader:
        """budget: tokens before a block that it attends to, sinks and recent ones included."""
        self._design, self._budget = design, budget
        self._reading = Reading(budget, self.config, self.backend) if design.policy else None
        self._got: list[Tensor | None] = [None] * self.config.layers
        return self

    def read_whole(self) -> None:
        """From now on, every token attends to all that is left."""
        self._design = Design(whole=True)

    def attend(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        if self.past >= self.prompt_tokens or self._design.policy:
            return super().attend(layer, queries, keys, values)
        heads, m, d = keys.shape
        cached: KeyValues[Any] = self.enter(layer, queries, keys, values)[0]
        asked: Tensor = queries.reshape(heads, -1, m, d)  # type: ignore[assignment]
        seen = self._seen(asked, cached)
        scores = asked @ cached.keys[:, None].transpose(-1, -2)
        weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        if self._design.keeps:
            self._keep(layer, cached, weights.sum((1, 2)))
        out: Value = (weights @ cached.values[:, None]).reshape(heads, -1, d)
        return out

    def _seen(self, queries: Tensor, cached: KeyValues[Any]) -> Tensor:
        """(G, m, T): which tokens each query sees."""
        heads, _, m, d = queries.shape
        total, size = cached.tokens, self._design.cluster
        inside = max(0, (total - m - SINKS - RECENT) // size) * size
        count = max(0, self._budget - (total - m - inside)) // size if self._design.picks else 0
        seen = torch.ones(heads, m, total, dtype=torch.bool).tril(total - m)
        if self._design.whole or (self._design.keeps and not self._design.picks):
            return seen  # with eviction, what was kept is what the budget pays for
        seen[:, :, SINKS : SINKS + inside] = False
        if count and inside:
            means = cached.keys[:, SINKS : SINKS + inside].reshape(heads, -1, size, d).mean(2)
            scores = SCORES[self._design.picks](queries, means)
            picked = self._largest(scores, min(count, means.shape[1]))
            seen[:, :, SINKS : SINKS + inside] = picked.repeat_interleave(size, 1)[:, None]
        return seen

    def _largest(self, scores: Tensor, count: int) -> Tensor:
        """(G, n), true for the picked ones: of each head, or for all heads by the largest or summed score."""
        if not self._design.by_head:
            together = scores.amax(0) if "largest" in self._design.picks else scores.sum(0)
            scores = together.expand_as(scores)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count, 1).indices, True)

    def _keep(self, layer: int, cached: KeyValues[Any], got: Tensor) -> None:
        before, most = self._got[layer], self._budget * (WIDER if self._design.picks else 1)
        if before is not None and self._design.keeps == "all":
            got[:, : before.shape[1]] += before
        if cached.tokens > most:
            ranked = got if self._design.by_head else got.sum(0).expand_as(got)
            ranked = ranked.clone()
            ranked[:, :SINKS] = ranked[:, cached.tokens - RECENT :] = float("inf")
            kept = ranked.topk(most, 1).indices.sort(1).values
            rows = kept[:, :, None].expand(-1, -1, cached.keys.shape[2])
            self.store(layer, KeyValues(cached.keys.gather(1, rows), cached.values.gather(1, rows), most))
            got = got.gather(1, kept)
        self._got[layer] = got


def reader(decoder: Decoder, design: Design, budget: int, tokens: int) -> Reader:
    """The empty cache of one prompt. Decoder: on the plain backend."""
    return Reader(FULL, decoder.config, decoder.backend, tokens).read_by(design, budget)
