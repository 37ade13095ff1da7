"""Recall: of a prompt's clusters the most attended stay at hand; the others remain, and each query calls a few of them.

The cache after the prompt is [sinks | kept clusters | rest]. Clusters are runs of neighbouring tokens, in stripes as in
`mpcache.protocols.stripes`, equally many in each. Which are kept is decided once, by the attention that the prompt's
last queries gave them: their keys and values are copied, and every step attends to the copies. The prompt itself stays
as it was masked when it was read, and costs nothing until it is needed: a step compares its query to the mean key of
each cluster, calls of each stripe the best one that is not kept, and attends to a copy of it, for this step alone. So
what is linear in the length is a product with each mean and an arg max over the clusters, for a group of layers.

One choice for all heads of a layer and for the layers of a group. Which clusters are kept and called is secret; how
many, and where they could be, follows from lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mpcache.model.config import ModelConfig
from mpcache.policies.base import Policy
from mpcache.policies.full import Full
from mpcache.policies.pays import Planned, cheaper, pays_once
from mpcache.policies.settings import MOST_LAYERS, MOST_TOKENS, PolicySettings, SinkSettings, setting
from mpcache.protocols.backends.interface import Choice, KeyValues, Masked, Scores, Value
from mpcache.protocols.plan import ShapeArithmetic
from mpcache.protocols.session import Cost

STRIPES = 4
"""At least so many, and as many as there are called clusters."""
MOST_CALLED = 64
LONGEST = 512
"""Clusters of a stripe, as long as the budget pays for the tokens that wait for more stripes: what is kept is found by
comparing all pairs of a stripe."""
LARGEST = 1 << 12
"""Attention received is scaled to so much at most, as clusters' scores are, and what is kept is put so far behind."""


@dataclass(frozen=True)
class Layout:
    """What a prompt comes to. inside: how many tokens, after the sinks, are in clusters; 0: nothing is evicted. kept:
    how many clusters of each stripe."""

    inside: int = 0
    stripes: int = STRIPES
    kept: int = 0


@dataclass(frozen=True)
class RecallSettings(SinkSettings):
    """cluster: its tokens. called: how many clusters a step calls back, which the budget pays for. observed_share: the
    share of the prompt's queries, its last ones, whose attention says what is kept (0: the last `window` of them).
    share_layers: neighbouring layers that share what is kept and called; unshared_layers: first ones which choose each
    for itself. only_if_cheaper: evict and call only where a step then takes less than with the full cache, its rounds
    weighed as the network wants it.
    """

    name: str = "recall"
    cluster: int = setting(2, least=1, most=MOST_TOKENS)
    called: int = setting(8, least=1, most=MOST_CALLED)
    observed_share: float = setting(0.2, least=0, most=1)
    window: int = setting(32, least=1, most=MOST_TOKENS)
    share_layers: int = setting(2, least=1, most=MOST_LAYERS)
    unshared_layers: int = setting(1, least=0, most=MOST_LAYERS)
    only_if_cheaper: bool = True

    def contradictions(self) -> list[str]:
        return [f"called is a power of two: not {self.called}"] if self.called & (self.called - 1) else []

    def always(self) -> dict[str, int]:
        waiting = self.stripes() * self.cluster - 1
        return {**super().always(), "waiting to fill clusters": waiting, "called": self.called_tokens()}

    def stripes(self) -> int:
        return max(STRIPES, self.called)

    def layer_pattern(self) -> tuple[int, int]:
        return self.unshared_layers, self.share_layers

    def called_tokens(self) -> int:
        return self.called * self.cluster

    def layout(self, prompt_tokens: int) -> Layout:
        budget, stripes = self.budget_tokens(prompt_tokens), self.stripes()
        while prompt_tokens // (stripes * self.cluster) > LONGEST and 8 * stripes * self.cluster <= budget:
            stripes *= 2
        span = stripes * self.cluster
        inside = max(0, prompt_tokens - self.sinks - self.recent) // span * span
        kept = max(0, budget - (prompt_tokens - inside) - self.called_tokens()) // span
        if budget >= prompt_tokens or kept * span >= inside:
            return Layout()
        return Layout(inside, stripes, kept)


@dataclass
class _Called:
    """Of one layer: its clusters, as a step calls them. Of the first layer of a group also what they are chosen by."""

    clusters: KeyValues
    means: Masked | None = None
    behind: Scores | None = None
    """What is taken off the scores (1, clusters) of those that are kept."""


class Recall(Policy):
    """MPC cost: once and group of layers, ranks within stripes and a masking of what is kept; each step and group, a
    product with each cluster's mean and an arg max in each stripe; each step and layer, a masking of what is called.
    """

    name = "recall"
    summary = "clusters kept by observed attention; of the others, each query calls the best"
    mpc_cost = "once: ranks in stripes, a copy; each step and group of layers: an arg max over clusters, copies of few"
    settings_class = RecallSettings
    settings: RecallSettings

    def prepare(self) -> None:
        settings = self.settled(self.settings, self.config, self.prompt_tokens, self.backend.round_bytes)
        assert isinstance(settings, RecallSettings)
        self.settings, self.budget = settings, settings.budget_tokens(self.prompt_tokens)
        self._layout = settings.layout(self.prompt_tokens)
        self._called: list[_Called | None] = [None] * self.config.layers
        self._choice: Masked | None = None

    @classmethod
    def settled(
        cls, settings: PolicySettings, config: ModelConfig, prompt_tokens: int, round_bytes: int
    ) -> PolicySettings:
        assert isinstance(settings, RecallSettings)
        if not settings.only_if_cheaper:
            return settings
        decided = replace(settings, only_if_cheaper=False)
        if _pays(decided, config, prompt_tokens, round_bytes):
            return decided
        return replace(decided, budget=float(max(prompt_tokens, sum(decided.always().values()))))

    @classmethod
    def refuses_drafts(cls, settings: PolicySettings) -> str:
        return "each token calls clusters of its own, and attends to no other's"

    def group(self, layer: int) -> range:
        """The layers that share what is kept and called."""
        alone, shared = self.settings.layer_pattern()
        if layer < alone:
            return range(layer, layer + 1)
        first = layer - (layer - alone) % shared
        return range(first, min(first + shared, self.config.layers))

    # ------------------------------------------------------------ once

    def observed_queries(self) -> int:
        s, n = self.settings, self.prompt_tokens
        if not self._layout.inside:
            return 0
        return max(1, math.ceil(s.observed_share * n)) if s.observed_share else min(s.window, n)

    def evict(self) -> None:
        for first in range(self.config.layers):
            group = self.group(first)
            if self._layout.inside and first == group[0]:
                choice = self._keep(group) if self._layout.kept else None
                for layer in group:
                    self._part(layer, choice)
                self._put_behind(first, choice)

    def _keep(self, group: range) -> Choice:
        """In each stripe of clusters those that received most attention in the group's layers: (stripes, kept, n)."""
        layout, observed = self._layout, self.config.queries_per_head * self.observed_queries()
        start, end = self.settings.sinks, self.settings.sinks + layout.inside
        total, *others = [self.received(layer)[:, start:end].sum(0) for layer in group]
        for received in others:
            total = total + received
        scores = total.reshape(-1, self.settings.cluster).sum(1)
        largest = observed * self.config.key_value_heads * len(group)
        if largest > LARGEST:
            scores = self.backend.scale(scores, Fraction(1, -(-largest // LARGEST)))
        return self.backend.top_k(scores.reshape(-1, layout.stripes).transpose(0, 1), layout.kept)

    def _part(self, layer: int, choice: Choice | None) -> None:
        """The clusters of the layer are laid by to be called; what is kept, and what is in none, is the cache."""
        cached, backend, s = self.cached(layer), self.backend, self.settings
        start, end = s.sinks, s.sinks + self._layout.inside
        means = None
        if layer == self.group(layer)[0]:
            keys = backend.unmask(cached.keys)[:, start:end]
            heads, tokens, d = keys.shape
            total = keys.reshape(heads, tokens // s.cluster, s.cluster, d).sum(2)
            means = backend.mask(backend.scale(total, Fraction(1, s.cluster)))
        self._called[layer] = _Called(backend.runs(cached, start, end, s.called, s.cluster), means)
        if choice is not None:
            kept = backend.gather_runs(cached, start, end, choice)
        else:
            ends = [backend.rows([(x, 0, start), (x, end, cached.tokens)]) for x in (cached.keys, cached.values)]
            kept = KeyValues(ends[0], ends[1], cached.tokens - self._layout.inside)
        backend.forget(cached.keys, cached.values)
        self.store(layer, kept)

    def _put_behind(self, first: int, choice: Choice | None) -> None:
        called = self._called[first]
        assert called is not None
        if choice is not None:
            stripes, kept, n = choice.shape
            far = self.backend.zeros((stripes, kept, 1)) + float(LARGEST)
            behind = self.backend.gather(choice.transpose(1, 2), far)
            called.behind = behind.transpose(0, 1).reshape(1, n * stripes)

    # ------------------------------------------------------------ each step

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        called, backend, group = self._called[layer], self.backend, self.group(layer)
        if called is None:
            return super().step(layer, queries, keys, values)
        cached, masked = self.enter(layer, queries, keys, values)
        if called.means is not None:
            self._choice = self._call(masked, called, called.means)
        assert self._choice is not None
        found = backend.recall(called.clusters, self._choice, self.config.key_value_heads, self.settings.cluster)
        seen_keys, seen_values = (
            backend.rows([(old, 0, cached.tokens), (new, 0, found.tokens)])
            for old, new in ((cached.keys, found.keys), (cached.values, found.values))
        )
        out = backend.attend(masked, KeyValues(seen_keys, seen_values, cached.tokens + found.tokens))
        backend.forget(found.keys, found.values, seen_keys, seen_values)
        if layer == group[-1]:
            backend.forget(self._choice)
        return out

    def _call(self, queries: Masked, called: _Called, means: Masked) -> Masked:
        (scores,) = self.backend.similarity(queries, [means])
        together = scores.sum(0).reshape(1, -1)  # all heads: only the order counts
        if called.behind is not None:
            together = together - called.behind
        return self.backend.choose_largest(together, self.settings.called)

    def attended(self) -> int:
        return super().attended() + (self.settings.called_tokens() if self._layout.inside else 0)


@lru_cache(maxsize=1 << 8)
def _pays(settings: RecallSettings, config: ModelConfig, prompt_tokens: int, round_bytes: int) -> bool:
    """Whether a step of a group of layers takes less than with the full cache, and what is done once little beside
    reading the prompt."""
    planned, whole = Planned(round_bytes), Planned(round_bytes)
    with ShapeArithmetic():
        policy = Recall(settings, config, planned.backend, prompt_tokens)
        if not policy._layout.inside:
            return True
        full = Full(PolicySettings("full"), config, whole.backend, prompt_tokens)
        for cache, backend in ((policy, planned.backend), (full, whole.backend)):
            cache.fill(prompt_tokens, backend.zeros)
        planned.spent()
        policy.evict()
        once = planned.spent()
        layers = policy.group(min(settings.unshared_layers, config.layers - 1))
        ours, theirs = (_step(cache, layers, one) for cache, one in ((policy, planned), (full, whole)))
    if not cheaper(ours, theirs, round_bytes):
        return False
    return pays_once(once, policy, round_bytes)


def _step(cache: Policy, layers: range, planned: Planned) -> Cost:
    c, zeros = cache.config, planned.backend.zeros
    queries, row = (
        zeros((c.key_value_heads, c.queries_per_head, c.head_size)),
        zeros((c.key_value_heads, 1, c.head_size)),
    )
    planned.spent()
    for layer in layers:
        cache.step(layer, queries, row, row)
    return planned.spent()
