import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.local import run_parties
from mpcache.protocols.session import Session
from mpcache.protocols.shuffle import compact, shuffle
from tests.protocols.noise import Seen, destinations, watch
from tests.protocols.sharing import run_ring, shares_of


def test_a_shuffle_keeps_the_rows_and_loses_their_order() -> None:
    x = torch.arange(3 * 40 * 2).reshape(3, 40, 2)
    once, again = run_ring(shuffle, x), run_ring(shuffle, x)
    assert not torch.equal(once, again)
    for block, shuffled in zip(x, once, strict=True):
        assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, block.tolist()))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.data())
def test_kept_rows_stay_in_order(n: int, blocks: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    orders = [data.draw(st.permutations(range(n))) for _ in range(blocks)]
    keep = (torch.tensor(orders) < k).long()
    x = torch.randint(-(2**62), 2**62, (blocks, n, 3))

    async def protocol(session: Session, rows: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        return await compact(session, rows, bits, k)

    expected = torch.stack([rows[bits.bool()] for rows, bits in zip(x, keep, strict=True)])
    assert torch.equal(run_ring(protocol, x, keep), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.data())
def test_however_many_are_kept_destinations_are_a_permutation(n: int, blocks: int, data: st.DataObject) -> None:
    """And the kept rows come first."""
    k = data.draw(st.integers(1, n))
    keep = torch.tensor([data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for _ in range(blocks)])
    x = torch.arange(n).expand(blocks, n)[..., None]
    shared = [shares_of(value) for value in (x, keep)]

    def program(session: Session) -> tuple[torch.Tensor, list[Seen]]:
        seen = watch(session)
        return session.run(compact(session, *(s[session.party] for s in shared), k)), seen

    (a, seen), (b, _) = run_parties(program)
    assert [order.shape for order in destinations(seen)] == [(blocks, n)]
    order = torch.argsort(keep, dim=1, descending=True, stable=True)
    assert torch.equal((a + b)[..., 0], order[:, :k])


@pytest.mark.parametrize("keep", [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0]], ids=str)
def test_what_is_revealed_is_a_fresh_permutation_whatever_was_kept(keep: list[int]) -> None:
    """The destinations, the one thing that is not under a mask, say nothing of the keep bits."""
    x = shares_of(torch.zeros(200, 6, 1, dtype=torch.int64))
    bits = shares_of(torch.tensor(keep).expand(200, 6))

    def program(session: Session) -> list[Seen]:
        seen = watch(session)
        session.run(compact(session, x[session.party], bits[session.party], 3))
        return seen

    for seen in run_parties(program):
        (orders,) = destinations(seen)
        first = orders.argmin(1)
        assert all(15 <= int((first == place).sum()) <= 60 for place in range(6)), "not uniform"
