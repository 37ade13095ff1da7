"""Everything is kept and attended to: what the others are held against."""

from mpcache.policies.base import Policy
from mpcache.policies.settings import PolicySettings
from mpcache.protocols.errors import ConfigError


class Full(Policy):
    """MPC cost: every score, exponential and value of every cached token, each step."""

    name = "full"
    summary = "keeps and attends to everything"
    mpc_cost = "attention to the whole cache at every step"

    @classmethod
    def check(cls, settings: PolicySettings) -> None:
        super().check(settings)
        if settings.prefill_budget:
            raise ConfigError("cache policy 'full' reads the whole prompt: it has no prefill_budget")

    def evict(self) -> None:
        """Nothing leaves."""
