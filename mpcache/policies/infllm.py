"""InfLLM: every step, blocks by their representative tokens (Xiao et al., arXiv 2402.04617)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.policies.clusters import ClusterPolicy, PageSettings
from mpcache.policies.settings import MOST_TOKENS, setting
from mpcache.protocols.backends.interface import Masked, Scores, Value
from mpcache.protocols.public import reciprocals


@dataclass(frozen=True)
class InfLLMSettings(PageSettings):
    """representatives: tokens that stand for a block. window: queries after a token that score it."""

    name: str = "infllm"
    representatives: int = setting(4, least=1, most=MOST_TOKENS)
    window: int = setting(32, least=1, most=MOST_TOKENS)

    def contradictions(self) -> list[str]:
        return ["a block has no more representatives than tokens"] if self.representatives > self.page else []


class InfLLM(ClusterPolicy):
    """A block's representatives are the tokens that the `window` queries after them score highest, on average.

    A block's relevance is the sum of its representatives' scores, which is the query's product with the sum of their
    keys: so a block is one vector. MPC cost: once a block, a product an element, ranks within the block and a gather;
    each step one product and ranks over all blocks, a single level. Nothing is evicted.
    """

    name = "infllm"
    summary = "each step: blocks by their representative tokens"
    mpc_cost = "once a block: ranks within it; each step and layer: one product, ranks of the blocks"
    settings_class = InfLLMSettings
    settings: InfLLMSettings

    def prepare(self) -> None:
        super().prepare()
        self._queries: list[Value | None] = [None] * self.config.layers

    def observe(self, layer: int, queries: Value, keys: Value, values: Value) -> None:
        heads, m, d = keys.shape
        new = queries.reshape(heads, -1, m, d).sum(1)
        seen = self._queries[layer]
        self._queries[layer] = new if seen is None else self.backend.concatenate([seen, new], 1)

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        self.observe(layer, queries, keys, values)
        return super().step(layer, queries, keys, values)

    def represent(self, layer: int, keys: Value, start: int) -> list[list[Value]]:
        s, backend, (heads, tokens, d) = self.settings, self.backend, keys.shape
        following = self._following(layer, start, tokens)
        scores = backend.multiply(keys, following).sum(-1).reshape(-1, s.page)
        chosen = backend.gather(backend.top_k(scores, s.representatives), keys.reshape(-1, s.page, d))
        return [[chosen.sum(1).reshape(heads, tokens // s.page, d)]]

    def compare(self, queries: Value, masked: Masked, representatives: list[list[Masked]]) -> list[Scores]:
        return self.backend.similarity(masked, representatives[0])

    def _following(self, layer: int, start: int, tokens: int) -> Value:
        """The mean of the (up to `window`) queries after each token (G, tokens, d), all query heads together."""
        queries, window = self._queries[layer], self.settings.window
        assert queries is not None
        n = queries.shape[1]
        before = self.backend.concatenate([self.backend.zeros((queries.shape[0], 1, queries.shape[2])), queries], 1)
        total = before.cumsum(1)  # total[i]: sum of the first i queries
        first = torch.arange(start + 1, start + tokens + 1)
        last = (first + window).clamp(max=n)
        counts = (last - first).clamp(min=1) * self.config.queries_per_head
        return self.backend.scale(total[:, last] - total[:, first], reciprocals(counts[:, None]))
