"""Whether eviction and selection pay, decided before they run from what they cost, which is public.

Bytes and rounds follow from shapes: they are planned here as `mpcache plan` plans them, on shapes alone, in whole
numbers. Owner, client and dealer know the same shapes and settings, and what a round is worth on their network, so they
decide the same. Nothing secret is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.policies.base import Policy
from mpcache.policies.blocks import chosen_block
from mpcache.policies.full import Full
from mpcache.policies.settings import PolicySettings
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.plan import PlanSession, ShapeArithmetic
from mpcache.protocols.session import Cost

ONCE = 50
"""What a policy does once, after the prompt, may take one part in so many of what reading the prompt takes."""
_DIGITS = 5
"""Lengths are rounded down to so many binary digits, so that a decision holds for a while."""

Make = Callable[[ModelConfig, MpcBackend], Policy]
"""The policy's cache for a model of few layers; it must not ask whether it pays."""


def rounded(tokens: int) -> int:
    """The length that a decision is made for."""
    drop = max(0, tokens.bit_length() - _DIGITS)
    return tokens >> drop << drop


def total_bytes(cost: Cost) -> int:
    """Online and of correlations."""
    return cost.online_bytes + cost.correction_bytes


def cheaper(cost: Cost, other: Cost, round_bytes: int) -> bool:
    """By bytes, and what rounds are worth."""
    return total_bytes(cost) + round_bytes * cost.rounds < total_bytes(other) + round_bytes * other.rounds


def no_dearer(cost: Cost, other: Cost, share: int = 1) -> bool:
    """Whether it takes no more bytes, online and in all, and no more rounds, than one part in `share` of the other."""
    bytes_too = share * total_bytes(cost) <= total_bytes(other) and share * cost.online_bytes <= other.online_bytes
    return bytes_too and share * cost.rounds <= other.rounds


class Planned:
    """A backend on shapes, and what was done with it since the last `spent`."""

    def __init__(self, round_bytes: int) -> None:
        self._session = PlanSession()
        self._session.round_bytes = round_bytes
        self.backend = MpcBackend(self._session)

    def spent(self) -> Cost:
        cost, self._session.cost = self._session.cost, Cost()
        self._session.next_part()
        return cost


@lru_cache(maxsize=1 << 10)
def attention_to_all(config: ModelConfig, tokens: int, round_bytes: int) -> Cost:
    """One layer's attention of a new token to so many."""
    planned, c = Planned(round_bytes), config
    with ShapeArithmetic():
        backend = planned.backend
        rows = backend.zeros((c.key_value_heads, tokens, c.head_size))
        cached, masked = backend.enter(
            None, backend.zeros((c.key_value_heads, c.queries_per_head, c.head_size)), rows, rows
        )
        planned.spent()
        backend.attend(masked, cached)
        return planned.spent()


def pays_once(once: Cost, policy: Policy, round_bytes: int) -> bool:
    """Whether what the policy does once after a prompt, `once`, and what observing its last queries adds, is a small
    part of reading it in the blocks that are chosen for it.

    Blocks of the prompt are planned at a few lengths: each stands for those up to the next, so that reading is not
    overrated, and observing, which happens at the end, not underrated.
    """
    config, prompt_tokens, observes = policy.config, policy.prompt_tokens, policy.observed_queries()

    def make(few: ModelConfig, backend: MpcBackend) -> Policy:
        return type(policy)(policy.settings, few, backend, prompt_tokens)

    def full(few: ModelConfig, backend: MpcBackend) -> Policy:
        return Full(PolicySettings("full"), few, backend, prompt_tokens)

    size = min(chosen_block(policy.settings, config, prompt_tokens, round_bytes), prompt_tokens)
    first = (prompt_tokens - observes) // size * size if observes else prompt_tokens
    last = (prompt_tokens - 1) // size * size
    dearest = _block(config, last, size, full, round_bytes).times(-(-prompt_tokens // size) * config.layers)
    if not no_dearer(once, dearest, ONCE):
        return False
    octaves = range((last // size).bit_length())
    starts = {0, first, prompt_tokens, *(size << i for i in octaves), *(3 * size << i >> 1 for i in octaves[1:])}
    reading, observing = Cost(), Cost()
    for start, end in itertools.pairwise(sorted(start for start in starts if start <= prompt_tokens)):
        reading += _block(config, start, size, full, round_bytes).times((end - start) // size * config.layers)
        if start >= first:
            at = min(end, last)
            more = _block(config, at, size, make, round_bytes) - _block(config, at, size, full, round_bytes)
            observing += more.times(-(-(end - start) // size) * config.layers)
    return no_dearer(once + observing, reading, ONCE)


def _block(config: ModelConfig, past: int, size: int, make: Make, round_bytes: int) -> Cost:
    """One layer of `size` tokens of the prompt, after `past` that are cached."""
    planned, one = Planned(round_bytes), replace(config, layers=1)
    with ShapeArithmetic():
        backend = planned.backend
        decoder, cache = Decoder(one, backend), make(one, backend)
        cache.evict = lambda: None  # type: ignore[method-assign]  # it is looked at apart
        if past:
            cache.fill(past, backend.zeros)
            cache.past = past
        planned.spent()
        decoder.blocks(backend.zeros((size, config.hidden)), cache)
        return planned.spent()
