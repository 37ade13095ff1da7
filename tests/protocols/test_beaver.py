import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.beaver import extend, mask, multiply, multiply_masked, square_sum
from mpcache.protocols.correlation import weight_mask
from mpcache.protocols.linear import MaskedWeight, linear
from mpcache.protocols.local import run_parties
from mpcache.protocols.randomness import new_key
from mpcache.protocols.ring import reduce_bits, signed, stored
from mpcache.protocols.session import Session
from tests.protocols.sharing import run_counted, run_ring, shares_of

small = st.integers(-(2**22), 2**22)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(small, small), min_size=1, max_size=20), st.sampled_from([48, 56, 64]))
def test_products_are_exact(pairs: list[tuple[int, int]], bits: int) -> None:
    x, y = torch.tensor(pairs).unbind(1)
    assert torch.equal(run_ring(multiply, x, y, width=bits, bits=bits), signed(x * y, bits))


def test_matrix_products_are_exact() -> None:
    x, y = torch.randint(-(2**18), 2**18, (4, 5, 6)), torch.randint(-(2**18), 2**18, (4, 7, 6))
    result = run_ring(multiply, x, y, width=48, operation="matmul_transposed")
    assert torch.equal(result, x @ y.transpose(1, 2))


def test_rows_that_join_a_cache_are_masked_once() -> None:
    rows = [torch.randint(-(2**18), 2**18, (2, n, 4)) for n in (3, 1, 2)]
    query = torch.randint(-(2**18), 2**18, (2, 1, 4))
    shared, query_shares = [shares_of(r) for r in rows], shares_of(query)

    def program(session: Session) -> tuple[torch.Tensor, list[int]]:
        cached, sent = None, []
        for share in shared:
            before = session.cost.sent_bytes
            cached = session.run(extend(session, cached, share[session.party], -2))
            sent.append(session.cost.sent_bytes - before)
        masked = session.run(mask(session, query_shares[session.party]))
        return multiply_masked(session, masked, cached, "matmul_transposed", (masked,)), sent

    (a, sent), (b, _) = run_parties(program)
    assert torch.equal(signed(a + b, 48), query @ torch.cat(rows, 1).transpose(1, 2))
    assert sent == [6 * r.numel() for r in rows]  # the new rows alone


def test_square_sums_are_exact() -> None:
    x = torch.randint(-(2**24), 2**24, (5, 9))

    async def squares(session: Session, share: torch.Tensor) -> torch.Tensor:
        return square_sum(session, await mask(session, share, 64))

    assert torch.equal(run_ring(squares, x), (x * x).sum(-1, keepdim=True))


@pytest.mark.parametrize("bits", [32, 48])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_known_weight_takes_one_message_from_party_1(rows: int, bits: int) -> None:
    key, w = new_key(), torch.randint(-(2**18), 2**18, (7, 5))
    x = torch.randint(-(2**18), 2**18, (rows, 5))
    shared, masked = shares_of(x), stored(w, bits) - weight_mask(key, "w", (7, 5), bits)

    def program(session: Session) -> tuple[torch.Tensor, object]:
        weight = MaskedWeight("w", stored(w, bits) if session.party == 0 else masked, bits)
        return session.run(linear(session, shared[session.party], weight)), session.cost

    (a, cost), (b, _) = run_parties(program, weight_key=key)
    assert torch.equal(signed(a + b, bits), signed(x @ w.t(), bits))
    assert (cost.sent_bytes, cost.received_bytes, cost.rounds) == (0, bits // 8 * x.numel(), 1)  # type: ignore[attr-defined]


def test_products_cost_what_their_docstrings_say() -> None:
    _, cost = run_counted(multiply, torch.ones(100, dtype=torch.int64), torch.ones(100, dtype=torch.int64))
    assert (cost.rounds, cost.sent_bytes, cost.correction_bytes) == (1, 1200, 600)
    assert int(reduce_bits(torch.tensor(-1), 48)) == 2**48 - 1
