"""Quest: every step, pages by an upper bound of their scores (Tang et al., arXiv 2406.10774)."""

from __future__ import annotations

from mpcache.policies.clusters import ClusterPolicy, PageSettings
from mpcache.protocols.backends.interface import Masked, Scores, Value


class Quest(ClusterPolicy):
    """A page's score is sum_i max(q_i rmax_i, q_i rmin_i), with the extremes of its keys.

    MPC cost: the extremes once a page; each step and layer two products and a secure comparison for every channel of
    every page, which is what MPCache's linear form avoids. Nothing is evicted.
    """

    name = "quest"
    summary = "each step: pages by an upper bound of their scores"
    mpc_cost = "each step and layer: a secure comparison for every channel of every page, ranks of the pages"
    settings_class = PageSettings
    settings: PageSettings
    vectors = 2

    def represent(self, layer: int, keys: Value, start: int) -> list[list[Value]]:
        heads, tokens, d = keys.shape
        high, low = self.backend.extremes(keys.reshape(heads, tokens // self.settings.page, self.settings.page, d))
        return [[high, low]]

    def compare(self, queries: Value, masked: Masked, representatives: list[list[Masked]]) -> list[Scores]:
        heads, _, d = queries.shape
        together = queries.sum(1).reshape(heads, 1, d)
        bounds = [self.backend.product(together, extreme, "multiply") for extreme in representatives[0]]
        pairs = self.backend.concatenate([bound.reshape(*bound.shape[:2], 1, d) for bound in bounds], 2)
        return [self.backend.extremes(pairs)[0].sum(-1)]
