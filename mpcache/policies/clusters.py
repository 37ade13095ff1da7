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
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

from mpcache.model.config import ModelConfig
from mpcache.policies.base import Policy
from mpcache.policies.pays import Planned, attention_to_all, cheaper, no_dearer, rounded
from mpcache.policies.settings import MOST_TOKENS, PolicySettings, SinkSettings, setting
from mpcache.protocols.backends.interface import Masked, Scores, Stage, Value
from mpcache.protocols.plan import ShapeArithmetic
from mpcache.protocols.session import Cost
from mpcache.protocols.stripes import Stripes

MOST_LENGTHS = 8
ENOUGH = 16
"""Stripes: with fewer, they are made half as many. What belongs together more often shares a stripe then."""
PLENTY = 32
"""Stripes: with so many, they are made twice as many, as what belongs together seldom shares a stripe even then."""


@dataclass
class _Clusters:
    """Of one layer: how many tokens are in clusters, and the masked representatives at each level."""

    tokens: int = 0
    representatives: list[list[Masked]] = field(default_factory=list)


@dataclass(frozen=True)
class ClusterSettings(SinkSettings, ABC):
    """What all that select have. A subclass says how many tokens its clusters have.

    picks: how many clusters are picked in each stripe (see `mpcache.protocols.stripes`), twice as many where that makes
    few stripes, and half as many, but one, where it makes plenty. Fewer make shorter stripes: a choice costs less, and
    what a stripe has too many of is lost. 0: one stripe, an exact choice.
    only_if_cheaper: where a step that selects would take more bytes and rounds, weighed as the network wants it, than
    one that attends to all that is cached, steps attend to all; the budget is then exceeded. Decided after the prompt,
    see pays.py.
    """

    picks: int = setting(0, least=0, most=MOST_TOKENS)
    only_if_cheaper: bool = False

    def stripes(self, candidates: int, picked: int) -> Stripes:
        """How `picked` clusters are chosen among so many."""
        if not self.picks:
            return Stripes(candidates, picked)
        count = picked // self.picks
        if count < ENOUGH:
            count //= 2
        elif count >= PLENTY:
            count = picked // max(1, self.picks // 2)
        return Stripes(candidates, picked, max(1, count))

    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Tokens of a cluster at each level, coarse to fine; empty: no selection."""

    def next_level(self, picked: int) -> int:
        """How many tokens a level picks of which the next, finer one picks so many."""
        return picked

    def clusters_grow(self) -> bool:
        """Whether new tokens join clusters. If not, all of them are attended to, beside what the budget pays for."""
        return True

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
    vectors: ClassVar[int] = 1
    """How many stand for a cluster."""

    def prepare(self) -> None:
        self._sizes = self.settings.sizes()
        self._clusters = [_Clusters() for _ in range(self.config.layers)]
        self._stages: list[list[Stage]] = []
        self._selecting: set[int] = set()
        self._kept: int | None = None

    @classmethod
    def refuses_drafts(cls, settings: PolicySettings) -> str:
        assert isinstance(settings, ClusterSettings)
        if settings.sizes() and settings.clusters_grow():
            return "a step makes clusters of the tokens before it, and a wrong draft would be in one"
        return "" if cls.step is ClusterPolicy.step else super().refuses_drafts(settings)

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
        """Nothing leaves. Whether to select is decided here, once: clusters that begin later would all be made in one
        step, which would be dearer than the full cache's."""
        for layer in range(self.config.layers):
            group, tokens = self.group(layer), self.cached(layer).tokens
            if group and not self.settings.clusters_grow():
                self._kept = tokens
            if self.settings.only_if_cheaper and layer in group[:1] and self.pays(group, tokens):
                self._selecting.add(layer)
            self._close(layer)

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        group = self.group(layer)
        if not group:
            return super().step(layer, queries, keys, values)
        (cached, masked), m = self.enter(layer, queries, keys, values), keys.shape[1]
        self._close(layer)
        hidden = self._hidden(cached.tokens, m)
        if not self.selects(group, cached.tokens):
            return self.backend.attend(masked, cached, self._causal(cached, m), hidden)
        own = self._of_each(masked, m)
        if layer == group[0]:
            levels = self._clusters[layer].representatives
            self._stages = self._select(queries, own, levels, cached.tokens)
        start = self.settings.sinks
        end = start + self._inside(cached.tokens)
        out = self.backend.attend_selected(own, cached, start, end, self._stages, hidden)
        if layer == group[-1]:
            self._forget(*self._stages)
        return out

    def picks(self, tokens: int) -> list[tuple[int, int]]:
        """(size, how many clusters of it are picked) from coarse to fine, with `tokens` in the cache.

        What sinks and tail leave of the budget goes into whole clusters of the finest level. A level that would pick
        all its clusters is left out; if all levels are, everything is attended to.
        """
        inside = self._inside(tokens)
        wanted = self.budget - (self._counted(tokens) - inside)
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
        if not self.selects(self.group(layer), tokens):
            return tokens
        return tokens - self._inside(tokens) + math.prod(self.picks(tokens)[-1])

    def selects(self, group: range, tokens: int) -> bool:
        """Whether the layers of the group select, with `tokens` in the cache: a public decision."""
        return bool(self.picks(tokens)) and (not self.settings.only_if_cheaper or group.start in self._selecting)

    def pays(self, group: range, tokens: int) -> bool:
        """Whether selection is cheaper for the group, with `tokens` in the cache after the prompt."""
        settings = replace(self.settings, only_if_cheaper=False, budget=float(self.budget))
        lengths = rounded(tokens), rounded(self.past)
        return _pays(type(self), settings, self.config, len(group), *lengths, self.backend.round_bytes)

    def plan_selection(self, planned: Planned, layers: int, tokens: int) -> Cost:
        """What so many layers take that select together, where this policy's backend is planned; a cluster that is
        closed in this step included."""
        c, zeros, backend = self.config, self.backend.zeros, self.backend
        inside, heads, coarse = self._inside(tokens), c.key_value_heads, self._sizes[0]
        levels = [
            [backend.mask(zeros((heads, inside // size, c.head_size))) for _ in range(self.vectors)]
            for size in self._sizes
        ]
        queries, rows = zeros((heads, c.queries_per_head, c.head_size)), zeros((heads, tokens, c.head_size))
        entered = [backend.enter(None, queries, rows, rows) for _ in range(layers)]
        self.observe(0, zeros((heads, c.queries_per_head * tokens, c.head_size)), rows, rows)
        planned.spent()
        start = self.settings.sinks
        for new in self.represent(0, rows[:, :coarse], start + inside - coarse):
            for vectors in new:
                backend.mask(vectors)
        stages = self._select(queries, [entered[0][1]], levels, tokens)
        for cached, masked in entered:
            backend.attend_selected([masked], cached, start, start + inside, stages)
        return planned.spent()

    def _inside(self, tokens: int) -> int:
        """How many of so many cached tokens are in clusters."""
        s, coarse = self.settings, self._sizes[0]
        return max(0, (self._counted(tokens) - s.sinks - s.recent) // coarse) * coarse

    def _counted(self, tokens: int) -> int:
        """Of so many cached tokens those that clusters are made of, sinks and tail included."""
        return tokens if self._kept is None else self._kept

    def _close(self, layer: int) -> None:
        """Make clusters of what the tail holds beyond the recent tokens, where a layer will choose among them."""
        group, tokens = self.group(layer), self.cached(layer).tokens
        if layer not in group[:1] or (self.settings.only_if_cheaper and not self.selects(group, tokens)):
            return
        clusters = self._clusters[layer]
        count = self._inside(tokens) - clusters.tokens
        if not count:
            return
        first = self.settings.sinks + clusters.tokens
        clusters.tokens += count
        keys = self.backend.unmask(self.cached(layer).keys)[:, first : first + count]
        new = self.represent(layer, keys, first)
        old: Sequence[Sequence[Masked | None]] = clusters.representatives or [[None] * len(level) for level in new]
        clusters.representatives = [
            [self.backend.mask(rows, masked) for masked, rows in zip(masked_level, level, strict=True)]
            for masked_level, level in zip(old, new, strict=True)
        ]

    def _of_each(self, masked: Masked, m: int) -> list[Masked]:
        """Of each of m tokens its queries (G, r, d), of all their queries (G, r m, d)."""
        if m == 1:
            return [masked]
        repeat, rows = range(self.config.queries_per_head), self.backend.rows
        own = [rows([(masked, j * m + i, j * m + i + 1) for j in repeat]) for i in range(m)]
        self.backend.forget(masked)
        return own

    def _select(
        self, queries: Value, own: Sequence[Masked], levels: list[list[Masked]], tokens: int
    ) -> list[list[Stage]]:
        """Of each token its stages from coarse to fine, with `tokens` in the cache. own: the queries of each, masked.
        levels: the representatives of each. Tokens choose in the same rounds, each for itself."""
        picks, backend, m = self.picks(tokens), self.backend, len(own)
        used = levels[-len(picks) :]
        of_each = [self.compare(queries[:, i::m] if m > 1 else queries, q, used) for i, q in enumerate(own)]
        scores = [backend.concatenate(level, 0) if m > 1 else level[0] for level in zip(*of_each, strict=True)]
        stages: list[Stage] = []
        for candidates, (size, k) in zip(scores, picks, strict=True):
            for stage in stages:  # only the children of what was picked so far
                heads = candidates.shape[0]
                rows = candidates.reshape(heads, -1, stage.size // size)
                candidates = backend.pick(stage, rows).reshape(heads, -1)
            stages.append(backend.choose(candidates, self.settings.stripes(candidates.shape[1], k), size))
        if m == 1:
            return [stages]
        self._forget(stages)
        return [[stage.part(i, m) for stage in stages] for i in range(m)]

    def _forget(self, *choices: Sequence[Stage]) -> None:
        self.backend.forget(*[masked for stages in choices for stage in stages for masked in stage.masked])


@lru_cache(maxsize=1 << 10)
def _pays(
    kind: type[ClusterPolicy],
    settings: ClusterSettings,
    config: ModelConfig,
    layers: int,
    tokens: int,
    past: int,
    round_bytes: int,
) -> bool:
    """Whether so many layers that share a selection take less with it, of `tokens` that are cached, than attention to
    all of these, and no more than attention to all tokens so far, `past`.

    Looked at are lengths until the next cluster is closed, as what is attended to goes up and down with that: all
    together must be cheaper, and none dearer than the full cache.
    """
    lengths = range(tokens, tokens + min(settings.sizes()[0], MOST_LENGTHS))
    if not all(_made(kind, settings, config, length, round_bytes)[1].picks(length) for length in lengths):
        return False
    with ShapeArithmetic():
        costs = [_selection(kind, settings, config, layers, length, round_bytes) for length in lengths]
    without, full = (attention_to_all(config, length, round_bytes).times(layers) for length in (tokens, past))
    together = cheaper(sum(costs, Cost()), without.times(len(costs)), round_bytes)
    return together and all(no_dearer(cost, full) for cost in costs)


def _selection(
    kind: type[ClusterPolicy],
    settings: ClusterSettings,
    config: ModelConfig,
    layers: int,
    tokens: int,
    round_bytes: int,
) -> Cost:
    planned, policy = _made(kind, settings, config, tokens, round_bytes)
    return policy.plan_selection(planned, layers, tokens)


def _made(
    kind: type[ClusterPolicy], settings: ClusterSettings, config: ModelConfig, tokens: int, round_bytes: int
) -> tuple[Planned, ClusterPolicy]:
    planned = Planned(round_bytes)
    return planned, kind(settings, config, planned.backend, tokens)
