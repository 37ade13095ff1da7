"""Reciprocal and reciprocal square root over a wide range: a table of polynomials for each factor of four.

X is opened once under a mask. For each range [L, 4 L), L = 4^j 2^low, its low bits index that range's table of
polynomials (polynomial.py), as if X were there; digit tables tell for each L whether X reaches it: a bit t_j. The
result is v_0 + sum_j t_j (v_j - v_{j-1}); as the dealer knows the random bit that t_j is opened under, the products
need no round of their own. So all of it takes three rounds, whatever the range. Tables are large (640 bytes a range),
and meant for what there is one of in each row: a sum, a mean square.

Outside [2^low, 2^high) the result saturates: below, it is that of some value up to 2^(low + 2); X stays below 2^high.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.protocols.comparison import sign
from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.polynomial import Pieces, deal_tables, evaluate
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS
from mpcache.protocols.session import Session, together
from mpcache.protocols.truncation import truncate

RECIPROCAL_BITS = 36
RSQRT_BITS = 38
"""Fractional bits of the untruncated results."""
_SCALES = {"reciprocal": RECIPROCAL_BITS, "rsqrt": RSQRT_BITS}
_POWER_BITS = 12
_DEGREE = 4
_INDEX_BITS = 4


@dataclass(frozen=True)
class RangedTable(Placewise):
    """r modulo 2^(high + 1); each range's table; for each range after the first a mask a, a random bit d in both forms
    and d a; and digit tables of r.

    X is an integer at scale 2^in_bits; the function's value comes times `factor`.
    """

    function: str
    low: int
    high: int
    in_bits: int
    factor: float

    @property
    def bits(self) -> int:
        return self.high + 1

    @property
    def end_bits(self) -> range:
        """log2 of each range's end."""
        return range(self.low + 2, self.high + 2, 2)

    def thresholds(self) -> list[int]:
        """Where each range but the first begins."""
        return [1 << (end - 2) for end in self.end_bits[1:]]

    def tables(self) -> LessThan:
        return LessThan(self.shape, self.bits - 1, len(self.end_bits) - 1, flat=True)

    def pieces(self, end_bits: int) -> Pieces:
        """16 segments, the second quarter to the last of which the range consists of; the first begins at 1/16."""
        end, value_bits = 2.0 ** (end_bits - self.in_bits), _SCALES[self.function] - _POWER_BITS
        first = width = end / (1 << _INDEX_BITS)
        middle = (self.function, first, width, _INDEX_BITS, _DEGREE, end / 4, end)
        return Pieces(*middle, value_bits, _POWER_BITS, RING_BITS, self.factor)

    def coefficients(self, end_bits: int) -> torch.Tensor:
        """Of the range's segments; those below it have its first value."""
        out = self.pieces(end_bits).coefficients().clone()
        begin = (1 << (_INDEX_BITS - 2)) - 1
        out[:begin, 0], out[:begin, 1:] = out[begin, 0], 0
        return out

    def fields(self) -> Fields:
        ranges, many = (*self.shape, len(self.end_bits)), (*self.shape, len(self.end_bits) - 1)
        return {
            "r": Random(self.shape, self.bits),
            "a": Random(many),
            "d_xor": Random(many, 1, xor=True),
            "table": self.pieces(self.high).fields(ranges),
            "d_a": Corrected(many),
            "digits": self.tables().fields(),
            "top": Corrected(many, 1, xor=True),
            "d": Corrected(many),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        r, d = randoms.r, randoms.d_xor
        coefficients = torch.stack([self.coefficients(end) for end in self.end_bits])
        ranges = r[..., None].expand(*self.shape, len(self.end_bits))
        top = (r >> (self.bits - 1)) & 1
        return {
            "table": deal_tables(coefficients, ranges, torch.tensor(self.end_bits)),
            "d_a": d * randoms.a,
            "digits": self.tables().deal(r, randoms.part("digits")),
            "top": top[..., None].expand(d.shape),
            "d": d,
        }


async def _inverse(session: Session, x: torch.Tensor, correlation: RangedTable) -> torch.Tensor:
    """Shares of the function at its scale. Rounds: 3.

    Opened: X, the differences of the ranges' values, and what a comparison opens, each under fresh masks.
    """
    shares = session.take(correlation)
    end_bits = torch.tensor(correlation.end_bits, device=session.device)
    c = (await session.open(x + shares.r, correlation.bits))[..., None]
    values = evaluate(shares.each("table"), c - (1 << (end_bits - _INDEX_BITS)), end_bits, _POWER_BITS)  # (..., ranges)
    steps = values[..., 1:] - values[..., :-1]
    at = c - torch.tensor(correlation.thresholds(), device=session.device)
    flip, opened = await together(
        sign(session, correlation.tables(), shares, at), session.open(steps + shares.a, RING_BITS)
    )
    reached: torch.Tensor = 1 - flip  # not below the threshold: reached xor d
    products: torch.Tensor = reached * steps + (1 - 2 * reached) * (opened * shares.d - shares.d_a)
    return values[..., 0] + products.sum(-1)


async def reciprocal_untruncated(
    session: Session, x: torch.Tensor, low: int, high: int, in_bits: int = FRACTION_BITS
) -> torch.Tensor:
    """Shares of 1/x at scale 2^RECIPROCAL_BITS, for the integer X = x 2^in_bits in [2^low, 2^high), low >= 2.

    Rounds: 3. Correction: about 700 bytes for each factor of four. Error: 1e-4 of the result and 2^-22.
    """
    return await _inverse(session, x, RangedTable(tuple(x.shape), "reciprocal", low, high, in_bits, 1.0))


async def rsqrt_untruncated(
    session: Session, x: torch.Tensor, low: int, high: int, in_bits: int = FRACTION_BITS, factor: float = 1.0
) -> torch.Tensor:
    """Shares of factor / sqrt(x) at scale 2^RSQRT_BITS; range and cost as in `reciprocal_untruncated`. Error: 4e-5 of
    the result and 2^-24."""
    return await _inverse(session, x, RangedTable(tuple(x.shape), "rsqrt", low, high, in_bits, factor))


async def reciprocal(session: Session, x: torch.Tensor, low: int = 2, high: int = 46) -> torch.Tensor:
    """Shares of 1/x at scale 2^16 for x at scale 2^16 from 6e-5 to 2^30. Rounds: 4. Relative error below 1e-4, or 2
    units of the result if larger."""
    value = await reciprocal_untruncated(session, x, low, high)
    return await truncate(session, value, RECIPROCAL_BITS - FRACTION_BITS, RING_BITS)


async def rsqrt(session: Session, x: torch.Tensor, low: int = 2, high: int = 46) -> torch.Tensor:
    """Shares of 1/sqrt(x) at scale 2^16; as `reciprocal`. Relative error below 5e-5, or 2 units."""
    value = await rsqrt_untruncated(session, x, low, high)
    return await truncate(session, value, RSQRT_BITS - FRACTION_BITS, RING_BITS)
