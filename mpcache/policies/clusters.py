"""Query-aware dynamic selection: every step picks clusters of neighbouring tokens, coarse to fine, and reads only them.

The cache is [sinks | clusters | tail]: sinks and tail are always attended to, and of the clusters exactly as many as
the budget pays for. Where they begin and end is public; which are picked is not. Tokens join the tail; when it holds
`recent` tokens and a whole coarsest cluster besides, its oldest become that cluster (and the finer ones in it), so no
cluster is ever partly filled.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from mpcache.policies.base import Policy
from mpcache.policies.settings import MOST_TOKENS, SinkSettings, setting
from mpcache.protocols.backends.interface import Masked, Scores, Stage, Value
from mpcache.protocols.stripes import Stripes


@dataclass
class _Clusters:
    """Of one layer: how many tokens are in clusters, and the masked representatives at each level."""

    tokens: int = 0
    representatives: list[list[Masked]] = field(default_factory=list)


@dataclass(frozen=True)
class ClusterSettings(SinkSettings, ABC):
    """What all that select have. A subclass says how many tokens its clusters have.

    picks: how many clusters are picked in each stripe (see `mpcache.protocols.stripes`): fewer make shorter stripes,
    so that a choice costs less, and what a stripe has too many of is lost. 0: one stripe, an exact choice.
    """

    picks: int = setting(0, least=0, most=MOST_TOKENS)

    def stripes(self, candidates: int, picked: int) -> Stripes:
        """How `picked` clusters are chosen among so many."""
        return Stripes(candidates, picked, max(1, picked // self.picks) if self.picks else 1)

    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Tokens of a cluster at each level, coarse to fine; empty: no selection."""

    def next_level(self, picked: int) -> int:
        """How many tokens a level picks of which the next, finer one picks so many."""
        return picked

    def always(self) -> dict[str, int]:
        ends, sizes = super().always(), self.sizes()
        if not sizes:
            return ends
        return {**ends, "waiting to fill a cluster": sizes[0] - 1, "in the picked cluster": sizes[-1]}


@dataclass(frozen=True)
class PageSettings(ClusterSettings):
    """page: tokens of a page or block, the one level of clusters."""

    page: int = setting(16, least=1, most=MOST_TOKENS)

    def sizes(self) -> tuple[int, ...]:
        return (self.page,)


class ClusterPolicy(Policy):
    """Base of the policies that select. A subclass says what stands for a cluster and how a query is compared to it."""

    settings: ClusterSettings

    def prepare(self) -> None:
        self._sizes = self.settings.sizes()
        self._clusters = [_Clusters() for _ in range(self.config.layers)]
        self._stages: list[Stage] = []

    # ------------------------------------------------------------ what selecting policies change

    def group(self, layer: int) -> range:
        """The layers that share this layer's selection; the first one makes it. Empty: the layer attends in full."""
        return range(layer, layer + 1)

    @abstractmethod
    def represent(self, layer: int, keys: Value, start: int) -> list[list[Value]]:
        """For each level what stands for each cluster of the keys (G, tokens, d), (G, clusters, d) each.

        start: the position in the cache of the first of the keys.
        """

    @abstractmethod
    def compare(self, queries: Value, masked: Masked, representatives: list[list[Masked]]) -> list[Scores]:
        """How well each cluster of each level fits the queries (G, r, d), also `masked`: (G, clusters) each."""

    # ------------------------------------------------------------ the work

    def evict(self) -> None:
        for layer in range(self.config.layers):
            self._close(layer)

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        group = self.group(layer)
        if not group:
            return super().step(layer, queries, keys, values)
        cached, masked = self.enter(layer, queries, keys, values)
        self._close(layer)
        if layer == group[0]:
            self._stages = self._select(layer, queries, masked)
        if not self._stages:
            return self.backend.attend(masked, cached)
        start = self.settings.sinks
        end = start + self._clusters[layer].tokens
        out = self.backend.attend_selected(masked, cached, start, end, self._stages)
        if layer == group[-1]:
            self.backend.forget(*[masked for stage in self._stages for masked in stage.masked])
        return out

    def picks(self, tokens: int) -> list[tuple[int, int]]:
        """(size, how many clusters of it are picked) from coarse to fine, with `tokens` in the cache.

        What sinks and tail leave of the budget goes into whole clusters of the finest level. A level that would pick
        all its clusters is left out; if all levels are, everything is attended to.
        """
        inside = self._inside(tokens)
        wanted = self.budget - (tokens - inside)
        out: list[tuple[int, int]] = []
        for size in reversed(self._sizes):
            count = -(-wanted // size) if out else wanted // size
            if count * size >= inside:
                break
            out.insert(0, (size, count))
            wanted = self.settings.next_level(count * size)
        return out

    def attended(self) -> int:
        layer = self.config.layers - 1
        if not self.group(layer):
            return super().attended()
        tokens = super().attended()
        picks = self.picks(tokens)
        return tokens - self._inside(tokens) + math.prod(picks[-1]) if picks else tokens

    def _inside(self, tokens: int) -> int:
        """How many of so many cached tokens are in clusters."""
        s, coarse = self.settings, self._sizes[0]
        return max(0, (tokens - s.sinks - s.recent) // coarse) * coarse

    def _close(self, layer: int) -> None:
        """Make clusters of what the tail holds beyond the recent tokens."""
        if not self.group(layer):
            return
        clusters = self._clusters[layer]
        count = self._inside(self.cached(layer).tokens) - clusters.tokens
        if not count:
            return
        first = self.settings.sinks + clusters.tokens
        clusters.tokens += count
        if layer != self.group(layer)[0]:
            return  # only who selects needs representatives
        keys = self.backend.unmask(self.cached(layer).keys)[:, first : first + count]
        new = self.represent(layer, keys, first)
        old: Sequence[Sequence[Masked | None]] = clusters.representatives or [[None] * len(level) for level in new]
        clusters.representatives = [
            [self.backend.mask(rows, masked) for masked, rows in zip(masked_level, level, strict=True)]
            for masked_level, level in zip(old, new, strict=True)
        ]

    def _select(self, layer: int, queries: Value, masked: Masked) -> list[Stage]:
        """Stages from coarse to fine; none if everything is attended to."""
        picks, backend = self.picks(self.cached(layer).tokens), self.backend
        if not picks:
            return []
        scores = self.compare(queries, masked, self._clusters[layer].representatives[-len(picks) :])
        stages: list[Stage] = []
        for candidates, (size, k) in zip(scores, picks, strict=True):
            for stage in stages:  # only the children of what was picked so far
                heads = candidates.shape[0]
                rows = candidates.reshape(heads, -1, stage.size // size)
                candidates = backend.pick(stage, rows).reshape(heads, -1)
            stages.append(backend.choose(candidates, self.settings.stripes(candidates.shape[1], k), size))
        return stages
