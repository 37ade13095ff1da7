"""H2O: heavy hitters by accumulated attention, and recent tokens (Zhang et al., arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.policies.base import Policy
from mpcache.policies.eviction import keep_top_k_per_head
from mpcache.policies.settings import PolicySettings
from mpcache.protocols.backends.interface import KeyValues, Value


@dataclass(frozen=True)
class H2OSettings(PolicySettings):
    """The budget alone, of two tokens or more."""

    name: str = "h2o"

    def always(self) -> dict[str, int]:
        return {"heavy hitter": 1, "recent": 1}


class H2O(Policy):
    """Half of the budget holds heavy hitters, in secret slots; half the recent tokens, in order.

    Each step, per key/value head: the token that leaves the window takes the place of the heavy hitter with the least
    accumulated attention, or is dropped if it has the least itself. MPC cost of that, every step: attention received,
    a secure arg min over the slots, and an oblivious overwrite, after which every slot is masked anew.
    """

    name = "h2o"
    summary = "each step: evicts the lowest accumulated attention"
    mpc_cost = "each step and head: attention received, a secure arg min, an oblivious overwrite"
    settings_class = H2OSettings
    settings: H2OSettings

    def prepare(self) -> None:
        self._heavy = self.budget // 2
        self._scores: list[Value] = []

    def observed_queries(self) -> int:
        return self.prompt_tokens

    def evict(self) -> None:
        layers, n = range(self.config.layers), self.prompt_tokens
        self._scores = [self.received(layer) for layer in layers]
        if self.budget >= n:
            return
        parts = [(*self.key_values(layer), _column(self._scores[layer])) for layer in layers]
        largest = float(n * self.config.queries_per_head)
        recent = self.budget - self._heavy
        kept = keep_top_k_per_head(self.backend, parts, self._scores, self.budget, 0, recent, largest)
        for layer, (keys, values, scores) in zip(layers, kept, strict=True):
            self.replace(layer, keys, values)
            self._scores[layer] = scores[:, :, 0]

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        cached, masked = self.enter(layer, queries, keys, values)
        everyone = torch.arange(queries.shape[1])
        out, received = self.backend.attend_observed(masked, cached, None, everyone)
        self._scores[layer] = self.add_padded(self._scores[layer], received)
        if cached.tokens > self.budget:
            self._drop_one(layer, cached)
        return out

    def attended(self) -> int:
        return min(super().attended(), self.budget + 1)

    def _drop_one(self, layer: int, cached: KeyValues) -> None:
        """The token at `heavy` leaves the window: it or a heavy hitter goes."""
        backend, heavy, tokens = self.backend, self._heavy, cached.tokens
        scores = self._scores[layer]
        largest = float((self.past + 1) * self.config.queries_per_head)  # had every query given all its attention
        choice = backend.argmin(scores[:, : heavy + 1], largest)[:, :, :heavy]
        kept = []
        for masked in (cached.keys, cached.values):
            leaving = backend.unmask(masked)[:, heavy : heavy + 1]
            slots = backend.overwrite(backend.rows([(masked, 0, heavy)]), choice, leaving)
            kept.append(backend.rows([(slots, 0, heavy), (masked, heavy + 1, tokens)]))
            backend.forget(masked, slots)
        self.store(layer, KeyValues(kept[0], kept[1], tokens - 1))
        change = backend.gather(choice.transpose(1, 2), scores[:, heavy : heavy + 1].reshape(-1, 1, 1))
        lost = backend.gather(choice, _column(scores[:, :heavy]))
        spread = backend.gather(choice.transpose(1, 2), lost)
        slots_scores = scores[:, :heavy] + change[:, :, 0] - spread[:, :, 0]
        self._scores[layer] = backend.concatenate([slots_scores, scores[:, heavy + 1 :]], 1)


def _column(scores: Value) -> Value:
    return scores.reshape(*scores.shape, 1)
