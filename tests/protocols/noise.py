"""What a party sees of a computation, and whether it is noise.

Protocols run on many equal rows, shared trivially, so that nothing but their own masks can make a message vary. Then
every bit that a party receives must be balanced over the rows, and in its difference from the next row, and no two
openings may go together: a value without a mask, a mask that is not uniform over the opened width, one that is used
twice and one that rows share would each show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protocols.session import Opening, Session

DEVIATIONS = 7
"""A false alarm in 10^11 bits."""
PAIR_DEVIATIONS = 8
"""A false alarm in 10^15 pairs."""

FAR_OUT = (-1, 1 << 15, 1 << 31, 1 << 47, 1 << 62, -(1 << 63), (1 << 63) - 1)
"""Ring elements beyond every protocol's bounds."""


def cyclic(count: int, bits: int) -> torch.Tensor:
    """Numbers on a circle of 2^bits of which each third beats the one before it: no one is the largest."""
    return torch.arange(count) * (2**bits // 3)


@dataclass
class Seen:
    """An opening as one party sees it: what it received, and what it computed from that; (rows, lanes)."""

    bits: int
    revealed: bool
    views: tuple[torch.Tensor, ...]


def watch(session: Session, rows: int = 1) -> list[Seen]:
    """Note what the session's party sees from now on."""
    seen: list[Seen] = []
    original = session._round

    def noted(requests: list[Opening]) -> None:
        original(requests)
        for r in requests:
            if r.receiver == session.party and not r.revealed:
                seen.append(Seen(r.bits, r.revealed, (_rows(r.result, rows),)))
            elif r.receiver in (None, session.party):
                assert r.share is not None
                theirs = r.result ^ r.share if r.xor else r.result - r.share
                seen.append(Seen(r.bits, r.revealed, (_rows(r.result, rows), _rows(theirs, rows))))

    session._round = noted  # type: ignore[method-assign]
    return seen


def _rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    return x.reshape(rows, -1) if x.shape[0] == rows else x.reshape(-1, 1)


def is_balanced(x: torch.Tensor, bits: int) -> bool:
    """Every one of the low bits, over the rows, in every lane."""
    ones = torch.stack([((x >> bit) & 1).sum(0) for bit in range(bits)])
    return bool(((ones - x.shape[0] / 2).abs() < DEVIATIONS * x.shape[0] ** 0.5 / 2).all())


def assert_noise(seen: list[Seen]) -> None:
    """Of everything that is not revealed on purpose."""
    masked = [s for s in seen if not s.revealed]
    for s in masked:
        for view in s.views:
            assert is_balanced(view, s.bits), f"an opening of {s.bits} bits is biased"
            assert is_balanced(view - view.roll(1, 0), s.bits), "rows share a mask"
    for rows in {len(view) for s in masked for view in s.views}:
        assert_independent([s for s in masked if len(s.views[0]) == rows])


def assert_independent(masked: list[Seen]) -> None:
    """No two lanes of any openings go together: a mask that two share, or one has negated, shows in the lowest bit, as
    values are the same in all rows; in the highest too, unless they lie half the ring apart."""
    places = [(s.views[0], bit) for s in masked for bit in {0, s.bits - 1}]
    places += [(theirs, 0) for s in masked for theirs in s.views[1:]]
    signs = torch.cat([((view >> bit) & 1).float() * 2 - 1 for view, bit in places], 1)
    together = (signs.T @ signs).fill_diagonal_(0).abs().max()
    assert together < PAIR_DEVIATIONS * len(signs) ** 0.5, "two openings share a mask"


def destinations(seen: list[Seen], n: int) -> torch.Tensor:
    """(blocks, n): what was revealed, which must be permutations."""
    orders = torch.cat([torch.empty(0, n), *(s.views[0].reshape(-1, n) for s in seen if s.revealed)])
    assert (orders.sort(1).values == torch.arange(n)).all(), "destinations repeat, and tell how many rows were kept"
    return orders
