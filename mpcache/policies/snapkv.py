"""SnapKV: once, per head, by the attention of the prompt's last queries, pooled (Li et al., arXiv 2404.14469)."""

from dataclasses import dataclass

from mpcache.policies.base import Policy
from mpcache.policies.eviction import keep_top_k_per_head
from mpcache.policies.settings import MOST_TOKENS, SinkSettings, setting
from mpcache.protocols.backends.interface import Value

WIDEST_KERNEL = 255


@dataclass(frozen=True)
class SnapKVSettings(SinkSettings):
    """window: last queries that observe. kernel: neighbouring tokens whose scores are pooled."""

    name: str = "snapkv"
    window: int = setting(32, least=1, most=MOST_TOKENS)
    kernel: int = setting(7, least=1, most=WIDEST_KERNEL)

    def contradictions(self) -> list[str]:
        return ["the kernel has a middle: an odd number of tokens"] if self.kernel % 2 == 0 else []


class SnapKV(Policy):
    """MPC cost: static eviction per key/value head, once. Pooling is an average, as in the paper, and so a local sum.

    The last `recent` tokens always stay; the observing `window` may be longer. Generated tokens are all kept.
    """

    name = "snapkv"
    summary = "once, per head: pooled attention of the last queries"
    mpc_cost = "once a head: the k largest by bisection, a shuffle of keys and values"
    settings_class = SnapKVSettings
    settings: SnapKVSettings

    def observed_queries(self) -> int:
        return min(self.settings.window, self.prompt_tokens)

    def evict(self) -> None:
        s, layers = self.settings, range(self.config.layers)
        if self.budget >= self.prompt_tokens:
            return
        largest = self.observed_queries() * self.config.queries_per_head * s.kernel
        parts = [self.key_values(layer) for layer in layers]
        scores = [self._pooled(self.received(layer)) for layer in layers]
        kept = keep_top_k_per_head(self.backend, parts, scores, self.budget, s.sinks, s.recent, largest)
        for layer, (keys, values) in zip(layers, kept, strict=True):
            self.replace(layer, keys, values)

    def _pooled(self, scores: Value) -> Value:
        """Sums over `kernel` neighbours (G, n)."""
        n, half = scores.shape[1], self.settings.kernel // 2
        edge = self.backend.zeros((scores.shape[0], half))
        padded = self.backend.concatenate([edge, scores, edge], 1)
        total = padded[:, :n]
        for shift in range(1, self.settings.kernel):
            total = total + padded[:, shift : shift + n]
        return total
