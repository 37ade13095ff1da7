"""What a party sees is noise: every opened value, and every message, is uniform whatever is computed on.

Each protocol runs on many equal rows, shared trivially, so that nothing but its own masks can make a message vary.
Then every bit that a party receives must be balanced over the rows, alone and in its difference from every other
opening of the shape: a value without a mask, a mask that is not uniform over the opened width, one that is used twice
and one that rows share would each show. (Seven standard deviations: a false alarm in 10^11 bits.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
import torch

from protocols.activation import activation
from protocols.backends.mpc import MpcBackend
from protocols.comparison import is_negative, less_than, negative_part
from protocols.correlation import weight_mask
from protocols.linear import MaskedWeight, linear
from protocols.local import run_parties
from protocols.normalisation import layer_norm, rms_norm
from protocols.product import extend, mask, multiply
from protocols.randomness import new_key
from protocols.rank import argmax, maximum, one_hot, ranks, top_k
from protocols.reciprocal import reciprocal, rsqrt
from protocols.ring import reduce_bits
from protocols.session import Opening, Session
from protocols.shares import Secret
from protocols.shuffle import compact, shuffle
from protocols.softmax import softmax
from protocols.threshold import keep_largest
from protocols.truncation import truncate

ROWS = 2048
DEVIATIONS = 7


@dataclass
class Seen:
    """An opening as one party sees it: what it received, and what it computed from that; (rows, lanes)."""

    bits: int
    views: tuple[torch.Tensor, ...]


def watch(session: Session) -> list[Seen]:
    """Note what the session's party sees from now on."""
    seen: list[Seen] = []
    original = session._round

    def noted(requests: list[Opening]) -> None:
        original(requests)
        for r in requests:
            if r.receiver == session.party:
                seen.append(Seen(r.bits, (_rows(r.result),)))
            elif r.receiver is None:
                assert r.share is not None
                theirs = r.result ^ r.share if r.xor else r.result - r.share
                seen.append(Seen(r.bits, (_rows(r.result), _rows(theirs))))

    session._round = noted  # type: ignore[method-assign]
    return seen


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(ROWS, -1) if x.shape[0] == ROWS else x.reshape(-1, 1)


def is_balanced(x: torch.Tensor, bits: int) -> bool:
    """Every one of the low bits, over the rows, in every lane."""
    ones = torch.stack([((x >> bit) & 1).sum(0) for bit in range(bits)])
    return bool(((ones - x.shape[0] / 2).abs() < DEVIATIONS * x.shape[0] ** 0.5 / 2).all())


def assert_noise(seen: list[Seen]) -> None:
    for s in seen:
        for view in s.views:
            assert is_balanced(view, s.bits), f"an opening of {s.bits} bits is biased"
            assert is_balanced(view - view.roll(1, 0), s.bits), "rows share a mask"
            if view.shape[1] > 1:
                assert is_balanced(view - view.roll(1, 1), s.bits), "lanes share a mask"
    views = [(view, s.bits) for s in seen for view in s.views[:1]]
    for (a, a_bits), (b, b_bits) in combinations(views, 2):
        if a.shape == b.shape:
            assert is_balanced(a - b, min(a_bits, b_bits)), "two openings share a mask"
            assert is_balanced(a + b, min(a_bits, b_bits)), "two openings share a mask, negated"


Protocol = Callable[[Session, torch.Tensor], Awaitable[Any]]


def with_(protocol: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Protocol:
    return lambda session, x: protocol(session, x, *arguments, **options)


async def cached(session: Session, x: torch.Tensor) -> None:
    """Rows enter a cache one after another, and a query is masked."""
    held = await extend(session, None, x, 1)
    held = await extend(session, held, x, 1)
    await mask(session, x)


async def blocks_of(session: Session, x: torch.Tensor, round_bytes: int, choose: bool) -> None:
    session.round_bytes = round_bytes
    await (argmax(session, x, 19) if choose else maximum(session, x, 19))


def known_weight(session: Session, x: torch.Tensor) -> Awaitable[Any]:
    b = weight_mask(KEY, "w", (3, x.shape[1]), 48)
    return linear(session, x, MaskedWeight("w", b + 5 if session.party == 0 else torch.full_like(b, 5)))


KEY = new_key()
PROTOCOLS: dict[str, tuple[Protocol, int]] = {
    "truncation": (truncate, 2),
    "truncation, no shift": (with_(truncate, 0, 30), 2),
    "product": (lambda s, x: multiply(s, x, x), 2),
    "rows of a cache": (lambda s, x: cached(s, x[..., None]), 2),
    "linear": (known_weight, 4),
    "comparison, 19 bits": (with_(is_negative, 19), 2),
    "comparison, 20 bits": (with_(is_negative, 20), 2),
    "comparison, 55 bits": (with_(is_negative, 55), 1),
    "thresholds": (with_(less_than, 30, (-5, 0, 9)), 1),
    "thresholds, flat": (with_(less_than, 40, (-5, 9), flat=True), 1),
    "negative part with a payload": (lambda s, x: negative_part(s, x, 25, x, 16), 2),
    "ranks of 2": (with_(ranks, 19), 2),
    "ranks of 5": (with_(ranks, 19), 5),
    "top 2 of 5": (with_(top_k, 2, 19), 5),
    "top 1 of 4": (with_(top_k, 1, 22), 4),
    "maximum by pairs": (with_(blocks_of, 0, False), 5),
    "maximum by a block": (with_(blocks_of, 10**7, False), 5),
    "arg max by pairs": (with_(blocks_of, 0, True), 5),
    "arg max by a block": (with_(blocks_of, 10**7, True), 5),
    "one-hot of 3": (lambda s, x: one_hot(s, s.constant(torch.full_like(x, 2)), 3), 1),
    "one-hot of 8": (lambda s, x: one_hot(s, s.constant(torch.full_like(x, 7)), 8), 1),
    "softmax": (softmax, 3),
    "reciprocal": (reciprocal, 1),
    "inverse root": (rsqrt, 1),
    "RMSNorm": (with_(rms_norm, 1e-5), 3),
    "LayerNorm": (with_(layer_norm, 1e-5), 3),
    "SiLU": (with_(activation, "silu"), 1),
    "GELU": (with_(activation, "gelu"), 1),
    "threshold": (with_(keep_largest, 2, 4), 3),
    "shuffle": (lambda s, x: shuffle(s, x[..., None]), 3),
}


def runs(protocol: Protocol, x: torch.Tensor) -> Iterator[list[Seen]]:
    """What each party sees. Party 0 has all of x, party 1 zeros."""

    def program(session: Session) -> list[Seen]:
        seen = watch(session)
        session.run(protocol(session, session.constant(x)))
        return seen

    yield from run_parties(program, weight_key=KEY)


@pytest.mark.parametrize("value", [0, 5])
@pytest.mark.parametrize(("protocol", "columns"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_what_a_party_sees_is_uniform_whatever_the_values(protocol: Protocol, columns: int, value: int) -> None:
    received = 0
    for seen in runs(protocol, torch.full((ROWS, columns), value)):
        assert_noise(seen)
        received += len(seen)
    assert received


def test_compaction_opens_nothing_but_noise_and_destinations() -> None:
    async def kept(session: Session, x: torch.Tensor) -> None:
        keep = session.constant(torch.tensor([1, 0, 1]).expand(ROWS, 3))
        await compact(session, x[..., None], keep, 2)

    for seen in runs(kept, torch.full((ROWS, 3), 5)):
        *noise, destinations = seen
        assert_noise(noise)
        orders = destinations.views[0]
        assert (orders.sort(1).values == torch.arange(3)).all()
        for lane in range(3):
            for place in range(3):  # uniform over the orders: a third of the rows each
                count = int((orders[:, lane] == place).sum())
                assert abs(count - ROWS / 3) < DEVIATIONS * (ROWS * 2 / 9) ** 0.5


def test_what_a_party_sees_of_a_cache_and_of_choices_in_it_is_noise() -> None:
    """What policies do, on a cache of four tokens: two runs of two are compared, picked and replaced."""

    def program(session: Session) -> list[Seen]:
        seen, backend = watch(session), MpcBackend(session)

        def secret(*shape: int, value: int = 1 << 16) -> Secret:
            return Secret(session.constant(torch.full((ROWS, *shape), value)), session.party)

        cached, queries = backend.enter(None, secret(2, 1), secret(4, 1), secret(4, 1))
        representatives = backend.hold(None, secret(2, 1))
        (scores,) = backend.similarity(queries, [representatives])
        chosen = backend.best(scores, 1)
        stage = backend.stage(chosen, 2)
        backend.pick(stage, secret(2, 3, value=1))
        backend.gather(chosen, secret(2, 3))
        backend.attend_selected(queries, cached, 0, 4, [stage])
        backend.extremes(secret(4, 1))
        place = backend.lowest(secret(4), 100.0)
        for _ in range(2):
            representatives = backend.overwrite(representatives, place[..., :2], secret(1, 1))
        return seen

    for seen in run_parties(program):
        assert_noise(seen)


@pytest.mark.parametrize(
    "leak",
    [
        lambda s, x: s.open(x, 8),
        lambda s, x: s.transfer(x + 1, x.shape, 64, receiver=1),
        lambda s, x: s.open(x + s.constant(torch.arange(2048)[:, None] % 2), 8),
    ],
    ids=["no mask", "a share as it is", "a mask that is not uniform"],
)
def test_the_test_sees_leaks(leak: Callable[[Session, torch.Tensor], Opening]) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> None:
        await leak(session, x)

    with pytest.raises(AssertionError):
        for seen in runs(protocol, torch.full((ROWS, 1), 5)):
            assert_noise(seen)


def test_the_test_sees_a_mask_that_is_used_twice() -> None:
    async def protocol(session: Session, x: torch.Tensor) -> None:
        held = await mask(session, x, 32)
        await session.open(x + 3 - held.mask, 32)

    with pytest.raises(AssertionError, match="share a mask"):
        for seen in runs(protocol, torch.full((ROWS, 1), 5)):
            assert_noise(seen)


def test_values_in_a_message_are_cut_to_their_width() -> None:
    """Bits above the opened width, where shares carry, are not sent."""
    sent: list[bytes] = []

    def program(session: Session) -> None:
        original = session._channel.send
        session._channel.send = lambda payload: (sent.append(payload), original(payload))[1]  # type: ignore[method-assign]
        session.run(session.open(torch.full((64,), -1), 20))
        session.run(session.open(torch.full((64,), -1), 1, xor=True))

    run_parties(program)
    messages = [list(payload) for payload in sent]
    assert messages.count([0xFF, 0xFF, 0x0F] * 64) == 2 and messages.count([0xFF] * 8) == 2
    assert reduce_bits(torch.tensor(-1), 20) == 2**20 - 1
