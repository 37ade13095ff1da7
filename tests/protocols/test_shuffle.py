import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.local import run_parties
from protocols.session import Opening, Session
from protocols.shuffle import compact, shuffle
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


def test_what_is_opened_is_a_fresh_permutation_whatever_was_kept() -> None:
    """The destinations, the one opening that is not under a mask, say nothing of the keep bits."""
    seen: list[list[int]] = []

    def destinations(keep: torch.Tensor) -> None:
        x, bits = shares_of(torch.zeros(1, 6, 1, dtype=torch.int64)), shares_of(keep)

        def program(session: Session) -> None:
            original = session.open

            def watch(share: torch.Tensor, bits: int, xor: bool = False) -> Opening:
                opening = original(share, bits, xor)
                openings.append(opening)
                return opening

            openings: list[Opening] = []
            session.open = watch  # type: ignore[method-assign]
            session.run(compact(session, x[session.party], bits[session.party], 3))
            if session.party == 0:
                seen.append(openings[-1].result.flatten().tolist())

        run_parties(program)

    for _ in range(200):
        destinations(torch.tensor([[1, 1, 1, 0, 0, 0]]))
    assert all(sorted(row) == [0, 1, 2, 3, 4, 5] for row in seen)
    first = [row.index(0) for row in seen]
    assert all(15 <= first.count(place) <= 60 for place in range(6)), "not uniform"
