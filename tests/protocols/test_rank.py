import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.local import run_parties
from mpcache.protocols.maximum import (
    PAIR,
    PAIR_TABLE,
    RANK_TABLES,
    RANKS,
    ROUNDS,
    WINS,
    Level,
    Payload,
    argmax,
    largest_of,
    levels,
    position_bits,
)
from mpcache.protocols.rank import one_hot, ranks, top_k
from mpcache.protocols.ring import signed
from mpcache.protocols.sampling import GumbelNoise
from mpcache.protocols.session import Session
from tests.protocols.sharing import run_counted, run_ring

BITS = 19
rows = st.lists(st.integers(-(2**17) + 1, 2**17 - 1) | st.sampled_from([0, 1]), min_size=1, max_size=40)


async def _ranks(session: Session, x: torch.Tensor) -> torch.Tensor:
    return await ranks(session, x, BITS)


@settings(max_examples=20, deadline=None)
@given(rows)
def test_ranks_break_ties_by_position(values: list[int]) -> None:
    x = torch.tensor([values])
    expected = torch.argsort(torch.argsort(-x, dim=-1, stable=True), dim=-1)
    assert torch.equal(run_ring(_ranks, x), expected)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_picks_exactly_k_of_equal_scores(k: int) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> torch.Tensor:
        return await top_k(session, x, k, BITS)

    result, cost = run_counted(protocol, torch.full((2, 10), 5))
    assert torch.equal(result, torch.eye(10, dtype=torch.int64)[:k].expand(2, k, 10))
    assert cost.rounds == 4


@settings(max_examples=20, deadline=None)
@given(rows, st.sampled_from([0, 300, 10_000]))
def test_argmax_is_the_first_of_the_largest_whatever_the_blocks(values: list[int], round_bytes: int) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> torch.Tensor:
        session.round_bytes = round_bytes
        return await argmax(session, x, BITS)

    x = torch.tensor([values, values[::-1]])
    expected = (x == x.amax(-1, keepdim=True)).long().argmax(-1)
    assert torch.equal(run_ring(protocol, x, width=position_bits(len(values))) % 256, expected)


CIRCLE = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 20).map(lambda i: i * (2**BITS // 3))


@settings(max_examples=30, deadline=None)
@given(st.lists(CIRCLE, min_size=1, max_size=40), st.sampled_from([0, 300, 10_000]))
def test_argmax_is_a_position_even_where_no_score_is_the_largest(values: list[int], round_bytes: int) -> None:
    """Out of bounds, where a comparison's ring is a circle: so a token is always one of the vocabulary."""

    async def protocol(session: Session, x: torch.Tensor) -> torch.Tensor:
        session.round_bytes = round_bytes
        return await argmax(session, x, BITS)

    width = position_bits(len(values))
    assert int(run_ring(protocol, torch.tensor([values]), width=width) % 2**width) < len(values)


def test_a_costlier_round_makes_larger_blocks_and_fewer_rounds() -> None:
    cheap, dear = (levels(1024, 12, BITS, 0, round_bytes)[1] for round_bytes in (0, 10**7))
    assert {level.block for level in cheap} == {2} and len(dear) == 2
    assert sum(ROUNDS[level.method] for level in dear) == 6


EVERY_LEVEL = [Level(2, PAIR), Level(2, PAIR_TABLE), *(Level(5, m) for m in (RANKS, RANK_TABLES, WINS))]


@pytest.mark.parametrize("level", EVERY_LEVEL, ids=str)
@settings(max_examples=15, deadline=None)
@given(rows)
def test_each_kind_of_level_finds_the_first_of_the_largest(level: Level, values: list[int]) -> None:
    """Of scores alone, of positions that are public, and of such that are shared."""
    values = (values * 10)[: 2 * level.block]

    async def both(session: Session, x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        blocks = x.reshape(2, level.block)
        alone, _ = await largest_of(session, level, blocks, None, BITS)
        public = Payload(torch.arange(level.block).expand(blocks.shape), 16, public=True)
        _, place = await largest_of(session, level, blocks, public, BITS)
        largest, with_it = await largest_of(session, level, blocks, Payload(number.reshape(2, -1), 16), BITS)
        assert place is not None and with_it is not None
        return torch.stack([alone, largest, place, with_it])

    x = torch.tensor(values).reshape(2, -1)
    first = (x == x.amax(-1, keepdim=True)).long().argmax(-1)
    found, cost = run_counted(both, x, 100 + torch.arange(x.numel()))
    assert torch.equal(signed(found[:2], BITS), x.amax(-1).expand(2, 2))
    assert torch.equal(found[2] % 2**16, first)
    assert torch.equal(found[3] % 2**16, 100 + first + torch.tensor([0, level.block]))
    assert cost.rounds == 3 * ROUNDS[level.method]


@pytest.mark.parametrize("level", EVERY_LEVEL, ids=str)
@given(st.lists(CIRCLE, min_size=5, max_size=5))
@settings(max_examples=15, deadline=None)
def test_each_kind_of_level_gives_a_position_whatever_the_scores(level: Level, values: list[int]) -> None:
    async def position(session: Session, x: torch.Tensor) -> torch.Tensor:
        public = Payload(torch.arange(level.block).expand(x.shape), 16, public=True)
        _, place = await largest_of(session, level, x, public, BITS)
        assert place is not None
        return place

    found = int(run_ring(position, torch.tensor([values[: level.block]])) % 2**16)
    assert 0 <= found < level.block


@pytest.mark.parametrize("n", [255, 256, 257, 5000])
def test_argmax_over_many(n: int) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> torch.Tensor:
        return await argmax(session, x, BITS)

    x = torch.zeros(3, n, dtype=torch.int64)
    x[0, n - 1], x[1, 77], x[2, 3] = 5, 1, -1
    assert (run_ring(protocol, x) % 2 ** position_bits(n)).tolist() == [n - 1, 77, 0]


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_one_hot_of_a_shared_index(size: int) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> torch.Tensor:
        return await one_hot(session, x, size)

    assert torch.equal(run_ring(protocol, torch.arange(size)), torch.eye(size, dtype=torch.int64))


def test_gumbel_noise_has_the_right_distribution_and_bound() -> None:
    def program(session: Session) -> torch.Tensor:
        return session.take(GumbelNoise((50_000,), 0.5, 16)).noise

    a, b = run_parties(program)
    noise = (a + b).double() / 2**16
    assert abs(float(noise.mean()) - 0.5 * 0.5772) < 0.02
    assert abs(float(noise.var()) - 0.25 * math.pi**2 / 6) < 0.02
    assert noise.abs().max() < 0.5 * 53 * math.log(2)  # its uniform has 52 bits
