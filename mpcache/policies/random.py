"""A random choice of the prompt's tokens, seeded and public: the floor that any method must beat."""

import itertools
import random

from mpcache.policies.base import Policy


class Random(Policy):
    """Costs nothing beyond attention to what is left. Generated tokens are all kept."""

    name = "random"
    summary = "a random, public choice of the prompt's tokens"
    mpc_cost = "nothing beyond attention to what is left"

    def evict(self) -> None:
        n = self.prompt_tokens
        if self.budget >= n:
            return
        for layer in range(self.config.layers):
            chosen = sorted(random.Random(f"{self.settings.seed}-{layer}").sample(range(n), self.budget))
            runs = itertools.groupby(enumerate(chosen), lambda pair: pair[1] - pair[0])
            ranges = [(run[0][1], run[-1][1] + 1) for run in (list(group) for _, group in runs)]
            self._rows(layer, *ranges)
