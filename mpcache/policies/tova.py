"""TOVA: token omission via attention (Oren et al., arXiv 2401.06104)."""

from __future__ import annotations

import torch

from mpcache.policies.base import Policy
from mpcache.policies.eviction import keep_top_k_together
from mpcache.protocols.backends.interface import KeyValues, Value


class Tova(Policy):
    """Each step drops the token that the newest query attends to least, the same for all heads of a layer.

    MPC cost, every step: attention received, a secure arg min over the budget, and an oblivious overwrite by the newest
    token, after which every slot is masked anew. The prompt is cut down once, by its last query.
    """

    name = "tova"
    summary = "each step: evicts the lowest attention of the newest query"
    mpc_cost = "each step and layer: attention received, a secure arg min, an oblivious overwrite"

    def observed_queries(self) -> int:
        return 1

    def evict(self) -> None:
        layers = range(self.config.layers)
        if self.budget >= self.prompt_tokens:
            return
        parts = [self.key_values(layer) for layer in layers]
        scores = [self._over_heads(self.received(layer)) for layer in layers]
        kept = keep_top_k_together(self.backend, parts, scores, self.budget, 0, 0, float(self.config.heads))
        for layer, (keys, values) in zip(layers, kept, strict=True):
            self.replace(layer, keys, values)

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        cached, masked = self.enter(layer, queries, keys, values)
        if cached.tokens <= self.budget:
            return self.backend.attend(masked, cached)
        out, received = self.backend.attend_observed(masked, cached, None, torch.arange(queries.shape[1]))
        choice = self.backend.argmin(self._over_heads(received), float(self.config.heads))[:, :, : self.budget]
        choice = self.backend.concatenate([choice] * keys.shape[0], 0)
        slots = []
        for masked, newest in ((cached.keys, keys), (cached.values, values)):
            slots.append(self.backend.overwrite(self.backend.rows([(masked, 0, self.budget)]), choice, newest))
            self.backend.forget(masked)
        self.store(layer, KeyValues(slots[0], slots[1], self.budget))
        return out

    def attended(self) -> int:
        return min(super().attended(), self.budget + 1)

    def _over_heads(self, received: Value) -> Value:
        return received.sum(0).reshape(1, -1)
