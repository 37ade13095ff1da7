"""What a party sees of a computation, and whether it is noise.

Protocols run on many equal rows, shared trivially, so that nothing but their own masks can make a message vary. Then
every bit that a party receives must be balanced over the rows, and in its difference from the next row, and no two
openings may go together: a value without a mask, a mask that is not uniform over the opened width, one that is used
twice and one that rows share would each show.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mpcache.protocols.session import Opening, Session

DEVIATIONS = 7
"""A false alarm in 10^11 bits."""
PAIR_DEVIATIONS = 8
"""A false alarm in 10^15 pairs."""

FAR_OUT = (-1, -(1 << 63), 1 << 15, 1 << 31, 1 << 47, 1 << 62, (1 << 63) - 1)
"""Ring elements beyond every protocol's bounds; of some protocols', the first ones."""
FAR_OUT_CASES = [pytest.param(value, marks=[] if i < 2 else [pytest.mark.slow]) for i, value in enumerate(FAR_OUT)]


def cyclic(count: int, bits: int) -> torch.Tensor:
    """Numbers on a circle of 2^bits of which each third beats the one before it: no one is the largest."""
    return torch.arange(count) * (2**bits // 3)


@dataclass
class Seen:
    """An opening as one party sees it: what it received, and what it computed from that; (rows, lanes) each."""

    shape: torch.Size
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
            if r.receiver not in (None, session.party) or not r.shape.numel():
                continue
            views = [r.result]
            if r.receiver is None or r.revealed:
                assert r.share is not None
                views.append(r.result ^ r.share if r.xor else r.result - r.share)  # what came
            seen.append(Seen(r.shape, r.bits, r.revealed, tuple(_rows(x, rows) for x in views)))

    session._round = noted  # type: ignore[method-assign]
    return seen


def _rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    """(rows, lanes); where the rows are those of several layers, each layer's beside the others'. What has another
    number of rows is one lane."""
    if x.dim() == 0 or x.shape[0] % rows:
        return x.reshape(-1, 1)
    return x.reshape(-1, rows, x.numel() // x.shape[0]).transpose(0, 1).reshape(rows, -1)


def assert_noise(seen: list[Seen]) -> None:
    """Of everything that is not revealed on purpose."""
    masked = [s for s in seen if not s.revealed]
    for rows in {len(s.views[0]) for s in masked}:
        lanes = [(view, s.bits) for s in masked for view in s.views if len(view) == rows]
        views = torch.cat([view for view, _ in lanes], 1)
        bits = torch.cat([torch.full((view.shape[1],), bits) for view, bits in lanes])
        assert _biased(views, bits) == set(), "an opening of so many bits is biased"
        assert _biased(views - views.roll(1, 0), bits) == set(), "rows of an opening of so many bits share a mask"
        assert_independent(views)


def _biased(views: torch.Tensor, bits: torch.Tensor) -> set[int]:
    """The widths of lanes of which some bit is not balanced over the rows."""
    found: set[int] = set()
    for bit in range(int(bits.max())):
        wide = bits > bit
        ones = ((views[:, wide] >> bit) & 1).sum(0)
        far = (ones - len(views) / 2).abs() >= DEVIATIONS * len(views) ** 0.5 / 2
        found |= set(bits[wide][far].tolist())
    return found


def assert_independent(views: torch.Tensor) -> None:
    """No two lanes go together: a mask that two share, or one has negated, shows in the lowest bit, as values are the
    same in all rows."""
    signs = (views & 1).float() * 2 - 1
    together = (signs.T @ signs).fill_diagonal_(0).abs().max()
    assert together < PAIR_DEVIATIONS * len(views) ** 0.5, "two openings share a mask"


def destinations(seen: list[Seen]) -> list[torch.Tensor]:
    """What was revealed, (blocks, n) each: every row must be a permutation."""
    orders = [s.views[0].reshape(-1, s.shape[-1]) for s in seen if s.revealed]
    for order in orders:
        expected = torch.arange(order.shape[1])
        assert (order.sort(1).values == expected).all(), "destinations repeat, and tell how many rows were kept"
    return orders
