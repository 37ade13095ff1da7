"""A cache that begins after a prompt that nobody ran: its keys and values are given."""

from __future__ import annotations

from collections.abc import Callable

from mpcache.model.decoder import Decoder
from mpcache.policies import Policy, PolicySettings, new_cache
from mpcache.protocols.backends.interface import Value


def prefilled_cache(
    decoder: Decoder, policy: PolicySettings, tokens: int, given: Callable[[tuple[int, ...]], Value]
) -> Policy:
    """The policy's cache with a prompt of `tokens` from `given` (a value of a shape), before eviction.

    `advance` for all tokens is still due: it evicts. Attention received is given as well, and must not be negative
    where values matter.
    """
    cache = new_cache(policy, decoder, tokens)
    cache.fill(tokens, given)
    return cache
