"""What protocols do where rounds are dear: against exact arithmetic, with the rounds that they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.activation import activation
from mpcache.protocols.correlation import Correlation, Dealer, Dealt, Fields, Random, Tensors, weight_mask
from mpcache.protocols.gate import gate
from mpcache.protocols.linear import MaskedWeight
from mpcache.protocols.local import run_parties, shares_of
from mpcache.protocols.randomness import new_key
from mpcache.protocols.reciprocal import reciprocal, rsqrt
from mpcache.protocols.ring import encode, signed
from mpcache.protocols.scaled import open_rows, scale_rows
from mpcache.protocols.session import Session
from mpcache.protocols.sign_table import SignTable
from mpcache.protocols.softmax import exponentials, softmax
from mpcache.protocols.stream import LAYER_SHIFT, WIDE_BITS, normed_linear, stream_norm
from tests.protocols.sharing import run_counted, run_real, run_ring

UNIT = 2.0**-16
DEAR = 10**9


def dear(protocol: Callable[..., Any]) -> Callable[..., Any]:
    async def where_rounds_are_dear(session: Session, *arguments: Any, **options: Any) -> Any:
        session.round_bytes = DEAR
        return await protocol(session, *arguments, **options)

    return where_rounds_are_dear


def rounded(x: torch.Tensor) -> torch.Tensor:
    return encode(x).double() / 2**16


# ---------------------------------------------------------------- a comparison with values


class SignedValues(Correlation):
    """A mask of x, another value, and the tables of x's sign times 1 and that value."""

    def __init__(self, count: int, bits: int, thresholds: int) -> None:
        self.table = SignTable((count,), bits - 1, thresholds, values=(64, 16))
        self.bits = bits

    def fields(self) -> Fields:
        shape, many = self.table.shape, (*self.table.shape, self.table.many)
        return {"r": Random(shape, self.bits), "v": Random(many, 16), "table": self.table.fields()}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        values = [torch.ones_like(randoms.v), randoms.v]
        return {"table": self.table.deal_values(randoms.r, randoms.part("table"), values)}


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 46), st.data())
def test_a_sign_table_gives_the_sign_and_its_product_with_a_value_that_only_the_dealer_knows(
    bits: int, data: st.DataObject
) -> None:
    half = 2 ** (bits - 1)
    values = [*data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=4)), 0, -1, half - 1, -half]
    x, correlation = torch.tensor(values), SignedValues(len(values), bits, 2)
    thresholds = torch.tensor([0, 1])

    async def protocol(session: Session, share: torch.Tensor) -> torch.Tensor:
        shares, table = session.take(correlation), correlation.table
        at = (await session.open(share + shares.r, bits))[..., None] - thresholds
        parts = shares.part("table")
        index = await table.open_index(session, parts, at)
        sign = table.times(parts, index, at, 0, session.constant(torch.ones_like(at)))
        times_v = table.times(parts, index, at, 1, shares.v)
        return torch.stack([sign, times_v, shares.v])

    result, cost = run_counted(protocol, x)
    expected = (x[:, None] - thresholds < 0).long()
    expected[x == -half, 1] = 0  # beyond: the ring is a circle
    assert torch.equal(result[0], expected)
    assert torch.equal(result[1] % 2**16, (expected * result[2]) % 2**16)
    assert cost.rounds == 2


# ---------------------------------------------------------------- inverses


@pytest.mark.parametrize(("protocol", "power", "relative"), [(reciprocal, -1.0, 1e-4), (rsqrt, -0.5, 5e-5)])
def test_inverses_are_as_close_in_one_round_less(protocol: Any, power: float, relative: float) -> None:
    begin = 4.0 ** torch.arange(-7, 15, dtype=torch.float64)
    edges = (begin[:, None] * torch.linspace(1, 1.2, 60, dtype=torch.float64)).flatten()
    x = rounded(torch.cat([torch.logspace(-4, 9, 1500, dtype=torch.float64), edges, 4 * begin - UNIT]))
    result, cost = run_counted(dear(protocol), encode(x))
    error = (result.double() / 2**16 - x**power).abs()
    assert (error <= torch.maximum(relative * x**power, torch.tensor(2 * UNIT))).all()
    assert cost.rounds == 3


@pytest.mark.parametrize("protocol", [reciprocal, rsqrt])
def test_inverses_saturate_outside_as_well(protocol: Any) -> None:
    result = run_real(dear(protocol), torch.tensor([0.0, -3.0, -1e6, 1e-5, 1e8]))
    assert (result >= 0).all() and (result <= 2**16).all() and result[-1] < 2e-4


# ---------------------------------------------------------------- exponentials


@pytest.mark.parametrize("n", [1, 3, 33, 500, 2048, 8192])
def test_softmax_is_within_a_thousandth(n: int) -> None:
    x = torch.cat([torch.randn(3, n) * s for s in (0.1, 3.0, 40.0)])
    if n > 2:
        x[0, 1] += 500
        x[1, 2] = -1e4
        x[3, :] = 2.0
        x[3, 0] = -1e4
    x = rounded(x)
    assert (run_real(dear(softmax), x) - x.softmax(-1)).abs().max() < 1e-3


@pytest.mark.parametrize("below", [9.0, 11.3, 13.0, 13.4, 13.5, 14.5, 17.9, 29.3, 29.5, 31.0, 45.4, 61.5, 63.0, 1000.0])
def test_many_small_scores_weigh_together_what_they_should(below: float) -> None:
    """All over the domain, in its lower half where some count by chance, and below it, where a table would repeat."""
    x = torch.full((16, 2048), -below, dtype=torch.float64)
    x[:, 3] = 0
    largest = run_real(dear(softmax), x)[:, 3] - x.softmax(-1)[:, 3]
    assert largest.mean().abs() < 1e-3 and largest.abs().max() < 2e-3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-8000, 8000), min_size=2, max_size=20), st.floats(-40, 0))
def test_an_exponential_is_that_of_its_difference_or_nothing_far_below(scores: list[float], near: float) -> None:
    x = rounded(torch.tensor([[*scores, max(scores) + near]], dtype=torch.float64))

    async def ratios(session: Session, share: torch.Tensor) -> torch.Tensor:
        e, _ = await exponentials(session, share)
        return e

    e, cost = run_counted(dear(ratios), encode(x))
    weights = e.double() / 2**16
    exact = (x - x.amax(-1, keepdim=True)).exp()
    scale = weights[exact == 1][0]
    assert 0.6 < scale < 1.66
    assert (weights / scale - exact).abs().max() < 2e-3
    assert cost.rounds <= 2 + 3 * 2


# ---------------------------------------------------------------- activations of products


GATES = [("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))]


@pytest.mark.parametrize("ring", [(48, 16), (64, 32)], ids=str)
@pytest.mark.parametrize(("kind", "exact"), GATES, ids=[kind for kind, _ in GATES])
@pytest.mark.parametrize(("protocol", "rounds"), [(gate, 3), (activation, 5)], ids=["gate", "activation"])
def test_activations_of_a_product_are_within_a_thousandth(
    protocol: Any, rounds: int, kind: str, exact: Any, ring: tuple[int, int]
) -> None:
    bits, shift = ring
    near = torch.cat([torch.linspace(-64, 64, 20_001), torch.linspace(-18, 18, 20_001)])
    x = rounded(torch.cat([near, torch.tensor([-4079.0, -1000.0, 100.0, 4079.0])]).double())
    z = (encode(x) << shift) + torch.randint(0, 1 << shift, x.shape)  # what is truncated
    result, cost = run_counted(protocol, z, width=48, kind=kind, bits=bits, shift=shift)
    assert (result.double() / 2**16 - exact(x)).abs().max() < 1e-3
    assert cost.rounds == rounds


# ---------------------------------------------------------------- rows


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_are_truncated_and_scaled_exactly(data: st.DataObject) -> None:
    edge = 2**54
    z = torch.tensor([data.draw(st.lists(st.integers(-edge, edge - 1), min_size=4, max_size=4)) for _ in range(2)])
    scale = torch.tensor([[data.draw(st.integers(-(2**20), 2**20))] for _ in range(2)])

    async def protocol(session: Session, z: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        rows = await open_rows(session, z, 56, 16)
        return torch.stack([rows.x.value(session), await scale_rows(session, rows, scale)])

    (truncated, scaled), cost = run_counted(protocol, z, scale)
    more = truncated - (z >> 16)
    assert ((more == 0) | (more == 1)).all()
    assert torch.equal(scaled, truncated * scale)
    assert cost.rounds == 2


EXTENTS = [(0.001, 0), (0.01, 0), (1, 0), (30, 0), (150, 0), (0.01, 100), (0.01, 2500), (0.01, 16_000)]


@pytest.mark.parametrize("round_bytes", [0, DEAR])
@pytest.mark.parametrize("n", [8, 768])
@pytest.mark.parametrize(("deviation", "outlier"), EXTENTS)
def test_the_stream_is_normed_as_closely_as_rows_are(
    n: int, deviation: float, outlier: float, round_bytes: int
) -> None:
    x = torch.randn(4, n, dtype=torch.float64) * deviation
    x[:, 3] += outlier
    x = rounded(x)
    squares = (x * x).sum(-1, keepdim=True) + n * 1e-5
    relative = 4e-5 + 1.2e-5 / squares + 4e-8 * (squares / n).sqrt()
    exact = F.rms_norm(x, (n,), eps=1e-5)

    async def protocol(session: Session, z: torch.Tensor) -> torch.Tensor:
        session.round_bytes = round_bytes
        return await stream_norm(session, z, 1e-5)

    error = (run_ring(protocol, encode(x, 32)).double() / 2**16 - exact).abs()
    assert (error <= UNIT + relative * exact.abs()).all()


@pytest.mark.parametrize("n", [8, 768])
@pytest.mark.parametrize(("deviation", "outlier"), EXTENTS)
def test_a_normed_layer_is_as_close_as_its_parts(n: int, deviation: float, outlier: float) -> None:
    """What is stated of norms, of an exact product, and a unit of the layer's truncation."""
    x = torch.randn(3, n, dtype=torch.float64) * deviation
    x[:, 3] += outlier
    x, w = rounded(x), rounded(torch.randn(64, n, dtype=torch.float64) * 0.05)
    key, z = new_key(), shares_of(encode(x, 32))
    weight, b = encode(w), weight_mask(key, "w", (64, n), WIDE_BITS)

    def program(session: Session) -> tuple[torch.Tensor, int]:
        session.round_bytes = DEAR
        masked = MaskedWeight("w", weight if session.party == 0 else weight - b, WIDE_BITS)
        return session.run(normed_linear(session, z[session.party], 1e-5, masked)), session.cost.rounds

    (first, rounds), (second, _) = run_parties(program, weight_key=key)
    squares = (x * x).sum(-1, keepdim=True) + n * 1e-5
    root = (squares / n).sqrt()
    exact = x @ w.T / root
    relative = 4e-5 + 1.2e-5 / squares + 4e-8 * root + 2.0**-26 * root
    error = (signed(first + second, 64).double() / 2.0 ** (16 + LAYER_SHIFT) - exact).abs()
    assert (error <= UNIT + relative * exact.abs() + 2.0**-21 / root).all()
    assert rounds == 4
