"""Softmax, norms, activations, reciprocals: against exact arithmetic, at the edges too."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mpcache.protocols.activation import activation
from mpcache.protocols.causal import Causal
from mpcache.protocols.local import run_parties
from mpcache.protocols.normalisation import rms_norm
from mpcache.protocols.plan import plan_of
from mpcache.protocols.reciprocal import reciprocal, rsqrt
from mpcache.protocols.ring import decode, encode
from mpcache.protocols.session import Cost
from mpcache.protocols.softmax import exponentials, softmax
from tests.protocols.sharing import run_real, run_ring

UNIT = 2.0**-16


def rounded(x: torch.Tensor) -> torch.Tensor:
    return decode(encode(x))


@pytest.mark.parametrize(
    ("kind", "exact"),
    [("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))],
)
def test_activations_are_within_a_thousandth(kind: str, exact: object) -> None:
    x = rounded(torch.cat([torch.linspace(-64, 64, 40_001), torch.linspace(-18, 18, 40_001)]))
    result = run_ring(activation, encode(x), width=48, kind=kind).double() / 2**16
    assert (result - exact(x)).abs().max() < 1e-3  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activations_saturate_outside(kind: str) -> None:
    x = torch.tensor([100.0, 1000.0, 4000.0, -100.0, -1000.0, -4000.0], dtype=torch.float64)
    result = run_ring(activation, encode(x), width=48, kind=kind).double() / 2**16
    assert (result - x.clamp(min=0)).abs().max() < 1e-3


@pytest.mark.parametrize(("protocol", "power", "relative"), [(reciprocal, -1.0, 1e-4), (rsqrt, -0.5, 5e-5)])
def test_inverses_are_within_their_relative_error_or_two_units(protocol: object, power: float, relative: float) -> None:
    """Over the whole domain, and where ranges begin, which is where a polynomial has most to do."""
    begin = 4.0 ** torch.arange(-7, 15, dtype=torch.float64)
    edges = (begin[:, None] * torch.linspace(1, 1.2, 150, dtype=torch.float64)).flatten()
    x = rounded(torch.cat([torch.logspace(-4, 9, 5000, dtype=torch.float64), edges, 4 * begin - 2.0**-16]))
    error = (run_real(protocol, x) - x**power).abs()  # type: ignore[arg-type]
    assert (error <= torch.maximum(relative * x**power, torch.tensor(2 * UNIT))).all()


@pytest.mark.parametrize("protocol", [reciprocal, rsqrt])
def test_inverses_saturate_outside(protocol: object) -> None:
    result = run_real(protocol, torch.tensor([0.0, -3.0, -1e6, 1e-5, 1e8]))  # type: ignore[arg-type]
    assert (result >= 0).all() and (result <= 2**16).all()
    assert result[-1] < 2e-4


@pytest.mark.parametrize("n", [1, 2, 3, 33, 500, 2048])
def test_softmax_is_within_a_thousandth(n: int) -> None:
    x = torch.cat([torch.randn(3, n) * s for s in (0.1, 3.0, 40.0)])
    if n > 2:
        x[0, 1] += 500  # one score far above the rest
        x[1, 2] = -1e4  # a masked score
        x[3, :] = 2.0
        x[3, 0] = -1e4
    x = rounded(x)
    assert (run_real(softmax, x) - x.softmax(-1)).abs().max() < 1e-3


@pytest.mark.parametrize("n", [100, 384, 385, 2048])
@pytest.mark.parametrize("below", [9.0, 10.5, 11.3, 12.5, 13.0, 13.5, 15.0, 17.9, 18.2, 30.0])
def test_many_small_scores_weigh_together_what_they_should(n: int, below: float) -> None:
    """Each alone is about a unit or less: none may be lost, and rounding may not lean to one side."""
    x = torch.full((16, n), -below, dtype=torch.float64)
    x[:, 3] = 0
    largest = run_real(softmax, x)[:, 3] - x.softmax(-1)[:, 3]
    assert largest.mean().abs() < 1e-3  # of 16 rows: the rest is the noise of rounding, without bias
    assert largest.abs().max() < 2e-3


@pytest.mark.parametrize("scale", [1.0, 2.5, 3.0, 4.0, 8.0])
def test_softmax_of_2048_random_scores_is_within_a_thousandth(scale: float) -> None:
    x = rounded(torch.randn(20, 2048, dtype=torch.float64) * scale)
    assert (run_real(softmax, x) - x.softmax(-1)).abs().max() < 1e-3


@pytest.mark.parametrize("value", [0.0, 7.25, -8000.0, 8000.0])
def test_softmax_of_2048_equal_scores_is_uniform(value: float) -> None:
    result = run_real(softmax, torch.full((2, 2048), value))
    assert (result - 1 / 2048).abs().max() <= 2 * 2.0**-16


def test_publicly_masked_scores_get_exactly_nothing() -> None:
    x = rounded(torch.randn(5, 9) * 4)
    visible = torch.ones(5, 9, dtype=torch.bool).tril(4)
    result = run_real(softmax, x, visible=visible)
    assert (result[~visible] == 0).all()
    assert (result - x.masked_fill(~visible, float("-inf")).softmax(-1)).abs().max() < 1e-3


@pytest.mark.parametrize("seen", [Causal(130, 0, 1), Causal(65, 30, 2), Causal(64, 5, 2)])
def test_a_long_block_is_computed_in_groups_of_queries(seen: Causal) -> None:
    x, mask = rounded(torch.randn(2, *seen.shape) * 4), seen.mask()
    result = run_real(softmax, x, visible=seen)
    assert (result[:, ~mask] == 0).all()
    assert (result - x.masked_fill(~mask, float("-inf")).softmax(-1)).abs().max() < 1e-3


def test_a_long_block_takes_the_bytes_of_short_ones_and_the_rounds_of_one() -> None:
    def cost(visible: Causal | torch.Tensor) -> Cost:
        x = torch.empty((4, *visible.shape), dtype=torch.int64, device="meta")
        return plan_of(lambda session, x: exponentials(session, x, visible, 56), x.shape).cost()

    long, parts = Causal(256, 64, 2), [Causal(64, past, 2) for past in (64, 128, 192, 256)]
    apart = sum(map(cost, parts), Cost())
    assert cost(long).online_bytes + cost(long).correction_bytes <= apart.online_bytes + apart.correction_bytes
    assert cost(long).rounds < apart.rounds / 3
    assert cost(long).online_bytes < cost(long.mask()).online_bytes, "what is hidden from a group costs nothing"


def test_exponentials_are_not_larger_than_their_bound() -> None:
    async def first(session: object, share: torch.Tensor) -> torch.Tensor:
        return (await exponentials(session, share))[0]  # type: ignore[arg-type]

    x = encode(torch.rand(200, 64) * 0.3)
    e = run_ring(first, x).double() / 2**16
    assert e.max() < 1.66 and (e.amax(-1) > 0.6).all()


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
@pytest.mark.parametrize("n", [8, 64, 768, 4096, 32_768])
@pytest.mark.parametrize(
    ("scale", "outlier"),
    [(0.001, 0), (0.01, 0), (0.1, 0), (1, 0), (30, 0), (150, 0), (0.01, 100), (0.01, 2500), (0.01, 30_000)],
)
def test_norms_are_as_close_as_they_say(n: int, scale: float, outlier: float, epsilon: float) -> None:
    """A unit, and what a sum of squares leaves of its fraction where it is small, of an inverse where it is large."""
    x = torch.randn(4, n, dtype=torch.float64) * scale
    x[:, 3] += outlier
    x = rounded(x)
    squares = (x * x).sum(-1, keepdim=True) + n * epsilon
    relative = 4e-5 + 1.2e-5 / squares + 4e-8 * (squares / n).sqrt()
    exact = F.rms_norm(x, (n,), eps=epsilon)
    error = (run_real(rms_norm, x, epsilon=epsilon) - exact).abs()
    assert (error <= UNIT + relative * exact.abs()).all()


def test_a_norm_leaves_no_mask_at_the_dealer() -> None:
    def program(session: Any) -> int:
        session.run(rms_norm(session, torch.zeros(2, 16, dtype=torch.int64), 1e-5))
        return len(session._correlations._dealer._kept)

    assert run_parties(program) == (0, 0)


def test_the_norm_of_zeros_is_zero() -> None:
    assert run_real(rms_norm, torch.zeros(2, 16), epsilon=1e-5).abs().max() <= 2**-15
