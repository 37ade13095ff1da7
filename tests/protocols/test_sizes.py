"""What may become large: refused before it is drawn, and never kept."""

from __future__ import annotations

import pytest
import torch

from mpcache.protocols import rank
from mpcache.protocols.correlation import Dealer, PartyCorrelations
from mpcache.protocols.errors import TooLarge
from mpcache.protocols.linear import LinearMask
from mpcache.protocols.local import run_parties
from mpcache.protocols.plan import PlanSession, ShapeArithmetic
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session

HUGE = LinearMask("w", (1, 1 << 40), (1, 1 << 40), (1, 1), 48, 48)
"""2^40 elements."""


@pytest.mark.parametrize("party", [0, 1])
def test_a_huge_correlation_is_refused_before_anything_of_it_is_drawn(party: int) -> None:
    with pytest.raises(TooLarge, match="takes 8,192"):
        PartyCorrelations(party, new_key(), bytes).take(HUGE)
    with pytest.raises(TooLarge, match=r"2\.0 are allowed: shorten the prompt"):
        Dealer((new_key(), new_key()), new_key()).correction(HUGE)


def test_a_huge_message_is_refused_before_it_is_packed() -> None:
    def program(session: Session) -> None:
        session.largest_bytes = 100
        session.run(session.open(torch.zeros(13, dtype=torch.int64), 64))

    with pytest.raises(TooLarge):
        run_parties(program)


def test_tables_of_pairs_are_neither_made_by_a_plan_nor_kept_by_a_run() -> None:
    rank._pairs_of.cache_clear()
    session = PlanSession()
    with ShapeArithmetic():
        for n in range(2000, 2040):
            session.run(rank.top_k(session, torch.empty((1, n), dtype=torch.int64, device="meta"), 2, 22))
    assert rank._pairs_of.cache_info().currsize == 0
    run_parties(lambda s: [s.run(rank.ranks(s, torch.zeros((1, n), dtype=torch.int64), 8)) for n in range(2, 20)])
    assert rank._pairs_of.cache_info().currsize <= 4
