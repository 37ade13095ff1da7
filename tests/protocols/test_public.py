"""Public constants have one right value each, whatever a machine's kernels give."""

from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.protocols import polynomial, public, softmax
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.crypten.dry_run import DryRunSession
from mpcache.protocols.local import run_parties
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.public import (
    MARGIN,
    Constants,
    correctly_rounded,
    fixed_point,
    reciprocals,
    rounded_power,
    table,
)
from mpcache.protocols.ring import decode
from mpcache.protocols.shares import Secret

ANGLES = np.random.default_rng(5).uniform(0, 2048, 1 << 18).astype(np.float32).astype(np.float64)


def reference(function: str, x: float, bits: int) -> int:
    with mpmath.workdps(80):
        return int(mpmath.nint(getattr(mpmath, function)(x) * 2**bits))


def doubts(function: str) -> np.ndarray:
    """Angles whose values lie near the middle between two multiples of 2^-30."""
    scaled = getattr(np, function)(ANGLES) * 2.0**30
    return ANGLES[np.abs(np.abs(scaled - np.rint(scaled)) - 0.5) < MARGIN]


# ---------------------------------------------------------------- correct rounding


@given(st.lists(st.floats(0, 2.0**20, width=32), min_size=1, max_size=20), st.sampled_from(["cos", "sin"]))
def test_cosines_and_sines_are_correctly_rounded(angles: list[float], function: str) -> None:
    assert correctly_rounded(function, np.array(angles), 30).tolist() == [reference(function, x, 30) for x in angles]


@given(st.lists(st.integers(0, (1 << softmax.WIDTH_BITS) - 1), min_size=1, max_size=20))
def test_exponential_powers_are_correctly_rounded(places: list[int]) -> None:
    expected = [reference("exp", c / 2**16, softmax.EXP_POWER_BITS) for c in places]
    assert softmax.exponential_powers()[places].tolist() == expected


@pytest.mark.parametrize("function", ["cos", "sin"])
def test_doubtful_values_are_decided_by_more_digits(function: str) -> None:
    angles = doubts(function)
    assert len(angles) > 3
    assert correctly_rounded(function, angles, 30).tolist() == [reference(function, x, 30) for x in angles]


@pytest.mark.parametrize("function", ["cos", "sin", "exp"])
def test_more_digits_for_all_give_what_doubles_give(function: str) -> None:
    x = ANGLES[:300] / 2048 * (2 if function == "exp" else 2048)
    bits = 11 if function == "exp" else 30
    everywhere = correctly_rounded(function, x, bits, margin=0.5)
    assert np.array_equal(everywhere, correctly_rounded(function, x, bits))
    assert everywhere.tolist() == [reference(function, v, bits) for v in x]


@pytest.mark.parametrize("function", ["cos", "sin"])
def test_a_library_that_is_off_in_its_last_places_gives_the_same(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, original = correctly_rounded(function, ANGLES, 30), getattr(np, function)
    scaled = original(ANGLES) * 2.0**30
    error = np.sign(scaled - np.rint(scaled)) * 0.9 * MARGIN / 2.0**30  # to the wrong side; 100 last places near 1
    monkeypatch.setattr(np, function, lambda x: original(x) + error)
    assert not np.array_equal(np.rint(getattr(np, function)(ANGLES) * 2.0**30), right), "nothing was at stake"
    assert np.array_equal(correctly_rounded(function, ANGLES, 30), right)


def test_one_thread_at_a_time_computes_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """mpmath's memo of pi is spoilt by two threads that lengthen it at once, and sessions are threads."""
    held = []
    cosine = public._precise.cos
    monkeypatch.setattr(public._precise, "cos", lambda x: held.append(public._MPMATH.locked()) or cosine(x))
    correctly_rounded("cos", ANGLES[:5], 30, margin=0.5)
    assert held == [True] * 5


@given(st.floats(1, 1e7, width=32), st.integers(1, 128).flatmap(lambda d: st.tuples(st.integers(0, d - 1), st.just(d))))
def test_powers_are_correctly_rounded_to_float32(base: float, exponent: tuple[int, int]) -> None:
    e = float(np.float32(exponent[0]) / np.float32(exponent[1]))
    (power,) = rounded_power(base, np.array([e]))
    with mpmath.workdps(80):
        exact = mpmath.mpf(base) ** e
        for neighbour in (np.nextafter(power, np.float32(0)), np.nextafter(power, np.float32(np.inf))):
            assert abs(exact - float(power)) <= abs(exact - float(neighbour))


def test_reciprocals_are_the_nearest() -> None:
    counts = torch.tensor([*range(1, 3000), 8191, 65537, 1 << 20])
    expected = [round(Fraction(1 << 30, c)) for c in counts.tolist()]
    assert (reciprocals(counts) * 2**30).tolist() == expected


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=10), st.integers(1, 44))
def test_powers_for_polynomials_are_those_of_ieee_doubles(places: list[int], low: int) -> None:
    """Python's own floats, one operation at a time, as any machine's."""
    ours = polynomial.powers(torch.tensor(places), low, 12, 6)
    also = polynomial.powers(torch.tensor(places), torch.tensor(low), 12, 6)
    fractions = [(c % 2**low) / 2**low for c in places]
    expected = [2.0**12] * len(places)
    for values, of_tensors in zip(ours, also, strict=True):
        expected = [power * fraction for power, fraction in zip(expected, fractions, strict=True)]
        assert values.tolist() == of_tensors.tolist() == [round(power) for power in expected]


# ---------------------------------------------------------------- into the ring


@given(st.fractions(-1000, 1000))
def test_a_fraction_is_rounded_once(x: Fraction) -> None:
    assert abs(fixed_point(x).item() - x * 2**16) <= Fraction(1, 2)
    assert abs(fixed_point(x, 32).item() - x * 2**32) <= Fraction(1, 2)


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1))
def test_a_table_is_rounded_to_the_nearest_half_to_even(units: list[int]) -> None:
    assert fixed_point(table(torch.tensor(units))).tolist() == [round(Fraction(u, 2**14)) for u in units]


def test_integers_stay() -> None:
    assert fixed_point(torch.tensor([3, -4]), 0).tolist() == [3, -4]
    assert fixed_point(torch.tensor([3, -4])).tolist() == [3 << 16, -4 << 16]


@pytest.mark.parametrize("x", [torch.tensor([0.5]), torch.tensor([1.0]).double().cos(), 1.0 / torch.tensor([3])])
def test_real_numbers_of_unknown_origin_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="may differ between machines"):
        fixed_point(x)


FACTORS: dict[str, Callable[[], Fraction | float | torch.Tensor]] = {
    "a third": lambda: Fraction(1, 3),
    "0.6": lambda: 0.6,
    "reciprocals": lambda: reciprocals(torch.tensor([[1], [3], [7]])),
}


@pytest.mark.parametrize("factor", FACTORS)
def test_scaling_equals_plaintext(factor: str) -> None:
    x, by = torch.tensor([[1.0, -2.0], [3.0, 400.0], [0.5, 7.0]]), FACTORS[factor]()
    mask = torch.randint(-(2**62), 2**62, x.shape, generator=torch.Generator().manual_seed(1))

    def program(session) -> torch.Tensor:  # type: ignore[no-untyped-def]
        share = fixed_point(table((x * 2**30).long())) - mask if session.party == 0 else mask
        scaled = MpcBackend(session).scale(Secret(share, session.party), by)
        return session.run(session.open(scaled.share, 64))

    opened, _ = run_parties(program)
    assert (decode(opened) - PlainBackend().scale(x, by)).abs().max() < 400 * 2**-16


# ---------------------------------------------------------------- what a plan notes


def noted(*values: Fraction | torch.Tensor, session: PlanSession | None = None) -> str:
    session = session or PlanSession()
    session.constants = Constants()
    for value in values:
        session.public(value)
    return session.constants.hexdigest()


def test_a_plan_notes_public_values_and_their_order() -> None:
    half, third, rows = Fraction(1, 2), Fraction(1, 3), reciprocals(torch.tensor([1, 2, 3]))
    digests = {noted(), noted(half), noted(half, third), noted(third, half), noted(rows), noted(rows[:2], rows[2:])}
    assert len(digests) == 6
    assert noted(rows, half) == noted(rows.clone(), half) == noted(rows, half, session=DryRunSession())


def test_one_unit_shows() -> None:
    changed = table(torch.arange(1000) * 2**14 + (torch.arange(1000) == 777) * 2**14)
    assert noted(table(torch.arange(1000) * 2**14)) != noted(changed)


def test_a_plan_has_shapes_and_a_dry_run_values() -> None:
    rows = reciprocals(torch.tensor([[1], [2], [3]]))
    assert PlanSession().public(rows).is_meta and PlanSession().public(rows).shape == (3, 1)
    assert PlanSession().public(Fraction(1, 2)).shape == ()
    assert torch.equal(DryRunSession().public(rows), fixed_point(rows))
