"""A random choice of the prompt's tokens, seeded and public: the floor that any method must beat."""

import itertools
import random
from dataclasses import dataclass

from mpcache.policies.base import Policy
from mpcache.policies.settings import PolicySettings, setting


@dataclass(frozen=True)
class RandomSettings(PolicySettings):
    """seed: another one, other tokens."""

    name: str = "random"
    seed: int = setting(0, least=0, most=1 << 63)


class Random(Policy):
    """Costs nothing beyond attention to what is left. Generated tokens are all kept."""

    name = "random"
    summary = "a random, public choice of the prompt's tokens"
    mpc_cost = "nothing beyond attention to what is left"
    settings_class = RandomSettings
    settings: RandomSettings

    def evict(self) -> None:
        n = self.prompt_tokens
        if self.budget >= n:
            return
        for layer in range(self.config.layers):
            chosen = sorted(random.Random(f"{self.settings.seed}-{layer}").sample(range(n), self.budget))
            runs = itertools.groupby(enumerate(chosen), lambda pair: pair[1] - pair[0])
            ranges = [(run[0][1], run[-1][1] + 1) for run in (list(group) for _, group in runs)]
            self.keep_ranges(layer, *ranges)
