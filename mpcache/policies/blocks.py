"""How many tokens of a prompt go through the model at once, chosen by what is public.

Every block takes the rounds of a pass through all layers. A longer one takes fewer passes, and more memory. What is
right depends on what a round is worth (`Session.round_bytes`) and on the memory that a pass may take. Owner, client and
dealer find the same, in whole numbers, from the shapes of one layer: two passes are planned for each size that comes
into question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from mpcache.model.config import ModelConfig
from mpcache.model.decoder import PREFILL_BLOCK, Decoder
from mpcache.policies.full import Full
from mpcache.policies.settings import PolicySettings
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.plan import PlanSession, ShapeArithmetic
from mpcache.protocols.session import ROUND_BYTES

LARGEST_BLOCK = 512
"""Tokens of the longest block that is chosen here. Others are for those who ask for them."""
PASS_BYTES = 1 << 31
"""What a pass through one layer may draw: all of its correlations, in 8 bytes an element. Much of it is in memory at
the same time, at each party and at the dealer."""


@dataclass(frozen=True)
class _Pass:
    """One layer's: bytes online and of corrections, rounds, and the bytes of what it draws."""

    nbytes: int
    rounds: int
    drawn_bytes: int


def chosen_block(settings: PolicySettings, model: ModelConfig, prompt_tokens: int, round_bytes: int) -> int:
    """Tokens of a block: PREFILL_BLOCK, or more where that costs less and stays within PASS_BYTES.

    On one machine a round is cheap, and three processes share its memory: blocks have PREFILL_BLOCK tokens there. So
    they have where a policy reads with a budget: it picks what a whole block sees, so that its answers would follow the
    size. Cost: a fraction of a second, once for each length.
    """
    if settings.prefill_budget or prompt_tokens <= PREFILL_BLOCK or round_bytes <= ROUND_BYTES:
        return PREFILL_BLOCK
    return _chosen(replace(model, layers=1), prompt_tokens, round_bytes)


@lru_cache(maxsize=1 << 10)
def _chosen(layer: ModelConfig, prompt_tokens: int, round_bytes: int) -> int:
    best, least = PREFILL_BLOCK, _cost(layer, prompt_tokens, PREFILL_BLOCK, round_bytes)
    for size in _longer(prompt_tokens):
        cost = _cost(layer, prompt_tokens, size, round_bytes)
        drawn_bytes = max(end.drawn_bytes for end in _ends(layer, prompt_tokens, size, round_bytes))
        if cost < least and drawn_bytes <= PASS_BYTES:
            best, least = size, cost
    return best


def _longer(prompt_tokens: int) -> Iterator[int]:
    """Sizes beyond PREFILL_BLOCK, of 1, 2, 4, ... blocks that are alike."""
    blocks = 1
    while (size := -(-prompt_tokens // blocks)) > PREFILL_BLOCK:
        if size <= LARGEST_BLOCK:
            yield size
        blocks *= 2


def _cost(layer: ModelConfig, prompt_tokens: int, size: int, round_bytes: int) -> int:
    """Of a layer, twice. What blocks cost grows evenly, so that the first and the last stand for all."""
    first, last = _ends(layer, prompt_tokens, size, round_bytes)
    blocks = -(-prompt_tokens // size)
    nbytes = (first.nbytes + last.nbytes) * prompt_tokens // size
    return nbytes + round_bytes * (first.rounds + last.rounds) * blocks


def _ends(layer: ModelConfig, prompt_tokens: int, size: int, round_bytes: int) -> tuple[_Pass, _Pass]:
    return _pass(layer, 0, size, round_bytes), _pass(layer, prompt_tokens - size, size, round_bytes)


@lru_cache(maxsize=1 << 8)
def _pass(layer: ModelConfig, past: int, size: int, round_bytes: int) -> _Pass:
    """Of `size` tokens of a prompt, after `past` others."""
    session = PlanSession()
    session.round_bytes = round_bytes
    with ShapeArithmetic():
        backend = MpcBackend(session)
        decoder, cache = Decoder(layer, backend), Full(PolicySettings("full"), layer, backend, past + size)
        if past:
            cache.fill(past, backend.zeros)
            cache.past = past
        session.next_part()
        decoder.forward(None, size, cache)
    plan = session.next_part()
    drawn_bytes = sum(8 * correlation.layout.elements for correlation in plan.correlations)
    cost = plan.cost()
    return _Pass(cost.online_bytes + cost.correction_bytes, cost.rounds, drawn_bytes)
