import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.session import Session
from mpcache.protocols.threshold import keep_largest, score_bits
from tests.protocols.sharing import run_counted, run_ring


async def _keep(session: Session, x: torch.Tensor, k: int, bits: int) -> torch.Tensor:
    return await keep_largest(session, x, k, bits)


def expected_bits(scores: torch.Tensor, k: int) -> torch.Tensor:
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(scores).scatter(-1, order, 1)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_exactly_the_k_largest_are_kept_and_of_equals_the_first(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 24))
    k = data.draw(st.integers(1, n))
    bits = data.draw(st.sampled_from([3, 8, 25]))
    numbers = st.integers(-4, 2**bits - 5) | st.sampled_from([0, 1])
    scores = torch.tensor(data.draw(st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=3)))
    assert torch.equal(run_ring(_keep, scores, k=k, bits=bits), expected_bits(scores, k))


@pytest.mark.parametrize("value", [0, 2**20 - 5, -4])
def test_equal_scores_keep_the_first(value: int) -> None:
    scores = torch.full((2, 513), value)
    kept = run_ring(_keep, scores, k=100, bits=20)
    assert torch.equal(kept, (torch.arange(513) < 100).long().expand(2, 513))


def test_rounds_do_not_grow_with_the_number_of_rows() -> None:
    costs = [run_counted(_keep, torch.arange(64).expand(rows, 64), k=8, bits=10)[1] for rows in (1, 5)]
    assert costs[0].rounds == costs[1].rounds


def test_keeping_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep 3 of 2"):
        run_ring(_keep, torch.zeros(1, 2, dtype=torch.int64), k=3, bits=4)


def test_score_bits_leave_a_factor_of_two() -> None:
    assert 2 ** score_bits(100.0, 16) >= 2 * 100 * 2**16
