"""StreamingLLM: sinks and a window of recent tokens (Xiao et al., arXiv 2309.17453)."""

from mpcache.policies.base import Policy
from mpcache.policies.settings import SinkSettings
from mpcache.protocols.backends.interface import Value


class Streaming(Policy):
    """Positions are public, so eviction costs nothing: MPC cost of full attention to `budget` tokens.

    Tokens keep the positions that they were cached with (the original renumbers them within the cache).
    """

    name = "streaming"
    summary = "sinks and a window of recent tokens"
    mpc_cost = "nothing beyond attention to what is left: positions are public"
    settings_class = SinkSettings
    settings: SinkSettings

    def evict(self) -> None:
        for layer in range(self.config.layers):
            self._slide(layer)

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        _, masked = self.enter(layer, queries, keys, values)
        self._slide(layer)
        return self.backend.attend(masked, self.cached(layer))

    def attended(self) -> int:
        return min(super().attended(), self.budget)

    def _slide(self, layer: int) -> None:
        tokens, sinks = self.cached(layer).tokens, self.settings.sinks
        if tokens > self.budget:
            self.keep_ranges(layer, (0, sinks), (tokens - self.budget + sinks, tokens))
