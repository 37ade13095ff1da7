"""MPCache: look-once static eviction, hierarchical dynamic selection, indices shared by layers (arXiv 2501.06807)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mpcache.model.config import ModelConfig
from mpcache.policies.clusters import ClusterPolicy, ClusterSettings
from mpcache.policies.eviction import keep_top_k_per_head, keep_top_k_together
from mpcache.policies.pays import Planned, pays_once
from mpcache.policies.settings import MOST_LAYERS, MOST_TOKENS, PolicySettings, setting
from mpcache.protocols.backends.interface import Masked, Scores, Value
from mpcache.protocols.plan import ShapeArithmetic

LONG_PROMPT = 24_000
"""Beyond so many tokens the observing window is half the share (paper, section 4.1)."""

MOST_LEVELS = 8
WIDEST = 1024.0


@dataclass(frozen=True)
class MPCacheSettings(ClusterSettings):
    """The three parts of the policy, each of which can be left out: eviction, selection, sharing.

    keep_ratio: share of the prompt's tokens that survive static eviction (1: no eviction), scored by the last
    `observed_share` of the queries (0: by the last `window` of them), per head if `per_head`. most_kept: how many times
    the budget's tokens that share is at most, as what is kept costs a little at every step. clusters: tokens of a
    cluster at each level, coarse to fine (none: static eviction alone, down to the budget); widening: how many times
    the next level's tokens a level picks; representative of a cluster: 'extremes' (alpha max + (1 - alpha) min) or
    'mean'. share_layers: neighbouring layers that share a selection; unshared_layers: first ones, after the skipped,
    which select each for itself; skip_layers: first layers that keep and attend to everything; share_heads: all heads
    of a layer pick the same clusters, by the sum of their scores, so that ranks cost as if there were one.
    cluster_answer: new tokens join clusters; else they are all attended to, beyond the budget, and drafts are possible.
    evict_if_cheap: evict only where that takes a fiftieth of what reading the prompt takes, at most; see pays.py.
    """

    name: str = "mpcache"
    keep_ratio: float = setting(0.25, above=0, most=1)
    most_kept: float = setting(3.0, least=1, most=WIDEST)
    observed_share: float = setting(0.2, least=0, most=1)
    window: int = setting(32, least=1, most=MOST_TOKENS)
    per_head: bool = False
    picks: int = setting(2, least=0, most=MOST_TOKENS)
    only_if_cheaper: bool = True
    evict_if_cheap: bool = True
    clusters: tuple[int, ...] = setting((4,), least=1, most=MOST_TOKENS, longest=MOST_LEVELS)
    widening: float = setting(2.0, least=1, most=WIDEST)
    representative: str = setting("mean", choices=("extremes", "mean"))
    alpha: float = setting(0.6, least=0, most=1)
    share_layers: int = setting(2, least=1, most=MOST_LAYERS)
    unshared_layers: int = setting(1, least=0, most=MOST_LAYERS)
    share_heads: bool = True
    skip_layers: int = setting(0, least=0, most=MOST_LAYERS)
    cluster_answer: bool = True

    def kept_tokens(self, prompt_tokens: int) -> int:
        """How many of the prompt's tokens survive: never fewer than the budget attends to."""
        budget = self.budget_tokens(prompt_tokens)
        share = math.ceil(self.keep_ratio * prompt_tokens) if self.clusters else 0
        if self.keep_ratio < 1:
            share = min(share, math.ceil(self.most_kept * budget))
        return min(prompt_tokens, max(share, budget))

    def contradictions(self) -> list[str]:
        uneven = [(a, b) for a, b in itertools.pairwise(self.clusters) if a % b or a == b]
        return [f"each level's clusters consist of whole clusters of the next: not {uneven}"] if uneven else []

    def sizes(self) -> tuple[int, ...]:
        return self.clusters

    def next_level(self, picked: int) -> int:
        return math.ceil(self.widening * picked)

    def clusters_grow(self) -> bool:
        return self.cluster_answer

    def layer_pattern(self) -> tuple[int, int]:
        return self.skip_layers + self.unshared_layers, self.share_layers


class MPCache(ClusterPolicy):
    """The three parts can each be set apart: keep_ratio 1 leaves out eviction, clusters = () selection, share_layers 1
    sharing. With selection left out, eviction goes down to the budget.

    MPC cost: once, a bisection over the prompt's scores and a shuffle of its keys and values; each step and group of
    layers, one opening of the query, ranks within each level, and a masking of the choice; each step and layer, an
    opening of every retained score and of its exponential's place (4 and 7 bytes), and attention to the budget.
    """

    name = "mpcache"
    summary = "static eviction, hierarchical selection, shared by layers"
    mpc_cost = (
        "once: the k largest by bisection, a shuffle; each step and group of layers: one opened query, ranks in levels"
    )
    settings_class = MPCacheSettings
    settings: MPCacheSettings

    def group(self, layer: int) -> range:
        return self._sharing(layer) if self._sizes else range(0)

    def _sharing(self, layer: int) -> range:
        """The layers that share this one's static eviction, and its selection if there is one."""
        s = self.settings
        if layer < s.skip_layers:
            return range(0)
        alone = s.skip_layers + s.unshared_layers
        if layer < alone:
            return range(layer, layer + 1)
        first = layer - (layer - alone) % s.share_layers
        return range(first, min(first + s.share_layers, self.config.layers))

    # ------------------------------------------------------------ static eviction

    def keep(self) -> int:
        """How many of the prompt's tokens survive."""
        return self.settings.kept_tokens(self.prompt_tokens)

    def prepare(self) -> None:
        settings = self.settled(self.settings, self.config, self.prompt_tokens, self.backend.round_bytes)
        assert isinstance(settings, MPCacheSettings)
        self.settings, self.budget = settings, settings.budget_tokens(self.prompt_tokens)
        super().prepare()

    @classmethod
    def settled(
        cls, settings: PolicySettings, config: ModelConfig, prompt_tokens: int, round_bytes: int
    ) -> PolicySettings:
        assert isinstance(settings, MPCacheSettings)
        if not settings.evict_if_cheap:
            return settings
        decided = replace(settings, evict_if_cheap=False)
        plain = replace(decided, only_if_cheaper=False)
        if _eviction_is_cheap(plain, config, prompt_tokens, round_bytes):
            return decided
        return replace(decided, keep_ratio=1.0, budget=decided.budget if decided.clusters else float(prompt_tokens))

    def observed_queries(self) -> int:
        s, n = self.settings, self.prompt_tokens
        if self.keep() == n:
            return 0
        share = s.observed_share if n <= LONG_PROMPT else s.observed_share / 2
        return max(1, math.ceil(share * n)) if share else min(s.window, n)

    def evict(self) -> None:
        if self.keep() < self.prompt_tokens:
            groups = [self._sharing(i) for i in range(self.config.layers) if i in self._sharing(i)[:1]]
            for size in sorted({len(group) for group in groups}):
                self._evict_groups([group for group in groups if len(group) == size])
        super().evict()

    def _evict_groups(self, groups: list[range]) -> None:
        """Groups of equally many layers, in the same rounds."""
        s, r = self.settings, self.config.queries_per_head
        parts = [[value for layer in group for value in self.key_values(layer)] for group in groups]
        scores = [self._group_score(group) for group in groups]
        largest = float(self.observed_queries() * r * len(groups[0]))
        if s.per_head:
            kept = keep_top_k_per_head(self.backend, parts, scores, self.keep(), s.sinks, s.recent, largest)
        else:
            scores = [score.sum(0).reshape(1, -1) for score in scores]
            largest *= self.config.key_value_heads
            kept = keep_top_k_together(self.backend, parts, scores, self.keep(), s.sinks, s.recent, largest)
        for group, values in zip(groups, kept, strict=True):
            for i, layer in enumerate(group):
                self.replace(layer, values[2 * i], values[2 * i + 1])

    def _group_score(self, group: range) -> Value:
        """Attention received (G, n), summed over the layers that will share the choice."""
        total, *others = [self.received(layer) for layer in group]
        for received in others:
            total = total + received
        return total

    # ------------------------------------------------------------ dynamic selection

    def represent(self, layer: int, keys: Value, start: int) -> list[list[Value]]:
        heads, tokens, d = keys.shape
        s, backend = self.settings, self.backend
        fine = s.clusters[-1]
        runs = keys.reshape(heads, tokens // fine, fine, d)
        levels: list[list[Value]] = []
        if s.representative == "mean":
            for size in s.clusters:
                total = keys.reshape(heads, tokens // size, size, d).sum(2)
                levels.append([backend.scale(total, Fraction(1, size))])
            return levels
        alpha, (high, low) = Fraction(s.alpha), backend.extremes(runs)
        for size in reversed(s.clusters):
            count = tokens // size
            if high.shape[1] > count:
                high = backend.extremes(high.reshape(heads, count, -1, d))[0]
                low = backend.extremes(low.reshape(heads, count, -1, d))[1]
            levels.insert(0, [backend.scale(high, alpha) + backend.scale(low, 1 - alpha)])
        return levels

    def compare(self, queries: Value, masked: Masked, representatives: list[list[Masked]]) -> list[Scores]:
        # the sum over a group's queries is as good as their mean: only the order counts
        scores = self.backend.similarity(masked, [level[0] for level in representatives])
        return [score.sum(0).reshape(1, -1) for score in scores] if self.settings.share_heads else scores


@lru_cache(maxsize=1 << 8)
def _eviction_is_cheap(settings: MPCacheSettings, config: ModelConfig, prompt_tokens: int, round_bytes: int) -> bool:
    """Whether static eviction adds little to reading the prompt, or there is none."""
    planned = Planned(round_bytes)
    with ShapeArithmetic():
        policy = MPCache(settings, config, planned.backend, prompt_tokens)
        if policy.keep() == prompt_tokens:
            return True
        policy.fill(prompt_tokens, planned.backend.zeros)
        planned.spent()
        policy.evict()
        once = planned.spent()
    return pays_once(once, policy, round_bytes)
