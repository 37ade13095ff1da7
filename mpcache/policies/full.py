"""Everything is kept and attended to: what the others are held against."""

from mpcache.policies.base import Policy


class Full(Policy):
    """MPC cost: every score, exponential and value of every cached token, each step."""

    name = "full"
    summary = "keeps and attends to everything"
    mpc_cost = "attention to the whole cache at every step"

    def evict(self) -> None:
        """Nothing leaves."""
