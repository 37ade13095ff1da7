"""KeyDiff: once, per head, the keys least similar to the mean key; no attention needed (arXiv 2504.15364)."""

from fractions import Fraction

from mpcache.policies.base import Policy
from mpcache.policies.eviction import keep_top_k_per_head
from mpcache.policies.settings import SinkSettings
from mpcache.protocols.backends.interface import Value

EPSILON = 1e-5


class KeyDiff(Policy):
    """MPC cost: a normalisation of every key in the prompt, one product, and static eviction per head, once.

    The similarity is the cosine to the mean of the normalised keys. Generated tokens are all kept.
    """

    name = "keydiff"
    summary = "once, per head: the keys least like their mean"
    mpc_cost = "once: a norm of every key; a head: the k largest by bisection, a shuffle of keys and values"
    settings_class = SinkSettings
    settings: SinkSettings

    def prepare(self) -> None:
        self._directions: list[list[Value]] = [[] for _ in range(self.config.layers)]

    def observe(self, layer: int, queries: Value, keys: Value, values: Value) -> None:
        if self.budget < self.prompt_tokens:
            self._directions[layer].append(self.backend.rms_norm(keys, EPSILON))  # of length sqrt(d)

    def evict(self) -> None:
        s, layers, d = self.settings, range(self.config.layers), self.config.head_size
        if self.budget >= self.prompt_tokens:
            return
        parts = [self.key_values(layer) for layer in layers]
        scores = [self._difference(layer) for layer in layers]
        kept = keep_top_k_per_head(self.backend, parts, scores, self.budget, s.sinks, s.recent, 2 * d + 2)
        for layer, (keys, values) in zip(layers, kept, strict=True):
            self.replace(layer, keys, values)
        self._directions = []

    def _difference(self, layer: int) -> Value:
        """d + 1 - d cos(key, mean): (G, n), in [1, 2 d + 1]."""
        directions = self.backend.concatenate(self._directions[layer], 1)
        total = directions.sum(1).reshape(directions.shape[0], 1, -1)
        mean = self.backend.scale(total, Fraction(1, self.prompt_tokens))
        masked = self.backend.mask(directions)
        similarity = self.backend.product(mean, masked, "matmul_transposed")
        self.backend.forget(masked)
        return -similarity[:, 0] + float(self.config.head_size + 1)
