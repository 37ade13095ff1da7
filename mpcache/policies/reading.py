"""Reading a prompt without looking at all of it: what a block of its queries attends to, under any policy.

A block sees the first tokens, those just before it, itself, and of the tokens between as many clusters as the budget
pays for: those whose mean key any of the block's queries gives the largest score, one choice for all heads of a layer
and, but for the first layers, of a neighbouring one. The prompt's last block, where a question stands, sees everything.
Nothing leaves the cache: what a later block needs is still there. Which clusters are picked is secret; how many, and
where they could be, follows from lengths. benchmarks/QUALITY.md has what this and other designs cost in answers: the
mean of a block's queries finds little of what a single token needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from mpcache.model.config import ModelConfig
from mpcache.protocols.backends.interface import Backend, Choice, KeyValues, Masked, Value

SINKS = 4
RECENT = 64
"""Tokens before a block that it always sees, at least so many."""
CLUSTER = 8
STRIPES = 8
"""Clusters are picked in stripes, equally many in each: cluster i is in stripe i mod STRIPES."""
SPAN = CLUSTER * STRIPES
"""Clusters are made of so many tokens at once, so that every stripe has equally many."""
LEAST = SINKS + RECENT + SPAN
"""Budgets pay for what is always seen, with what waits to become clusters."""
ALONE, SHARED = 1, 2
"""First layers that choose each for itself, and how many neighbouring ones share a choice after these."""


@dataclass(frozen=True)
class Seen:
    """What a block attends to, to be forgotten afterwards. in_place: attention received by it (G, tokens seen) to that
    by all cached tokens (G, T), zero where the block saw nothing."""

    cached: KeyValues
    in_place: Callable[[Value], Value]


class Reading:
    """Of one generation's prompt.

    MPC cost, each block and group of layers: a maximum over the block's queries for each cluster, ranks within stripes;
    each layer, a masking of the choice and of the picked keys and values; attention to the budget, in the place of all
    tokens.
    """

    def __init__(self, budget: int, config: ModelConfig, backend: Backend) -> None:
        self._budget, self._backend = budget, backend
        self._means: list[Masked | None] = [None] * config.layers
        self._inside = [0] * config.layers
        self._choice: Choice | None = None

    def seen(self, layer: int, queries: Masked, cached: KeyValues, past: int) -> Seen | None:
        """For the masked queries of a block whose tokens are cached already, after `past` others; None: all of them.

        Layers come in their order: the first one of a group chooses for the others.
        """
        inside = max(0, past - SINKS - RECENT) // SPAN * SPAN
        if not inside:
            return None
        chooses = layer < ALONE or (layer - ALONE) % SHARED == 0
        if chooses:
            self._close(layer, cached, inside)
        start, end, runs = SINKS, SINKS + inside, inside // CLUSTER
        picks = max(0, self._budget - (past - inside)) // SPAN
        if picks >= runs // STRIPES:
            return None
        if not picks:
            keys, values = (
                self._backend.rows([(x, 0, start), (x, end, cached.tokens)]) for x in (cached.keys, cached.values)
            )
            return Seen(KeyValues(keys, values, cached.tokens - inside), self._spread(start, inside, None))
        if chooses:
            means = self._means[layer]
            assert means is not None
            self._choice = self._backend.choose_runs(queries, means, STRIPES, picks)
        choice = self._choice
        assert choice is not None
        return Seen(self._backend.gather_runs(cached, start, end, choice), self._spread(start, inside, choice))

    def _close(self, layer: int, cached: KeyValues, inside: int) -> None:
        """Make clusters of all tokens between."""
        before = self._inside[layer]
        if inside == before:
            return
        self._inside[layer] = inside
        keys = self._backend.unmask(cached.keys)[:, SINKS + before : SINKS + inside]
        heads, tokens, d = keys.shape
        total = keys.reshape(heads, tokens // CLUSTER, CLUSTER, d).sum(2)
        self._means[layer] = self._backend.mask(self._backend.scale(total, Fraction(1, CLUSTER)), self._means[layer])

    def _spread(self, start: int, inside: int, choice: Choice | None) -> Callable[[Value], Value]:
        def in_place(received: Value) -> Value:
            heads, picked = received.shape[0], 0
            between = self._backend.zeros((heads, inside))
            if choice is not None:
                stripes, k, n = choice.shape
                picked = stripes * k * CLUSTER
                runs = received[:, start : start + picked].reshape(heads, stripes, k, CLUSTER)
                rows = runs.transpose(0, 1).transpose(1, 2).reshape(stripes, k, heads * CLUSTER)
                placed = self._backend.gather(choice.transpose(1, 2), rows).reshape(stripes, n, heads, CLUSTER)
                between = placed.transpose(0, 2).reshape(heads, inside)
            return self._backend.concatenate([received[:, :start], between, received[:, start + picked :]], 1)

        return in_place
